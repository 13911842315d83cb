"""Whether the fields of a card hold what their annotations say: one card of the wrong kind must not break what reads them all."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Union, get_args, get_origin

from polyadapt.errors import PluginError


def check_fields(card: Any, hints: Mapping[str, Any], sort: str) -> None:
    """Refuse a card with a field of another type.

    Args:
        card: a dataclass.
        hints: the types of its fields, as `typing.get_type_hints` gives them.
        sort: what it registers, for messages: `method`, `family`, …

    Raises:
        PluginError: the field, what it holds and what belongs there.
    """
    for name, hint in hints.items():
        value = getattr(card, name)
        if not fits(value, hint):
            raise PluginError(f"registered a {sort} whose {name} is {value!r}; {type(card).__name__}.{name} takes {_written(type(card), name)}")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is what an annotation of a card says, down to the items of tuples and mappings.

    >>> fits(("a", 1), tuple[str, ...]), fits({"a": None}, dict[str, int | None])
    (False, True)
    """
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if origin is type:
        return isinstance(value, type) and issubclass(value, parts[0])
    if origin is tuple:
        items = (parts[0],) * len(value) if isinstance(value, tuple) and parts[-1] is Ellipsis else parts
        return isinstance(value, tuple) and len(value) == len(items) and all(map(fits, value, items))
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(fits(key, parts[0]) and fits(item, parts[1]) for key, item in value.items())
    if hint is float:
        return isinstance(value, (int, float))
    return isinstance(value, hint)


def _written(card_type: type, name: str) -> str:
    """An annotation as the card's author reads it."""
    return str(next(item.type for item in fields(card_type) if item.name == name))

"""Options of methods, references and readers: pydantic models that refuse unknown keys by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from polyadapt.errors import UserError, nearest


class Options(BaseModel):
    """Base of every options class. Fields carry their default and, in `description`, its source."""

    model_config = ConfigDict(extra="forbid", frozen=True)


OptionsT = TypeVar("OptionsT", bound=BaseModel)


def read_options(cls: type[OptionsT], given: Mapping[str, Any], where: str) -> OptionsT:
    """Validate `given` against `cls`.

    Args:
        cls: the options class.
        given: what the user wrote.
        where: named in the error, for instance `method 'lora'`.

    Raises:
        UserError: an unknown key (with the nearest known one) or a value that does not fit.
    """
    for key in given:
        if key not in cls.model_fields:
            raise UserError(f"{where} has no option {key!r}{nearest(key, cls.model_fields)}")
    try:
        return cls.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{where}: option {name!r}: {first['msg']}, got {first['input']!r}") from error


def describe_options(cls: type[BaseModel]) -> list[dict[str, Any]]:
    """Rows for listings: name, type, default and description of every field."""
    rows = []
    for name, info in cls.model_fields.items():
        annotation = getattr(info.annotation, "__name__", None) or str(info.annotation)
        rows.append({"name": name, "type": annotation, "default": info.get_default(call_default_factory=True), "description": info.description or ""})
    return rows

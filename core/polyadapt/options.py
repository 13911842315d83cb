"""Options of methods, references and readers: pydantic models that refuse unknown keys by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar, get_origin
from urllib.parse import unquote_plus

from pydantic import BaseModel, ConfigDict, Field, PydanticUserError, ValidationError, model_validator

from polyadapt.errors import PluginError, UserError, nearest

if TYPE_CHECKING:
    from polyadapt_runtime.sampling import Sampling


class Options(BaseModel):
    """Base of every options class. Fields carry their default and, in `description`, its source."""

    # Validators are built at first use: listings show options of every plugin and validate none of them.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _lists_from_text(cls, given: Any) -> Any:
        """`sites=attn.q,attn.v` on a command line is a list: text with commas where a tuple is wanted."""
        if not isinstance(given, Mapping):
            return given
        lists = {name for name, info in cls.model_fields.items() if get_origin(info.annotation) is tuple}
        return {name: [part.strip() for part in value.split(",") if part.strip()] if name in lists and isinstance(value, str) else value for name, value in given.items()}


class DrawingOptions(Options):
    """How tokens are drawn, chosen alike for a model and for a bundle of it."""

    temperature: float = Field(0.0, ge=0, description="of drawing tokens; 0 takes the likeliest")
    top_k: int | None = Field(None, ge=1, description="draw among so many tokens only")
    top_p: float = Field(1.0, gt=0, le=1, description="draw among the likeliest tokens that together have this probability")
    seed: int | None = Field(None, ge=0, description="of drawing tokens")
    repetition_penalty: float = Field(1.0, gt=0, description="above 1, tokens that stand there already become less likely")

    def sampling(self) -> Sampling:
        """As the runtime takes them."""
        from polyadapt_runtime.sampling import Sampling

        return Sampling(self.temperature, self.top_k, self.top_p, self.seed, self.repetition_penalty)


OptionsT = TypeVar("OptionsT", bound=BaseModel)


def read_options(cls: type[OptionsT], given: Mapping[str, Any], where: str) -> OptionsT:
    """Validate `given` against `cls`.

    Args:
        cls: the options class.
        given: what the user wrote.
        where: named in the error, for instance `method 'lora'`.

    Raises:
        UserError: an unknown key (with the nearest known one) or a value that does not fit.
        PluginError: the class says of a field what pydantic cannot check.
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
    except PydanticUserError as error:
        raise PluginError(f"{where}: its options class {cls.__module__}.{cls.__name__} cannot be checked: {' '.join(error.message.split()).partition('. ')[0]}") from error


def split_uri(uri: str) -> tuple[str, str]:
    """(`scheme:rest`, what stands behind its last `?` if that can be options): files may have question marks in their names."""
    rest, mark, query = uri.rpartition("?")
    return (rest, query) if mark and re.match(r"\w+=", query) else (uri, "")


def options_behind(query: str, where: str) -> dict[str, str]:
    """What stands behind the `?` of a reference or URI: `key=value&key=value`, as text; it may hold `%xx` and `+`.

    Args:
        query: without the `?`.
        where: named in the error.

    Raises:
        UserError: a part is no option, or one is given twice.
    """
    options: dict[str, str] = {}
    for pair in query.split("&"):
        key, equals, value = pair.partition("=")
        key = unquote_plus(key)
        if not equals or not key:
            raise UserError(f"{where}: {pair!r} is not an option; write ?key=value, several joined by &")
        if key in options:
            raise UserError(f"{where} gives option {key!r} twice; keep one")
        options[key] = unquote_plus(value)
    return options


def describe_options(cls: type[BaseModel]) -> list[dict[str, Any]]:
    """Rows for listings: name, type, default and description of every field."""
    rows = []
    for name, info in cls.model_fields.items():
        annotation = getattr(info.annotation, "__name__", None) or str(info.annotation)
        rows.append({"name": name, "type": annotation, "default": info.get_default(call_default_factory=True), "description": info.description or ""})
    return rows

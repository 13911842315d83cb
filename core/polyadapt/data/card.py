"""Reader cards: which URI schemes turn into data sets, as data that imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath

from polyadapt.errors import UserError, unknown
from polyadapt.options import Options, split_uri


@dataclass(frozen=True)
class ReaderCard:
    """A reader of `scheme:rest`. `implementation` is `"package.module:function"` called as
    `function(rest, options) -> Dataset`, imported at first use.
    """

    scheme: str
    title: str
    tasks: tuple[str, ...]
    options: type[Options]
    implementation: str
    licence: str = ""
    notes: str = ""


def scheme_of(uri: str, schemes: Iterable[str]) -> str:
    """The scheme among these that reads a URI: the one of this very set (`data:sonic-pi`), else what stands before its colon.

    Raises:
        UserError: there is none, or it is no URI; the nearest one is named.
    """
    rest, _ = split_uri(uri)
    scheme, colon, _ = rest.partition(":")
    known = list(schemes)
    if not colon:
        raise UserError(f"data {uri!r} has no scheme; write for instance {_suggested_uri(uri)!r}; schemes: {', '.join(sorted(known)) or 'none'}")
    if rest in known or scheme in known:
        return rest if rest in known else scheme
    sets = [name for name in known if name.startswith(f"{scheme}:")]
    raise unknown("data set", rest, sets) if sets else unknown("data scheme", scheme, {name.partition(":")[0] for name in known})


def _suggested_uri(path: str) -> str:
    suffix = PurePath(path).suffix.lower().removeprefix(".")
    return f"{suffix}:{path}" if suffix in ("csv", "tsv", "jsonl", "npz") else f"folder:{path}"

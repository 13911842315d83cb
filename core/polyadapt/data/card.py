"""Reader cards: which URI schemes turn into data sets, as data that imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from polyadapt.options import Options


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

"""What readers of recordings share: files that open, silence left out, languages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from polyadapt.data.dataset import Example
from polyadapt.data.media import check_media
from polyadapt.data.trim import trimmed
from polyadapt.errors import UserError


class RecordingOptions(Protocol):
    """The options that `prepared` reads."""

    @property
    def check_files(self) -> bool: ...
    @property
    def trim_db(self) -> float: ...


def prepared(examples: Sequence[Example], options: RecordingOptions) -> list[Example]:
    """Examples whose files were opened once, and whose recordings lose the silence at their ends, as far as the options ask.

    Raises:
        UserError: a file is broken.
    """
    if options.check_files:
        check_media(examples)
    return trimmed(examples, options.trim_db) if options.trim_db else list(examples)


def language_codes(written: str, known: Sequence[str] = ()) -> tuple[str, ...]:
    """`fr, ro` as codes; nothing stands for all that are known.

    Raises:
        UserError: there is none, or one stands twice.
    """
    codes = tuple(code.strip() for code in written.split(",") if code.strip()) or tuple(known)
    if not codes or len(set(codes)) != len(codes):
        raise UserError(f"option language is {written!r}; give one or several different codes, such as 'fr' or 'fr,ro'")
    return codes

"""What readers of recordings share: files that open, silence and long recordings left out, languages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from polyadapt.data.dataset import Example
from polyadapt.data.media import check_media
from polyadapt.data.trim import not_longer, trimmed
from polyadapt.errors import UserError


class RecordingOptions(Protocol):
    """The options that `prepared` reads."""

    @property
    def check_files(self) -> bool: ...
    @property
    def trim_db(self) -> float: ...
    @property
    def maximum_seconds(self) -> float: ...


def prepared(examples: Sequence[Example], options: RecordingOptions) -> list[Example]:
    """Examples whose files were opened once, whose recordings lose the silence at their ends and are not too long, as far as the options ask.

    Raises:
        UserError: a file is broken, or no recording is short enough.
    """
    if options.check_files:
        check_media(examples)
    if options.trim_db:
        examples = trimmed(examples, options.trim_db)
    return not_longer(examples, options.maximum_seconds) if options.maximum_seconds else list(examples)


def language_codes(written: str, known: Sequence[str] = ()) -> tuple[str, ...]:
    """`fr, ro` as codes; nothing stands for all that are known.

    Raises:
        UserError: there is none, or one stands twice.
    """
    codes = tuple(code.strip() for code in written.split(",") if code.strip()) or tuple(known)
    if not codes or len(set(codes)) != len(codes):
        raise UserError(f"option language is {written!r}; give one or several different codes, such as 'fr' or 'fr,ro'")
    return codes

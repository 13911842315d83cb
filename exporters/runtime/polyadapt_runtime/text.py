"""Text to token ids by a `tokenizer.json`, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyadapt_runtime.cutting import tell_cut
from polyadapt_runtime.errors import InputError, MissingLibraryError

SHOWN = 40  # characters of a text that a message quotes


class TextReader:
    """A tokenizer with the settings of a spec.

    Args:
        spec: `maximum_tokens`, `inputs` {ids, mask, types: name of the graph's input or None}.
        path: the tokenizer's file, None where only token ids are read.

    Every method that needs the tokenizer raises `MissingLibraryError` where tokenizers is not installed, and
    `InputError` where the file is no tokenizer.
    """

    def __init__(self, spec: Mapping[str, Any], path: Path | None) -> None:
        self._names: Mapping[str, str | None] = spec["inputs"]
        self._maximum: int | None = spec.get("maximum_tokens")
        self._path = path
        self._tokenizers: dict[bool, Any] = {}

    def __call__(self, raw: Any) -> dict[str, np.ndarray]:
        """One text, pair of texts, or array of ids as int64 [tokens] for each input of the graph.

        Raises:
            InputError: it is none, or has no token: a graph would answer for what fills the row up.
        """
        ids, types = self.encode(raw)
        if not ids:
            raise InputError("the text is empty, and the model would answer for nothing; give at least one token")
        values = {"ids": np.array(ids, np.int64), "mask": np.ones(len(ids), np.int64), "types": np.array(types, np.int64)}
        return {name: values[role] for role, name in self._names.items() if name}

    def encode(self, raw: Any, cut: bool = True) -> tuple[list[int], list[int]]:
        """Token ids and type ids; `cut` keeps at most `maximum_tokens` of a text, its closing tokens among them."""
        if isinstance(raw, np.ndarray) and raw.ndim == 1 and raw.dtype.kind in "iu":
            kept = raw[: self._maximum] if cut else raw
            if len(kept) < len(raw):
                self._tell_cut(f"a row of {len(raw)} token ids")
            return [int(token) for token in kept], [0] * len(kept)
        pair = isinstance(raw, tuple) and len(raw) == 2 and all(isinstance(part, str) for part in raw)
        if not isinstance(raw, str) and not pair:
            raise InputError(f"a text is a string, a pair of strings or an int array of token ids, found {type(raw).__name__}")
        tokenizer = self._tokenizer(cut)
        encoded = tokenizer.encode(*raw) if pair else tokenizer.encode(raw)
        if encoded.overflowing:
            self._tell_cut(f"the text {' '.join((raw[0] if pair else raw)[:SHOWN].split())!r}…")
        return encoded.ids, encoded.type_ids

    def _tell_cut(self, what: str) -> None:
        tell_cut(what, "maximum_tokens", float(self._maximum or 0), "load the model with more of them, or give shorter texts")

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        text: str = self._tokenizer(cut=False).decode([int(token) for token in ids], skip_special_tokens=True)
        return text

    @property
    def has_tokenizer(self) -> bool:
        """Whether there is a tokenizer's file; without one, token ids go in and come out."""
        return self._path is not None

    def _tokenizer(self, cut: bool) -> Any:
        """The tokenizer, read at first use. Padding is this package's business, so the file's own is switched off."""
        if cut not in self._tokenizers:
            if self._path is None:
                raise InputError("this bundle has no tokenizer among its assets; give token ids as an int array")
            try:
                from tokenizers import Tokenizer
            except ImportError as error:
                raise MissingLibraryError("tokenizers", "text", "turning text into tokens") from error
            try:
                made = Tokenizer.from_file(str(self._path))
            except Exception as error:  # tokenizers raises bare Exceptions
                raise InputError(f"{self._path} is no tokenizer file: {error}") from error
            made.no_padding()
            if cut and self._maximum is not None:
                made.enable_truncation(self._maximum)
            else:
                made.no_truncation()
            self._tokenizers[cut] = made
        return self._tokenizers[cut]

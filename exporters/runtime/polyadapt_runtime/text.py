"""Text to token ids by a `tokenizer.json`, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyadapt_runtime.errors import InputError, MissingLibraryError


class TextReader:
    """A tokenizer with the settings of a spec.

    Args:
        spec: `maximum_tokens`, `inputs` {ids, mask, types: name of the graph's input or None}.
        path: the tokenizer's file.

    Raises:
        MissingLibraryError: tokenizers is not installed.
        InputError: the file is no tokenizer.
    """

    def __init__(self, spec: Mapping[str, Any], path: Path | None) -> None:
        self._names: Mapping[str, str | None] = spec["inputs"]
        self._maximum: int | None = spec.get("maximum_tokens")
        self._path = path
        self._tokenizer: Any = None

    def __call__(self, raw: Any) -> dict[str, np.ndarray]:
        """One text, pair of texts, or array of ids as int64 [tokens] for each input of the graph."""
        ids, types = self.encode(raw)
        if self._maximum is not None:
            ids, types = ids[: self._maximum], types[: self._maximum]
        values = {"ids": np.array(ids, np.int64), "mask": np.ones(len(ids), np.int64), "types": np.array(types, np.int64)}
        return {name: values[role] for role, name in self._names.items() if name}

    def encode(self, raw: Any) -> tuple[list[int], list[int]]:
        """Token ids and type ids; a text is cut to `maximum_tokens` with its closing tokens kept."""
        if isinstance(raw, np.ndarray) and raw.ndim == 1 and raw.dtype.kind in "iu":
            return [int(token) for token in raw], [0] * len(raw)
        pair = isinstance(raw, tuple) and len(raw) == 2 and all(isinstance(part, str) for part in raw)
        if not isinstance(raw, str) and not pair:
            raise InputError(f"a text is a string, a pair of strings or an int array of token ids, found {type(raw).__name__}")
        encoded = self.tokenizer.encode(*raw) if pair else self.tokenizer.encode(raw)
        return encoded.ids, encoded.type_ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        text: str = self.tokenizer.decode([int(token) for token in ids], skip_special_tokens=True)
        return text

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, read at first use. Padding is this package's business, so the file's own is switched off."""
        if self._tokenizer is None:
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
            if self._maximum is None:
                made.no_truncation()
            else:
                made.enable_truncation(self._maximum)
            self._tokenizer = made
        return self._tokenizer

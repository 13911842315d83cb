"""Raw input to tensors, as data says. The same code runs in training and beside an exported graph.

Specs by kind (`input` names the graph's input):
    image   {"kind": "image", "input", "size_px": [h, w], "resize": "crop" | "squash", "crop_fraction", "interpolation", "channels"}
    audio   {"kind": "audio", "input", "sample_rate_hz", "seconds", "minimum_seconds", "maximum_seconds": number or null each,
             "refuse_silence": true or false, "refuse_cut": the same, "lengths": input that takes the number of samples}
    text    {"kind": "text", "tokenizer": asset, "maximum_tokens", "pad_id", "pad_side", "inputs": {"ids", "mask", "types"}}
    phonemes {"kind": "phonemes", "symbols": asset, "language", "maximum_tokens": number or null, "pad_id", "inputs": {"ids", "mask"}}
    array   {"kind": "array", "input", "shape": [numbers or names of free axes], "dtype"}
    tensors {"kind": "tensors"}: the raw input is a table of arrays without a batch axis
    parts   {"kind": "parts", "parts": {key: spec}}: the raw input is a table with one raw input for each key
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyadapt_runtime.audio import read_audio
from polyadapt_runtime.errors import InputError, ManifestError
from polyadapt_runtime.fields import check_spec
from polyadapt_runtime.image import read_image
from polyadapt_runtime.manifest import need
from polyadapt_runtime.phonemes import PhonemeReader
from polyadapt_runtime.text import TextReader

Example = dict[str, np.ndarray]

_NEEDED = {
    "image": ("input", "size_px"),
    "audio": ("input", "sample_rate_hz"),
    "text": ("inputs",),
    "phonemes": ("inputs",),
    "array": ("input", "shape"),
    "tensors": (),
    "parts": ("parts",),
}
_TABLES: dict[str, type] = {"input": str, "lengths": str, "inputs": dict, "parts": dict, "shape": list, "size_px": list, "tokenizer": str, "symbols": str}


class Processor:
    """Turns one raw input into tensors, and a list of them into a batch.

    Args:
        spec: one of the specs above.
        assets: files that specs name, such as the tokenizer.

    Raises:
        ManifestError: an unknown kind, or a field is missing or of another sort.
    """

    def __init__(self, spec: Mapping[str, Any], assets: Mapping[str, Path] | None = None) -> None:
        self.spec = dict(spec)
        self.assets = {name: Path(path) for name, path in (assets or {}).items()}
        self.kind = str(spec.get("kind", ""))
        if self.kind not in _NEEDED:
            raise ManifestError(f"pre-processing of kind {self.kind!r}; this version knows {', '.join(_NEEDED)}")
        if lacking := [key for key in _NEEDED[self.kind] if key not in spec]:
            raise ManifestError(f"pre-processing of kind {self.kind!r} lacks {', '.join(lacking)}")
        if odd := [key for key, kind in _TABLES.items() if key in spec and not isinstance(spec[key], kind)]:
            raise ManifestError(f"pre-processing of kind {self.kind!r}: {odd[0]} must be {_TABLES[odd[0]].__name__}, found {type(spec[odd[0]]).__name__}")
        check_spec(self.spec, f"pre-processing of kind {self.kind!r}")
        self._parts = {key: Processor(need(spec["parts"], key, dict, "pre-processing: parts"), self.assets) for key in spec["parts"]} if self.kind == "parts" else {}
        self.text = TextReader(spec, self.assets.get(spec.get("tokenizer") or "tokenizer")) if self.kind == "text" else None
        self._phonemes = PhonemeReader(spec, self.assets.get(spec.get("symbols") or "phonemes")) if self.kind == "phonemes" else None

    def __call__(self, raw: Any) -> Example:
        """The tensors of one example, without a batch axis.

        Raises:
            InputError: the raw input is not what the spec describes.
            MissingLibraryError: a library that this raw input needs is not installed.
        """
        if self.kind == "image":
            return {self.spec["input"]: read_image(raw, self.spec)}
        if self.kind == "audio":
            samples = read_audio(raw, self.spec)
            return {self.spec["input"]: samples, **({self.spec["lengths"]: np.array(len(samples))} if self.spec.get("lengths") else {})}
        if self.text is not None:
            return self.text(raw)
        if self._phonemes is not None:
            return self._phonemes(raw)
        if self.kind == "array":
            return {self.spec["input"]: self._array(raw)}
        return self._table(raw)

    def collate(self, examples: Sequence[Example]) -> Example:
        """A batch: every tensor with a first axis of examples. Texts and sounds are filled up to the longest.

        Raises:
            InputError: no example, or shapes that differ where nothing is filled up.
        """
        if not examples:
            raise InputError("a batch needs at least one example")
        batch: Example = {}
        for key in examples[0]:
            batch[key] = _stacked([example[key] for example in examples], *self._padding(key), key)
        return batch

    @property
    def pads_exactly(self) -> bool:
        """Whether a model sees, by a mask, what was filled up: then a row does not depend on the rows beside it."""
        return self.kind in ("text", "phonemes") and bool(self.spec["inputs"].get("mask"))

    def _padding(self, key: str) -> tuple[str, int]:
        """(side, value) with which an input is filled up; the side is empty where lengths must agree."""
        for part in self._parts.values():
            side, value = part._padding(key)
            if side:
                return side, value
        if self.kind in ("text", "phonemes") and key in self.spec["inputs"].values():
            return str(self.spec.get("pad_side", "right")), int(self.spec.get("pad_id", 0)) if key == self.spec["inputs"].get("ids") else 0
        return ("right", 0) if self.kind == "audio" and key == self.spec["input"] else ("", 0)

    def _array(self, raw: Any) -> np.ndarray:
        dtype, shape = np.dtype(self.spec.get("dtype", "float32")), self.spec["shape"]
        try:
            array = np.asarray(raw, dtype=dtype)
        except (TypeError, ValueError) as error:
            raise InputError(f"input {self.spec['input']!r} takes numbers of shape {shape}: {error}") from error
        if array.ndim != len(shape) or any(isinstance(size, int) and size != found for size, found in zip(shape, array.shape, strict=False)):
            raise InputError(f"input {self.spec['input']!r} takes one example of shape {shape}, found {list(array.shape)}; give several as a list")
        if dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(f"input {self.spec['input']!r} has values that are not finite numbers")
        return array

    def _table(self, raw: Any) -> Example:
        if not isinstance(raw, Mapping):
            raise InputError(f"this model takes a table of named inputs, found {type(raw).__name__}")
        if self.kind == "tensors":
            return {str(key): np.asarray(value) for key, value in raw.items()}
        if set(raw) != set(self._parts):
            raise InputError(f"this model takes a table with {', '.join(self._parts)}, found {', '.join(map(str, raw)) or 'nothing'}")
        return {key: value for name, part in self._parts.items() for key, value in part(raw[name]).items()}


def present(processor: Processor | None) -> Processor:
    """The processor of a bundle that has one.

    Raises:
        InputError: it has none.
    """
    if processor is None:
        raise InputError("this bundle describes no pre-processing; give a table of ready tensors, or use run()")
    return processor


def batches(examples: Sequence[Example], size: int, pads_exactly: bool) -> Iterator[list[int]]:
    """Indices of examples that run together, at most `size` of them; without a mask that covers padding, only examples of one shape.

    Raises:
        InputError: a size that is none.
    """
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
        raise InputError(f"batch_size is a whole number from 1 on, found {size!r}")
    groups: dict[object, list[int]] = {}
    for index, example in enumerate(examples):
        shapes = None if pads_exactly else tuple(sorted((key, np.shape(value)) for key, value in example.items()))
        groups.setdefault(shapes, []).append(index)
    for members in groups.values():
        for start in range(0, len(members), size):
            yield members[start : start + size]


def _stacked(arrays: list[np.ndarray], side: str, value: int, key: str) -> np.ndarray:
    if side:
        longest = max(array.shape[0] for array in arrays)
        gaps = [longest - array.shape[0] for array in arrays]
        widths = [(gap, 0) if side == "left" else (0, gap) for gap in gaps]
        arrays = [np.pad(array, width, constant_values=value) if gap else array for array, width, gap in zip(arrays, widths, gaps, strict=True)]
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise InputError(f"examples of input {key!r} have different shapes: {', '.join(map(str, sorted(shapes)))}; give them one at a time")
    return np.stack(arrays)

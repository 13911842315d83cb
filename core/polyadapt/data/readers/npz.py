"""`npz:` reads numpy arrays; nothing in the file is ever unpickled."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np

from polyadapt.data.dataset import Dataset, Example
from polyadapt.data.readers.card import NpzOptions
from polyadapt.data.rows import find_manifest
from polyadapt.errors import UserError, nearest


def read(rest: str, options: NpzOptions) -> Dataset:
    """Read inputs and answers.

    uint8 arrays [n, h, w] and [n, h, w, 3] are images, arrays [n, samples] with a rate are sounds, everything else is an
    array per example.

    Raises:
        UserError: a name is missing, lengths differ, values are not finite, or the file is damaged or holds objects.
    """
    path = find_manifest(rest, "npz")
    names = [options.x] + [name for name in (options.y, options.group) if name]
    arrays = _arrays(path, names)
    inputs = arrays[options.x]
    if inputs.ndim < 2:
        raise UserError(f"{path}: {options.x!r} has shape {inputs.shape}, expected [examples, …]; reshape it")
    for name in names[1:]:
        if not arrays[name].ndim:
            raise UserError(f"{path}: {name!r} is one value, expected one for each of the {len(inputs)} rows of {options.x!r}")
        if len(arrays[name]) != len(inputs):
            raise UserError(f"{path}: {options.x!r} has {len(inputs)} rows and {name!r} has {len(arrays[name])}; they have to agree")
    answers = arrays[options.y] if options.y else None
    labels = _labels(path, answers, options) if answers is not None else None
    examples = []
    for row in range(len(inputs)):
        extra: dict[str, object] = {"group": str(arrays[options.group][row])} if options.group else {}
        if answers is not None and labels is None:
            extra["target"] = np.atleast_1d(answers[row]).astype(np.float32)
        raw = (inputs[row], options.sample_rate_hz) if options.sample_rate_hz else inputs[row]
        examples.append(Example(f"row {row}", raw, labels[row] if labels else None, None, extra, f"{path.name}:{row}"))
    return Dataset(f"npz:{path.name}", examples, "audio" if options.sample_rate_hz else _media(inputs), options.labels if labels and options.labels else None)


def _arrays(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    try:
        with open(path, "rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise UserError(f"{path} holds one array without a name; save it with numpy.savez(x=…, y=…)")
            for name in names:
                if name not in archive.files:
                    raise UserError(f"{path}: no array {name!r}{nearest(name, archive.files)}; set the options x and y")
            arrays = {name: archive[name] for name in names}
    except (ValueError, OSError, EOFError, tokenize.TokenError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be read as npz ({error}); arrays of objects are refused, save plain numbers or strings") from error
    for name, array in arrays.items():
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            row = int(np.argwhere(~np.isfinite(array))[0][0])
            raise UserError(f"{path}: {name!r} has a value that is not finite in row {row}; repair or remove it")
    return arrays


def _labels(path: Path, answers: np.ndarray, options: NpzOptions) -> list[str] | None:
    """Class names of integers or strings [n]; None for numbers to predict."""
    if answers.dtype.kind in "US" and answers.ndim != 1:
        raise UserError(f"{path}: {options.y!r} holds texts of shape {answers.shape}, expected one class a row, [{len(answers)}]")
    if answers.ndim != 1 or np.issubdtype(answers.dtype, np.floating):
        return None
    if not options.labels or not np.issubdtype(answers.dtype, np.integer):
        return [str(value) for value in answers.tolist()]
    outside = np.flatnonzero((answers < 0) | (answers >= len(options.labels)))
    if outside.size:
        row = int(outside[0])
        raise UserError(f"{path}: {options.y!r} is {answers[row]} in row {row}, but only {len(options.labels)} labels are named (0 to {len(options.labels) - 1})")
    return [options.labels[int(value)] for value in answers]


def _media(inputs: np.ndarray) -> str:
    is_image = inputs.dtype == np.uint8 and (inputs.ndim == 3 or (inputs.ndim == 4 and inputs.shape[-1] in (1, 3)))
    return "image" if is_image else "array"

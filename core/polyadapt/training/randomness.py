"""Random states: a training run has its own, and the caller's are as before afterwards."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping

import numpy as np
import torch


@contextlib.contextmanager
def isolated(seed: int, device: torch.device) -> Iterator[None]:
    """Give dropout, and libraries that draw from global generators, seeded states within the block.

    The states of torch (CPU and `device`), numpy and Python are restored at its end.
    """
    before = states(device)
    torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())
    if device.type == "cuda":
        torch.cuda.set_rng_state(torch.Generator(device).manual_seed(seed).get_state(), device)
    np.random.set_state(np.random.RandomState(seed % 2**32).get_state())
    random.setstate(random.Random(seed).getstate())
    try:
        yield
    finally:
        restore(before, device)


def states(device: torch.device) -> dict[str, torch.Tensor]:
    """All global random states as tensors of fixed size.

    Shape:
        torch and cuda uint8 [n]; numpy int64 [626] and python int64 [626] with the position last; gauss float64 [4]:
        numpy's and Python's spare normal value, each behind a 1 where there is one.
    """
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, internal, spare = random.getstate()
    assert name == "MT19937" and version == 3
    found = {
        "torch": torch.get_rng_state(),
        "numpy": torch.tensor([*np.asarray(keys).tolist(), int(position)], dtype=torch.int64),
        "python": torch.tensor(internal, dtype=torch.int64),
        "gauss": torch.tensor([float(has_gauss), float(gauss), float(spare is not None), float(spare or 0.0)], dtype=torch.float64),
    }
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    return found


def restore(found: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """The inverse of `states`. A GPU's state is left out where the run went on from a CPU."""
    torch.set_rng_state(found["torch"])
    if device.type == "cuda" and "cuda" in found:
        torch.cuda.set_rng_state(found["cuda"], device)
    gauss = found["gauss"].tolist()
    *keys, position = found["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, int(gauss[0]), gauss[1]))
    random.setstate((3, tuple(found["python"].tolist()), gauss[3] if gauss[2] else None))

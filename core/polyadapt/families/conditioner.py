"""An input of a model that a graph of its own computes from another medium: a speaker vector from a recording.

A family's card names such inputs in `conditioners`, with the recipe by which their graphs are traced and checked; the
family says by `Family.conditioners` which of them a given backbone can compute. Graph, input and conditioner share one name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from polyadapt.signature import Signature


@dataclass(frozen=True)
class Conditioner:
    """What computes one input.

    Attributes:
        signature: named tensors of the other medium in; the input of the model, by its name and shape, out.
        preprocess: how one raw input of that medium becomes these tensors, in the terms of `polyadapt_runtime.preprocess`.
    """

    signature: Signature
    preprocess: Mapping[str, Any]

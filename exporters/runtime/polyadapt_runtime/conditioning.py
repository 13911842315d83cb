"""Inputs that a graph of their own computes from another medium: the speaker vector of a voice from recordings of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyadapt_runtime.errors import InputError, nearest
from polyadapt_runtime.graphs import Graphs
from polyadapt_runtime.manifest import Manifest
from polyadapt_runtime.preprocess import Example, Processor


class Conditioning:
    """The conditioners of a bundle. Their graphs are opened at the first use.

    Args:
        root: the bundle's folder.
        manifest: of the bundle.
        graphs: of the bundle.

    Raises:
        ManifestError: pre-processing that this version does not know.
    """

    def __init__(self, root: Path, manifest: Manifest, graphs: Graphs) -> None:
        self._graphs = graphs
        assets = {name: root / asset for name, asset in manifest.assets.items()}
        self._processors = {name: Processor(spec, assets) for name, spec in manifest.conditioners.items()}

    def compute(self, raws: Sequence[Any], name: str | None) -> dict[str, np.ndarray]:
        """One input, without a batch axis: the mean over all that was given.

        Args:
            raws: of the other medium.
            name: of the input; may be None where there is but one.

        Raises:
            InputError: nothing given, no such input, or raw input that its conditioner refuses.
        """
        if not self._processors:
            raise InputError("this bundle computes none of its inputs from another medium; leave the condition out")
        if name is None and len(self._processors) > 1:
            raise InputError(f"this bundle computes several inputs from other media; name one of {', '.join(self._processors)}")
        chosen = next(iter(self._processors)) if name is None else name
        if chosen not in self._processors:
            raise InputError(f"this bundle computes no input {chosen!r} from another medium{nearest(chosen, self._processors)}")
        if not raws:
            raise InputError(f"{chosen} needs at least one {self._processors[chosen].kind}")
        processor = self._processors[chosen]
        # One by one: a clip among longer ones would end in silence that it does not have.
        found = [self._graphs.run(processor.collate([processor(raw)]), {}, chosen)[chosen][0] for raw in raws]
        return {chosen: np.mean(found, axis=0, dtype=np.float64).astype(found[0].dtype)}

    def filled(self, example: Example, given: Mapping[str, Any], own: Mapping[str, Any]) -> Example:
        """An example with its condition.

        Args:
            example: tensors of raw input.
            given: values without a batch axis, by input, that the call gives.
            own: those that the artifact brings; what the call gives goes before.

        Raises:
            InputError: an input that a conditioner computes is in none of them, or the call gives one twice.
        """
        if lacking := [name for name in self._processors if not any(name in held for held in (given, own, example))]:
            kind = self._processors[lacking[0]].kind
            raise InputError(f"this model also takes {lacking[0]!r}: give condition=bundle.condition({kind} of it), or an artifact that has its own")
        if twice := [name for name in given if name in example and name not in self._processors]:
            raise InputError(f"condition gives {twice[0]!r}, which is made of the raw input of this call; leave it out of condition")
        return {name: np.asarray(value) for name, value in {**own, **example, **given}.items()}

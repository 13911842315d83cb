"""One token more: a bundle's decode step against PyTorch, and what the runtime adds to onnxruntime.

The architecture of SmolLM2-135M with random weights, batch 1, 64 tokens in the cache. PyTorch runs transformers' eager
model with its own cache; the bundle's step is the runtime's own, from a token id to the scores of the next one.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import Load, Report, Side, Target, add_device, arguments_of, in_turns, on_device
from subjects import llama_135m

from polyadapt.model import Model
from polyadapt_onnx.exporter import export
from polyadapt_runtime import Bundle
from polyadapt_runtime.decoding import Decoding

PAST = 64
STEPS = 4  # of one run of a side, all from the same cache


class TorchStep:
    """Token by token in eager PyTorch; the cache is cut back to its length after every step."""

    def __init__(self, model: Model, device: str) -> None:
        from transformers import DynamicCache

        self._backbone: Any = model.backbone.to(device)
        self._cache = DynamicCache()
        self._token = torch.tensor([[7]], device=device)
        with torch.inference_mode():
            self._backbone(input_ids=torch.arange(PAST, device=device)[None], past_key_values=self._cache, use_cache=True)

    def __call__(self) -> np.ndarray:
        with torch.inference_mode():
            logits = self._backbone(input_ids=self._token, past_key_values=self._cache, use_cache=True).logits
        self._cache.crop(-1)
        return np.asarray(logits[0, -1].cpu().numpy())


class BundleStep:
    """Token by token from a bundle, with the runtime or with onnxruntime alone on the same session and the same tensors."""

    def __init__(self, folder: Path, threads: tuple[int, ...], device: str) -> None:
        self._states: dict[int, Any] = {}
        for count in threads:
            bundle = Bundle(folder, device=device, threads=count)
            _, decoding = bundle._writer._begin(range(PAST), {})
            decoding.scores(np.arange(PAST)[None])
            session, past = bundle._session, dict(decoding._past)
            fed = {"input_ids": session.value(np.array([[7]])), "attention_mask": session.value(np.ones((1, PAST + 1), np.int64)), **past}
            self._states[count] = (session, past, fed)
        self._count, self._device = threads[0], device

    def set_threads(self, count: int) -> None:
        self._count = count

    def runtime(self) -> np.ndarray:
        session, past, _ = self._states[self._count]
        return Decoding(session, {}, {}, {}, past).scores(np.array([[7]]))[0]

    def bare(self) -> object:
        session, _, fed = self._states[self._count]
        if self._device == "cuda":
            return session.run_bound(session.outputs, fed)
        return session._session.run_with_ort_values(session.outputs, fed)


def repeated(step: Callable[[], object]) -> Callable[[], None]:
    """Several steps as one run."""

    def run() -> None:
        for _ in range(STEPS):
            step()

    return run


def main() -> int:
    arguments = arguments_of("A decode step of a bundle against PyTorch eager.", 20, add_device)
    report = Report(on_device("decode", arguments), f"One token after {PAST}, batch 1, SmolLM2-135M's architecture", is_trial=arguments.is_trial)
    model = llama_135m()
    with tempfile.TemporaryDirectory() as folder:
        made = export(model, {}, Path(folder) / "text.bundle")
        torch_step, bundle_step = TorchStep(model, arguments.device), BundleStep(made.directory, arguments.threads, arguments.device)
        expected, found = torch_step(), bundle_step.runtime()
        if np.abs(found - expected).max() > 1e-4 * np.abs(expected).max():
            raise RuntimeError("the bundle's scores are not those of PyTorch")
        sides = [
            Side("torch", repeated(torch_step), arguments.threads, torch.set_num_threads),
            Side("runtime", repeated(bundle_step.runtime), arguments.threads, bundle_step.set_threads),
            Side("bare", repeated(bundle_step.bare), arguments.threads, bundle_step.set_threads),
        ]
        with Load() as load_of_others:
            rounds = in_turns(sides, arguments.rounds, arguments.clock)
    report.others = load_of_others.others
    report.rows = [
        rounds.ratio("torch", "runtime", "PyTorch eager / bundle step", Target(1.5, at_most=False)),
        rounds.ratio("runtime", "bare", "runtime step / bare run_with_ort_values", Target(1.03)),
    ]
    report.notes.append(f"{STEPS} steps: PyTorch {rounds.seconds('torch')}, bundle {rounds.seconds('runtime')}, onnxruntime alone {rounds.seconds('bare')}")
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())

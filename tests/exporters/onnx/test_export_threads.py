"""One bundle, four artifacts of four kinds, eight threads at once: every answer is the one that a single thread gets, bit for bit."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from polyadapt.artifact import Artifact
from polyadapt.edits import Edit, kind_of
from polyadapt.families.vit.card import CARD as VIT
from polyadapt.testing.conformance import example_of, tiny_model
from polyadapt_onnx.exporter import export
from polyadapt_runtime import Bundle

THREADS = 8
KINDS = {
    "lowrank": ("block.0.attn.q", "lowrank", ""),
    "bottleneck": ("block.1.ffn", "bottleneck", "parallel-relu"),
    "keys": ("block.0.attn", "keys", ""),
    "prototypes": ("head", "prototypes", ""),
}
CALLS: tuple[str | dict[str, float] | None, ...] = (None, *KINDS, {"lowrank": 0.5, "bottleneck": -1.0})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, generator = tiny_model(VIT, "classification"), torch.Generator().manual_seed(3)
    artifacts = {}
    for name, (site, kind, variant) in KINDS.items():
        tensors = kind_of(kind).example(model.ports.get(kind_of(kind).port, site), variant, 3, generator)
        artifacts[name] = Artifact(name, model.base_id, "vit", "classification", (Edit(site, kind, tensors, variant),))
    return export(model, artifacts, tmp_path_factory.mktemp("threads") / "threads.bundle").directory


@pytest.mark.parametrize("calls", [800, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("cache_bytes", [512 << 20, 3000], ids=["all kept", "always dropped"])
def test_threads_get_the_answers_of_one_thread(folder: Path, calls: int, cache_bytes: int) -> None:
    """With room for about one artifact, threads drop each other's tensors while they are in use."""
    bundle = Bundle(folder, device="cpu", threads=1, cache_bytes=cache_bytes)
    images = [value.numpy() for seed in range(4) for value in example_of(tiny_model(VIT, "classification"), seed=seed, sizes={"batch": 1}).values()]
    expected = {(call, image): bundle.run({"image": images[image]}, CALLS[call]) for call in range(len(CALLS)) for image in range(len(images))}
    assert len({expected[call, 0]["logits"].tobytes() for call in range(len(CALLS))}) == len(CALLS)  # each call has an answer of its own
    counts: Counter[int] = Counter()
    wrong: list[tuple[int, int]] = []
    start = threading.Barrier(THREADS)

    def work(seed: int) -> None:
        choices = np.random.default_rng(seed).integers(len(CALLS) * len(images), size=calls // THREADS)
        start.wait()
        for choice in choices.tolist():
            call, image = divmod(choice, len(images))
            found = bundle.run({"image": images[image]}, CALLS[call])
            counts[seed] += 1
            if any(not np.array_equal(value, expected[call, image][output]) for output, value in found.items()):
                wrong.append((call, image))

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(THREADS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == [] and sum(counts.values()) == calls
    assert bundle._store._cache.held_bytes <= cache_bytes

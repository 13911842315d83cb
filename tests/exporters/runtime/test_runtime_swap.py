"""Artifacts as arguments of a call: swapping, mixed ranks, threads, scale, cache."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyadapt_runtime import ArtifactError, Bundle, InputError, Prediction
from polyadapt_runtime.slots import SlotCache

TOLERANCE = 1e-6  # float32, a dozen terms: relative to the largest value


@pytest.fixture(scope="module")
def bundle(bundle_path: Path) -> Bundle:
    return Bundle(bundle_path, device="cpu", threads=1)


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(5).standard_normal((7, 6)).astype(np.float32)


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float = TOLERANCE) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("artifact", [None, "birds", "fish", "plain"])
def test_outputs_follow_the_formula(bundle: Bundle, kit: Any, made: Any, x: np.ndarray, artifact: str | None) -> None:
    logits, features = kit.classifier_reference(made, x, made.artifacts[artifact] if artifact else {})
    found = bundle.run({"x": x}, artifact)
    assert_close(found["logits"], logits)
    assert_close(found["features"], features)


def test_swapping_repeats_bit_for_bit(bundle: Bundle, x: np.ndarray) -> None:
    first = {name: bundle.run({"x": x}, name) for name in (None, "birds", "fish")}
    for name in ("birds", "fish", "birds", None, "fish", None, "birds"):
        again = bundle.run({"x": x}, name)
        assert all(np.array_equal(again[key], first[name][key]) for key in again)
    assert not np.array_equal(first[None]["features"], first["birds"]["features"])


def test_base_is_untouched_by_artifacts(bundle: Bundle, kit: Any, made: Any, x: np.ndarray, tmp_path: Path) -> None:
    made_without = kit.classifier()
    alone = Bundle(kit.write(tmp_path / "alone.bundle", made_without), device="cpu", threads=1)
    bundle.run({"x": x}, "birds")
    assert np.array_equal(bundle.run({"x": x})["features"], alone.run({"x": x})["features"])


@pytest.mark.parametrize(("rank", "bottleneck"), [(0, 0), (0, 3), (1, None), (6, 1)])
def test_any_rank_fits(bundle: Bundle, kit: Any, made: Any, x: np.ndarray, rank: int, bottleneck: int | None) -> None:
    slots = kit.adapter(11, rank=rank, bottleneck=bottleneck)
    assert_close(bundle.run({"x": x, **slots})["logits"], kit.classifier_reference(made, x, slots)[0])


def test_rank_zero_is_the_base_bit_for_bit(bundle: Bundle, x: np.ndarray) -> None:
    empty = {"block.0.ffn:lowrank.a": np.zeros((6, 0), np.float32), "block.0.ffn:lowrank.b": np.zeros((0, 4), np.float32)}
    assert np.array_equal(bundle.run({"x": x, **empty})["logits"], bundle.run({"x": x})["logits"])


def test_threads_do_not_mix_artifacts(bundle_path: Path, x: np.ndarray) -> None:
    # A cache that holds one artifact at a time makes every swap an eviction.
    bundle = Bundle(bundle_path, device="cpu", threads=1, cache_bytes=400)
    names = [None, "birds", "fish", "plain"]
    single = {name: bundle.run({"x": x}, name) for name in names}
    wrong: list[str] = []

    def work(seed: int) -> None:
        generator = np.random.default_rng(seed)
        for _ in range(200):
            name = names[generator.integers(len(names))]
            found = bundle.run({"x": x}, name)
            if not all(np.array_equal(found[key], single[name][key]) for key in found):
                wrong.append(str(name))

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


def test_predictions_carry_the_artifacts_labels(bundle: Bundle, made: Any, kit: Any, x: np.ndarray) -> None:
    logits, _ = kit.classifier_reference(made, x[:1], made.artifacts["birds"])
    chances = np.exp(logits[0] - logits[0].max())
    chances /= chances.sum()
    answer = bundle(x[0], artifact="birds")
    assert isinstance(answer, Prediction)
    assert answer.label == ["wren", "robin", "tit"][int(chances.argmax())]
    assert answer.score == pytest.approx(chances.max(), abs=1e-6)
    assert [label for label, _ in answer.top] == [["wren", "robin", "tit"][index] for index in np.argsort(-chances)]
    assert bundle(x[0]).label == str(int(bundle.run({"x": x[:1]})["logits"].argmax()))


def test_a_list_answers_in_order(bundle: Bundle, x: np.ndarray) -> None:
    assert [p.label for p in bundle(list(x), "fish", batch_size=3)] == [bundle(row, "fish").label for row in x]
    assert [p.label for p in bundle({"x": x}, "fish")] == [bundle(row, "fish").label for row in x]
    assert bundle([], "fish") == []


@pytest.mark.parametrize("weight", [0.0, 0.5, -2.0])
def test_scale_weighs_the_effect(kit: Any, x: np.ndarray, tmp_path: Path, weight: float) -> None:
    made = kit.classifier()
    low, factor, shift = (f"block.0.ffn:{kind}" for kind in ("lowrank", "scale", "shift"))
    made.artifacts = {"low": kit.adapter(3, classes=None, kinds=(low, shift)), "factor": kit.adapter(4, classes=None, kinds=(factor, shift))}
    bundle = Bundle(kit.write(tmp_path / "s.bundle", made), device="cpu")
    for name, full in made.artifacts.items():
        weighed = {slot: value * weight if slot in (f"{low}.b", f"{shift}.b") else value for slot, value in full.items()}
        weighed |= {slot: 1 + weight * (value - 1) for slot, value in full.items() if slot == f"{factor}.g"}
        assert_close(bundle.run({"x": x}, name, weight)["features"], kit.classifier_reference(made, x, weighed)[1])


def test_an_artifact_that_scales_what_it_changes_has_no_share(bundle: Bundle, x: np.ndarray) -> None:
    """DoRA: half of both factors is not half of the effect."""
    with pytest.raises(ArtifactError, match=r"artifact 'plain' scales an op and changes its weights at once \(DoRA\) at block\.0\.ffn.*scale=1\.0"):
        bundle.run({"x": x}, "plain", 0.5)


def test_scale_weighs_a_bottleneck(kit: Any, x: np.ndarray, tmp_path: Path) -> None:
    made = kit.classifier()
    made.artifacts = {"only": kit.adapter(4, kinds=(), classes=None, bottleneck=3)}
    bundle = Bundle(kit.write(tmp_path / "b.bundle", made), device="cpu")
    base, whole, half = (bundle.run({"x": x}, *call)["features"] for call in ((), ("only",), ("only", 0.5)))
    assert_close(half - base, (whole - base) / 2, 1e-5)  # a difference of two float32 results


def test_scale_one_changes_no_bit(bundle: Bundle, x: np.ndarray) -> None:
    assert np.array_equal(bundle.run({"x": x}, "plain", 1.0)["features"], bundle.run({"x": x}, "plain")["features"])


def test_what_cannot_be_scaled_says_so(bundle: Bundle, x: np.ndarray) -> None:
    with pytest.raises(ArtifactError, match=r"prototypes.*head.*scale=1\.0"):
        bundle.run({"x": x}, "birds", 0.5)
    with pytest.raises(ArtifactError, match="without an artifact"):
        bundle.run({"x": x}, scale=0.5)
    for scale in (float("nan"), "2", None):
        with pytest.raises(ArtifactError, match="scale must be a finite number, got"):
            bundle.run({"x": x}, "plain", scale)  # type: ignore[arg-type]


def test_wrong_calls_name_what_is_wrong(bundle: Bundle, x: np.ndarray) -> None:
    with pytest.raises(ArtifactError, match=r"no artifact 'brids'.*did you mean 'birds'"):
        bundle.run({"x": x}, "brids")
    with pytest.raises(InputError, match="no input 'y'"):
        bundle.run({"x": x, "y": x})
    with pytest.raises(InputError, match="'x' missing"):
        bundle.run({})
    with pytest.raises(InputError, match="input 'x' takes one array, and these values are none"):
        bundle.run({"x": [[1.0] * 6, [1.0] * 5]})
    for artifact in (5, 0.5):
        with pytest.raises(ArtifactError, match=f"found {artifact}"):
            bundle(list(x), artifact)  # type: ignore[arg-type]
        with pytest.raises(ArtifactError, match=f"found {artifact}"):
            bundle.run({"x": x}, artifact)  # type: ignore[arg-type]
    for size in (0, -1, 1.5):
        with pytest.raises(InputError, match="batch_size is a whole number from 1 on, found"):
            bundle(list(x), batch_size=size)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="takes float32, found int64"):
        bundle.run({"x": x.astype(np.int64)})
    with pytest.raises(InputError, match=r"shape \[batch, 6\], found \[6\]"):
        bundle.run({"x": x[0]})
    with pytest.raises(ArtifactError, match=r"only a part of block.0.ffn:lowrank: block.0.ffn:lowrank.b missing"):
        bundle.run({"x": x, "block.0.ffn:lowrank.a": np.zeros((6, 1), np.float32)})
    with pytest.raises(ArtifactError, match="give them once"):
        bundle.run({"x": x, "block.0.ffn:shift.b": np.zeros(4, np.float32)}, "plain")


def test_cache_keeps_its_limit_and_drops_the_oldest(bundle: Bundle) -> None:
    cache = SlotCache(bundle._session, limit_bytes=1000)
    for index in range(5):
        cache.put(((f"a{index}", 1.0),), {"block.0.ffn:shift.b": np.zeros(100, np.float32)})  # 400 bytes each
        assert cache.held_bytes <= 1000
        cache.get((("a0", 1.0),))
    assert cache.get((("a0", 1.0),)) is not None and cache.get((("a4", 1.0),)) is not None
    assert cache.get((("a1", 1.0),)) is None
    cache.put((("huge", 1.0),), {"block.0.ffn:shift.b": np.zeros(1000, np.float32)})
    assert cache.get((("huge", 1.0),)) is None and cache.held_bytes == 800


def test_what_a_call_has_no_use_for_is_refused(bundle: Bundle, x: np.ndarray) -> None:
    """It would be left out without a word."""
    with pytest.raises(InputError, match=r"a table of ready tensors holds every input; put manner into it"):
        bundle({"x": x}, condition={"manner": np.zeros(3)})
    with pytest.raises(InputError, match="beams=4: a search follows texts, and task 'classification' writes none"):
        bundle(x[0], beams=4)
    with pytest.raises(InputError, match="condition gives 'x', which is made of the raw input of this call"):
        bundle(x[0], condition={"x": x[1]})

"""Mixes of artifacts: the sum of effects, the same bits as core's algebra, and refusals with their reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyadapt_runtime import ArtifactError, Bundle
from polyadapt_runtime.manifest import Slot
from polyadapt_runtime.mixing import mixed
from polyadapt_runtime.tensors import Tensors

SITE = "block.0.ffn"
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {  # `-1` is the free axis
    "lowrank": {"a": (6, -1), "b": (-1, 4)},
    "mask": {"keep": (4, 6)},
    "scale": {"g": (4,)},
    "shift": {"b": (4,)},
    "bottleneck~parallel-gelu": {"down": (6, -1), "down_bias": (-1,), "up": (-1, 4), "up_bias": (4,)},
    "bottleneck~sequential-relu": {"down": (4, -1), "down_bias": (-1,), "up": (-1, 4), "up_bias": (4,)},
    "keys": {"k": (2, -1, 3), "v": (2, -1, 3)},
    "prepend": {"tokens": (-1, 4)},
    "prototypes": {"weight": (4, -1), "bias": (-1,), "cosine": (1,)},
    "cross": {"k": (5, 6), "v": (5, 6), "scale": (1,)},
    "module": {"inner-weight": (4, 4)},
}
WEIGHED = ("lowrank", "mask", "scale", "shift", "bottleneck~parallel-gelu")


def tensors_of(groups: tuple[str, ...], seed: int, size: int, site: str = SITE) -> Tensors:
    generator = np.random.default_rng(seed)
    shapes = {f"{site}:{group}.{name}": shape for group in groups for name, shape in SHAPES[group].items()}
    return {name: generator.standard_normal([size if axis < 0 else axis for axis in shape]).astype(np.float32) for name, shape in shapes.items()}


def slots_for(*parts: Tensors) -> dict[str, Slot]:
    found = {}
    for name in {name for part in parts for name in part}:
        site, _, rest = name.partition(":")
        group, _, tensor = rest.rpartition(".")
        kind, _, variant = group.partition("~")
        found[name] = Slot(name, "float32", (), site, kind, variant, tensor)
    return found


def mix_of(left: Tensors, right: Tensors, weights: tuple[float, float] = (1.0, 1.0)) -> Tensors:
    return mixed([("a", weights[0], left), ("b", weights[1], right)], slots_for(left, right))


def in_core(parts: list[Tensors], weights: list[float]) -> Tensors:
    """The same mix by core's algebra; weight 1 is left out there, as kinds without an amount refuse any weight."""
    torch = pytest.importorskip("torch", reason="core's algebra works on torch's tensors")
    from polyadapt.edits.algebra import added, scaled
    from polyadapt.edits.edit import edits_from_slots, slots_of

    total = None
    for tensors, weight in zip(parts, weights, strict=True):
        edits = edits_from_slots({name: torch.from_numpy(value) for name, value in tensors.items()})
        edits = edits if weight == 1.0 else scaled(edits, weight)
        total = edits if total is None else added(total, edits)
    return {name: value.numpy() for name, value in slots_of(total or []).items()}


@pytest.mark.parametrize(
    ("groups", "weights"),
    [*(((group,), (0.7, 0.3)) for group in WEIGHED), (WEIGHED[3:], (-1.5, 2.0)), (("mask", "shift"), (-1.5, 2.0)), (("keys",), (1.0, 1.0)), (("prepend",), (1.0, 1.0))],
)
def test_a_mix_is_that_of_cores_algebra_bit_for_bit(groups: tuple[str, ...], weights: tuple[float, float]) -> None:
    left, right = tensors_of(groups, 1, 2), tensors_of(groups, 2, 5)
    expected, found = in_core([left, right], list(weights)), mix_of(left, right, weights)
    assert set(found) == set(expected) == set(left)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and np.array_equal(found[name], value), name


def test_a_mix_of_three_and_of_different_sites_is_that_of_core() -> None:
    parts = [tensors_of(("lowrank", "shift"), 1, 2), tensors_of(("lowrank",), 2, 1), tensors_of(("shift", "lowrank"), 3, 3, "block.1.ffn")]
    weights = [0.5, -0.25, 2.0]
    expected = in_core(parts, weights)
    found = mixed([(name, weight, part) for name, weight, part in zip("abc", weights, parts, strict=True)], slots_for(*parts))
    assert set(found) == set(expected) and all(np.array_equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("groups", "reason"),
    [
        (("prototypes",), "class head"),
        (("cross",), "second attention"),
        (("module",), "fixed sizes"),
        (("bottleneck~sequential-relu",), "read what the first has changed"),
        (("lowrank", "scale"), "DoRA"),
    ],
)
def test_what_has_no_sum_says_why_as_core_does(groups: tuple[str, ...], reason: str) -> None:
    left, right = tensors_of(groups, 1, 2), tensors_of(groups, 2, 3)
    with pytest.raises(ArtifactError, match=rf"cannot mix.*{reason}"):
        mix_of(left, right)
    pytest.importorskip("torch")
    from polyadapt.errors import UserError

    with pytest.raises(UserError):
        in_core([left, right], [1.0, 1.0])


def test_a_head_or_a_prefix_keeps_its_whole_effect() -> None:
    one = tensors_of(("prototypes", "keys", "bottleneck~sequential-relu"), 1, 2)
    other = tensors_of(("lowrank",), 2, 2)
    assert set(mix_of(one, other, (1.0, 0.5))) == {*one, *other}
    for group in ("prototypes", "keys"):
        with pytest.raises(ArtifactError, match=f"'{group}'.*cannot be scaled"):
            mix_of(tensors_of((group,), 1, 2), other, (0.5, 1.0))


@pytest.mark.parametrize("changed", ["lowrank", "mask"])
def test_a_scale_beside_what_another_one_changes_in_the_weights_is_no_mix(changed: str) -> None:
    """(IA)3 beside LoRA at one site: the scale would multiply what the other adds. Core refuses it as well."""
    left, right = tensors_of(("scale",), 1, 2), tensors_of((changed,), 2, 2)
    for parts in ((left, right), (right, left)):
        with pytest.raises(ArtifactError, match=r"cannot mix.*DoRA.*block\.0\.ffn"):
            mix_of(*parts, (0.5, 0.5))
    apart = tensors_of((changed,), 2, 2, "block.1.ffn")
    assert set(mix_of(left, apart, (0.5, 0.5))) == {*left, *apart}


@pytest.fixture
def bundle(kit: Any, tmp_path: Path) -> Bundle:
    made = kit.classifier()
    low, shift = (f"{SITE}:{kind}" for kind in ("lowrank", "shift"))
    made.artifacts = {
        "a": kit.adapter(1, classes=None, kinds=(low, shift)),
        "b": kit.adapter(2, rank=3, classes=None, kinds=(low, shift)),
        "birds": kit.adapter(3, kinds=(low,)),
        "whole": kit.adapter(4, classes=None),
    }
    made.labels = {"birds": ["wren", "robin", "tit"]}
    return Bundle(kit.write(tmp_path / "mix.bundle", made), device="cpu", threads=1)


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(5).standard_normal((7, 6)).astype(np.float32)


def test_effects_add_up(bundle: Bundle, x: np.ndarray) -> None:
    base, a, b = (bundle.run({"x": x}, name)["features"].astype(np.float64) for name in (None, "a", "b"))
    found = bundle.run({"x": x}, {"a": 0.7, "b": 0.3})["features"]
    expected = base + 0.7 * (a - base) + 0.3 * (b - base)
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()
    assert np.abs(found - a).max() > 0.1 and np.abs(found - b).max() > 0.1


def test_a_mix_can_be_held_called_and_saved(bundle: Bundle, x: np.ndarray, tmp_path: Path) -> None:
    weights = {"a": 0.7, "b": 0.3}
    direct = bundle.run({"x": x}, weights)["features"]
    assert bundle.mix(weights, name="ab") == "ab" and bundle.mix(weights) == "0.7*a+0.3*b"
    assert bundle.artifacts()["ab"].source == "mixed" and bundle.artifacts()["ab"].method == "mix"
    assert np.array_equal(bundle.run({"x": x}, "ab")["features"], direct)
    bundle.save_artifact("ab", tmp_path / "ab")
    again = bundle.load_artifact(tmp_path / "ab", "again")
    assert np.array_equal(bundle.run({"x": x}, again)["features"], direct)
    with pytest.raises(ArtifactError, match="already"):
        bundle.mix(weights, name="a")


def test_scale_weighs_a_whole_mix(bundle: Bundle, x: np.ndarray) -> None:
    assert np.array_equal(bundle.run({"x": x}, {"a": 1.0, "b": 0.5}, 0.5)["features"], bundle.run({"x": x}, {"a": 0.5, "b": 0.25})["features"])
    assert np.array_equal(bundle.run({"x": x}, {"a": 0.5})["features"], bundle.run({"x": x}, "a", 0.5)["features"])


def test_a_mix_answers_with_the_labels_of_the_head_in_it(bundle: Bundle, x: np.ndarray) -> None:
    answer = bundle(x[0], {"a": 0.5, "birds": 1.0})
    held = bundle.mix({"a": 0.5, "birds": 1.0})
    assert answer.label in ("wren", "robin", "tit") and bundle.artifacts()[held].labels == ("wren", "robin", "tit")
    assert bundle(x[0], held) == answer


def test_a_mix_is_kept_ready_like_any_artifact(bundle: Bundle, x: np.ndarray) -> None:
    bundle.run({"x": x}, {"a": 0.7, "b": 0.3})
    held = bundle._store._cache.held_bytes
    bundle.run({"x": x}, {"a": 0.7, "b": 0.3})
    assert bundle._store._cache.held_bytes == held == 4 * (6 * 5 + 5 * 4 + 4)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "names no artifact"),
        ({"a": "much"}, "must be a number"),
        ({"a": float("nan"), "b": 1}, "finite"),
        ({"a": 1, "c": 1}, "no artifact 'c'"),
        ({"birds": 0.5, "a": 1}, "cannot be scaled"),
    ],
)
def test_wrong_mixes_say_what_is_wrong(bundle: Bundle, x: np.ndarray, weights: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        bundle.run({"x": x}, weights)
    with pytest.raises(ArtifactError, match=message):
        bundle.mix(weights, name="new")
    assert "new" not in bundle.artifacts()

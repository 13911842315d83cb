"""Prototypes: equal to the nearest class mean, session by session, and to what a bundle learns by itself."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

import polyadapt as pa
from polyadapt.data.dataset import Dataset, Example
from polyadapt.errors import UserError
from polyadapt.host import Host
from polyadapt.methods.base import load_method
from polyadapt.model import Model
from polyadapt.testing.conformance import check_method, state_of, tiny_model
from polyadapt.training import Run, TrainingData, TrainSettings, fit, frozen_features
from polyadapt_onnx import export
from polyadapt_runtime import Bundle
from polyadapt_vision import entry
from polyadapt_vision.prototypes.card import CARD
from polyadapt_vision.prototypes.sessions import SessionResult, measure, session_classes, summary

LABELS = ("red", "green", "blue", "grey", "black")
RUN = Run(TrainSettings(device="cpu"))


def pictures(per_class: int, seed: int, labels: tuple[str, ...] = LABELS) -> Dataset:
    """Noisy pictures whose mean colour is their class."""
    generator = np.random.default_rng(seed)
    colours = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200), "grey": (150, 150, 150), "black": (10, 10, 10)}
    examples = []
    for row in range(per_class):
        for label in labels:
            noise = generator.integers(-40, 40, (24, 24, 3))
            examples.append(Example(f"{label}/{row}", np.clip(np.array(colours[label]) + noise, 0, 255).astype(np.uint8), label))
    return Dataset(f"pictures {seed}", examples, "image", labels)


HOST = Host(plugins=[("core", import_module("polyadapt.builtin")), ("vision", entry)], discover=False, environment={})


@pytest.fixture(scope="module")
def model() -> Model:
    return HOST.load("polyadapt:tiny-efficientnet", {"image_size_px": 48})


def learn(model: Model, train: Dataset, validation: Dataset | None = None, **options: object):
    return fit(model, load_method(CARD), CARD.options(**options), TrainingData(train, validation), TrainSettings(device="cpu", batch_size=8))


def head(artifact) -> torch.Tensor:
    return artifact.slots["head:prototypes.weight"]


def test_the_plugin_registers_it() -> None:
    assert HOST.registry.methods.get("prototypes").card is CARD


@pytest.mark.parametrize("family", ["efficientnet", "vit", "bert"])
def test_prototypes_conform(family: str, tmp_path: Path) -> None:
    check_method(load_method(CARD), tiny_model(import_module(f"polyadapt.families.{family}.card").CARD, "classification"), tmp_path)


@pytest.mark.parametrize("average", ["directions", "raw"])
def test_it_is_the_nearest_class_mean(model: Model, average: str) -> None:
    """Against class means computed here in float64, example by example."""
    train, test = pictures(4, 0), pictures(3, 1)
    labelled = model.with_labels(LABELS)
    artifact = learn(model, train, average=average)
    one_by_one = [frozen_features(labelled, train.subset([row]), RUN)[0].double().numpy() for row in range(len(train))]
    features = np.stack(one_by_one)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    points = features / lengths if average == "directions" else features
    means = np.stack([points[train.targets() == number].mean(0) for number in range(5)], axis=1)
    means /= np.linalg.norm(means, axis=0)
    assert np.allclose(head(artifact).numpy(), 16.0 * means, atol=2e-5)
    queries = frozen_features(labelled, test, RUN).double().numpy()
    expected = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ means
    found = pa.evaluate(model, test, artifact, host=HOST)
    answers = [prediction.answer for prediction in found.predictions]
    assert answers == [LABELS[number] for number in expected.argmax(1)]


def test_later_sessions_leave_earlier_prototypes_as_they_are(model: Model) -> None:
    train = pictures(6, 0)
    whole = learn(model, train, base_classes=3, ways=1, shots=2)
    base = learn(model, train.of_labels(LABELS[:3]))
    assert whole.labels == LABELS
    assert torch.allclose(head(whole)[:, :3], head(base), atol=1e-5)  # other batches, other rounding
    # Two shots of a later class are the first two of the training part, and no others count.
    few = Dataset("few", [example for example in train if example.label in LABELS[:3] or example.id.endswith(("/0", "/1"))], "image", LABELS)
    assert torch.allclose(head(learn(model, few)), head(whole), atol=1e-5)


def test_classes_may_arrive_in_another_order(model: Model) -> None:
    order = ("grey", "black", "red", "blue", "green")
    artifact = learn(model, pictures(3, 0), classes=order, base_classes=2, ways=2)
    plain = learn(model, pictures(3, 0))
    assert artifact.labels == order
    assert torch.allclose(head(artifact), head(plain)[:, [LABELS.index(label) for label in order]], atol=1e-5)


def test_metrics_of_sessions_are_kept_and_said(model: Model) -> None:
    said = []
    data = TrainingData(pictures(4, 0), pictures(5, 1))
    artifact = fit(model, load_method(CARD), CARD.options(base_classes=3, ways=1, shots=1), data, TrainSettings(device="cpu"), emit=said.append)
    metrics = artifact.provenance["metrics"]
    assert [row["classes"] for row in metrics["sessions"]] == [3, 4, 5]
    assert "novel" not in metrics["sessions"][0] and set(metrics["validation"]) == {"accuracy", "base", "novel", "harmonic", "average", "performance_drop"}
    found = pa.evaluate(model, data.validation, artifact, host=HOST)
    assert metrics["validation"]["accuracy"] == pytest.approx(found.value)
    assert [event["kind"] for event in said] == ["started", "epoch", "epoch", "epoch", "finished"]
    assert artifact.provenance["data"]["train"]["examples"] == 20
    assert learn(model, pictures(2, 0)).provenance["metrics"] == {}


def test_figures_of_a_session_by_hand() -> None:
    """Two base classes and one later one in the plane; the last example of each part is wrong."""
    prototypes = torch.eye(3)
    features = torch.tensor([[5.0, 0, 0], [0, 2.0, 0], [0, 0, 1.0], [0, 0, 3.0], [9.0, 0, 0]])
    targets = torch.tensor([0, 1, 1, 2, 2])
    first = measure(0, prototypes[:, :2], 2, features, targets)
    assert (first.classes, first.accuracy, first.base, first.novel) == (2, pytest.approx(2 / 3), pytest.approx(2 / 3), None)
    second = measure(1, prototypes, 2, features, targets)
    assert (second.accuracy, second.base, second.novel) == (pytest.approx(3 / 5), pytest.approx(2 / 3), 0.5)
    assert second.harmonic == pytest.approx(2 * (2 / 3) * 0.5 / (2 / 3 + 0.5))
    assert SessionResult(1, 3, 0.5, 0.0, 0.0).harmonic == 0.0
    total = summary([first, second])
    assert total["average"] == pytest.approx((2 / 3 + 3 / 5) / 2) and total["performance_drop"] == pytest.approx(2 / 3 - 3 / 5)


def test_a_bundle_learns_the_same_prototype(model: Model, tmp_path: Path) -> None:
    """What `bundle.learn` adds is what `fit` computes from the same pictures."""
    train = pictures(4, 0)
    known = learn(model, train.of_labels(LABELS[:4]))
    export(model.with_labels(LABELS[:4]), {"four": known}, tmp_path / "x.bundle", "slots")
    bundle = Bundle(tmp_path / "x.bundle", device="cpu")
    name = bundle.learn("black", [example.raw for example in train if example.label == "black"], artifact="four")
    assert bundle.artifacts()[name].labels == LABELS
    expected = head(learn(model, train)).numpy()
    bundle.save_artifact(name, tmp_path / "five")
    found = pa.Artifact.load(tmp_path / "five").slots["head:prototypes.weight"].numpy()
    assert np.abs(found - expected).max() <= 1e-4
    assert [answer.label for answer in bundle([example.raw for example in train if example.label == "black"], artifact=name)] == ["black"] * 4


def test_the_model_is_left_as_it_was(model: Model) -> None:
    before = state_of(model)
    learn(model, pictures(3, 0), pictures(2, 1))
    after = state_of(model)
    assert set(before) == set(after) and all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shots": 2}, "shots is of classes that arrive later, and base_classes = 0 takes all at once"),
        ({"shots": 9, "base_classes": 3}, "class 'grey' has 3 training examples, 9 shots"),
        ({"base_classes": 6}, "base_classes is 6, the data has 5"),
        ({"classes": ("red", "gren", "blue", "grey", "black")}, "'gren', which the data does not have; did you mean 'green'"),
        ({"classes": ("red", "green")}, "leaves out blue, grey, black"),
        ({"classes": ("red", "red", "blue", "grey", "black", "green")}, "twice"),
    ],
)
def test_options_that_do_not_fit_the_data_are_refused(model: Model, options: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        learn(model, pictures(3, 0), **options)


def test_sessions_are_cut_as_asked() -> None:
    assert session_classes(LABELS, CARD.options()) == [LABELS]
    assert session_classes(LABELS, CARD.options(base_classes=2)) == [LABELS[:2], LABELS[2:]]
    assert session_classes(LABELS, CARD.options(base_classes=2, ways=2)) == [LABELS[:2], LABELS[2:4], LABELS[4:]]


def test_a_model_without_classes_is_refused() -> None:
    with pytest.raises(UserError, match="head ports"):
        load_method(CARD).plan(tiny_model(import_module("polyadapt.families.vit.card").CARD, "features"), CARD.options())

"""Form `bank`: each row of a batch answers as torch does with that row's artifact alone, and the runtime takes one name a row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from polyadapt.artifact import Artifact
from polyadapt.edits import Edit, slots_of, stacked_edits
from polyadapt.errors import ExportError, UserError
from polyadapt.families.bert.card import CARD as BERT
from polyadapt.families.card import FamilyCard
from polyadapt.families.clip.card import CARD as CLIP
from polyadapt.families.llama.card import CARD as LLAMA
from polyadapt.families.mlp_policy.card import CARD as POLICY
from polyadapt.families.vit.card import CARD as VIT
from polyadapt.host import Host
from polyadapt.methods.base import load_method
from polyadapt.model import Model
from polyadapt.sources.processors import make_processor
from polyadapt.testing.conformance import example_of, tiny_model
from polyadapt.testing.exporting import adapted_artifact, answers, arrays, is_close
from polyadapt_onnx.exporter import export
from polyadapt_onnx.forms.bank_proof import BankProof
from polyadapt_onnx.gate import GateReport
from polyadapt_runtime import ArtifactError, Bundle

METHODS = {claim.card.id: claim.card for claim in Host().registry.methods.claims()}
LABELS = {"birds": ("owl", "robin", "wren"), "tools": ("axe", "file", "plane", "rasp", "saw"), "yes": ("no", "yes")}


def artifact_of(model: Model, method: str) -> Artifact:
    return adapted_artifact(load_method(METHODS[method]), model)


class Banked:
    """A vision transformer with three artifacts of other methods, ranks and classes."""

    def __init__(self, folder: Path) -> None:
        self.model = tiny_model(VIT, "classification")
        methods = ("lora", "prefix", "bottleneck")
        self.artifacts = {name: artifact_of(self.model.with_labels(labels), method) for (name, labels), method in zip(LABELS.items(), methods, strict=True)}
        self.folder = export(self.model, self.artifacts, folder / "pictures.bundle", "bank").directory
        self.bundle = Bundle(self.folder)

    def check(self, names: Sequence[str | None], seed: int) -> dict[str, np.ndarray]:
        """Every row against torch with that row's artifact alone."""
        inputs = example_of(self.model, seed=seed, sizes={"batch": len(names)})
        found = self.bundle.run(arrays(inputs), artifact=names)
        for row, name in enumerate(names):
            expected = answers(self.model, inputs, self.artifacts.get(name or ""))
            classes = expected["logits"].shape[1]
            assert is_close(found["features"][row], expected["features"][row]) and is_close(found["logits"][row, :classes], expected["logits"][row])
            assert (found["logits"][row, classes:] == -np.inf).all()
        return found


@pytest.fixture(scope="module")
def banked(tmp_path_factory: pytest.TempPathFactory) -> Banked:
    return Banked(tmp_path_factory.mktemp("banked"))


@pytest.mark.parametrize("names", [("birds", None, "tools", "yes", "birds"), ("yes", "tools", "birds", None), (None, None), ("tools",)])
def test_rows_have_their_own_artifacts(banked: Banked, names: tuple[str | None, ...]) -> None:
    found = banked.check(names, seed=21)
    assert found["logits"].shape == (len(names), 5)


def test_names_in_another_order_give_answers_in_another_order(banked: Banked) -> None:
    """One picture on every row: the answers follow the names, within rounding."""
    picture = arrays(example_of(banked.model, seed=22, sizes={"batch": 1}))["image"].repeat(4, axis=0)
    names = (None, *LABELS)
    order = (2, 0, 3, 1)
    found = banked.bundle.run({"image": picture}, artifact=names)["features"]
    moved = banked.bundle.run({"image": picture}, artifact=[names[index] for index in order])["features"]
    assert is_close(moved, found[list(order)], 1e-6) and len({row.tobytes() for row in found}) == 4


def test_a_row_does_not_see_the_artifacts_of_others(banked: Banked) -> None:
    """Bit for bit: the row's arithmetic is the same whatever the others' numbers are."""
    feeds = arrays(example_of(banked.model, seed=23, sizes={"batch": 3}))
    first = banked.bundle.run(feeds, artifact=["birds", None, "tools"])
    other = banked.bundle.run(feeds, artifact=["yes", None, None])
    assert all(np.array_equal(first[name][1], other[name][1]) for name in first)
    assert not np.array_equal(first["features"][0], other["features"][0])


def test_plain_onnxruntime_needs_the_numbers_alone(banked: Banked) -> None:
    manifest = json.loads((banked.folder / "manifest.json").read_text())
    session = onnxruntime.InferenceSession(banked.folder / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    assert [(port.name, port.type, port.shape) for port in session.get_inputs()][1] == ("artifact_id", "tensor(int64)", ["batch"])
    assert {port.name for port in session.get_overridable_initializers()} == set(manifest["slots"])
    feeds = arrays(example_of(banked.model, seed=24, sizes={"batch": 2}))
    found = session.run(["features"], {**feeds, "artifact_id": np.array([manifest["artifacts"]["tools"]["artifact_id"], 0])})[0]
    assert np.array_equal(found, banked.bundle.run(feeds, artifact=["tools", None])["features"])


def test_another_bank_is_fed(banked: Banked) -> None:
    """Five artifacts of rank 6 in place of three, to the same graph: all dynamic axes at once."""
    keys = list(dict.fromkeys((edit.site, edit.kind, edit.variant) for artifact in banked.artifacts.values() for edit in artifact.edits))
    made = [artifact_of(banked.model, "lora") for _ in range(5)]
    others = [replace(artifact, edits=tuple(_widened(edit, seed) for edit in artifact.edits)) for seed, artifact in enumerate(made)]
    bank = arrays(slots_of(stacked_edits(banked.model.ports, keys, [(), *(artifact.edits for artifact in others)])))
    inputs = example_of(banked.model, seed=25, sizes={"batch": 3})
    found = banked.bundle.run({**arrays(inputs), **bank, "artifact_id": np.array([5, 0, 2])})
    for row, artifact in enumerate((others[4], None, others[1])):
        assert is_close(found["features"][row], answers(banked.model, inputs, artifact)["features"][row])


def test_numbers_below_0_are_refused(banked: Banked) -> None:
    """The graph would count them from the last artifact backwards."""
    feeds = arrays(example_of(banked.model, seed=25, sizes={"batch": 2}))
    with pytest.raises(ArtifactError, match="artifact_id is 0 for the base and from 1 on for artifacts, found -1"):
        banked.bundle.run({**feeds, "artifact_id": np.array([0, -1])})
    with pytest.raises(ArtifactError, match=r"no artifact \['tools'\] in this bank"):
        banked.bundle.run(feeds, artifact=[["tools"], None])  # type: ignore[list-item]


def _widened(edit: Edit, seed: int) -> Edit:
    if edit.kind != "lowrank":
        return edit
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(shape, generator=generator) * 0.2 for shape in ((edit.tensors["a"].shape[0], 6), (6, edit.tensors["b"].shape[1])))
    return replace(edit, tensors={"a": a, "b": b})


def test_raw_inputs_take_a_name_each(banked: Banked) -> None:
    """Labels and classes are those of the row's artifact; one name stands for all."""
    feeds = arrays(example_of(banked.model, seed=26, sizes={"batch": 3}))
    mixed = banked.bundle(feeds, artifact=["tools", None, "birds"], top=9)
    assert [len(answer.top) for answer in mixed] == [5, 3, 3] and {label for label, _ in mixed[0].top} == set(LABELS["tools"])
    assert {label for label, _ in mixed[2].top} == set(LABELS["birds"]) and all(abs(sum(chance for _, chance in answer.top) - 1) < 1e-6 for answer in mixed)
    assert [answer.label for answer in banked.bundle(feeds, artifact="tools")] == [answer.label for answer in banked.bundle(feeds, artifact=["tools"] * 3)]


def test_lists_keep_their_names_when_they_are_cut_into_batches(tmp_path: Path) -> None:
    model = replace(tiny_model(POLICY), processor=make_processor({"kind": "tensors"}))
    bundle = Bundle(export(model, {name: artifact_of(model, name) for name in ("lora", "ia3")}, tmp_path / "p.bundle", "bank").directory)
    feeds = arrays(example_of(model, seed=27, sizes={"batch": 5}))
    names = ["ia3", None, "lora", "ia3", "lora"]
    raws = [{name: value[row] for name, value in feeds.items()} for row in range(5)]
    expected = bundle.run(feeds, artifact=names)["action"]
    for batch_size in (2, 32):
        said = bundle(raws, artifact=names, batch_size=batch_size)
        assert is_close(np.stack([answer["action"] for answer in said]), expected, 1e-6)


def test_errors_name_what_is_wrong(banked: Banked, tmp_path: Path) -> None:
    feeds = arrays(example_of(banked.model, seed=28, sizes={"batch": 2}))
    calls: list[tuple[dict[str, Any], str]] = [
        ({"artifact": ["brids", None]}, "no artifact 'brids' in this bank; did you mean 'birds'"),
        ({"artifact": ["birds"]}, "1 artifacts are named for 2 inputs; name one for each"),
        ({"artifact": "birds", "scale": 0.5}, "scale=0.5: a bank's artifacts act as they were exported"),
    ]
    for given, words in calls:
        with pytest.raises(ArtifactError, match=words.replace("(", r"\(")):
            banked.bundle.run(feeds, **given)
    with pytest.raises(ArtifactError, match="give one of both"):
        banked.bundle.run({**feeds, "artifact_id": np.array([1, 0])}, artifact="birds")
    with pytest.raises(ArtifactError, match="needs slots, but this bundle is bank"):
        banked.bundle.load_artifact(banked.artifacts["birds"].save(tmp_path / "later"))
    with pytest.raises(ArtifactError, match="form='slots'"):
        banked.bundle.learn("kite", feeds)
    swapped = Bundle(export(tiny_model(POLICY), {}, tmp_path / "slots.bundle").directory)
    with pytest.raises(ArtifactError, match=r"takes one artifact for a call, found \['a', 'b'\]; export it with form='bank'"):
        swapped.run(arrays(example_of(tiny_model(POLICY))), artifact=["a", "b"])


def test_the_selftest_and_the_report_cover_every_artifact_at_every_size(banked: Banked) -> None:
    result = banked.bundle.selftest()
    assert result.ok and max(row.error for row in result.cases) <= 1e-5
    report = json.loads((banked.folder / "parity" / "report.json").read_text())
    seen = {check: {row["artifact"] for row in report["effects"] if row["check"] == check} for check in ("artifact", "swap", "rows", "places")}
    assert seen == {"artifact": set(LABELS), "swap": {None, *LABELS}, "rows": {None, *LABELS}, "places": {None, *LABELS}}
    cases = {row["name"] for row in report["cases"]}
    assert cases == {*(f"mixed-{turn}/{index}" for turn in range(4) for index in range(2)), "random/0", "random/1"}


REFUSED = [
    (VIT, "classification", "full", "patch has no slots"),
    (LLAMA, "causal-lm", "prompt", r"tokens:prepend: prompts of other lengths give the rows of a batch caches of other lengths.* use form 'slots'"),
    (CLIP, "image-text", "prompt", "text.tokens:prepend: its module does not run on the rows of the batch"),
]


@pytest.mark.parametrize(("card", "task", "method", "reason"), REFUSED, ids=[f"{method} in {card.id}" for card, _, method, _ in REFUSED])
def test_what_rows_cannot_have_of_their_own_is_refused(card: FamilyCard, task: str, method: str, reason: str, tmp_path: Path) -> None:
    model = tiny_model(card, task)
    with pytest.raises(UserError, match=reason):
        export(model, {method: artifact_of(model, method)}, tmp_path / "a.bundle", "bank")
    with pytest.raises(UserError, match="form 'bank' stacks artifacts and none was given"):
        export(model, {}, tmp_path / "a.bundle", "bank")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("card", "options"), [(VIT, {"deep": True}), (BERT, {})], ids=["deep in a ViT", "BERT"])
def test_prompts_of_different_lengths_beside_a_prefix(card: FamilyCard, options: Mapping[str, Any], tmp_path: Path) -> None:
    """One batch whose rows have prompts of 2 and 5 tokens, a prefix, and nothing: each row answers as torch with its artifact alone."""
    model, method = tiny_model(card), load_method(METHODS["prompt"])
    artifacts = {"prefix": artifact_of(model, "prefix")}
    for name, length, further in (("short", 2, {}), ("long", 5, options)):
        form = method.build(model, method.card.options(length=length, **further), torch.Generator().manual_seed(length))
        artifacts[name] = Artifact("prompt", model.base_id, model.family.card.id, model.task.kind, tuple(form.lower()))
    bundle = Bundle(export(model, artifacts, tmp_path / "prompts.bundle", "bank").directory)
    inputs = example_of(model, seed=31, sizes={**card.export[model.task.kind].trace, "batch": 4})
    names = ("long", None, "prefix", "short")
    found = bundle.run(arrays(inputs), artifact=names)["features"]
    for row, name in enumerate(names):
        assert is_close(found[row], answers(model, inputs, artifacts.get(name or ""))["features"][row]), name
    assert len({row.tobytes() for row in found}) == 4
    keys = list(dict.fromkeys((edit.site, edit.kind, edit.variant) for artifact in artifacts.values() for edit in artifact.edits))
    nothing = arrays(slots_of(stacked_edits(model.ports, keys, [()] * 4)))  # another bank, in which no row has any prompt
    assert is_close(bundle.run({**arrays(inputs), **nothing, "artifact_id": np.arange(4)})["features"], answers(model, inputs, None)["features"])


def test_an_artifact_that_does_nothing_leaves_nothing_behind(tmp_path: Path) -> None:
    model = tiny_model(POLICY)
    silent = artifact_of(model, "lora")
    silent = replace(silent, edits=tuple(replace(edit, tensors={"a": edit.tensors["a"], "b": edit.tensors["b"] * 0}) for edit in silent.edits))
    with pytest.raises(ExportError, match="artifact silent: changes nothing"):
        export(model, {"good": artifact_of(model, "ia3"), "silent": silent}, tmp_path / "a.bundle", "bank", {"legacy_fallback": False})
    assert not list(tmp_path.iterdir())


class Toy:
    """A graph of one output that is right, or in which the mean of all numbers leaks into every row, or the place does."""

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def run(self, inputs: Mapping[str, np.ndarray], slots: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        ids = inputs["artifact_id"].astype(np.float64)
        found = 1.0 + ids[:, None] + inputs["x"]
        if self.fault == "leak":
            found = found + 1e-9 * ids.mean()
        if self.fault == "place":
            found = found + 0.1 * np.arange(len(ids))[:, None]
        return {"y": found}


@pytest.mark.parametrize(("fault", "failed"), [("", set()), ("leak", {"rows"}), ("place", {"places"})])
def test_the_proof_sees_rows_that_leak_and_rows_that_depend_on_their_place(fault: str, failed: set[str]) -> None:
    report, x = GateReport(1e-5), np.ones((3, 2))
    right = [Toy("").run({"x": x, "artifact_id": np.full(3, number)}, {}) for number in range(3)]
    expected = right if fault != "place" else [Toy("place").run({"x": x, "artifact_id": np.full(3, number)}, {}) for number in range(3)]
    BankProof(Toy(fault), {"x": x}, [None, "a", "b"], ["y"], report).check(expected)  # type: ignore[arg-type]
    assert {row["check"] for row in report.effects if not row["ok"]} == failed


@pytest.mark.slow
def test_rows_of_images_may_differ_beside_texts_that_are_shared(tmp_path: Path) -> None:
    """CLIP: edits of the image tower alone. Text features have no row for an image, and are the same for all."""
    model = tiny_model(CLIP)
    artifacts = {name: artifact_of(model, name) for name in ("lora", "prefix")}
    artifacts = {name: replace(artifact, edits=tuple(edit for edit in artifact.edits if edit.site.startswith("image."))) for name, artifact in artifacts.items()}
    bundle = Bundle(export(model, artifacts, tmp_path / "clip.bundle", "bank").directory)
    inputs = example_of(model, seed=29, sizes={"batch": 2, "texts": 3, "tokens": 5})
    found = bundle.run(arrays(inputs), artifact=["prefix", "lora"])
    for row, name in enumerate(("prefix", "lora")):
        expected = answers(model, inputs, artifacts[name])
        assert is_close(found["logits"][row], expected["logits"][row]) and is_close(found["text_features"], expected["text_features"])


@pytest.mark.slow
def test_a_causal_bank_writes_with_the_artifact_of_each_prompt(tmp_path: Path) -> None:
    """Weights and prefixes: each prompt's text is that of the slots bundle with that artifact."""
    model = tiny_model(LLAMA, "causal-lm")
    artifacts = {name: artifact_of(model, name) for name in ("lora", "prefix")}
    bank = Bundle(export(model, artifacts, tmp_path / "bank.bundle", "bank").directory)
    swapped = Bundle(export(model, artifacts, tmp_path / "slots.bundle").directory)
    for name in (None, *artifacts):
        texts = [[token.id for token in bundle.stream([5, 17, 42, 99], 8, artifact=name, stop_ids=())] for bundle in (bank, swapped)]
        assert texts[0] == texts[1] and len(texts[0]) == 8

"""What is in a bundle, and that it answers as torch does: swapped artifacts, baked ones, generated text."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import polyadapt as pa
from polyadapt.artifact import Artifact, detach
from polyadapt.edits import attachments_of
from polyadapt.errors import UserError
from polyadapt.families.gpt2.card import CARD as GPT2
from polyadapt.families.llama.card import CARD as LLAMA
from polyadapt.families.mlp_policy.card import CARD as POLICY
from polyadapt.families.vit.card import CARD as VIT
from polyadapt.host import Host
from polyadapt.methods.base import load_method
from polyadapt.model import Model
from polyadapt.testing.conformance import example_of, tiny_model
from polyadapt.testing.exporting import adapted_artifact, answers, arrays, is_close
from polyadapt_onnx.exporter import export
from polyadapt_runtime import Bundle

METHODS = {claim.card.id: claim.card for claim in Host().registry.methods.claims()}
LABELS = {"birds": ("owl", "robin", "wren"), "tools": ("axe", "file", "plane", "rasp", "saw")}


def artifact_of(model: Model, method: str) -> Artifact:
    return adapted_artifact(load_method(METHODS[method]), model)


class Swapped:
    """One vision transformer with two artifacts of different methods and different classes."""

    def __init__(self, folder: Path) -> None:
        model = tiny_model(VIT, "classification")
        self.artifacts = {name: artifact_of(model.with_labels(labels), method) for (name, labels), method in zip(LABELS.items(), ("lora", "bottleneck"), strict=True)}
        self.model = model
        self.made = export(model, self.artifacts, folder / "pictures.bundle", "slots", {"extra_slots": ("attn.o:lowrank", "block.0.attn:keys")})
        self.folder = self.made.directory
        self.bundle = Bundle(self.folder)


@pytest.fixture(scope="module")
def swapped(tmp_path_factory: pytest.TempPathFactory) -> Swapped:
    return Swapped(tmp_path_factory.mktemp("swapped"))


def test_two_artifacts_of_different_methods_and_classes(swapped: Swapped) -> None:
    """Each answers as torch with that artifact attached, at another batch size than any that was traced or checked."""
    inputs = example_of(swapped.model, seed=11, sizes={"batch": 4})
    found = {}
    for name in (None, *swapped.artifacts):
        found[name] = swapped.bundle.run(arrays(inputs), artifact=name)
        expected = answers(swapped.model, inputs, swapped.artifacts.get(name or ""))
        assert all(is_close(found[name][output], expected[output]) for output in expected)
    assert [found[name]["logits"].shape for name in found] == [(4, 3), (4, 3), (4, 5)]  # the tiny base has three classes of its own
    assert float(np.abs(found["birds"]["features"] - found["tools"]["features"]).max()) > 1e-3


def test_swapping_repeats_bit_for_bit(swapped: Swapped) -> None:
    feeds = arrays(example_of(swapped.model, seed=12))
    order: tuple[str | None, ...] = (None, "birds", "tools", "birds", None, "tools")
    first: dict[str | None, dict[str, np.ndarray]] = {}
    for name in order:
        found = swapped.bundle.run(feeds, artifact=name)
        for output, value in first.setdefault(name, found).items():
            assert np.array_equal(found[output], value)


def test_labels_belong_to_their_artifact(swapped: Swapped) -> None:
    infos = swapped.bundle.artifacts()
    assert {name: tuple(info.labels) for name, info in infos.items()} == LABELS
    assert {name: info.method for name, info in infos.items()} == {"birds": "lora", "tools": "bottleneck"}


def test_the_selftest_runs_every_recorded_case(swapped: Swapped) -> None:
    result = swapped.bundle.selftest()
    assert result.ok and max(row.error for row in result.cases) <= 1e-5
    assert {row.artifact for row in result.cases} == {None, "birds", "tools"}
    assert {row.case for row in result.cases} == {f"{name}/{index}" for name in ("base", "random", "birds", "tools") for index in range(2)}


def test_slots_are_exactly_the_overridable_initializers(swapped: Swapped) -> None:
    manifest = json.loads((swapped.folder / "manifest.json").read_text())
    session = onnxruntime.InferenceSession(swapped.folder / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    overridable = {value.name: value for value in session.get_overridable_initializers()}
    assert set(overridable) == set(manifest["slots"])
    assert {name.rpartition(".")[0] for name in overridable} == {
        "head:prototypes",
        "block.0.attn:keys",
        *(f"block.{n}.{rest}" for n in range(2) for rest in ("attn.q:lowrank", "attn.v:lowrank", "attn.o:lowrank", "ffn:bottleneck~parallel-relu")),
    }
    for name, entry in manifest["slots"].items():
        kept = [size for size in overridable[name].shape if isinstance(size, int)]
        assert kept == [size for size in entry["shape"] if isinstance(size, int)], name
    assert [value.name for value in session.get_inputs()] == ["image"] and session.get_inputs()[0].shape[0] == "batch"


def test_slots_that_no_artifact_uses_work(swapped: Swapped) -> None:
    """`extra_slots` leaves room for artifacts that come later, a prefix for instance."""
    from polyadapt.edits import Edit

    generator = torch.Generator().manual_seed(3)
    later = Artifact("prefix", swapped.model.base_id, "vit", "classification", (Edit("block.0.attn", "keys", {name: torch.randn(2, 6, 16, generator=generator) for name in "kv"}),))
    inputs = example_of(swapped.model, seed=13)
    found = swapped.bundle.run({**arrays(inputs), **arrays(later.slots)})
    assert is_close(found["features"], answers(swapped.model, inputs, later)["features"])


def test_the_folder_of_an_artifact_that_comes_later_is_taken(swapped: Swapped, tmp_path: Path) -> None:
    other = replace(artifact_of(swapped.model.with_labels(("x", "y")), "lora"), labels=("x", "y"))
    export_name = swapped.bundle.load_artifact(other.save(tmp_path / "other"), "other")
    inputs = example_of(swapped.model, seed=14)
    assert is_close(swapped.bundle.run(arrays(inputs), artifact=export_name)["logits"], answers(swapped.model, inputs, other)["logits"])


def test_no_path_of_this_machine_stands_in_a_bundle(swapped: Swapped) -> None:
    """Nodes of a traced graph carry stack traces; none of them may leave this machine."""
    secrets = {str(Path.cwd()), str(Path.home()), str(swapped.folder.parent), str(Path(torch.__file__).parent), "site-packages", "polyadapt/edits", ".py", os.sep + "tmp"}
    secrets |= {str(Path(__file__).parent), str(Path(pa.__file__).parent)}
    for path in swapped.folder.rglob("*"):
        if path.is_file() and path.suffix not in (".data", ".safetensors"):  # those hold numbers, where any three bytes may stand
            found = [secret for secret in secrets if secret.encode() in path.read_bytes()]
            assert not found, f"{found} in {path.name}"
    model = onnx.load(str(swapped.folder / "onnx" / "model.onnx"), load_external_data=False)
    named = [*model.graph.node, *model.graph.value_info, *model.graph.initializer, *model.graph.input, *model.graph.output, model.graph]
    assert not any(entry.metadata_props for entry in named if hasattr(entry, "metadata_props")) and not any(node.doc_string for node in model.graph.node)


def test_the_manifest_says_what_is_there(swapped: Swapped) -> None:
    manifest = json.loads((swapped.folder / "manifest.json").read_text())
    files = {path.relative_to(swapped.folder).as_posix() for path in swapped.folder.rglob("*") if path.is_file()} - {"manifest.json"}
    assert set(manifest["files"]) == files and manifest["base_id"] == swapped.model.base_id
    assert manifest["graphs"]["model"]["opset"] == 20 and manifest["graphs"]["model"]["exporter"] == "dynamo"
    assert [port["name"] for port in manifest["graphs"]["model"]["outputs"]] == ["logits", "features"]
    assert manifest["graphs"]["model"]["outputs"][0]["shape"] == ["batch", "classes"]
    assert manifest["parity"]["ok"] is True and 0 < manifest["parity"]["max_relative_error"] <= manifest["parity"]["tolerance"] == 1e-5
    report = json.loads((swapped.folder / "parity" / "report.json").read_text())
    assert swapped.made.to_dict()["checks"] == len(report["cases"]) + len(report["effects"])


def test_an_older_bundle_is_replaced_whole(tmp_path: Path) -> None:
    model = tiny_model(POLICY)
    export(model, {}, tmp_path / "a.bundle")
    (tmp_path / "a.bundle" / "left-over.txt").write_text("old")
    export(model, {}, tmp_path / "a.bundle")
    assert not (tmp_path / "a.bundle" / "left-over.txt").exists() and [path.name for path in tmp_path.iterdir()] == ["a.bundle"]


def test_a_folder_of_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="it holds other files and no manifest.json, so it is none that may be replaced"):
        export(tiny_model(POLICY), {}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def operations(folder: Path) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in onnx.load(str(folder / "onnx" / "model.onnx"), load_external_data=False).graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts


def test_a_folded_artifact_adds_no_operation(tmp_path: Path) -> None:
    """LoRA, (IA)3, biases and full fine-tuning vanish in the weights; a bottleneck stays as its own operations."""
    model = tiny_model(POLICY)
    base = export(model, {}, tmp_path / "base.bundle")
    assert json.loads((base.directory / "manifest.json").read_text())["slots"] == {}
    plain, inputs = operations(base.directory), example_of(model, seed=15)
    for method, stays in (("lora", False), ("ia3", False), ("full", False), ("bottleneck", True)):
        artifact = artifact_of(model, method)
        made = export(model, {method: artifact}, tmp_path / f"{method}.bundle", "merged")
        assert (sum(operations(made.directory).values()) > sum(plain.values())) == stays, method
        if not stays:
            assert operations(made.directory) == plain
        bundle = Bundle(made.directory)
        assert is_close(bundle.run(arrays(inputs))["action"], answers(model, inputs, artifact)["action"]) and bundle.selftest().ok
        assert not onnxruntime.InferenceSession(made.directory / "onnx" / "model.onnx", providers=["CPUExecutionProvider"]).get_overridable_initializers()


def greedy(model: Model, prompt: list[int], artifact: Artifact | None, steps: int) -> list[int]:
    """The whole text again for each token, without any cache."""
    if artifact is not None:
        artifact.attach(model)
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(steps):
            logits = model.module(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.int64))["logits"]
            ids.append(int(logits[0, -1].argmax()))
    if artifact is not None:
        detach(model)
    return ids[len(prompt) :]


class Writing:
    """A language model with weights, a prefix and a prompt as artifacts."""

    def __init__(self, card: Any, folder: Path) -> None:
        self.model = tiny_model(card, "causal-lm")
        self.artifacts = {name: artifact_of(self.model, name) for name in ("lora", "prefix", "prompt")}
        self.bundle = Bundle(export(self.model, self.artifacts, folder / "text.bundle").directory)


@pytest.fixture(scope="module", params=[LLAMA, pytest.param(GPT2, marks=pytest.mark.wide)], ids=lambda card: card.id)
def writing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Writing:
    return Writing(request.param, tmp_path_factory.mktemp("writing"))


def test_a_causal_bundle_writes_what_torch_writes(writing: Writing) -> None:
    """Greedy text from the cached graph against torch without a cache: base, weights, a prefix and a prompt.

    A prompt is fed with the first step only, a prefix with every one; both are the runtime's business.
    """
    prompt, texts = [5, 17, 42, 99], {}
    for name in (None, *writing.artifacts):
        texts[name] = [token.id for token in writing.bundle.stream(prompt, 10, artifact=name, stop_ids=())]
        assert texts[name] == greedy(writing.model, prompt, writing.artifacts.get(name or ""), 10), name
    assert len({tuple(text) for text in texts.values()}) == 4  # each artifact writes its own text


def test_padding_on_the_left_changes_nothing_in_a_causal_bundle(writing: Writing) -> None:
    layers, heads, size = writing.model.family.cache_shape(writing.model.backbone)
    past = {f"past.{index}.{part}": np.zeros((1, heads, 0, size), np.float32) for index in range(layers) for part in ("key", "value")}
    ids, mask = np.array([[0, 0, 5, 17, 42]]), np.array([[0, 0, 1, 1, 1]])
    for name in (None, "lora", "prefix"):
        padded = writing.bundle.run({"input_ids": ids, "attention_mask": mask, **past}, artifact=name)["logits"][0, 2:]
        alone = writing.bundle.run({"input_ids": ids[:, 2:], "attention_mask": mask[:, 2:], **past}, artifact=name)["logits"][0]
        assert is_close(padded, alone), name
    whole = answers(writing.model, {"input_ids": torch.tensor(ids[:, 2:]), "attention_mask": torch.tensor(mask[:, 2:])}, writing.artifacts["prefix"])
    assert is_close(alone, whole["logits"][0])


def test_the_size_of_pictures_is_the_graphs(tmp_path: Path) -> None:
    """`image_size_px` of a reference is seen in the graph's input, in the pre-processing and in the answer."""
    model = pa.load("timm:resnet10t", pretrained=False, image_size_px=40)
    made = export(model, {}, tmp_path / "pictures.bundle")
    manifest = json.loads((made.directory / "manifest.json").read_text())
    session = onnxruntime.InferenceSession(made.directory / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 3, 40, 40] and manifest["graphs"]["model"]["inputs"][0]["shape"] == ["batch", 3, 40, 40]
    assert manifest["preprocess"]["size_px"] == [40, 40]
    picture = np.random.default_rng(0).integers(0, 256, (57, 80, 3), np.uint8)
    tensors = {name: torch.from_numpy(value)[None] for name, value in model.processor(picture).items()}
    expected = answers(model, tensors)
    raw = Bundle(made.directory).run({name: value.numpy() for name, value in tensors.items()})
    assert all(is_close(raw[name], value) for name, value in expected.items())


def test_exporting_leaves_the_model_alone(swapped: Swapped) -> None:
    assert not hasattr(swapped.model.module, "polyadapt")
    fresh = tiny_model(VIT, "classification")
    inputs = example_of(fresh)
    assert all(np.array_equal(value, answers(swapped.model, inputs)[name]) for name, value in answers(fresh, inputs).items())
    attachments = attachments_of(swapped.model.module, swapped.model.ports, swapped.model.backbone)
    assert attachments.names == ()

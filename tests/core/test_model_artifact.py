"""Identity of bases, and artifacts as files: what fits, what is refused, what never stands in them."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest
import torch

from polyadapt.artifact import Artifact, detach
from polyadapt.edits import Edit, attachments_of
from polyadapt.errors import UserError
from polyadapt.families.bert.card import CARD as BERT
from polyadapt.families.efficientnet.card import CARD as EFFICIENTNET
from polyadapt.families.llama.card import CARD as LLAMA
from polyadapt.families.mlp_policy.card import CARD as POLICY
from polyadapt.families.vit.card import CARD as VIT
from polyadapt.methods.base import load_method
from polyadapt.methods.bottleneck.card import CARD as BOTTLENECK
from polyadapt.methods.dora.card import CARD as DORA
from polyadapt.methods.full.card import CARD as FULL
from polyadapt.methods.lora.card import CARD as LORA
from polyadapt.model import Model
from polyadapt.tensors import base_id
from polyadapt.testing.conformance import example_of, state_of, tiny_model
from polyadapt.testing.exporting import adapted_artifact


def identity(model: Model) -> str:
    return base_id(model.family.card.id, model.family.config(model.backbone), model.backbone, model.family.head_parameters(model.backbone))


def outputs(model: Model) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        found: dict[str, torch.Tensor] = model.module(**example_of(model))
    return found


def test_identity_survives_renamed_modules() -> None:
    """A library that renames or wraps its modules keeps shapes and values, and so the identity."""
    model = tiny_model(BERT)
    tensors = model.backbone.state_dict()

    class Renamed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for index, value in enumerate(reversed(tensors.values())):
                self.register_buffer(f"weight_{index}", value)

    assert base_id("bert", model.family.config(model.backbone), Renamed()) == model.base_id


def test_identity_survives_a_cast_that_keeps_the_values() -> None:
    model = tiny_model(VIT)
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.copy_(parameter.half().float())
    before = identity(model)
    model.backbone.half()
    assert identity(model) == before
    model.backbone.double()
    assert identity(model) == before
    model.backbone.bfloat16()  # fewer digits than the values have
    assert identity(model) != before


@pytest.mark.parametrize("what", ["parameter", "buffer", "shape", "config", "family"])
def test_identity_changes_with(what: str) -> None:
    model = tiny_model(EFFICIENTNET)
    config = model.family.config(model.backbone)
    family = "efficientnet"
    with torch.no_grad():
        if what == "parameter":
            weight = next(model.backbone.parameters())
            weight.view(-1)[0] = torch.nextafter(weight.view(-1)[0], torch.tensor(torch.inf))  # one bit
        elif what == "buffer":
            next(buffer for name, buffer in model.backbone.named_buffers() if name.endswith("running_mean")).add_(1e-3)
        elif what == "shape":
            weight = next(model.backbone.parameters())
            weight.data = weight.data.flatten()
        elif what == "config":
            config = {**config, "something": 1}
        else:
            family = "resnet"
    assert base_id(family, config, model.backbone, model.family.head_parameters(model.backbone)) != model.base_id


def test_identity_does_not_see_a_replaceable_head() -> None:
    model = tiny_model(VIT, "classification")
    with torch.no_grad():
        model.backbone.head.weight.add_(1.0)
    assert identity(model) == model.base_id
    model.backbone.head = torch.nn.Identity()  # as timm makes it for num_classes=0
    assert identity(model) == model.base_id


def test_an_adapter_does_not_change_the_identity_of_a_detached_base() -> None:
    model = tiny_model(VIT, "features")
    adapted_artifact(load_method(LORA), model).attach(model)
    detach(model)
    assert identity(model) == model.base_id


def test_there_and_back(tmp_path: Path) -> None:
    model = tiny_model(VIT, "classification")
    artifact = adapted_artifact(load_method(DORA), model)
    full = Artifact(
        artifact.method, artifact.base_id, "vit", "classification", artifact.edits, {"rank": 8}, ("left", "middle", "right"), own={"mask": torch.ones(3)}, provenance={"seed": 7}
    )
    assert full.save(tmp_path / "a") == tmp_path / "a"
    loaded = Artifact.load(tmp_path / "a")
    assert (loaded.method, loaded.base_id, loaded.family, loaded.task, loaded.options, loaded.labels) == (
        full.method,
        full.base_id,
        "vit",
        "classification",
        {"rank": 8},
        full.labels,
    )
    assert loaded.provenance == {"seed": 7} and torch.equal(loaded.own["mask"], torch.ones(3))
    assert [edit.key for edit in loaded.edits] == [edit.key for edit in full.edits]
    assert all(torch.equal(value, full.slots[name]) for name, value in loaded.slots.items()) and loaded.size_bytes == full.size_bytes
    full.save(tmp_path / "b")
    assert (tmp_path / "a" / "artifact.safetensors").read_bytes() == (tmp_path / "b" / "artifact.safetensors").read_bytes()


def test_another_base_is_refused_with_both_identities(tmp_path: Path) -> None:
    model, other = tiny_model(VIT, "features"), tiny_model(VIT, "features", seed=1)
    artifact = adapted_artifact(load_method(LORA), model)
    with pytest.raises(UserError) as refused:
        artifact.attach(other)
    words = str(refused.value)
    assert model.base_id[:12] in words and other.base_id[:12] in words and "polyadapt:tiny-vit" in words and "lora" in words
    assert not hasattr(other.module, "polyadapt")


def test_another_dtype_is_taken_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model(VIT, "features")
    artifact = adapted_artifact(load_method(LORA), model)
    model.module.double()
    with caplog.at_level(logging.WARNING):
        artifact.attach(model)
    assert "artifact was trained in float32, the model is in float64" in caplog.text


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))


DAMAGE = {
    "a flipped bit": (lambda folder: flip(folder / "artifact.safetensors"), "missing, truncated or altered"),
    "a cut file": (lambda folder: (folder / "artifact.safetensors").write_bytes((folder / "artifact.safetensors").read_bytes()[:-9]), "missing, truncated or altered"),
    "no tensors": (lambda folder: (folder / "artifact.safetensors").unlink(), "missing, truncated or altered"),
    "no envelope": (lambda folder: (folder / "artifact.json").unlink(), "is not an artifact: it has no artifact.json"),
    "another format": (lambda folder: edit_json(folder, format=99), "artifact format 99, this version reads format 1"),
    "half an envelope": (lambda folder: (folder / "artifact.json").write_text('{"format": 1,'), "artifact"),
    "a list": (lambda folder: (folder / "artifact.json").write_text("[]"), "holds a list, expected an object; copy the artifact again"),
    "a number of labels": (lambda folder: edit_json(folder, labels=5), "labels is 5, expected a list of texts"),
    "slots without names": (lambda folder: edit_json(folder, slots=[None]), r"slots is \[None\], expected a list of texts"),
    "options in a row": (lambda folder: edit_json(folder, options=["rank"]), r"options is \['rank'\], expected an object"),
    "no base": (lambda folder: edit_json(folder, base_id=None), "base_id is None, expected text"),
    "another kind": (lambda folder: edit_json(folder, kind="blend"), "'blend' is no kind of artifact; there are adapter, classifier, policy, program"),
}


def edit_json(folder: Path, **changes: object) -> None:
    path = folder / "artifact.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_artifact_is_refused(what: str, tmp_path: Path) -> None:
    adapted_artifact(load_method(LORA), tiny_model(POLICY)).save(tmp_path / "a")
    damage, words = DAMAGE[what]
    damage(tmp_path / "a")
    with pytest.raises(UserError, match=words):
        Artifact.load(tmp_path / "a")


def test_an_envelope_that_names_tensors_it_does_not_have(tmp_path: Path) -> None:
    adapted_artifact(load_method(LORA), tiny_model(POLICY)).save(tmp_path / "a")
    edit_json(tmp_path / "a", slots=["embed:shift.b"])
    with pytest.raises(UserError, match=r"embed:shift\.b"):
        Artifact.load(tmp_path / "a")


def test_an_envelope_that_lacks_a_field(tmp_path: Path) -> None:
    adapted_artifact(load_method(LORA), tiny_model(POLICY)).save(tmp_path / "a")
    path = tmp_path / "a" / "artifact.json"
    head = json.loads(path.read_text())
    del head["base_id"]
    path.write_text(json.dumps(head))
    with pytest.raises(UserError, match="base_id"):
        Artifact.load(tmp_path / "a")


def test_no_path_user_or_host_stands_in_an_artifact(tmp_path: Path) -> None:
    import getpass
    import socket

    adapted_artifact(load_method(LORA), tiny_model(VIT)).save(tmp_path / "a")
    for path in (tmp_path / "a").iterdir():
        for secret in (tmp_path, Path.cwd(), Path.home()):
            assert str(secret).encode() not in path.read_bytes(), f"{secret} stands in {path.name}"
    words = re.findall(r"\w[\w.-]*", (tmp_path / "a" / "artifact.json").read_text())
    assert not {getpass.getuser(), socket.gethostname()} & set(words)


def test_an_interrupted_save_leaves_the_old_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = adapted_artifact(load_method(LORA), tiny_model(POLICY))
    artifact.save(tmp_path / "a")
    before = (tmp_path / "a" / "artifact.safetensors").read_bytes()
    monkeypatch.setattr("polyadapt.artifact.write_json", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        adapted_artifact(load_method(LORA), tiny_model(POLICY), seed=3).save(tmp_path / "a")
    assert (tmp_path / "a" / "artifact.safetensors").read_bytes() == before and sorted(path.name for path in tmp_path.iterdir()) == ["a"]


@pytest.mark.parametrize("card", [LORA, DORA, FULL], ids=["lora", "dora", "full"])
def test_merging_answers_as_attached_and_is_another_base(card: object) -> None:
    model = tiny_model(VIT, "classification")
    artifact = adapted_artifact(load_method(card), model)  # type: ignore[arg-type]
    artifact.attach(model)
    expected = outputs(model)
    detach(model)
    merged = artifact.merge(model)
    found = outputs(merged)
    for name, value in expected.items():
        assert float((found[name] - value).abs().max()) < 1e-5 * float(value.abs().max())
    assert merged.base_id == identity(merged) != artifact.base_id and merged.task.labels == artifact.labels
    assert found["logits"].shape[1] == 3 and merged.ports.head is not None and merged.ports.head.out_features == 3
    with pytest.raises(UserError, match="was made for base"):
        artifact.attach(merged)


def test_what_does_not_fold_is_not_merged() -> None:
    model = tiny_model(VIT, "features")
    before = state_of(model)
    with pytest.raises(UserError, match=r"cannot merge block\.0\.ffn:bottleneck~parallel-relu: bottleneck is not linear"):
        adapted_artifact(load_method(BOTTLENECK), model).merge(model)
    artifact = adapted_artifact(load_method(LORA), model)
    artifact.attach(model, "birds")
    with pytest.raises(UserError, match="detach birds before merging"):
        artifact.merge(model)
    detach(model)
    after = state_of(model)
    assert set(after) == set(before) and all(torch.equal(after[name], value) for name, value in before.items())


def test_a_tied_head_is_merged_only_when_untied() -> None:
    model = tiny_model(LLAMA, "causal-lm")
    port = model.ports.ops["head"]
    generator = torch.Generator().manual_seed(0)
    edit = Edit("head", "lowrank", {"a": torch.randn(port.in_features, 2, generator=generator), "b": torch.randn(2, port.out_features, generator=generator)})
    artifact = Artifact("lora", model.base_id, "llama", "causal-lm", (edit,))
    embedding = model.backbone.model.embed_tokens.weight.detach().clone()
    with pytest.raises(UserError, match="cannot merge head:lowrank: its weight is shared with another module; pass untie=True"):
        artifact.merge(model)
    artifact.attach(model)
    expected = outputs(model)["logits"]
    detach(model)
    found = outputs(artifact.merge(model, untie=True))["logits"]
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())
    assert torch.equal(model.backbone.model.embed_tokens.weight, embedding)


def test_attached_artifacts_by_name() -> None:
    model = tiny_model(VIT, "features")
    base = outputs(model)["features"]
    adapted_artifact(load_method(LORA), model, seed=1).attach(model, "one")
    one = outputs(model)["features"]
    adapted_artifact(load_method(LORA), model, seed=2).attach(model, "two", activate=False)
    with attachments_of(model.module).using("two"):
        assert not torch.equal(outputs(model)["features"], one)
    detach(model, "one")
    assert torch.equal(outputs(model)["features"], base)
    detach(model)
    with pytest.raises(UserError, match="nothing is attached"):
        detach(model)

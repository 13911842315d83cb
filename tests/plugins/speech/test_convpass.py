"""Convpass: its formula, its count, and modules as edits: saved, restored by the method, swapped in one graph."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

import polyadapt as pa
from polyadapt.artifact import Artifact
from polyadapt.edits import attachments_of
from polyadapt.errors import ExportError, UserError
from polyadapt.host import Host
from polyadapt.methods.base import load_method
from polyadapt.methods.bottleneck.card import CARD as BOTTLENECK
from polyadapt.model import Model
from polyadapt.testing.conformance import applies, check_method, example_of, non_degenerate, tiny_model
from polyadapt.testing.exporting import adapted_artifact
from polyadapt_onnx import export
from polyadapt_runtime import Bundle
from polyadapt_speech import entry
from polyadapt_speech.convpass.card import CARD
from polyadapt_speech.convpass.method import Bypass


def model_of(family: str, task: str = "classification") -> Model:
    return tiny_model(import_module(f"polyadapt.families.{family}.card").CARD, task)


@pytest.fixture
def host() -> Host:
    return Host(plugins=[("speech", entry)], discover=False, environment={})


@pytest.mark.parametrize("family", ["ast", "whisper", "wav2vec2", "vit"])
def test_convpass_conforms(family: str, tmp_path: Path) -> None:
    if family == "vit":
        pytest.importorskip("timm", reason="the plugin alone brings no library of pictures")
    check_method(load_method(CARD), model_of(family), tmp_path)


def test_the_count_follows_its_formula() -> None:
    """L (2 d r + r + d + r^2 k + r) for L blocks, beside the head's d C + C."""
    model = model_of("ast")
    plan = load_method(CARD).plan(model, CARD.options(rank=4, kernel=5))
    blocks, d, r, k, classes = len(model.ports.spans) // 2, model.ports.spans["block.0.ffn"].in_features, 4, 5, 3
    assert plan.trainable == blocks * (2 * d * r + r + d + r * r * k + r) + d * classes + classes


def test_the_adapter_is_the_formula_frame_by_frame() -> None:
    """Against loops over frames and taps; the convolution is used, which the official code forgets."""
    generator = torch.Generator().manual_seed(0)
    bypass = Bypass(6, 5, 3, 3, 0.1).start(generator).eval()
    with torch.no_grad():
        for parameter in bypass.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    u = torch.randn(2, 4, 6, generator=generator)

    def gelu(value: torch.Tensor) -> torch.Tensor:
        return value / (1 + torch.exp(-1.702 * value))

    inner = gelu(u @ bypass.down.weight.T + bypass.down.bias)
    expected = torch.zeros(2, 4, 5)
    for frame in range(4):
        heard = bypass.conv.bias.clone().expand(2, 3).clone()
        for tap in range(3):
            if 0 <= frame + tap - 1 < 4:
                heard += inner[:, frame + tap - 1] @ bypass.conv.weight[:, :, tap].T
        expected[:, frame] = gelu(heard) @ bypass.up.weight.T + bypass.up.bias
    assert torch.allclose(bypass(u), expected, atol=1e-6)


def test_a_decoder_is_refused() -> None:
    model = model_of("whisper", "transcription")
    sites = {row.site for row in load_method(CARD).plan(model, CARD.options()).rows}
    assert sites == {"encoder.block.0.ffn", "encoder.block.1.ffn"}
    with pytest.raises(UserError, match=r"decoder\.block\.0\.ffn is in a decoder"):
        load_method(CARD).plan(model, CARD.options(sites=("decoder.*.ffn",)))
    assert "does not fit family 'llama'" in applies(load_method(CARD), model_of("llama", "causal-lm"))


def test_an_even_kernel_is_refused(host: Host) -> None:
    with pytest.raises(UserError, match="odd"):
        pa.attach(model_of("ast"), "convpass", host=host, kernel=4)


def test_dropout_acts_in_training_only() -> None:
    model = model_of("ast")
    form = load_method(CARD).build(model, CARD.options(dropout=0.5), torch.Generator().manual_seed(0))
    non_degenerate(form)
    attachments = attachments_of(model.module, model.ports, model.backbone)
    attachments.add("test", form)
    inputs = example_of(model)
    with torch.no_grad():
        attachments.train()
        differ = not torch.equal(model.module(**inputs)["features"], model.module(**inputs)["features"])
        attachments.eval()
        same = torch.equal(model.module(**inputs)["features"], model.module(**inputs)["features"])
    assert differ and same
    # What is lowered never drops anything, whatever mode the form was left in.
    attachments.train()
    assert not any(edit.structure.training for edit in form.lower() if edit.structure is not None)


def saved(model: Model, directory: Path) -> Artifact:
    artifact = adapted_artifact(load_method(CARD), model)
    artifact.save(directory)
    return artifact


def test_a_saved_artifact_needs_its_method_and_says_so(tmp_path: Path, host: Host) -> None:
    model = model_of("ast")
    artifact = saved(model, tmp_path / "a")
    inputs = example_of(model)

    def answer(chosen: Artifact) -> torch.Tensor:
        attachments = chosen.attach(model)
        attachments.eval()
        try:
            with torch.no_grad():
                return model.module(**inputs)["logits"]
        finally:
            attachments.remove_all()

    with pytest.raises(UserError, match="load_artifact"):
        answer(Artifact.load(tmp_path / "a"))
    with pytest.raises(UserError, match="convpass"):
        Host(discover=False, environment={}).restore(Artifact.load(tmp_path / "a"))
    assert torch.equal(answer(pa.load_artifact(tmp_path / "a", host=host)), answer(artifact))


def test_tensors_of_another_size_are_refused(tmp_path: Path, host: Host) -> None:
    artifact = saved(model_of("ast"), tmp_path / "a")
    edit = next(edit for edit in artifact.edits if edit.kind == "module")
    for name, value in {"conv-bias": torch.zeros(9), "down-weight": torch.zeros(3)}.items():
        broken = replace(edit, tensors={**edit.tensors, name: value}, structure=None)
        with pytest.raises(UserError, match="conv-bias|convpass adapter"):
            host.restore(artifact.with_edits([broken]))


def test_one_graph_swaps_modules_and_bottlenecks(tmp_path: Path) -> None:
    model = model_of("ast")
    artifacts = {
        "first": adapted_artifact(load_method(CARD), model, 2),
        "second": adapted_artifact(load_method(CARD), model, 3),
        "third": adapted_artifact(load_method(BOTTLENECK), model),
    }
    export(model, artifacts, tmp_path / "x.bundle", "slots")
    bundle = Bundle(tmp_path / "x.bundle", device="cpu")
    assert bundle.selftest().ok
    inputs = example_of(model, seed=9)
    feeds = {name: value.numpy() for name, value in inputs.items()}
    answers = {}
    for name, artifact in artifacts.items():
        attachments = artifact.attach(model)
        attachments.eval()
        with torch.no_grad():
            expected = model.module(**inputs)["logits"].numpy()
        attachments.remove_all()
        answers[name] = bundle.run(feeds, name)["logits"]
        assert np.abs(answers[name] - expected).max() <= 1e-5 * np.abs(expected).max()
    assert min(np.abs(answers[a] - answers[b]).max() for a, b in (("first", "second"), ("first", "third"))) > 1e-3


def test_modules_of_two_sizes_do_not_share_a_graph(tmp_path: Path) -> None:
    model = model_of("ast")
    one = adapted_artifact(load_method(CARD), model)
    form = load_method(CARD).build(model, CARD.options(rank=3), torch.Generator().manual_seed(0))
    two = replace(one, edits=tuple(form.lower()))
    with pytest.raises(UserError, match="two bundles"):
        export(model, {"one": one, "two": two}, tmp_path / "x.bundle", "slots")


def test_a_module_whose_zeros_are_no_identity_does_not_pass_the_gate(tmp_path: Path) -> None:
    class Loud(Bypass):
        def forward(self, u: torch.Tensor) -> torch.Tensor:
            return super().forward(u) + 0.1 * u

    model = model_of("ast")
    artifact = adapted_artifact(load_method(CARD), model)
    edits = []
    for edit in artifact.edits:
        if edit.kind == "module":
            loud = Loud(edit.structure.down.in_features, edit.structure.up.out_features, 8, 3, 0.0)  # type: ignore[union-attr]
            edit = replace(edit, structure=loud.eval())
        edits.append(edit)
    with pytest.raises(ExportError, match="base/0"):
        export(model, {"loud": artifact.with_edits(edits)}, tmp_path / "x.bundle", "slots", {"legacy_fallback": False})


def test_merged_bakes_the_modules_in(tmp_path: Path) -> None:
    model = model_of("whisper")
    export(model, {"only": adapted_artifact(load_method(CARD), model)}, tmp_path / "m.bundle", "merged")
    assert Bundle(tmp_path / "m.bundle", device="cpu").selftest().ok

"""Conformer, Soft-MoA and Dense-MoA: their formulas, what an artifact keeps of them, and their forms in a graph."""

from __future__ import annotations

import os
import signal
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import polyadapt as pa
from polyadapt.artifact import Artifact
from polyadapt.data.dataset import Dataset, Example
from polyadapt.edits import attachments_of
from polyadapt.errors import UserError
from polyadapt.host import Host
from polyadapt.methods.base import load_method
from polyadapt.methods.card import MethodCard
from polyadapt.model import Model
from polyadapt.testing.conformance import applies, check_method, example_of, tiny_model
from polyadapt.testing.exporting import adapted_artifact
from polyadapt.training import TrainingData, TrainSettings, fit
from polyadapt.training.events import Event
from polyadapt.training.interrupt import TrainingInterrupted
from polyadapt_onnx import export
from polyadapt_runtime import Bundle
from polyadapt_speech import entry
from polyadapt_speech.conformer.card import CARD as CONFORMER
from polyadapt_speech.conformer.method import ConformerAdapter, GatedConvolution, along_tokens
from polyadapt_speech.convpass.card import CARD as CONVPASS
from polyadapt_speech.dense_moa.card import CARD as DENSE_MOA
from polyadapt_speech.dense_moa.method import DenseMixture
from polyadapt_speech.soft_moa.card import CARD as SOFT_MOA
from polyadapt_speech.soft_moa.method import SoftMixture

CARDS = (CONFORMER, DENSE_MOA, SOFT_MOA)


def model_of(family: str, task: str = "classification") -> Model:
    return tiny_model(import_module(f"polyadapt.families.{family}.card").CARD, task)


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def disturb(module: nn.Module, seed: int = 1) -> nn.Module:
    """Move every parameter away from its start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in module.parameters():
            value.add_(torch.randn(value.shape, generator=generator) * 0.3)
    return module


@pytest.mark.parametrize("family", ["ast", "whisper", "wav2vec2", "wav2vec2_torchaudio", "vit"])
@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.id)
def test_adapters_conform(card: MethodCard, family: str, tmp_path: Path) -> None:
    for name in {"vit": ["timm"], "wav2vec2_torchaudio": ["torchaudio"]}.get(family, []):
        pytest.importorskip(name)
    check_method(load_method(card), model_of(family), tmp_path)


def test_a_conformer_adapter_is_its_formula_token_by_token() -> None:
    """Against loops over tokens and taps in evaluation mode, with statistics that are not those of a fresh norm."""
    d, r, k, n_tokens = 6, 3, 5, 7
    adapter = disturb(ConformerAdapter(d, d, r, k, torch.Generator().manual_seed(0)))
    assert isinstance(adapter, ConformerAdapter)
    adapter.batch_norm.running_mean, adapter.batch_norm.running_var = seeded(r, seed=3), seeded(r, seed=4).square() + 0.5
    adapter.eval()
    u = seeded(2, n_tokens, d, seed=2)
    normed = (u - u.mean(-1, keepdim=True)) / (u.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt() * adapter.norm.weight + adapter.norm.bias
    expanded = normed @ adapter.expand.weight.T + adapter.expand.bias
    gated = expanded[..., :r] * torch.sigmoid(expanded[..., r:])
    expected = torch.zeros(2, n_tokens, d)
    for token in range(n_tokens):
        heard = adapter.conv.bias.expand(2, r).clone()
        for tap in range(k):
            if 0 <= token + tap - k // 2 < n_tokens:
                heard += gated[:, token + tap - k // 2] * adapter.conv.weight[:, 0, tap]
        norm = adapter.batch_norm
        stood = (heard - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
        expected[:, token] = stood * torch.sigmoid(stood) @ adapter.project.weight.T + adapter.project.bias
    assert torch.allclose(adapter(u), expected, atol=1e-5)
    assert torch.allclose(adapter.lowered()(u), expected, atol=1e-5)


@pytest.mark.parametrize("kernel", [1, 2, 3, 8, 31])
def test_a_convolution_keeps_the_length_as_torchs_same_does(kernel: int) -> None:
    conv = nn.Conv1d(3, 3, kernel, groups=3)
    inner = seeded(2, 3, 11)
    same = F.conv1d(inner, conv.weight, conv.bias, padding="same", groups=3)
    assert same.shape == inner.shape
    assert torch.allclose(along_tokens(conv, inner), same, atol=1e-6)


def test_only_the_adapters_own_statistics_move_in_training() -> None:
    """Torch's own batch norm over all tokens of the batch; no buffer of the base changes."""
    model = model_of("ast")
    form = load_method(CONFORMER).build(model, CONFORMER.options(rank=4), torch.Generator().manual_seed(0))
    attachments = attachments_of(model.module, model.ports, model.backbone)
    attachments.add("test", form)
    before = {name: value.clone() for name, value in model.backbone.named_buffers()}
    adapter = next(module for module in form.modules() if isinstance(module, ConformerAdapter))
    seen: list[torch.Tensor] = []
    handle = adapter.batch_norm.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    try:
        model.module.train()
        model.module(**example_of(model))
        model.module.eval()
        moved = adapter.batch_norm.running_mean.clone()
        model.module(**example_of(model))
    finally:
        handle.remove()
        attachments.remove_all()
    assert torch.allclose(moved, 0.1 * seen[0].mean((0, 2)), atol=1e-6)
    assert moved.abs().max() > 1e-4
    assert torch.equal(adapter.batch_norm.running_mean, moved)
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.named_buffers())


def test_looking_whether_edits_are_reached_moves_no_statistics() -> None:
    model = model_of("ast")
    form = load_method(CONFORMER).build(model, CONFORMER.options(), torch.Generator().manual_seed(0))
    attachments = attachments_of(model.module, model.ports, model.backbone)
    attachments.add("test", form)
    before = [value.clone() for value in form.buffers()]
    attachments.check_seen(example_of(model))
    assert len(before) == 2 * 3 and all(torch.equal(value, kept) for value, kept in zip(form.buffers(), before, strict=True))
    attachments.remove_all()


def test_a_clip_of_one_frame_alone_takes_the_statistics_of_others() -> None:
    adapter = ConformerAdapter(6, 6, 3, 5, torch.Generator().manual_seed(0)).train()
    with torch.no_grad():
        adapter(torch.randn(4, 7, 6))
        before = {name: value.clone() for name, value in adapter.named_buffers()}
        alone = adapter(torch.randn(1, 1, 6))
    assert alone.shape == (1, 1, 6) and all(torch.equal(value, before[name]) for name, value in adapter.named_buffers())


def test_an_artifact_holds_no_norm() -> None:
    model = model_of("ast")
    made = adapted_artifact(load_method(CONFORMER), model)
    edits = [edit for edit in made.edits if edit.kind == "module"]
    assert {type(edit.structure) for edit in edits} == {GatedConvolution}
    assert {name for edit in edits for name in edit.tensors} == {f"{layer}-{part}" for layer in ("expand", "conv", "project") for part in ("weight", "bias")}


def test_one_adapter_with_one_slot_and_no_scores_is_that_adapter_on_the_mean_token() -> None:
    mixture = SoftMixture(1, 1, 5, 4, 3, False).start(torch.Generator().manual_seed(0))
    disturb(mixture.experts)
    with torch.no_grad():
        mixture.phi.zero_()
    u = seeded(2, 7, 5)
    experts = mixture.experts
    mean = F.gelu(u.mean(1) @ experts.down[0] + experts.down_bias[0]) @ experts.up[0] + experts.up_bias[0]
    assert torch.allclose(mixture(u), mean[:, None].expand(2, 7, 4), atol=1e-6)


@pytest.mark.parametrize("is_normalized", [False, True])
def test_a_soft_mixture_is_its_formula_slot_by_slot(is_normalized: bool) -> None:
    n, p, d, n_tokens = 3, 2, 5, 6
    mixture = SoftMixture(n, p, d, d, 2, is_normalized).start(torch.Generator().manual_seed(0))
    disturb(mixture)
    u = seeded(1, n_tokens, d)
    experts = mixture.experts
    tokens, phi = u[0], mixture.phi
    if is_normalized:
        assert mixture.scale is not None
        tokens, phi = tokens / tokens.norm(dim=1, keepdim=True), mixture.scale * phi / phi.norm(dim=0)
    logits = torch.stack([torch.stack([tokens[m] @ phi[:, s] for s in range(n * p)]) for m in range(n_tokens)])
    expected = torch.zeros(n_tokens, d)
    for s in range(n * p):
        share = torch.exp(logits[:, s]) / torch.exp(logits[:, s]).sum()
        slot = sum(share[m] * u[0, m] for m in range(n_tokens))
        i = s // p
        made = F.gelu(slot @ experts.down[i] + experts.down_bias[i]) @ experts.up[i] + experts.up_bias[i]
        for m in range(n_tokens):
            expected[m] += torch.exp(logits[m, s]) / torch.exp(logits[m]).sum() * made
    assert torch.allclose(mixture(u)[0], expected, atol=1e-5)


def test_a_dense_mixture_weighs_every_adapter_for_every_token() -> None:
    mixture = DenseMixture(3, 5, 4, 2).start(torch.Generator().manual_seed(0))
    disturb(mixture)
    u = seeded(2, 6, 5)
    experts = mixture.experts
    weights = torch.softmax(u @ mixture.router.T, dim=-1)
    expected = sum(weights[..., i, None] * (F.gelu(u @ experts.down[i] + experts.down_bias[i]) @ experts.up[i] + experts.up_bias[i]) for i in range(3))
    assert torch.allclose(mixture(u), expected, atol=1e-6)
    with torch.no_grad():
        mixture.router.zero_()
    even = sum(F.gelu(u @ experts.down[i] + experts.down_bias[i]) @ experts.up[i] + experts.up_bias[i] for i in range(3)) / 3
    assert torch.allclose(mixture(u), even, atol=1e-6)


@pytest.mark.parametrize("card", [SOFT_MOA, DENSE_MOA], ids=lambda card: card.id)
def test_what_a_mixture_makes_is_added_once(card: MethodCard) -> None:
    """Read at the attention's output: with every adapter's last bias at 1 and all else zero, it moves by exactly 1."""
    model = model_of("ast", "features")
    form = load_method(card).build(model, card.options(), torch.Generator().manual_seed(0))
    attachments = attachments_of(model.module, model.ports, model.backbone)
    span = model.ports.spans["block.0.attn"]
    found: list[torch.Tensor] = []

    def answer() -> torch.Tensor:
        handle = span.end.module.register_forward_hook(lambda module, args, output: found.append(output))
        try:
            with torch.no_grad():
                model.module(**example_of(model))
        finally:
            handle.remove()
        return found.pop()

    base = answer()
    attachments.add("test", form)
    with torch.no_grad():
        for name, value in form.named_parameters():
            if name.endswith("up_bias"):
                value.fill_(1.0)
    moved = answer()
    attachments.remove_all()
    assert torch.allclose(moved - base, torch.ones_like(base), atol=1e-5)


def test_padding_takes_part_in_the_means_of_a_soft_mixture_and_not_in_a_dense_one() -> None:
    """No span sees a mask: documented, and why training runs sounds of different lengths one after another."""
    u = seeded(1, 5, 4)
    padded = torch.cat([u, torch.zeros(1, 3, 4)], dim=1)
    soft, dense = SoftMixture(2, 1, 4, 4, 2, False).start(torch.Generator().manual_seed(0)), DenseMixture(2, 4, 4, 2).start(torch.Generator().manual_seed(0))
    disturb(soft), disturb(dense)
    assert not torch.allclose(soft(padded)[:, :5], soft(u), atol=1e-3)
    assert torch.allclose(dense(padded)[:, :5], dense(u), atol=1e-6)


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.id)
def test_decoders_are_left_alone(card: MethodCard) -> None:
    model = model_of("whisper", "transcription")
    sites = {row.site for row in load_method(card).plan(model, card.options()).rows}
    assert sites and all(site.startswith("encoder.") for site in sites)
    with pytest.raises(UserError, match=r"decoder\.block\.0\.ffn is in a decoder"):
        load_method(card).plan(model, card.options(sites=("decoder.*.ffn",)))
    assert "does not fit family 'llama'" in applies(load_method(card), model_of("llama", "causal-lm"))


@pytest.mark.parametrize(
    ("card", "options"), [(CONFORMER, {"kernel": 8}), (SOFT_MOA, {"slots": 2, "normalize": True}), (DENSE_MOA, {"experts": 3})], ids=lambda value: getattr(value, "id", "")
)
def test_options_survive_a_file(card: MethodCard, options: dict[str, object], tmp_path: Path) -> None:
    model = model_of("ast", "features")
    chosen = card.options(**options)
    form = disturb(load_method(card).build(model, chosen, torch.Generator().manual_seed(0))).eval()
    artifact = Artifact(card.id, model.base_id, "ast", "features", tuple(form.lower()), chosen.model_dump(mode="json"))  # type: ignore[operator]
    artifact.save(tmp_path / "a")
    loaded = Host(plugins=[("speech", entry)], discover=False, environment={}).restore(Artifact.load(tmp_path / "a"))
    answers = []
    for one in (artifact, loaded):
        attachments = one.attach(model)
        with torch.no_grad():
            answers.append(model.module(**example_of(model))["features"])
        attachments.remove_all()
    assert torch.equal(*answers)


def test_one_graph_holds_all_adapters(tmp_path: Path) -> None:
    model = model_of("ast")
    artifacts = {card.id: adapted_artifact(load_method(card), model) for card in (*CARDS, CONVPASS)}
    export(model, artifacts, tmp_path / "x.bundle", "slots")
    assert Bundle(tmp_path / "x.bundle", device="cpu").selftest().ok


@pytest.mark.parametrize("family", ["ast", "whisper"])
def test_merged_bakes_a_conformer_in(family: str, tmp_path: Path) -> None:
    model = model_of(family)
    export(model, {"only": adapted_artifact(load_method(CONFORMER), model)}, tmp_path / "m.bundle", "merged")
    assert Bundle(tmp_path / "m.bundle", device="cpu").selftest().ok


def noise() -> TrainingData:
    generator = np.random.default_rng(0)
    rows = [Example(f"{index}", ((0.1 * generator.standard_normal(8000)).astype(np.float32), 16000), "ab"[index % 2]) for index in range(12)]
    return TrainingData(Dataset("noise", rows, "audio", ("a", "b")))


def test_blocks_that_run_again_move_running_statistics_once() -> None:
    """With and without gradient checkpointing the same bits, the statistics folded into the convolution included."""
    model, method = pa.load("polyadapt:tiny-ast", task="classification"), load_method(CONFORMER)
    settings = [TrainSettings(epochs=2, batch_size=4, device="cpu", frozen_prefix="off", gradient_checkpointing=again) for again in (False, True)]
    once, twice = (fit(model, method, CONFORMER.options(rank=4), noise(), chosen).slots for chosen in settings)
    assert set(once) == set(twice) and all(torch.equal(value, twice[name]) for name, value in once.items())


def test_what_lies_below_a_conformer_is_computed_once_and_nothing_else_changes() -> None:
    said: list[Event] = []
    model, method, options = pa.load("polyadapt:tiny-ast", task="classification"), load_method(CONFORMER), CONFORMER.options(rank=4, sites=("block.1.ffn",))
    whole, cached = (
        fit(model, method, options, noise(), TrainSettings(epochs=3, batch_size=4, device="cpu", frozen_prefix=prefix), said.append).slots for prefix in ("off", "cache")
    )
    assert [event["prefix"] for event in said if event.kind == "started"] == ["off", "1 blocks"]
    for name, value in whole.items():
        torch.testing.assert_close(cached[name], value, rtol=0, atol=1e-5 * float(value.abs().max()), msg=name)


def test_training_goes_on_after_ctrl_c_with_the_same_statistics(tmp_path: Path) -> None:
    """Bit for bit, running statistics folded in: they are part of a checkpoint."""
    model, data = pa.load("polyadapt:tiny-ast", task="classification"), noise()
    settings = TrainSettings(epochs=4, batch_size=4, device="cpu", log_every_steps=1)

    def press(event: Event) -> None:
        if (event.kind, event.get("step")) == ("step", 7):
            os.kill(os.getpid(), signal.SIGINT)

    method, options = load_method(CONFORMER), CONFORMER.options(rank=4)
    unbroken = fit(model, method, options, data, settings).slots
    with pytest.raises(TrainingInterrupted):
        fit(model, method, options, data, settings, press, tmp_path)
    resumed = fit(model, method, options, data, settings, directory=tmp_path, resume=True).slots
    assert set(resumed) == set(unbroken) and all(torch.equal(value, unbroken[name]) for name, value in resumed.items())


def test_statistics_of_a_conformer_are_learned_beside_a_base_in_bfloat16() -> None:
    """What its norm has seen of the training data goes into the artifact, as beside the same weights in float32."""
    kept, plain = model_of("ast"), model_of("ast")
    kept.module.to(torch.bfloat16)
    plain.module.load_state_dict(kept.module.state_dict())
    seen = []
    for model in (kept, plain):
        attached = pa.attach(model, "conformer")
        disturb(attached.form)
        inputs = {name: value.to(torch.bfloat16) if model is kept and value.is_floating_point() else value for name, value in example_of(plain).items()}
        model.module.train()(**inputs)
        seen.append({name: value.clone() for name, value in attached.form.named_buffers() if name.endswith(("running_mean", "running_var"))})
        attached.detach()
    assert seen[0] and all(value.dtype == torch.float32 for value in seen[0].values())
    for name, value in seen[1].items():
        assert (value - (0.0 if name.endswith("mean") else 1.0)).abs().max() > 1e-3, name
        assert torch.allclose(seen[0][name], value, rtol=0.05, atol=0.02), name

"""The method `usat`: its formula, its count, identity at the start, what it is lowered to, and swapping in one graph."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import create_model
from torch.nn import functional as F

import polyadapt as pa
from polyadapt import builtin
from polyadapt.artifact import Artifact
from polyadapt.edits import Edit, attachments_of
from polyadapt.edits.merge import folded
from polyadapt.errors import UserError
from polyadapt.host import Host
from polyadapt.methods.base import load_method
from polyadapt.model import Model, build_model
from polyadapt.signature import Task
from polyadapt.testing.conformance import check_method, example_of, load_family, non_degenerate, tiny_model
from polyadapt.testing.exporting import adapted_artifact
from polyadapt_onnx import export
from polyadapt_runtime import Bundle
from polyadapt_speech import entry
from polyadapt_speech.usat.adapters import FlowAdapter
from polyadapt_speech.usat.card import CARD
from polyadapt_speech.usat.family.card import CARD as VOICE
from polyadapt_speech.usat.family.model import TINY, tiny_voice
from polyadapt_speech.usat.losses import prior_divergence
from polyadapt_speech.usat.network.voice import Voice

METHOD = load_method(CARD)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model_with_speakers(size: int = 5) -> Model:
    torch.manual_seed(0)
    voice = tiny_voice(replace(TINY, speaker_size=size))
    return build_model(load_family(VOICE), voice, Task("synthesis"), None, reference="polyadapt:tiny-voice")  # type: ignore[arg-type]


@pytest.mark.parametrize(("placement", "kernel", "phoneme_rank"), [("inside", 1, 0), ("inside", 3, 8), ("beside", 1, 8), ("beside", 3, 0)])
def test_every_variant_conforms(placement: str, kernel: int, phoneme_rank: int, tmp_path: Path) -> None:
    options = create_model("Chosen", __base__=CARD.options, placement=(str, placement), kernel=(int, kernel), phoneme_rank=(int, phoneme_rank))
    check_method(load_method(replace(CARD, options=options)), tiny_model(VOICE), tmp_path)


@pytest.mark.parametrize("placement", ["inside", "beside"])
def test_the_count_follows_its_formula(placement: str) -> None:
    """A coupling: d + d r k + r + r w + w, with w = d inside, as always of durations, and w = latent / 2 beside; a block of text: 2 D p + p + 3 D; and the speaker vector."""
    model = model_with_speakers(5)
    r, k, p = 4, 5, 3
    plan = METHOD.plan(model, CARD.options(placement=placement, rank=r, kernel=k, phoneme_rank=p))
    d = TINY.flow.width if placement == "inside" else TINY.latent // 2
    n, width = TINY.durations.width, TINY.width
    durations = (TINY.durations.flows - 1) * (n + n * r * k + r + r * n + n)
    assert plan.trainable == TINY.couplings * (d + d * r * k + r + r * d + d) + durations + TINY.blocks * (2 * width * p + p + 3 * width) + 5
    alone = CARD.options(rank=r, kernel=k, durations=False, phoneme_rank=0, speaker=False, sites=("flow.block.0.shift",))
    assert METHOD.plan(model, alone).trainable == TINY.flow.width * (r * k + r + 2) + r


def test_an_adapter_is_the_formula_frame_by_frame() -> None:
    adapter = FlowAdapter(6, 4, 3, 3).start(generator())
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator(1)) * 0.3)
        x = torch.randn(1, 6, 7, generator=generator(2))
        normed = torch.stack([(x[0, :, t] - x[0, :, t].mean()) / (x[0, :, t].var(unbiased=False) + 1e-5).sqrt() * adapter.norm.weight for t in range(7)], -1)
        around = F.pad(normed, (1, 1))
        found = adapter(x)[0]
        for t in range(7):
            inner = sum(adapter.down.weight[:, :, tap] @ around[:, t + tap] for tap in range(3)) + adapter.down.bias
            assert torch.allclose(found[:, t], adapter.up.weight[:, :, 0] @ inner.relu() + adapter.up.bias, atol=1e-5)


def test_nothing_is_added_at_the_start_and_beyond_the_end() -> None:
    adapter, x = FlowAdapter(6, 4, 3, 3).start(generator()), torch.randn(2, 6, 9, generator=generator())
    with torch.no_grad():
        assert not adapter(x).any()
        assert torch.equal(adapter.down(adapter.norm(F.pad(x[..., :5], (0, 4))))[..., :5], adapter.down(adapter.norm(x[..., :5])))
        assert not adapter.norm(torch.zeros(1, 6, 3)).any()


def test_inside_is_the_hidden_frames_and_not_what_follows() -> None:
    """h + A(h) computed in the open against the lowered edit at the layer behind it."""
    model = tiny_model(VOICE)
    form = METHOD.build(model, CARD.options(phoneme_rank=0), generator())
    non_degenerate(form)
    coupling = model.backbone.flow.couplings[1]  # type: ignore[union-attr,index]
    trained = form.parts[0].adapters["flow/block/1/shift"]  # type: ignore[union-attr,index]
    kept, mask = torch.randn(2, TINY.latent // 2, 8, generator=generator()), torch.ones(2, 1, 8)
    with torch.no_grad():
        hidden = coupling.wavenet(coupling.before(kept) * mask, mask)
        expected = coupling.after(hidden + trained(hidden))
        attachments = attachments_of(model.module, model.ports, model.backbone)
        attachments.add("test", form)
        try:
            found = coupling._shift(kept, mask, None)
        finally:
            attachments.remove_all()
    assert torch.allclose(found, expected, atol=1e-5) and not torch.allclose(found, coupling.after(hidden), atol=1e-2)


def test_only_adapters_of_durations_drop_what_they_read() -> None:
    dropped = {edit.site: edit.dropout for edit in METHOD.build(tiny_model(VOICE), CARD.options(duration_dropout=0.3), generator()).edits()}
    assert {site for site, share in dropped.items() if share == 0.3} == {site for site in dropped if site.startswith("durations.")} != set()
    assert {share for site, share in dropped.items() if not site.startswith("durations.")} == {0.0}


def test_the_speaker_vector_adds_to_the_one_that_is_fed() -> None:
    """A trained d with s fed is s + d fed to the flow, and it folds into the convolutions."""
    model, options = model_with_speakers(5), CARD.options(phoneme_rank=0)
    form = METHOD.build(model, options, generator())
    speaker = form.parts[-1]  # type: ignore[union-attr]
    with torch.no_grad():
        speaker.vector.copy_(torch.tensor([0.3, -0.2, 0.5, 0.1, -0.4]))  # type: ignore[union-attr,operator]
    flow = model.backbone.flow
    z, mask, fed = torch.randn(2, TINY.latent, 9, generator=generator()), torch.ones(2, 1, 9), torch.randn(2, 5, 1, generator=generator(1))
    with torch.no_grad():
        expected = flow(z, mask, fed + speaker.vector[:, None])  # type: ignore[operator,union-attr,index]
        assert not torch.allclose(expected, flow(z, mask, fed), atol=1e-2)  # type: ignore[operator]
        attachments = attachments_of(model.module, model.ports, model.backbone)
        attachments.add("test", form)
        lowered = form.lower()
        try:
            assert torch.allclose(flow(z, mask, fed), expected, atol=1e-5)  # type: ignore[operator]
        finally:
            attachments.remove_all()
        shifts = [edit for edit in lowered if edit.kind == "shift"]
        with folded(model.ports, tuple(shifts)) as remaining:
            assert not remaining and torch.allclose(flow(z, mask, fed), expected, atol=1e-5)  # type: ignore[operator]


def test_a_voice_with_speakers_conforms_too(tmp_path: Path) -> None:
    check_method(METHOD, model_with_speakers(), tmp_path)


def test_wrong_sites_and_tensors_are_refused() -> None:
    model = tiny_model(VOICE)
    with pytest.raises(UserError, match=r"stand in the flow, encoder\.block\.0\.attn does not"):
        METHOD.build(model, CARD.options(sites=("encoder.block.*.attn",)), generator())
    with pytest.raises(UserError, match="expected tensors of a flow adapter"):
        METHOD.structure(Edit("flow.block.0.shift", "module", {"down-weight": torch.zeros(3)}, "usat"), CARD.options())
    with pytest.raises(ValueError, match="must be odd"):
        CARD.options(kernel=2)


def test_training_by_hand_brings_another_speaker_to_the_prior() -> None:
    """A recording of another timbre fits the text's prior badly; adapters in the flow mend that, and nothing else moves."""
    host = Host(plugins=[("core", builtin), ("speech", entry)], discover=False, environment={})
    model = host.load("polyadapt:tiny-voice")
    voice, g = model.backbone, generator()
    assert isinstance(voice, Voice)
    before = {name: value.clone() for name, value in voice.state_dict().items()}
    mean, log_deviation, mask = torch.randn(4, TINY.latent, 16, generator=g), torch.full((4, TINY.latent, 16), -0.5), torch.ones(4, 1, 16)
    with torch.no_grad():
        own = voice.flow.inverse(mean + 0.3 * torch.randn(mean.shape, generator=g), mask)
    other = own + torch.randn(1, TINY.latent, 1, generator=g)  # what a timbre does to every frame
    attached = pa.attach(model, "usat", host=host, phoneme_rank=0)
    trainable = [parameter for parameter in model.module.parameters() if parameter.requires_grad]
    assert sum(parameter.numel() for parameter in trainable) == METHOD.plan(tiny_model(VOICE), CARD.options(phoneme_rank=0)).trainable
    optimiser, losses = torch.optim.AdamW(trainable, lr=1e-2), []
    for _ in range(80):
        loss = prior_divergence(voice.flow(other, mask), torch.full_like(other, -1.2), mean, log_deviation, mask)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    with torch.no_grad():
        assert torch.allclose(voice.flow.inverse(voice.flow(other, mask), mask), other, atol=1e-4)
    assert losses[-1] < 0.6 * losses[0]
    attached.detach()
    assert all(torch.equal(value, before[name]) for name, value in voice.state_dict().items())


@pytest.mark.slow
def test_two_speakers_swap_in_one_graph(tmp_path: Path) -> None:
    model = tiny_model(VOICE)
    artifacts = {name: adapted_artifact(METHOD, model, seed=seed) for name, seed in (("anna", 2), ("ben", 3))}
    for name, artifact in artifacts.items():
        artifact.save(tmp_path / name)
        artifacts[name] = METHOD.restored(Artifact.load(tmp_path / name))
    made = export(model, artifacts, tmp_path / "voice.bundle", "slots", {"legacy_fallback": False})
    bundle = Bundle(made.directory)
    feeds = {name: value.numpy() for name, value in example_of(model, sizes={"batch": 1, "tokens": 9}).items()}
    answers = {name: bundle(feeds, artifact=name)[0]["waveform"] for name in (None, "anna", "ben")}
    again = bundle(feeds, artifact="anna")[0]["waveform"]
    assert np.array_equal(again, answers["anna"])
    assert all(answers[left].shape != answers[right].shape or not np.allclose(answers[left], answers[right], atol=1e-4) for left, right in ((None, "anna"), ("anna", "ben")))

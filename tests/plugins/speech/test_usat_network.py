"""The voice network: flow and its inverse, decoders, noise as an input, weight norm, padding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from polyadapt.families.shared import enliven
from polyadapt_speech.usat.family.model import TINY, tiny_voice
from polyadapt_speech.usat.network.config import DecoderConfig, WaveNetConfig
from polyadapt_speech.usat.network.decoder import Decoder, PairedBlock, SingleBlock
from polyadapt_speech.usat.network.flow import Flow
from polyadapt_speech.usat.network.posterior import PosteriorEncoder
from polyadapt_speech.usat.network.voice import Manner, Voice
from polyadapt_speech.usat.network.wavenet import WaveNet


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def living_voice() -> Voice:
    torch.manual_seed(0)
    return tiny_voice()


@pytest.fixture(scope="module")
def voice() -> Voice:
    return living_voice()


def text(rows: int = 2, tokens: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(0, TINY.vocab_size, (rows, tokens), generator=generator()), torch.ones(rows, tokens, dtype=torch.int64)


def speak(voice: Voice, ids: torch.Tensor, mask: torch.Tensor, manner: Manner | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Waveform and lengths."""
    with torch.no_grad():
        wave, lengths, durations = voice(ids, mask, manner)
    assert torch.equal(durations.ceil().sum(1).long() * voice.config.decoder.hop, lengths) and not durations[mask == 0].any()
    return wave, lengths


@pytest.mark.parametrize("speaker_size", [0, 5])
def test_the_flow_is_undone_by_its_inverse(speaker_size: int) -> None:
    torch.manual_seed(0)
    flow = enliven(Flow(replace(TINY, couplings=4, speaker_size=speaker_size)))
    assert isinstance(flow, Flow)
    g = generator()
    mask = (torch.arange(20) < torch.tensor([[20], [13]])).float()[:, None]
    z = torch.randn(2, TINY.latent, 20, generator=g) * mask
    speaker = torch.randn(2, 5, 1, generator=g) if speaker_size else None
    with torch.no_grad():
        moved = flow(z, mask, speaker)
        assert (moved - z).abs().mean() > 0.1
        assert torch.allclose(flow.inverse(moved, mask, speaker), z, atol=1e-4)
        if speaker is not None:
            assert not torch.allclose(flow(z, mask, -speaker), moved, atol=1e-2)


def test_a_new_flow_only_exchanges_channels() -> None:
    """Its shifts start at 0, so with an even number of couplings it is the identity."""
    torch.manual_seed(0)
    z = torch.randn(1, TINY.latent, 9, generator=generator())
    assert torch.equal(Flow(replace(TINY, couplings=4))(z, torch.ones(1, 1, 9)), z)


def test_a_speaker_vector_changes_nothing_at_the_start() -> None:
    torch.manual_seed(0)
    config = WaveNetConfig(8, 3, 3, 2)
    net = WaveNet(config, speaker_size=4)
    x, mask = torch.randn(2, 8, 30, generator=generator()), torch.ones(2, 1, 30)
    with torch.no_grad():
        assert torch.equal(net(x, mask, torch.randn(2, 4, 1, generator=generator(1))), net(x, mask))


def test_a_wavenet_sees_as_far_as_its_dilations() -> None:
    """Kernel 3 with dilations 1, 2, 4: one frame reaches 7 to each side."""
    torch.manual_seed(0)
    net = WaveNet(WaveNetConfig(4, 3, 3, 2)).double()
    x = torch.zeros(1, 4, 41, dtype=torch.float64)
    moved = x.clone()
    moved[..., 20] = 1.0
    with torch.no_grad():
        changed = (net(moved, torch.ones(1, 1, 41)) - net(x, torch.ones(1, 1, 41))).abs().sum((0, 1)) > 0
    assert changed.nonzero().flatten().tolist() == list(range(13, 28))


@pytest.mark.parametrize("paired", [False, True], ids=["ResBlock2", "ResBlock1"])
def test_residual_blocks_are_the_papers(paired: bool) -> None:
    torch.manual_seed(0)
    block = (PairedBlock if paired else SingleBlock)(4, 3, (1, 5))
    x = torch.randn(1, 4, 30, generator=generator())
    expected = x
    with torch.no_grad():
        for layer, dilation in enumerate((1, 5)):
            first = block.first[layer]
            inner = F.conv1d(torch.where(expected > 0, expected, 0.1 * expected), first.weight, first.bias, dilation=dilation, padding=dilation)
            if isinstance(block, PairedBlock):
                second = block.second[layer]
                inner = F.conv1d(torch.where(inner > 0, inner, 0.1 * inner), second.weight, second.bias, padding=1)
            expected = expected + inner
        assert torch.allclose(block(x, torch.ones(1, 1, 30)), expected, atol=1e-6)


@pytest.mark.parametrize("paired", [False, True], ids=["ResBlock2", "ResBlock1"])
def test_a_decoder_makes_hop_samples_of_a_frame(paired: bool) -> None:
    torch.manual_seed(0)
    config = DecoderConfig(16, (5, 4, 3), (11, 8, 7), (3, 5), ((1, 2), (2, 6)), paired)
    wave = Decoder(config, 6)(torch.randn(2, 6, 9, generator=generator()), torch.ones(2, 1, 9))
    assert config.hop == 60 and wave.shape == (2, 540) and wave.abs().max() <= 1


def test_rows_do_not_see_their_padding(voice: Voice) -> None:
    ids, _ = text(2, 9)
    mask = (torch.arange(9) < torch.tensor([[9], [4]])).to(torch.int64)
    together, lengths = speak(voice, ids, mask)
    for row, tokens in enumerate((9, 4)):
        alone, own = speak(voice, ids[row : row + 1, :tokens], mask[row : row + 1, :tokens])
        assert int(own[0]) == int(lengths[row]) == alone.shape[1]
        assert torch.allclose(together[row, : alone.shape[1]], alone[0], atol=1e-5)


@pytest.mark.parametrize("tokens", [1, 2])
def test_the_shortest_texts_are_spoken(voice: Voice, tokens: int) -> None:
    wave, lengths = speak(voice, *text(1, tokens))
    assert wave.shape[1] == int(lengths[0]) >= TINY.decoder.hop and wave.isfinite().all()


def test_noise_is_an_input(voice: Voice) -> None:
    """None is zeros; noise of another length is cut or filled up; each kind changes what it should."""
    ids, mask = text()
    plain, lengths = speak(voice, ids, mask)
    frames = plain.shape[1] // TINY.decoder.hop
    zeros = Manner(torch.zeros(2, TINY.latent, 3), torch.zeros(2, 2, 7), torch.ones(2))
    assert torch.equal(speak(voice, ids, mask, zeros)[0], plain)
    noise = torch.randn(2, TINY.latent, frames + 5, generator=generator(1))
    loud, same = speak(voice, ids, mask, Manner(noise))
    assert torch.equal(same, lengths) and not torch.allclose(loud, plain, atol=1e-2)
    assert torch.equal(speak(voice, ids, mask, Manner(noise[..., :frames]))[0], loud)
    half = F.pad(noise[..., :4], (0, frames - 4))
    assert torch.equal(speak(voice, ids, mask, Manner(noise[..., :4]))[0], speak(voice, ids, mask, Manner(half))[0])
    _, other = speak(voice, ids, mask, Manner(duration_noise=torch.randn(2, 2, 7, generator=generator(2)) * 3))
    assert not torch.equal(other, lengths)
    _, slow = speak(voice, ids, mask, Manner(length_scale=torch.tensor([1.0, 2.0])))
    assert slow[0] == lengths[0] and slow[1] > 1.5 * lengths[1]


def test_the_posterior_encoder_draws_from_what_it_says() -> None:
    torch.manual_seed(0)
    encoder = enliven(PosteriorEncoder(17, 6, WaveNetConfig(8, 2, 3)))
    g = generator()
    spectrogram, noise = torch.rand(2, 17, 11, generator=g), torch.randn(2, 6, 11, generator=g)
    mask = (torch.arange(11) < torch.tensor([[11], [6]])).float()[:, None]
    with torch.no_grad():
        z, mean, log_deviation = encoder(spectrogram, mask, noise)
        again, _, _ = encoder(spectrogram, mask, torch.zeros_like(noise))
        alone, _, _ = encoder(spectrogram[1:, :, :6], mask[1:, :, :6], noise[1:, :, :6])
    assert torch.allclose(z, (mean + noise * log_deviation.exp()) * mask) and not z[1, :, 6:].any()
    assert torch.equal(again, mean * mask)
    assert torch.allclose(z[1:, :, :6], alone, atol=1e-5)


def test_every_weight_of_a_voice_is_used() -> None:
    """Gradients reach all that speaks, the predictor of durations by these before they are rounded."""
    voice = living_voice()
    ids, mask = text()
    wave, _, lasts = voice(ids, mask, Manner(torch.randn(2, TINY.latent, 60, generator=generator()), torch.randn(2, 2, 7, generator=generator(1))))
    ((wave * torch.randn(wave.shape, generator=generator(2))).sum() + (lasts * torch.randn(lasts.shape, generator=generator(3))).sum()).backward()
    silent = [name for name, parameter in voice.named_parameters() if parameter.grad is None or not parameter.grad.abs().max() > 0]
    allowed = {f"text_encoder.blocks.{block}.attention.k.bias" for block in range(TINY.blocks)}  # softmax does not see a shift of all scores
    assert set(silent) <= allowed


def test_no_part_depends_on_a_library() -> None:
    assert all(type(module).__module__.startswith(("torch.nn", "polyadapt_speech.usat.network")) for module in living_voice().modules())

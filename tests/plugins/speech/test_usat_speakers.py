"""Speakers and memory: both silent at the start, speaker vectors, gradient reversal, the two adversarial losses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from polyadapt_speech.usat.family.model import TINY, tiny_voice
from polyadapt_speech.usat.losses import leakage_losses, prior_divergence, timbre_loss
from polyadapt_speech.usat.network.discriminators import LeakageDiscriminator, TimbreDiscriminator
from polyadapt_speech.usat.network.memory import Memory
from polyadapt_speech.usat.network.pooling import AttentivePooling
from polyadapt_speech.usat.network.res2 import Res2Block
from polyadapt_speech.usat.network.reversal import reversed_gradient
from polyadapt_speech.usat.network.speaker_encoder import SpeakerEncoder
from polyadapt_speech.usat.network.voice import Manner, extended


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lengths_mask(*lengths: int) -> torch.Tensor:
    return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).float()[:, None]


def test_a_voice_with_speakers_and_memory_sounds_as_before() -> None:
    torch.manual_seed(0)
    voice = tiny_voice()
    more = extended(voice, speaker_size=5, memory_slots=7)
    assert more.config == replace(TINY, speaker_size=5, memory_slots=7) and not more.training
    ids, mask = torch.randint(0, TINY.vocab_size, (2, 6), generator=generator()), torch.ones(2, 6, dtype=torch.int64)
    speaker = Manner(speaker=torch.randn(2, 5, generator=generator(1)))
    with torch.no_grad():
        expected, lengths, _ = voice(ids, mask)
        found, same, _ = more(ids, mask, speaker)
        assert torch.equal(found, expected) and torch.equal(same, lengths)
        assert more.memory is not None
        more.memory.gate.fill_(1.0)
        assert not torch.allclose(more(ids, mask, speaker)[0], expected, atol=1e-3)
        more.memory.gate.zero_()
        for name, parameter in more.named_parameters():
            if "speaker" in name:
                parameter.add_(0.3)
        assert more(ids, mask, speaker)[0].shape != expected.shape or not torch.allclose(more(ids, mask, speaker)[0], expected, atol=1e-3)


def test_memory_is_attention_over_its_codebook() -> None:
    torch.manual_seed(0)
    memory = Memory(5, 4)
    z = torch.randn(2, 4, 6, generator=generator())
    with torch.no_grad():
        assert torch.equal(memory(z), z)
        weights = memory.weights(z)
        assert weights.shape == (2, 6, 5) and torch.allclose(weights.sum(-1), torch.ones(2, 6))
        memory.gate.fill_(1.0)
        shares = (memory.codebook @ z[1, :, 3] / 2).softmax(0)
        assert torch.allclose(memory(z)[1, :, 3], shares @ memory.codebook, atol=1e-6)


def test_memory_learns_from_a_closed_gate() -> None:
    memory, z = Memory(5, 4), torch.randn(1, 4, 6, generator=generator())
    memory(z).square().sum().backward()
    assert memory.gate.grad is not None and memory.gate.grad.abs() > 0


def test_pooling_without_attention_is_mean_and_deviation() -> None:
    torch.manual_seed(0)
    pooling = AttentivePooling(3, 4)
    nn.init.zeros_(pooling.scores.weight)
    x, mask = torch.randn(2, 3, 9, generator=generator()), lengths_mask(9, 5)
    with torch.no_grad():
        found = pooling(x, mask)
    for row, length in enumerate((9, 5)):
        kept = x[row, :, :length]
        assert torch.allclose(found[row], torch.cat([kept.mean(-1), kept.std(-1, unbiased=False)]), atol=1e-5)


def test_later_groups_of_a_block_see_further() -> None:
    """Kernel 3, dilation 2: group g of 4 reaches 2 g frames; squeeze sees all, so it is held."""
    torch.manual_seed(0)
    block = Res2Block(8, 3, 2).double()
    for part in (block.excite, block.squeeze):
        nn.init.zeros_(part.weight)
    block.after.weight.data = torch.eye(8, dtype=torch.float64)[..., None]
    block.norm2 = nn.Identity()  # type: ignore[assignment]
    with torch.no_grad():
        block.after.bias.fill_(5.0)  # type: ignore[union-attr]  # so that no ReLU hides a change
    x, mask = torch.randn(1, 8, 41, generator=generator(), dtype=torch.float64), torch.ones(1, 1, 41, dtype=torch.float64)
    moved = x.clone()
    moved[..., 20] += 1.0
    with torch.no_grad():
        changed = (block(moved, mask) - moved) - (block(x, mask) - x)
    reach = [changed[0, 2 * group : 2 * group + 2].abs().sum(0).gt(1e-12).nonzero().flatten() for group in range(4)]
    assert [int((frames - 20).abs().max()) for frames in reach] == [0, 2, 4, 6]


def test_speaker_vectors_have_length_one_and_ignore_padding() -> None:
    torch.manual_seed(0)
    encoder = SpeakerEncoder(6, 10, channels=16)
    z, mask = torch.randn(2, 6, 20, generator=generator()), lengths_mask(20, 11)
    with torch.no_grad():
        vectors = encoder(z, mask)
        alone = encoder(z[1:, :, :11], mask[1:, :, :11])
    assert torch.allclose(vectors.norm(dim=-1), torch.ones(2)) and torch.allclose(vectors[1:], alone, atol=1e-5)
    assert not torch.allclose(vectors[0], vectors[1], atol=1e-2)


def test_a_speaker_encoder_learns_who_speaks() -> None:
    """Speakers differ in the spectrum of z; unseen clips of the same speakers lie nearest to their own."""
    torch.manual_seed(0)
    g, encoder = generator(), SpeakerEncoder(6, 8, channels=16)
    tones = torch.randn(4, 6, 1, generator=g)

    def clips() -> torch.Tensor:
        return torch.randn(4, 6, 24, generator=g) + tones

    mask, optimiser = torch.ones(4, 1, 24), torch.optim.AdamW(encoder.parameters(), lr=3e-3)
    for _ in range(40):
        likeness = encoder(clips(), mask) @ encoder(clips(), mask).T * 10
        loss = F.cross_entropy(likeness, torch.arange(4))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        likeness = encoder(clips(), mask) @ encoder(clips(), mask).T
    assert likeness.argmax(-1).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_reversal_keeps_the_value_and_turns_the_gradient(weight: float) -> None:
    x = torch.randn(3, 4, generator=generator(), requires_grad=True)
    (plain,) = torch.autograd.grad((x * x).sin().sum(), x)
    turned_input = reversed_gradient(x, weight)
    (turned,) = torch.autograd.grad((turned_input * turned_input).sin().sum(), x)
    assert torch.equal(turned_input, x) and torch.equal(turned, -weight * plain)


def test_divergence_is_zero_for_the_prior_itself_in_the_mean() -> None:
    """The one-sample estimate against the closed form of two normals, over many samples."""
    g = generator()
    mean, log_deviation, prior_mean, prior_log_deviation = (torch.tensor(value).reshape(1, 1, 1) for value in (0.3, -0.4, -0.2, 0.5))
    z = mean + torch.randn(1, 1, 200_000, generator=g) * log_deviation.exp()
    found = prior_divergence(z, log_deviation, prior_mean, prior_log_deviation, torch.ones(1, 1, 200_000))
    expected = torch.distributions.kl_divergence(torch.distributions.Normal(mean, log_deviation.exp()), torch.distributions.Normal(prior_mean, prior_log_deviation.exp()))
    assert float(found) == pytest.approx(float(expected), abs=5e-3)


def test_each_leakage_loss_trains_its_own_side() -> None:
    torch.manual_seed(0)
    discriminator = LeakageDiscriminator(4, 8)
    first, second, other = (torch.randn(6, 4, generator=generator(seed), requires_grad=True) for seed in range(3))
    losses = leakage_losses(discriminator, first, second, other)
    losses.discriminator.backward(retain_graph=True)
    assert first.grad is None and all(parameter.grad is not None for parameter in discriminator.parameters())
    before = [parameter.grad.clone() for parameter in discriminator.parameters() if parameter.grad is not None]
    losses.encoder.backward()
    assert all(vector.grad is not None and vector.grad.abs().sum() > 0 for vector in (first, second, other))
    assert all(torch.equal(parameter.grad, old) for parameter, old in zip(discriminator.parameters(), before, strict=True) if parameter.grad is not None)


def test_a_discriminator_that_always_says_the_same_gains_nothing() -> None:
    """Both kinds of pairs are equally many."""
    discriminator = LeakageDiscriminator(4, 8)
    with torch.no_grad():
        for parameter in discriminator.parameters():
            parameter.zero_()
        discriminator.layers[-1].bias.fill_(3.0)  # type: ignore[union-attr,operator]
    losses = leakage_losses(discriminator, *(torch.randn(5, 4, generator=generator(seed)) for seed in range(3)))
    assert losses.right == 0.5
    assert float(losses.discriminator.detach()) == pytest.approx(float((F.softplus(torch.tensor(-3.0)) + F.softplus(torch.tensor(3.0))) / 2))


def test_words_leave_the_speaker_vector() -> None:
    """A linear encoder of [speaker, words]: trained against D_p it forgets the words, and D_p falls to chance."""
    torch.manual_seed(0)
    g = generator()
    encoder, discriminator = nn.Linear(8, 4, bias=False), LeakageDiscriminator(4, 32)
    keep = nn.Linear(4, 4, bias=False)  # what speaker vectors are for: the speaker can be read off
    own = torch.optim.AdamW(discriminator.parameters(), lr=5e-3)
    others = torch.optim.AdamW([*encoder.parameters(), *keep.parameters()], lr=5e-3)

    def clip(speakers: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        heard = [speakers + 0.2 * torch.randn(64, 4, generator=g), words + 0.1 * torch.randn(64, 4, generator=g)]
        return encoder(torch.cat(heard, -1))

    def leak() -> float:
        return float((encoder.weight[:, 4:].norm() / encoder.weight[:, :4].norm()).detach())

    accuracies, at_start = [], leak()
    for step in range(450):
        speakers, words, elsewhere = (torch.randn(64, 4, generator=g) for _ in range(3))
        first, second, other = clip(speakers, words), clip(speakers, words), clip(speakers, elsewhere)
        losses = leakage_losses(discriminator, first, second, other)
        accuracies.append(losses.right)
        own.zero_grad()
        losses.discriminator.backward()
        own.step()
        if step >= 200:  # first D_p alone: it must have found the leak
            others.zero_grad()
            (leakage_losses(discriminator, first, second, other).encoder + F.mse_loss(keep(first), speakers)).backward()
            others.step()
    assert sum(accuracies[180:200]) / 20 > 0.9 and sum(accuracies[-20:]) / 20 < 0.6
    assert leak() < 0.1 * at_start


def test_the_timbre_loss_trains_both_sides_against_each_other() -> None:
    torch.manual_seed(0)
    discriminator = TimbreDiscriminator(6, 16, 1)
    prior = torch.randn(3, 6, 12, generator=generator(), requires_grad=True)
    flowed, mask = torch.randn(3, 6, 12, generator=generator(1), requires_grad=True), lengths_mask(12, 12, 7)
    timbre_loss(discriminator, prior, flowed, mask).loss.backward()
    assert prior.grad is None and flowed.grad is not None and not flowed.grad[2, :, 7:].any()
    plain = flowed.detach().requires_grad_()
    logits = discriminator(torch.cat([prior.detach(), plain]), torch.cat([mask, mask]))
    F.binary_cross_entropy_with_logits(logits, torch.tensor([1.0, 1, 1, 0, 0, 0])).backward()
    assert plain.grad is not None and torch.equal(flowed.grad, -plain.grad)

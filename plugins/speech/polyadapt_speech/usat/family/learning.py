"""What a voice that listens learns from a recording and its text: L_kl and L_dur (arXiv 2404.18094, fine-grained adaptation).

The posterior and the speaker encoder are never adapted, so a recording goes through them once. Noise comes from torch's
default generator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from polyadapt_speech.usat.losses import row_divergence
from polyadapt_speech.usat.network.alignment import durations_by_search, log_likelihood
from polyadapt_speech.usat.network.lengths import Frames, frames_of
from polyadapt_speech.usat.network.loudness import levelled
from polyadapt_speech.usat.network.precision import in_float32
from polyadapt_speech.usat.network.voice import Voice

Tensors = Mapping[str, torch.Tensor]


@torch.no_grad()
def heard(voice: Voice, samples: torch.Tensor) -> dict[str, torch.Tensor]:
    """A recording as training needs it, whatever its loudness.

    Shape:
        samples [samples] -> `posterior` [frames, 2 latent]: mean and log deviation of every frame; `frames` [].
    """
    assert voice.spectrogram is not None and voice.posterior is not None
    seen = voice.spectrogram(levelled(samples[None], torch.tensor([len(samples)], device=samples.device), voice.config.decoder.hop))
    _, mean, log_deviation = voice.posterior(seen, torch.ones_like(seen[:, :1]), seen.new_zeros(1))
    return {"posterior": torch.cat([mean, log_deviation], 1)[0].T.contiguous(), "frames": torch.tensor(seen.shape[2])}


def usual(voice: Voice, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """How long the voice, as it is, thinks that tokens last; texts are laid along recordings by this while adapters learn.

    Shape:
        ids [tokens] -> `usual` [tokens], in frames.
    """
    mask = torch.ones_like(ids, dtype=torch.float32)[None]
    hidden, _, _ = voice.text_encoder(ids[None], mask)
    return {"usual": voice.usual_durations(hidden, mask[:, None], None)[0]}


def row_losses(voice: Voice, inputs: Tensors) -> dict[str, torch.Tensor]:
    """L_kl, a mean over each row's frames, and L_dur, a mean over its tokens.

    Shape:
        input_ids, attention_mask and usual [batch, tokens], posterior [batch, frames, 2 latent], frames [batch],
        speaker [batch, size] -> [batch] each.
    """
    assert voice.duration_posterior is not None
    laid = _laid(voice, inputs, noisy=True)
    spread = laid.frames.spread
    divergence = row_divergence(laid.moved, laid.log_deviation, spread(laid.prior_mean), spread(laid.prior_log_deviation), laid.frames.mask)
    with in_float32(laid.moved.device):
        hidden = laid.hidden.float()
        lasting = voice.duration_posterior(voice.durations, hidden, laid.token_mask, laid.durations, torch.randn_like(hidden[:, :2]), inputs["speaker"][..., None])
    return {"divergence": divergence, "durations": lasting / laid.token_mask.sum((1, 2))}


@torch.no_grad()
def alignment(voice: Voice, inputs: Tensors) -> torch.Tensor:
    """How well each text fits its recording: mean log density of a frame and channel on the best alignment [batch]."""
    laid = _laid(voice, inputs, noisy=False)
    tokens = laid.frames.token[:, None, :]  # (B, 1, F)
    best = laid.scores.gather(1, tokens).squeeze(1) * laid.frames.mask.squeeze(1)  # (B, F)
    return best.sum(1) / laid.frames.mask.sum((1, 2)) / voice.config.latent


@dataclass(frozen=True)
class _Laid:
    """A text laid along its recording."""

    hidden: torch.Tensor
    prior_mean: torch.Tensor
    prior_log_deviation: torch.Tensor
    token_mask: torch.Tensor
    moved: torch.Tensor
    log_deviation: torch.Tensor
    scores: torch.Tensor
    durations: torch.Tensor
    frames: Frames


def _laid(voice: Voice, inputs: Tensors, noisy: bool) -> _Laid:
    counts = inputs["attention_mask"].to(inputs["posterior"].dtype)  # (B, T)
    mean, log_deviation = inputs["posterior"].transpose(1, 2).chunk(2, 1)  # (B, C, F) each
    places = torch.arange(mean.shape[2], device=mean.device)
    mask = (places < inputs["frames"][:, None]).to(mean.dtype)[:, None]  # (B, 1, F)
    z = mean + torch.randn_like(mean) * log_deviation.exp() if noisy else mean
    hidden, prior_mean, prior_log_deviation = voice.text_encoder(inputs["input_ids"], counts)
    moved = voice.flow(z * mask, mask, inputs["speaker"][..., None])
    scores = log_likelihood(moved, prior_mean, prior_log_deviation).detach()  # (B, T, F)
    durations = durations_by_search(scores, counts.sum(1).long(), inputs["frames"], inputs["usual"] if noisy else None)
    return _Laid(hidden, prior_mean, prior_log_deviation, counts[:, None], moved, log_deviation, scores, durations, frames_of(durations, mean.shape[2]))

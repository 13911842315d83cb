"""What USAT's training adds up (arXiv 2404.18094): L_kl, L_se with its discriminator's own loss, and L_td.

L_dur is `DurationPosterior`. Weights of the sum are not known; each loss is a mean, so 1 is a start.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from polyadapt_speech.usat.network.discriminators import LeakageDiscriminator, TimbreDiscriminator
from polyadapt_speech.usat.network.reversal import reversed_gradient


def prior_divergence(flowed: torch.Tensor, log_deviation: torch.Tensor, prior_mean: torch.Tensor, prior_log_deviation: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """L_kl: from the posterior to the text's prior, by the one sample that the flow has moved (arXiv 2106.06103 equation 4).

    Args:
        flowed: z after the flow.
        log_deviation: of the posterior that z was drawn from; the flow keeps the volume.
        prior_mean: of the prior, repeated for the frames of each token.
        prior_log_deviation: the same.
        mask: real frames.

    Shape:
        all [batch, latent, frames], mask [batch, 1, frames] -> [], a mean over real frames.
    """
    return _divergences(flowed, log_deviation, prior_mean, prior_log_deviation, mask).sum() / mask.sum().clamp_min(1.0)


def row_divergence(flowed: torch.Tensor, log_deviation: torch.Tensor, prior_mean: torch.Tensor, prior_log_deviation: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`prior_divergence` of every row alone: [batch]."""
    return _divergences(flowed, log_deviation, prior_mean, prior_log_deviation, mask).sum((1, 2)) / mask.sum((1, 2)).clamp_min(1.0)


@dataclass(frozen=True)
class LeakageLosses:
    """`discriminator` trains D_p alone, `encoder` the speaker encoder alone; `right` near 0.5 means that nothing leaks, or that D_p does not learn."""

    discriminator: torch.Tensor
    encoder: torch.Tensor
    right: torch.Tensor


def leakage_losses(discriminator: LeakageDiscriminator, first: torch.Tensor, second: torch.Tensor, other: torch.Tensor) -> LeakageLosses:
    """L_se: no one shall tell by speaker vectors whether two clips share their words.

    Of every speaker there is one pair of cuts of one utterance and one pair with another utterance, so both kinds are equally
    many; unequal numbers would let a constant win.

    Args:
        discriminator: D_p.
        first: vectors of a cut of an utterance.
        second: of another cut of it, which overlaps.
        other: of another utterance of the same speaker.

    Shape:
        each [speakers, size].
    """
    own = _pairs(discriminator, first.detach(), second.detach(), other.detach())
    truth = torch.cat([torch.ones(len(first)), torch.zeros(len(first))]).to(own)
    frozen = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    logits = torch.func.functional_call(discriminator, frozen, (torch.cat([first, other]), torch.cat([second, second])))
    return LeakageLosses(
        F.binary_cross_entropy_with_logits(own, truth),
        F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, 0.5)),  # least where D_p cannot decide
        _right(own, truth),
    )


@dataclass(frozen=True)
class TimbreLoss:
    """`loss` trains D_t and, against it, the flow; where `right` is near 1, D_t has won and its gradient says nothing any more."""

    loss: torch.Tensor
    right: torch.Tensor


def timbre_loss(discriminator: TimbreDiscriminator, prior: torch.Tensor, flowed: torch.Tensor, mask: torch.Tensor, weight: float = 1.0) -> TimbreLoss:
    """L_td: D_t learns to tell the text's prior from what the flow made of a recording; the flow, by the reversed gradient, to make them alike.

    Args:
        discriminator: D_t.
        prior: a sample of the text's prior, which is not trained by this.
        flowed: z after the flow.
        mask: real frames.
        weight: of the reversed gradient.

    Shape:
        prior and flowed [batch, latent, frames], mask [batch, 1, frames] -> [].
    """
    logits = discriminator(torch.cat([prior.detach(), reversed_gradient(flowed, weight)]), torch.cat([mask, mask]))  # (2B,)
    truth = torch.cat([torch.ones(len(prior)), torch.zeros(len(flowed))]).to(logits)
    return TimbreLoss(F.binary_cross_entropy_with_logits(logits, truth), _right(logits, truth))


def _right(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Share of right answers []."""
    return ((logits > 0) == (truth > 0)).float().mean()


def _pairs(discriminator: LeakageDiscriminator, first: torch.Tensor, second: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Logits of (first, second) and of (other, second): [2 speakers]."""
    result: torch.Tensor = discriminator(torch.cat([first, other]), torch.cat([second, second]))
    return result


def _divergences(flowed: torch.Tensor, log_deviation: torch.Tensor, prior_mean: torch.Tensor, prior_log_deviation: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Of every value: [batch, latent, frames]."""
    square = 0.5 * (flowed - prior_mean).square() * (-2 * prior_log_deviation).exp()
    return (prior_log_deviation - log_deviation - 0.5 + square) * mask

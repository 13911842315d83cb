"""Stage C: the flow learns to take timbre away and to put it on again, told by the vector of another clip of the same speaker.

Text encoder, posterior encoder and decoder are finished and frozen. Losses are the paper's: L_kl by alignment search, L_dur,
L_se with D_p, L_td with D_t. Ours beside them, since speakers are few and what they say is little and of many languages:
speaker vectors also learn to tell the training speakers apart; a quarter of what is drawn is the start voice's own speech,
whose words are sure; texts are laid along recordings by how long the predictor says that tokens last, besides by sound; and
the predictor stays as it is, L_dur training the posterior of durations for adaptations to come. Of a minute of each speaker,
laid along texts in a fresh voice, it learns to hurry, and forgets how long sounds last.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from polyadapt_speech.usat.losses import leakage_losses, prior_divergence, timbre_loss
from polyadapt_speech.usat.network.alignment import durations_by_search, log_likelihood
from polyadapt_speech.usat.network.discriminators import LeakageDiscriminator, TimbreDiscriminator
from polyadapt_speech.usat.network.lengths import frames_of
from polyadapt_speech.usat.network.precision import in_float32
from polyadapt_speech.usat.network.voice import Voice
from polyadapt_speech.usat.training.utterances import Utterances

WEIGHTS = {"kl": 1.0, "duration": 1.0, "leak": 1.0, "leak_discriminator": 1.0, "timbre": 1.0, "speaker": 1.0}
REST_SHARE = 0.2  # of the steps, in which the duration predictor rests where it is trained, until the posterior of durations has found its place
CUT_FRAMES = 160
SHARPNESS = 16.0  # of cosines as logits
MEMORY = 0.98  # of the running means of what discriminators get right


@dataclass(frozen=True)
class Recipe:
    """What of the stage is ours to choose; `benchmarks/effects/usat_recipe.py` shows what each does.

    Attributes:
        learning_rate: at the beginning; it falls to nothing.
        own_share: of the utterances drawn, how many are the start voice's.
        durations: train the duration predictor too, with what the speaker adds to it.
        usual_durations: texts are laid along recordings by how long their tokens usually last too, not by sound alone.
    """

    learning_rate: float = 4e-4
    own_share: float = 0.25
    durations: bool = False
    usual_durations: bool = True


class TimbreFlow:
    """The stage.

    Args:
        voice: that listens, after stage B.
        utterances: of many speakers, the start voice among them.
        names: of the clips.
        batch_size: utterances a step.
        own: the start voice's number among the speakers.
        recipe: ours to choose.
    """

    name = "timbre"
    gradient_clip = 20.0

    def __init__(self, voice: Voice, utterances: Utterances, names: Sequence[str], batch_size: int, own: int, recipe: Recipe = Recipe()) -> None:
        assert voice.speaker_encoder is not None and voice.duration_posterior is not None
        self.voice, self.utterances, self.batch_size, self.recipe, self.learning_rate = voice, utterances, batch_size, recipe, recipe.learning_rate
        self.rows: Sequence[str] = names
        self.groups: Sequence[Sequence[int]] = _with_share(utterances.groups(), utterances.by_speaker[own], recipe.own_share)
        self.lengths: Sequence[int] | None = [len(frames) for frames in utterances.posterior]
        device = utterances.posterior[0].device
        self.leakage = LeakageDiscriminator(voice.config.speaker_size).to(device)
        self.timbre = TimbreDiscriminator(voice.config.latent).to(device)
        self.classes = nn.Linear(voice.config.speaker_size, 1 + max(utterances.speakers), bias=False).to(device)
        self.module: nn.Module = nn.ModuleList([voice.flow, voice.durations, voice.duration_posterior, voice.speaker_encoder, self.leakage, self.timbre, self.classes])
        voice.requires_grad_(False)
        self.module.requires_grad_(True)
        voice.durations.requires_grad_(recipe.durations)
        self._right: dict[str, torch.Tensor] = {}
        self._numbers = torch.tensor(utterances.speakers, device=device)

    def losses(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        voice, chosen = self.voice, rows.tolist()
        assert voice.speaker_encoder is not None and voice.duration_posterior is not None
        batch = self.utterances.batch(chosen)
        first, second = (voice.speaker_encoder(*cut) for cut in self.utterances.cuts(chosen, CUT_FRAMES, 2))  # (B, size) each
        [reference] = self.utterances.cuts(self.utterances.others(chosen), CUT_FRAMES)
        speaker = voice.speaker_encoder(*reference)  # (B, size)
        z = (batch.mean + torch.randn_like(batch.mean) * batch.log_deviation.exp()) * batch.mask
        moved = voice.flow(z, batch.mask, speaker[..., None])  # (B, C, F)
        tokens, frames = batch.token_mask.sum((1, 2)).long(), batch.mask.sum((1, 2)).long()
        usual = voice.usual_durations(batch.hidden, batch.token_mask, speaker[..., None]) if self.recipe.usual_durations else None
        durations = durations_by_search(log_likelihood(moved.detach(), batch.prior_mean, batch.prior_log_deviation), tokens, frames, usual)  # (B, T)
        spread = frames_of(durations, batch.mean.shape[2]).spread
        prior_mean, prior_log_deviation = spread(batch.prior_mean), spread(batch.prior_log_deviation)  # (B, C, F)
        noise = torch.randn_like(batch.hidden[:, :2])
        with in_float32(rows.device):
            lasting = voice.duration_posterior(voice.durations, batch.hidden, batch.token_mask, durations, noise, speaker[..., None].float())  # (B,)
        leaks = leakage_losses(self.leakage, first, second, speaker)
        cosines = F.normalize(torch.cat([first, speaker]), dim=-1) @ F.normalize(self.classes.weight, dim=-1).T  # (2B, speakers)
        prior = (prior_mean + torch.randn_like(prior_mean) * prior_log_deviation.exp()) * batch.mask
        residues = timbre_loss(self.timbre, prior, moved, batch.mask)
        self._note(leakage=leaks.right, timbre=residues.right)
        found = {
            "kl": prior_divergence(moved, batch.log_deviation, prior_mean, prior_log_deviation, batch.mask),
            "duration": lasting.sum() / tokens.sum(),
            "leak": leaks.encoder,
            "leak_discriminator": leaks.discriminator,
            "timbre": residues.loss,
            "speaker": F.cross_entropy(SHARPNESS * cosines, self._numbers[rows].repeat(2)),
        }
        return {name: WEIGHTS[name] * value for name, value in found.items()}

    def right(self) -> dict[str, float]:
        """How often the discriminators were right of late: 0.5 is chance; 1 is a discriminator that has won and teaches nothing any more."""
        return {name: round(float(value), 3) for name, value in self._right.items()}

    def _note(self, **right: torch.Tensor) -> None:
        for name, value in right.items():
            self._right[name] = MEMORY * self._right.get(name, value) + (1 - MEMORY) * value

    def resting(self, step: int, steps: int) -> Collection[nn.Parameter]:
        return list(self.voice.durations.parameters()) if step < REST_SHARE * steps else ()


def _with_share(groups: Sequence[Sequence[int]], own: Collection[int], share: float) -> list[Sequence[int]]:
    """Groups that are drawn equally often, with those of `own` repeated until they are such a share of them."""
    others = [rows for rows in groups if rows[0] not in own]
    mine = [rows for rows in groups if rows[0] in own]
    return [*others, *mine * max(1, round(share / (1 - share) * len(others)))]


@torch.no_grad()
def average_speaker(voice: Voice, utterances: Utterances, clips: int = 8) -> torch.Tensor:
    """Mean over speakers of the mean vector of some of their clips: [size]."""
    assert voice.speaker_encoder is not None
    means = []
    for rows in utterances.by_speaker.values():
        [cut] = utterances.cuts(rows[:clips], CUT_FRAMES)
        means.append(voice.speaker_encoder(*cut).mean(0))
    return torch.stack(means).mean(0)

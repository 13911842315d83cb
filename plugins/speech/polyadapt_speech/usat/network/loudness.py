"""One loudness for whatever a voice hears: the posterior was trained on clips of it, and reads a quiet voice as another's.

Pauses do not count, as in broadcasting (ITU-R BS.1770): neither a long silence before the first word nor one behind the
last makes a recording louder. Plain tensor operations, so that it becomes part of the exported graph.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

LOUDNESS = 0.06  # root mean square of Piper's joe
PEAK = 0.95
PAUSE = 1e-4  # ours: 40 dB below the loudest frame
_SILENCE = 1e-8


def levelled(samples: torch.Tensor, lengths: torch.Tensor, frame: int) -> torch.Tensor:
    """Recordings at one loudness, with a peak below full scale; what lies behind a recording's end becomes 0.

    Args:
        samples: recordings.
        lengths: samples of each that belong to it, `frame` at least.
        frame: samples over which loudness is measured.

    Shape:
        samples [batch, samples], lengths int64 [batch] -> [batch, samples].
    """
    heard = samples * (torch.arange(samples.shape[1], device=samples.device) < lengths[:, None])
    power = F.avg_pool1d(heard.square()[:, None], frame, frame)  # (B, 1, frames)
    # A frame that reaches behind the end would make a recording softer beside longer ones than alone.
    whole = torch.arange(power.shape[2], device=samples.device) < torch.div(lengths, frame, rounding_mode="floor")[:, None, None]
    loud = ((power > PAUSE * power.amax(2, keepdim=True)) & whole).to(power.dtype)
    loudness = ((power * loud).sum((1, 2)) / loud.sum((1, 2)).clamp_min(1.0)).sqrt().clamp_min(_SILENCE)  # (B,)
    peak = heard.abs().amax(1).clamp_min(_SILENCE)  # (B,)
    return heard * torch.minimum(LOUDNESS / loudness, PEAK / peak)[:, None]

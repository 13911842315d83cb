"""Named arrays into a voice: every weight of the network must be there, of the right size, and none may be left over."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray

from polyadapt.errors import UserError
from polyadapt_speech.usat.network.config import VoiceConfig
from polyadapt_speech.usat.network.voice import Voice

logger = logging.getLogger(__name__)

# What no finished voice has here: it is made anew before it is trained.
TRAINING_ONLY = ("the posterior encoder", "the posterior of the durations with the first spline of their flow", "the discriminators")


def assemble(config: VoiceConfig, arrays: Mapping[str, NDArray[Any]], where: str) -> Voice:
    """A voice with given weights.

    Args:
        config: its sizes.
        arrays: by the network's names; a convolution of kernel 1 may stand for a linear layer.
        where: named in errors.

    Raises:
        UserError: a weight is missing, has another size, or belongs to nothing.
    """
    with torch.device("meta"):
        voice = Voice(config)
    wanted = voice.state_dict()
    if odd := sorted(wanted.keys() ^ arrays.keys()):
        lacking = [name for name in odd if name in wanted]
        raise UserError(f"{where}: {f'lacks {lacking[0]}' if lacking else f'{odd[0]} belongs to nothing'} ({len(odd)} weights in all); it is no voice of this network")
    state = {name: _shaped(torch.tensor(arrays[name]), wanted[name].shape, name, where) for name in wanted}
    voice.load_state_dict(state, strict=True, assign=True)
    if not config.listens:
        logger.info("%s speaks; for training it lacks %s", where, ", ".join(TRAINING_ONLY))
    return voice.eval()


def _shaped(value: torch.Tensor, shape: torch.Size, name: str, where: str) -> torch.Tensor:
    """A weight in its place's shape, which may have other axes of size 1."""
    if [size for size in value.shape if size != 1] != [size for size in shape if size != 1]:
        raise UserError(f"{where}: {name} has shape {list(value.shape)}, expected is {list(shape)}")
    return value.reshape(shape).contiguous()

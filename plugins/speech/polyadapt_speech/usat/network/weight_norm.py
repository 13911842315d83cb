"""Weight norm where VITS trains with it: on the convolutions of WaveNets and of the decoder's upsampling and residual blocks.

Salimans and Kingma, arXiv 1602.07868. A voice is kept, adapted and exported without it: folding changes no output.
"""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from polyadapt_speech.usat.network.decoder import Decoder
from polyadapt_speech.usat.network.wavenet import WaveNet


def add_weight_norm(network: nn.Module) -> None:
    """Train direction and length of those weights apart, from what they are now on."""
    for layer in _normed(network):
        if not parametrize.is_parametrized(layer, "weight"):
            weight_norm(layer)


def remove_weight_norm(network: nn.Module) -> None:
    """Fold what `add_weight_norm` has split."""
    for layer in _normed(network):
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight")


def _normed(network: nn.Module) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for module in network.modules():
        if isinstance(module, WaveNet):
            layers += [*module.dilated, *module.skip]
        if isinstance(module, Decoder):
            layers += [*module.ups, *(layer for block in module.residual for layer in block.modules() if isinstance(layer, nn.Conv1d))]
    return layers

"""U-Net of latent diffusion: Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, arXiv 2112.10752."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from polyadapt.errors import UserError
from polyadapt.families.base import Family
from polyadapt.families.shared import enliven
from polyadapt.families.text import activation_name
from polyadapt.signature import Signature, Task, TensorSpec

TRAINING_STEPS = 1000  # Ho et al., arXiv 2006.11239, section 4


class Unet(Family):
    """Noisy latents, time step and text vectors to the noise (or what the scheduler expects)."""

    def tiny(self, task: Task) -> nn.Module:
        from diffusers import UNet2DConditionModel

        return enliven(
            UNet2DConditionModel(
                sample_size=8,
                in_channels=4,
                out_channels=4,
                block_out_channels=(16, 32),
                layers_per_block=1,
                cross_attention_dim=24,
                attention_head_dim=2,
                norm_num_groups=4,
                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            )
        )

    def config(self, backbone: nn.Module) -> dict[str, Any]:
        config: Any = backbone.config
        return {
            "channels": [config.in_channels, config.out_channels],
            "widths": list(config.block_out_channels),
            "layers": config.layers_per_block,
            "heads": config.attention_head_dim,
            "context": config.cross_attention_dim,
            "attends": ["CrossAttn" in name for name in (*config.down_block_types, *config.up_block_types)],
            "groups": config.norm_num_groups,
            "linear_projection": config.use_linear_projection,
            "activation": activation_name(config.act_fn),
            "norm_epsilon": config.norm_eps,
            "time": [config.flip_sin_to_cos, config.freq_shift],
        }

    def signature(self, backbone: nn.Module, task: Task) -> Signature:
        config: Any = backbone.config
        _refuse_further_conditions(backbone)
        latents = ("batch", config.in_channels, "height", "width")
        inputs = (
            TensorSpec("sample", latents, "float32", "noisy latents; height and width are multiples of 2 for every stage but the first"),
            TensorSpec("timestep", ("batch",), "int64", "step of the noise schedule, 0 for almost none"),
            TensorSpec("encoder_hidden_states", ("batch", "tokens", config.cross_attention_dim), "float32", "vectors of the text"),
        )
        noise = TensorSpec("noise", ("batch", config.out_channels, "height", "width"), "float32", "what the model was trained to predict: the noise, or a velocity")
        return Signature(inputs, (noise,))

    def forward(self, backbone: nn.Module, task: Task, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        result = backbone(inputs["sample"], inputs["timestep"], encoder_hidden_states=inputs["encoder_hidden_states"])
        return {"noise": result.sample}  # (B, C, H, W)

    def feature_size(self, backbone: nn.Module) -> int:
        config: Any = backbone.config
        return int(config.block_out_channels[-1])

    def example(self, backbone: nn.Module, task: Task, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
        config: Any = backbone.config
        batch = sizes["batch"]
        return {
            "sample": torch.randn(batch, config.in_channels, sizes["height"], sizes["width"], generator=generator),
            "timestep": torch.randint(0, TRAINING_STEPS, (batch,), generator=generator),
            "encoder_hidden_states": torch.randn(batch, sizes["tokens"], config.cross_attention_dim, generator=generator),
        }


def _refuse_further_conditions(backbone: nn.Module) -> None:
    """A U-Net that wants more than text, or stacks transformer blocks, has ports this card does not name."""
    config: Any = backbone.config
    further = [name for name in ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type") if getattr(config, name, None)]
    deep = any(name.endswith("transformer_blocks.1") for name, _ in backbone.named_modules())
    if further or deep:
        found = ", ".join(further) or "several transformer blocks an attention"
        raise UserError(f"family 'unet' does text-conditioned U-Nets with one transformer block an attention (Stable Diffusion 1 and 2); this one has {found}")

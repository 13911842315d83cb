"""Card of the U-Net family of latent diffusion (Stable Diffusion 1 and 2): one transformer block an attention.

A block of a stage is a residual pair of convolutions (`conv.K`, `res.normK`, `time`) and, where the stage
attends, a transformer block (`attn`, `cross`, `ffn`, `normK`) with a projection before and behind it.
"""

from __future__ import annotations

from polyadapt.families.card import Attention, ExportRecipe, FamilyCard, Op, Span

SOFTMAX = "a shift of a key adds one number to all scores of a query, and softmax does not see that"

_STAGES = {"down.{i}": "down_blocks.{i}", "mid": "mid_block", "up.{i}": "up_blocks.{i}"}


def _transformer(block: str, path: str) -> dict[str, Op]:
    """Sites of one transformer block; the FFN's first projection holds the value (up) and its gate, one above the other."""
    inner = f"{path}.transformer_blocks.0"
    sites = {f"{block}.proj_in": Op(f"{path}.proj_in"), f"{block}.proj_out": Op(f"{path}.proj_out"), f"{block}.norm": Op(f"{path}.norm", channels_first=True)}
    for name, module in (("attn", "attn1"), ("cross", "attn2")):
        sites |= {f"{block}.{name}.{part}": Op(f"{inner}.{module}.to_{part}") for part in "qkv"}
        sites[f"{block}.{name}.o"] = Op(f"{inner}.{module}.to_out.0")
    sites |= {f"{block}.norm{number}": Op(f"{inner}.norm{number}") for number in (1, 2, 3)}
    sites[f"{block}.ffn.up"] = Op(f"{inner}.ff.net.0.proj", rows=(0, 2))
    sites[f"{block}.ffn.gate"] = Op(f"{inner}.ff.net.0.proj", rows=(1, 2))
    sites[f"{block}.ffn.down"] = Op(f"{inner}.ff.net.2")
    return sites


def _residual(block: str, path: str) -> dict[str, Op]:
    return {
        f"{block}.res.norm1": Op(f"{path}.norm1", channels_first=True),
        f"{block}.conv.0": Op(f"{path}.conv1"),
        f"{block}.time": Op(f"{path}.time_emb_proj"),
        f"{block}.res.norm2": Op(f"{path}.norm2", channels_first=True),
        f"{block}.conv.1": Op(f"{path}.conv2"),
        f"{block}.conv.2": Op(f"{path}.conv_shortcut"),
    }


def _sites() -> dict[str, Op]:
    sites = {
        "time.up": Op("time_embedding.linear_1"),
        "time.down": Op("time_embedding.linear_2"),
        "embed": Op("conv_in"),
        "norm": Op("conv_norm_out", channels_first=True),
        "head": Op("conv_out"),
        "down.{i}.resize": Op("down_blocks.{i}.downsamplers.0.conv"),
        "up.{i}.resize": Op("up_blocks.{i}.upsamplers.0.conv"),
    }
    for stage, path in _STAGES.items():
        block = f"{stage}.block.{{j}}"
        sites |= _residual(block, f"{path}.resnets.{{j}}")
        sites |= _transformer(block, f"{path}.attentions.{{j}}")
    return sites


def _spans() -> dict[str, Span]:
    spans = {}
    for stage in _STAGES:
        block = f"{stage}.block.{{j}}"
        for name in ("attn", "cross"):
            spans[f"{block}.{name}"] = Span(f"{block}.{name}.q", f"{block}.{name}.o")
        spans[f"{block}.ffn"] = Span(f"{block}.ffn.up", f"{block}.ffn.down")
    return spans


def _attention() -> dict[str, Attention]:
    found = {}
    for stage, path in _STAGES.items():
        for name, module in (("attn", "attn1"), ("cross", "attn2")):
            inner = f"{path}.attentions.{{j}}.transformer_blocks.0.{module}"
            found[f"{stage}.block.{{j}}.{name}"] = Attention(inner, heads="heads", head_size="to_q.out_features/heads", cross=name == "cross")
    return found


CARD = FamilyCard(
    id="unet",
    title="U-Net of latent diffusion, conditioned on text",
    media=("image",),
    architecture="diffusion",
    libraries={"diffusers": ">=0.36"},
    classes=("diffusers.UNet2DConditionModel",),
    tasks=("denoising",),
    sites=_sites(),
    spans=_spans(),
    attention=_attention(),
    # Skip connections leave every block of the way down, so no single tensor stands for a frozen part.
    blocks=(),
    no_effect={"*.attn.k:shift": SOFTMAX, "*.cross.k:shift": SOFTMAX},
    implementation="polyadapt.families.unet.model:Unet",
    export={
        "denoising": ExportRecipe(
            trace={"batch": 2, "height": 8, "width": 12, "tokens": 5},
            check=({"batch": 1, "height": 12, "width": 8, "tokens": 3}, {"batch": 3, "height": 4, "width": 16, "tokens": 7}),
            maximum={"batch": 63},
        )
    },
    extra="diffusers",
    notes="Height and width of the latents are multiples of 2 for every stage but the first. Text vectors are an ordinary input. "
    "U-Nets with several transformer blocks an attention or with further conditions (SDXL) are refused.",
)

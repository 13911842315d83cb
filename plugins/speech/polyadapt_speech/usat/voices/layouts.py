"""Names of weights: those of the official VITS code (Piper keeps them) and of transformers, and what this network calls them.

A rule is a pattern over a whole name and its replacement; a rule for numbers halves the index where a layout counts the
exchanges of channels as layers of their own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

Rule = tuple[str, str | Callable[[re.Match[str]], str]]


@dataclass(frozen=True)
class Layout:
    """Names of one library.

    Attributes:
        rules: lists of rules. Each list is gone through once, and the first rule that fits counts: parts first, then what is inside them.
        training_only: pattern of what a voice that speaks does not have.
    """

    rules: tuple[tuple[Rule, ...], ...]
    training_only: str

    def our_name(self, name: str) -> str:
        """What this network calls a weight.

        >>> OFFICIAL.our_name("flow.flows.2.enc.in_layers.3.bias")
        'flow.couplings.1.wavenet.dilated.3.bias'
        """
        for rules in self.rules:
            name = _first(name, rules)
        return name

    def speaking(self, names: Iterable[str]) -> list[str]:
        """Those that a voice needs to speak."""
        return [name for name in names if not re.fullmatch(self.training_only, name)]


def _couplings(part: str, start: int) -> Callable[[re.Match[str]], str]:
    """Every second layer from `start` on is a coupling."""
    return lambda hit: f"{part}.{(int(hit[1]) - start) // 2}.{hit[2]}"


_OFFICIAL_RULES: tuple[tuple[Rule, ...], ...] = (
    (
        (r"enc_p\.emb\.(.*)", r"text_encoder.embed.\1"),
        (r"enc_p\.proj\.(.*)", r"text_encoder.out.\1"),
        (r"enc_p\.encoder\.attn_layers\.(\d+)\.conv_([qkvo])\.(.*)", r"text_encoder.blocks.\1.attention.\2.\3"),
        (r"enc_p\.encoder\.attn_layers\.(\d+)\.emb_rel_([kv])", r"text_encoder.blocks.\1.attention.\2_offsets"),
        (r"enc_p\.encoder\.ffn_layers\.(\d+)\.conv_1\.(.*)", r"text_encoder.blocks.\1.feed_forward.up.\2"),
        (r"enc_p\.encoder\.ffn_layers\.(\d+)\.conv_2\.(.*)", r"text_encoder.blocks.\1.feed_forward.down.\2"),
        (r"enc_p\.encoder\.norm_layers_([12])\.(\d+)\.(.*)", r"text_encoder.blocks.\2.norm\1.\3"),
        (r"flow\.flows\.(\d+)\.(.*)", _couplings("flow.couplings", 0)),
        (r"dp\.flows\.0\.m", "durations.affine.shift"),
        (r"dp\.flows\.0\.logs", "durations.affine.log_scale"),
        (r"dp\.flows\.(\d+)\.(.*)", _couplings("durations.flows", 3)),
        (r"dp\.(.*)", r"durations.\1"),
        (r"dec\.ups\.(.*)", r"decoder.ups.\1"),
        (r"dec\.resblocks\.(\d+)\.convs1?\.(.*)", r"decoder.residual.\1.first.\2"),
        (r"dec\.resblocks\.(\d+)\.convs2\.(.*)", r"decoder.residual.\1.second.\2"),
        (r"dec\.conv_pre\.(.*)", r"decoder.before.\1"),
        (r"dec\.conv_post\.(.*)", r"decoder.after.\1"),
    ),
    (
        (r"(.*)\.enc\.in_layers\.(.*)", r"\1.wavenet.dilated.\2"),
        (r"(.*)\.enc\.res_skip_layers\.(.*)", r"\1.wavenet.skip.\2"),
        (r"(.*)\.convs\.convs_sep\.(.*)", r"\1.separable.depthwise.\2"),
        (r"(.*)\.convs\.convs_1x1\.(.*)", r"\1.separable.pointwise.\2"),
        (r"(.*)\.convs\.norms_([12])\.(.*)", r"\1.separable.norms\2.\3"),
        (r"(durations|flow)(.*)\.pre\.(.*)", r"\1\2.before.\3"),
        (r"(durations|flow)(.*)\.(?:proj|post)\.(.*)", r"\1\2.after.\3"),
    ),
    ((r"(.*norm.*)\.gamma", r"\1.weight"), (r"(.*norm.*)\.beta", r"\1.bias")),
)

_TRANSFORMERS_RULES: tuple[tuple[Rule, ...], ...] = (
    (
        (r"text_encoder\.embed_tokens\.(.*)", r"text_encoder.embed.\1"),
        (r"text_encoder\.project\.(.*)", r"text_encoder.out.\1"),
        (r"text_encoder\.encoder\.layers\.(\d+)\.attention\.emb_rel_([kv])", r"text_encoder.blocks.\1.attention.\2_offsets"),
        (r"text_encoder\.encoder\.layers\.(\d+)\.attention\.(?:out_proj|([qkv])_proj)\.(.*)", lambda hit: f"text_encoder.blocks.{hit[1]}.attention.{hit[2] or 'o'}.{hit[3]}"),
        (r"text_encoder\.encoder\.layers\.(\d+)\.feed_forward\.conv_1\.(.*)", r"text_encoder.blocks.\1.feed_forward.up.\2"),
        (r"text_encoder\.encoder\.layers\.(\d+)\.feed_forward\.conv_2\.(.*)", r"text_encoder.blocks.\1.feed_forward.down.\2"),
        (r"text_encoder\.encoder\.layers\.(\d+)\.layer_norm\.(.*)", r"text_encoder.blocks.\1.norm1.\2"),
        (r"text_encoder\.encoder\.layers\.(\d+)\.final_layer_norm\.(.*)", r"text_encoder.blocks.\1.norm2.\2"),
        (r"flow\.flows\.(.*)", r"flow.couplings.\1"),
        (r"duration_predictor\.flows\.0\.translate", "durations.affine.shift"),
        (r"duration_predictor\.flows\.0\.log_scale", "durations.affine.log_scale"),
        (r"duration_predictor\.flows\.(\d+)\.(.*)", lambda hit: f"durations.flows.{int(hit[1]) - 2}.{hit[2]}"),
        (r"duration_predictor\.(.*)", r"durations.\1"),
        (r"decoder\.upsampler\.(.*)", r"decoder.ups.\1"),
        (r"decoder\.resblocks\.(\d+)\.convs1\.(.*)", r"decoder.residual.\1.first.\2"),
        (r"decoder\.resblocks\.(\d+)\.convs2\.(.*)", r"decoder.residual.\1.second.\2"),
    ),
    (
        (r"(.*)\.wavenet\.in_layers\.(.*)", r"\1.wavenet.dilated.\2"),
        (r"(.*)\.wavenet\.res_skip_layers\.(.*)", r"\1.wavenet.skip.\2"),
        (r"(.*)\.conv_dds\.convs_dilated\.(.*)", r"\1.separable.depthwise.\2"),
        (r"(.*)\.conv_dds\.convs_pointwise\.(.*)", r"\1.separable.pointwise.\2"),
        (r"(.*)\.conv_dds\.norms_([12])\.(.*)", r"\1.separable.norms\2.\3"),
        (r"(.*)\.conv_pre\.(.*)", r"\1.before.\2"),
        (r"(.*)\.conv_(?:proj|post)\.(.*)", r"\1.after.\2"),
    ),
)

OFFICIAL = Layout(_OFFICIAL_RULES, r"enc_q\..*|dp\.post_.*|dp\.flows\.1\..*")
TRANSFORMERS = Layout(_TRANSFORMERS_RULES, r"posterior_encoder\..*|duration_predictor\.post_.*|duration_predictor\.flows\.1\..*")


def _first(name: str, rules: tuple[Rule, ...]) -> str:
    for pattern, replacement in rules:
        if hit := re.fullmatch(pattern, name):
            return replacement(hit) if callable(replacement) else hit.expand(replacement)
    return name

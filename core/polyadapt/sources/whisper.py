"""Whisper checkpoints in CTranslate2's layout, mapped to `transformers.WhisperForConditionalGeneration`.

Source layout -> target layout, for one layer of the decoder:
    self_attention/linear_0 [3d, d]  -> self_attn.{q,k,v}_proj (the bias of k is all zero: the target has none)
    self_attention/linear_1          -> self_attn.out_proj
    attention/linear_0 [d, d]        -> encoder_attn.q_proj
    attention/linear_1 [2d, d]       -> encoder_attn.{k,v}_proj
    attention/linear_2               -> encoder_attn.out_proj
    ffn/linear_0, linear_1           -> fc1, fc2
The encoder has no `attention`. `gamma` and `beta` are weight and bias of a layer norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from polyadapt.errors import UserError
from polyadapt.sources.ctranslate2 import CTranslate2File, read_ctranslate2

if TYPE_CHECKING:
    import torch
    from torch import nn

Arrays = Mapping[str, NDArray[Any]]


def load_whisper(path: Path) -> nn.Module:
    """Read a CTranslate2 Whisper file into a `WhisperForConditionalGeneration` in float32.

    Raises:
        UserError: the file is damaged, is no Whisper, or its tensors do not fit the architecture.
    """
    import torch
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    content = read_ctranslate2(path)
    if content.spec != "WhisperSpec":
        raise UserError(f"{path} holds a {content.spec!r}, not a Whisper model")
    config = WhisperConfig(**whisper_config(content, path))
    with torch.device("meta"):
        model: nn.Module = WhisperForConditionalGeneration(config)
    state = whisper_state(content, path)
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    if wanted != found:
        odd = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        raise UserError(f"{path} does not fit Whisper: {odd[0]} has shape {found.get(odd[0])}, expected is {wanted.get(odd[0])} ({len(odd)} tensors in all)")
    model.load_state_dict(state, strict=True, assign=True)
    model.tie_weights()  # type: ignore[operator]
    return model.eval()


def whisper_config(content: CTranslate2File, path: Path) -> dict[str, Any]:
    """Arguments of `transformers.WhisperConfig`, taken from shapes and counts in the file."""
    arrays = content.variables
    embeddings, frames = _array(arrays, "decoder/embeddings/weight", path, 2), _array(arrays, "encoder/position_encodings/encodings", path, 2)
    vocabulary = embeddings.shape[0]
    # English-only vocabularies are one token shorter, and every special id is one lower.
    end = min(50257 if vocabulary >= 51865 else 50256, vocabulary - 2)
    return {
        "vocab_size": vocabulary,
        "d_model": embeddings.shape[1],
        "num_mel_bins": _array(arrays, "encoder/conv1/weight", path, 3).shape[1],
        "encoder_layers": _layers(arrays, "encoder"),
        "decoder_layers": _layers(arrays, "decoder"),
        "encoder_attention_heads": int(_array(arrays, "encoder/num_heads", path, 0)),
        "decoder_attention_heads": int(_array(arrays, "decoder/num_heads", path, 0)),
        "encoder_ffn_dim": _array(arrays, "encoder/layer_0/ffn/linear_0/weight", path, 2).shape[0],
        "decoder_ffn_dim": _array(arrays, "decoder/layer_0/ffn/linear_0/weight", path, 2).shape[0],
        "max_source_positions": frames.shape[0],
        "max_target_positions": _array(arrays, "decoder/position_encodings/encodings", path, 2).shape[0],
        "pad_token_id": end,
        "bos_token_id": end,
        "eos_token_id": end,
        "decoder_start_token_id": end + 1,
        "dropout": 0.0,
    }


def whisper_state(content: CTranslate2File, path: Path) -> dict[str, torch.Tensor]:
    """State dict in float32, with the names that transformers uses."""
    arrays = content.variables
    state: dict[str, NDArray[Any]] = {}
    for tower in ("encoder", "decoder"):
        state[f"model.{tower}.embed_positions.weight"] = _array(arrays, f"{tower}/position_encodings/encodings", path, 2)
        _norm(state, arrays, f"{tower}/layer_norm", f"model.{tower}.layer_norm", path)
        for index in range(_layers(arrays, tower)):
            _layer(state, arrays, tower, index, path)
    for name in ("conv1", "conv2"):
        for part, rank in (("weight", 3), ("bias", 1)):
            state[f"model.encoder.{name}.{part}"] = _array(arrays, f"encoder/{name}/{part}", path, rank)
    state["model.decoder.embed_tokens.weight"] = _array(arrays, "decoder/embeddings/weight", path, 2)
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    return _tensors(state)


def _layer(state: dict[str, NDArray[Any]], arrays: Arrays, tower: str, index: int, path: Path) -> None:
    source, target = f"{tower}/layer_{index}", f"model.{tower}.layers.{index}"
    _norm(state, arrays, f"{source}/self_attention/layer_norm", f"{target}.self_attn_layer_norm", path)
    _stack(state, arrays, f"{source}/self_attention/linear_0", [f"{target}.self_attn.{part}_proj" for part in "qkv"], path)
    _stack(state, arrays, f"{source}/self_attention/linear_1", [f"{target}.self_attn.out_proj"], path)
    if tower == "decoder":
        _norm(state, arrays, f"{source}/attention/layer_norm", f"{target}.encoder_attn_layer_norm", path)
        _stack(state, arrays, f"{source}/attention/linear_0", [f"{target}.encoder_attn.q_proj"], path)
        _stack(state, arrays, f"{source}/attention/linear_1", [f"{target}.encoder_attn.{part}_proj" for part in "kv"], path)
        _stack(state, arrays, f"{source}/attention/linear_2", [f"{target}.encoder_attn.out_proj"], path)
    _norm(state, arrays, f"{source}/ffn/layer_norm", f"{target}.final_layer_norm", path)
    _stack(state, arrays, f"{source}/ffn/linear_0", [f"{target}.fc1"], path)
    _stack(state, arrays, f"{source}/ffn/linear_1", [f"{target}.fc2"], path)


def _norm(state: dict[str, NDArray[Any]], arrays: Arrays, source: str, target: str, path: Path) -> None:
    state[f"{target}.weight"] = _array(arrays, f"{source}/gamma", path, 1)
    state[f"{target}.bias"] = _array(arrays, f"{source}/beta", path, 1)


def _stack(state: dict[str, NDArray[Any]], arrays: Arrays, source: str, targets: list[str], path: Path) -> None:
    """Cut one stacked linear layer into as many as there are targets."""
    weight, bias = _array(arrays, f"{source}/weight", path, 2), _array(arrays, f"{source}/bias", path, 1)
    if weight.shape[0] % len(targets) or bias.shape[0] != weight.shape[0]:
        raise UserError(f"{path}: {source} of shape {weight.shape} with bias {bias.shape} cannot be cut into {len(targets)} layers")
    for target, part, offset in zip(targets, np.split(weight, len(targets)), np.split(bias, len(targets)), strict=True):
        state[f"{target}.weight"] = part
        if target.endswith("k_proj"):
            if np.any(offset):
                raise UserError(f"{path}: {source} has a bias for keys, which Whisper does not have")
        else:
            state[f"{target}.bias"] = offset


def _layers(arrays: Arrays, tower: str) -> int:
    return len({name.split("/")[1] for name in arrays if name.startswith(f"{tower}/layer_") and name.split("/")[1] != "layer_norm"})


def _array(arrays: Arrays, name: str, path: Path, rank: int) -> NDArray[Any]:
    if name not in arrays:
        raise UserError(f"{path} is no Whisper model: it has no tensor {name!r}")
    if arrays[name].ndim != rank:
        raise UserError(f"{path} is no Whisper model: tensor {name!r} has {arrays[name].ndim} dimensions, expected are {rank}")
    if arrays[name].dtype == np.int8 and rank > 0:
        raise UserError(f"{path}: tensor {name!r} is quantised to 8 bits, which is not read; take a float16 or float32 conversion")
    return arrays[name]


def _tensors(state: Mapping[str, NDArray[Any]]) -> dict[str, torch.Tensor]:
    """Float32 copies; an array that occurs twice becomes one shared tensor."""
    import torch

    made: dict[int, torch.Tensor] = {}
    for value in state.values():
        if id(value) not in made:
            made[id(value)] = torch.from_numpy(value.astype(np.float32))
    return {name: made[id(value)] for name, value in state.items()}

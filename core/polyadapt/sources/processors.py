"""Pre-processing specs: data that the runtime interprets, in training and beside an exported graph alike."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyadapt.errors import UserError
from polyadapt.files import replacing_file

if TYPE_CHECKING:
    from polyadapt.signature import Signature
    from polyadapt_runtime.preprocess import Processor

WINDOW_S = 0.025
LONGEST_S = 30.0  # of a recording, where a model sets no other limit; what Whisper hears
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")


def make_processor(spec: dict[str, Any], assets: Mapping[str, Path] | None = None) -> Processor:
    """The runtime's processor for a spec."""
    from polyadapt_runtime.preprocess import Processor

    return Processor(spec, dict(assets or {}))


def image_spec(size_px: tuple[int, int], *, crop_fraction: float = 1.0, resize: str = "crop", interpolation: str = "bicubic", channels: int = 3) -> dict[str, Any]:
    """Pictures to float32 [channels, height, width] in 0..1. Mean and deviation are part of the graph."""
    if interpolation not in INTERPOLATIONS:
        interpolation = "bicubic"
    return {"kind": "image", "input": "image", "size_px": list(size_px), "resize": resize, "crop_fraction": crop_fraction, "interpolation": interpolation, "channels": channels}


def audio_spec(*, sample_rate_hz: int = 16000, seconds: float | None = None, maximum_seconds: float = LONGEST_S) -> dict[str, Any]:
    """Recordings to float32 [samples]; no shorter than the one window of 25 ms that every front needs."""
    return {"kind": "audio", "input": "audio", "sample_rate_hz": sample_rate_hz, "seconds": seconds, "minimum_seconds": WINDOW_S, "maximum_seconds": maximum_seconds}


def text_spec(*, pad_id: int, maximum_tokens: int = 128, pad_side: str = "right", types: str | None = None) -> dict[str, Any]:
    """Texts to int64 [tokens], with the asset `tokenizer`."""
    inputs = {"ids": "input_ids", "mask": "attention_mask", "types": types}
    return {"kind": "text", "tokenizer": "tokenizer", "maximum_tokens": maximum_tokens, "pad_id": pad_id, "pad_side": pad_side, "inputs": inputs}


def array_spec(signature: Signature) -> dict[str, Any]:
    """The first input as an array of one example: its shape without the batch dimension, free axes by name."""
    spec = signature.inputs[0]
    return {"kind": "array", "input": spec.name, "shape": list(spec.shape[1:]), "dtype": spec.dtype}


def parts_spec(**parts: dict[str, Any]) -> dict[str, Any]:
    """Several raw inputs, one for each key."""
    return {"kind": "parts", "parts": parts}


def tiny_tokenizer(path: Path, vocabulary: int, end_id: int | None = None) -> Path:
    """Write a tokenizer of single printable characters for random models, unless it is there.

    Ids: 0 padding, 1 unknown, 2 begin, 3 end, then the characters from the space on, as many as the vocabulary holds.

    Args:
        path: where it goes.
        vocabulary: number of ids.
        end_id: another id for the end token, which is then put behind every text.

    Raises:
        UserError: the vocabulary has no room for the special tokens.
    """
    from tokenizers import Regex, Tokenizer
    from tokenizers.decoders import Fuse
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from tokenizers.processors import TemplateProcessing

    specials = {"<pad>": 0, "<unk>": 1, "<s>": 2, "</s>": 3 if end_id is None else end_id}
    free = [index for index in range(vocabulary) if index not in specials.values()]
    if vocabulary < 5 or max(specials.values()) >= vocabulary:
        raise UserError(f"a vocabulary of {vocabulary} is too small for a tokenizer; 5 tokens are the least")
    if path.is_file():
        return path
    characters = dict(zip((chr(code) for code in range(32, 127)), free, strict=False))
    tokenizer = Tokenizer(WordLevel(specials | characters, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split(Regex("[\\s\\S]"), "isolated")
    tokenizer.decoder = Fuse()
    tokenizer.add_special_tokens(list(specials))
    if end_id is not None:
        tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", end_id)])
    with replacing_file(path) as staging:
        tokenizer.save(str(staging))
    return path

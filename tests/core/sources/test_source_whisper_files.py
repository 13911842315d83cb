"""CTranslate2 files: a whole one, every way of being broken, and the mapping to transformers checked by its numbers."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from polyadapt.errors import UserError
from polyadapt.sources.ctranslate2 import read_ctranslate2
from polyadapt.sources.whisper import load_whisper

CODES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}


def text(value: str) -> bytes:
    raw = value.encode() + b"\0"
    return struct.pack("<H", len(raw)) + raw


def pack(variables: dict[str, NDArray[np.generic]], spec: str = "WhisperSpec", aliases: dict[str, str] | None = None, version: int = 6) -> bytes:
    """The format's own layout, written independently of the reader."""
    out = struct.pack("<I", version) + text(spec) + struct.pack("<II", 3, len(variables))
    for name, array in variables.items():
        out += text(name) + struct.pack("<B", array.ndim) + struct.pack(f"<{array.ndim}I", *array.shape)
        out += struct.pack("<BI", CODES[str(array.dtype)], array.nbytes) + array.tobytes()
    out += struct.pack("<I", len(aliases or {}))
    return out + b"".join(text(name) + text(target) for name, target in (aliases or {}).items())


SMALL: dict[str, NDArray[np.generic]] = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b/half": np.array([0.5, -2.0], dtype=np.float16),
    "count": np.array(7, dtype=np.int16),
}


def test_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(pack(SMALL, "ToySpec", {"other": "a"}))
    found = read_ctranslate2(path)
    assert (found.spec, found.revision, found.aliases) == ("ToySpec", 3, {"other": "a"})
    assert list(found.variables) == list(SMALL)
    for name, value in SMALL.items():
        assert found.variables[name].dtype == value.dtype
        np.testing.assert_array_equal(found.variables[name], value)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path, whole = tmp_path / "model.bin", pack(SMALL, aliases={"other": "a"})
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="not a whole CTranslate2 file"):
            read_ctranslate2(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (pack(SMALL, version=5), "begins with version 5"),
        (pack(SMALL) + b"\0", "1 bytes are left over"),
        (pack(SMALL, aliases={"other": "nothing"}), "points to 'nothing'"),
        (pack({"a": SMALL["a"]}).replace(struct.pack("<BI", 0, 24), struct.pack("<BI", 0, 20)), "cannot take 20 bytes"),
        (pack({"a": SMALL["a"]}).replace(struct.pack("<BI", 0, 24), struct.pack("<BI", 9, 24)), "unknown type 9"),
        (pack({"a": SMALL["a"]}).replace(struct.pack("<2I", 2, 3), struct.pack("<2I", 2**31, 2**31)), "cannot take 24 bytes"),
        (pack({"a": SMALL["a"]}).replace(b"a\0\2", b"a\0\xff"), "255 dimensions"),
        (pack({"a": SMALL["a"]}).replace(b"a\0\2", b"\xff\0\2"), "not UTF-8"),
        (pack({"a": SMALL["a"]}).replace(b"a\0\2", b"ab\2"), "no closing zero"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_ctranslate2(path)


def test_a_name_twice_and_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(pack({"a": SMALL["a"], "c": SMALL["a"]}).replace(b"c\0", b"a\0"))
    with pytest.raises(UserError, match="'a' occurs twice"):
        read_ctranslate2(path)
    with pytest.raises(UserError, match="cannot read"):
        read_ctranslate2(tmp_path / "absent.bin")


def exported(model: torch.nn.Module) -> dict[str, NDArray[np.generic]]:
    """A Whisper of transformers in CTranslate2's names, in float32 so that nothing is rounded."""
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    out: dict[str, NDArray[np.generic]] = {"decoder/embeddings/weight": state["model.decoder.embed_tokens.weight"]}

    def stacked(source: str, names: list[str]) -> None:
        out[f"{source}/weight"] = np.concatenate([state[f"{name}.weight"] for name in names])
        out[f"{source}/bias"] = np.concatenate([state.get(f"{name}.bias", np.zeros(len(state[f"{name}.weight"]), np.float32)) for name in names])

    def norm(source: str, name: str) -> None:
        out[f"{source}/gamma"], out[f"{source}/beta"] = state[f"{name}.weight"], state[f"{name}.bias"]

    for tower in ("encoder", "decoder"):
        out[f"{tower}/num_heads"] = np.array(2, np.int16)
        out[f"{tower}/position_encodings/encodings"] = state[f"model.{tower}.embed_positions.weight"]
        norm(f"{tower}/layer_norm", f"model.{tower}.layer_norm")
        for index in range(2):
            source, name = f"{tower}/layer_{index}", f"model.{tower}.layers.{index}"
            stacked(f"{source}/self_attention/linear_0", [f"{name}.self_attn.{part}_proj" for part in "qkv"])
            stacked(f"{source}/self_attention/linear_1", [f"{name}.self_attn.out_proj"])
            norm(f"{source}/self_attention/layer_norm", f"{name}.self_attn_layer_norm")
            stacked(f"{source}/ffn/linear_0", [f"{name}.fc1"])
            stacked(f"{source}/ffn/linear_1", [f"{name}.fc2"])
            norm(f"{source}/ffn/layer_norm", f"{name}.final_layer_norm")
            if tower == "decoder":
                stacked(f"{source}/attention/linear_0", [f"{name}.encoder_attn.q_proj"])
                stacked(f"{source}/attention/linear_1", [f"{name}.encoder_attn.{part}_proj" for part in "kv"])
                stacked(f"{source}/attention/linear_2", [f"{name}.encoder_attn.out_proj"])
                norm(f"{source}/attention/layer_norm", f"{name}.encoder_attn_layer_norm")
    for conv in ("conv1", "conv2"):
        for part in ("weight", "bias"):
            out[f"encoder/{conv}/{part}"] = state[f"model.encoder.{conv}.{part}"]
    return out


@pytest.fixture(scope="module")
def tiny_whisper() -> torch.nn.Module:
    from polyadapt.sources.load import open_reference

    return open_reference("polyadapt:tiny-whisper").backbone


def test_a_whisper_survives_the_way_through_the_format(tmp_path: Path, tiny_whisper: torch.nn.Module) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(pack(exported(tiny_whisper), aliases={"decoder/projection/weight": "decoder/embeddings/weight"}))
    loaded = load_whisper(path)
    wanted = tiny_whisper.state_dict()
    assert set(loaded.state_dict()) == set(wanted)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, wanted[name]), name
    assert loaded.proj_out.weight is loaded.model.decoder.embed_tokens.weight  # type: ignore[union-attr]
    assert not loaded.training
    generator = torch.Generator().manual_seed(0)
    inputs = {"input_features": torch.randn(1, 16, 128, generator=generator), "decoder_input_ids": torch.tensor([[1, 5, 7]])}
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, tiny_whisper(**inputs).logits, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("encoder/layer_0/self_attention/linear_0/bias", np.ones(96, np.float32), "a bias for keys"),
        ("decoder/layer_1/ffn/linear_0/weight", np.zeros((64, 31), np.float32), "does not fit Whisper"),
        ("encoder/conv1/weight", np.zeros((4, 4), np.float32), "2 dimensions, expected are 3"),
        ("decoder/layer_0/ffn/linear_1/weight", np.zeros((32, 64), np.int8), "quantised to 8 bits"),
        ("encoder/layer_norm/gamma", None, "no tensor 'encoder/layer_norm/gamma'"),
    ],
)
def test_what_is_no_whisper_is_refused(tmp_path: Path, tiny_whisper: torch.nn.Module, name: str, value: NDArray[np.generic] | None, said: str) -> None:
    arrays = exported(tiny_whisper)
    if value is None:
        del arrays[name]
    else:
        arrays[name] = value
    path = tmp_path / "model.bin"
    path.write_bytes(pack(arrays))
    with pytest.raises(UserError, match=said):
        load_whisper(path)


def test_another_spec_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(pack(SMALL, "TransformerSpec"))
    with pytest.raises(UserError, match="'TransformerSpec', not a Whisper"):
        load_whisper(path)

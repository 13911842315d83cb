"""The numpy reader and writer of safetensors, beside the official library."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import SafetensorError
from safetensors.numpy import load, load_file, save

from polyadapt_runtime import IntegrityError, TensorFileError
from polyadapt_runtime.tensors import DTYPES, parse_safetensors, read_safetensors, write_safetensors

SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
ARRAYS = hnp.arrays(st.sampled_from(list(DTYPES.values())), SHAPES)
TABLES = st.dictionaries(st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__"), ARRAYS, max_size=4)


def whole(header: object, data: bytes = b"") -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape
        assert found[name].tobytes() == value.tobytes()


@settings(max_examples=40, deadline=None)
@given(TABLES)
def test_official_files_are_read(table: dict[str, np.ndarray]) -> None:
    assert_equal(parse_safetensors(save(table, metadata={"k": "v"}))[0], table)


@settings(max_examples=40, deadline=None)
@given(TABLES)
def test_the_official_library_reads_ours(tmp_path_factory: pytest.TempPathFactory, table: dict[str, np.ndarray]) -> None:
    path = tmp_path_factory.mktemp("written") / "t.safetensors"
    write_safetensors(path, table, {"k": "v"})
    assert_equal(load_file(path), table)
    found, metadata = read_safetensors(path)
    assert_equal(found, table)
    assert metadata == {"k": "v"}
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0  # so that tensors lie where a memory map can use them
    assert [item.name for item in path.parent.iterdir()] == [path.name]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damage_ends_in_tensors_or_in_our_error(data: st.DataObject) -> None:
    """Whatever is flipped, cut or put in: never another exception, and never a file that the official reader refuses."""
    raw = bytearray(save({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(3, dtype=np.int64)}))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "insert"])):
            case "flip":
                raw[at] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del raw[at:]
            case "insert":
                raw[at:at] = data.draw(st.binary(min_size=1, max_size=3))
        if not raw:
            break
    try:
        found, _ = parse_safetensors(bytes(raw))
    except TensorFileError:
        return
    try:
        assert_equal(found, load(bytes(raw)))
    except SafetensorError as error:
        pytest.fail(f"ours reads what the official reader refuses: {error}")


REFUSED = {
    "the length of the header alone": b"\0" * 7,
    "the header claims": struct.pack("<Q", 1 << 60) + b"{}",
    "not valid JSON": whole("{"),
    "twice": whole('{"a": 1, "a": 2}'),
    "not a table": whole([]),
    "nothing else": whole({"a": {"dtype": "F32", "shape": []}}),
    "has dtype F8": whole({"a": entry("F8")}, b"\0" * 8),
    "short lists of whole numbers": whole({"a": entry(shape=[-2])}, b"\0" * 8),
    "lies at bytes 0 to 8 of 4": whole({"a": entry()}, b"\0" * 4),
    "lies at bytes 8 to 0": whole({"a": entry(offsets=[8, 0])}, b"\0" * 8),
    "does not take 8 bytes": whole({"a": entry(shape=[3])}, b"\0" * 8),
    "does not take 0 bytes": whole({"a": entry(shape=[1 << 60, 0, 1 << 60], offsets=[0, 0])}),
    "a hole or an overlap": whole({"a": entry(), "b": entry(offsets=[4, 12])}, b"\0" * 12),
    "begins at byte 8, expected 0": whole({"a": entry(offsets=[8, 16])}, b"\0" * 16),
    "4 bytes belong to no tensor": whole({"a": entry()}, b"\0" * 12),
    "__metadata__": whole({"__metadata__": {"a": 1}}),
    "NaN is no JSON": whole('{"a": NaN}'),
}


@pytest.mark.parametrize("message", REFUSED)
def test_every_false_claim_is_named(message: str) -> None:
    with pytest.raises(TensorFileError, match=message):
        parse_safetensors(REFUSED[message])


@pytest.mark.parametrize("value", [[2.0], [True, 2], "2", None, [1] * 33])
def test_shapes_are_lists_of_whole_numbers(value: object) -> None:
    with pytest.raises(TensorFileError, match="short lists of whole numbers"):
        parse_safetensors(whole({"a": entry(shape=value)}, b"\0" * 8))


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a": ' + "9" * 6000 + "}"])
def test_json_made_to_break_the_parser_ends_in_our_error(text: str) -> None:
    with pytest.raises(TensorFileError):
        parse_safetensors(whole(text))


@pytest.mark.parametrize("keep", [0, 4, 8, 20, -1])
def test_truncated_files_are_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "t.safetensors"
    path.write_bytes(save({"a": np.ones(8, np.float32)})[:keep])
    with pytest.raises(TensorFileError, match="not a whole safetensors file"):
        read_safetensors(path)
    with pytest.raises(IntegrityError, match="altered"):
        read_safetensors(path, "0" * 64)


def test_equal_tensors_give_equal_bytes_and_a_failure_leaves_nothing(tmp_path: Path) -> None:
    table: dict[str, np.ndarray] = {"b": np.ones(3, np.float16), "a": np.ones(2, np.int64)}
    write_safetensors(tmp_path / "1", table)
    write_safetensors(tmp_path / "2", dict(reversed(table.items())))
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    with pytest.raises(TensorFileError, match="complex128"):
        write_safetensors(tmp_path / "3", {"a": np.ones(2, complex)})
    with pytest.raises(TensorFileError, match="cannot write"):
        write_safetensors(tmp_path / "missing" / "4", table)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["1", "2"]

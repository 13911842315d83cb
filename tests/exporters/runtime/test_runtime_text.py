"""Text, arrays, tables and post-processing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from polyadapt_runtime import GraphError, InputError, ManifestError, Processor
from polyadapt_runtime.postprocess import interpret
from polyadapt_runtime.sampling import Sampling
from polyadapt_runtime.text import TextReader
from polyadapt_runtime.writing import with_text

SPEC = {
    "kind": "text",
    "tokenizer": "tokenizer",
    "maximum_tokens": 6,
    "pad_id": 9,
    "pad_side": "right",
    "inputs": {"ids": "input_ids", "mask": "attention_mask", "types": "token_type_ids"},
}


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    words = {word: index for index, word in enumerate(["[CLS]", "[SEP]", "the", "cat", "sat", "on", "mat", "[UNK]", "[X]", "[PAD]"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 0), ("[SEP]", 1)])
    # What the file itself says about padding and cutting must not count.
    tokenizer.enable_padding(length=20, pad_id=8)
    tokenizer.enable_truncation(3)
    path = tmp_path_factory.mktemp("text") / "tokenizer.json"
    tokenizer.save(str(path))
    return {"tokenizer": path}


def test_padding_equals_transformers(assets: dict[str, Path]) -> None:
    PreTrainedTokenizerFast = pytest.importorskip("transformers", reason="an oracle that the runtime alone does without").PreTrainedTokenizerFast
    texts = ["the cat sat", "the", "the cat sat on the mat on the cat"]
    for side in ("right", "left"):
        processor = Processor({**SPEC, "pad_side": side}, assets)
        found = processor.collate([processor(text) for text in texts])
        peer = PreTrainedTokenizerFast(tokenizer_file=str(assets["tokenizer"]), pad_token="[PAD]", padding_side=side)
        expected = peer(texts, padding=True, truncation=True, max_length=6, return_tensors="np", return_token_type_ids=True)
        assert set(found) == set(SPEC["inputs"].values())  # type: ignore[attr-defined]
        for name, value in found.items():
            assert value.dtype == np.int64
            assert np.array_equal(value, expected[name]), name


def test_one_text_has_no_batch_axis_and_no_padding(assets: dict[str, Path]) -> None:
    found = Processor(SPEC, assets)("the cat")
    assert found["input_ids"].tolist() == [0, 2, 3, 1] and found["attention_mask"].tolist() == [1, 1, 1, 1]
    pair = Processor(SPEC, assets)(("the", "cat"))
    assert pair["input_ids"].tolist() == [0, 2, 1, 3, 1] and pair["token_type_ids"].tolist() == [0, 0, 0, 1, 1]
    assert TextReader(SPEC, assets["tokenizer"]).encode("the cat sat on the mat on", cut=False)[0] == [0, 2, 3, 4, 5, 2, 6, 5, 1]
    assert Processor(SPEC, assets)(np.arange(8))["input_ids"].tolist() == list(range(6))


def test_what_is_cut_is_told_of_and_nothing_is_no_text(assets: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    processor = Processor(SPEC, assets)
    processor("the cat sat on")
    processor(np.arange(6))
    assert not caplog.messages
    processor("the cat sat on the mat")
    assert caplog.messages == ["the text 'the cat sat on the mat'… was cut to maximum_tokens = 6; load the model with more of them, or give shorter texts"]
    processor(np.arange(7))
    assert caplog.messages[-1].startswith("a row of 7 token ids was cut to maximum_tokens = 6")
    bare = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    path = assets["tokenizer"].with_name("bare.json")
    bare.save(str(path))
    for reader, empty in ((Processor(SPEC, {"tokenizer": path}), ""), (processor, np.zeros(0, np.int64))):
        with pytest.raises(InputError, match="the text is empty"):
            reader(empty)


def test_numbers_that_are_none_are_no_answer() -> None:
    for strange in (np.nan, np.inf):
        row = np.array([0.0, 5.0, strange], np.float32)
        for kind, output in (("classification", {"logits": row}), ("features", {"features": row}), ("ctc", {"logits": row[None]})):
            with pytest.raises(GraphError, match="holds numbers that are not finite"):
                interpret(output, {"kind": kind}, ("a", "b", "c"), 2)
    masked = interpret({"logits": np.array([0.0, 5.0, -np.inf], np.float32)}, {"kind": "classification"}, ("a", "b", "c"), 2)
    assert masked.label == "b"
    with pytest.raises(GraphError, match="scores that are not numbers"):
        Sampling().pick(np.array([0.0, np.nan]), np.random.default_rng(0))


def test_inputs_that_the_graph_lacks_are_left_out(assets: dict[str, Path]) -> None:
    processor = Processor({**SPEC, "inputs": {"ids": "tokens", "mask": None, "types": None}}, assets)
    assert list(processor("the")) == ["tokens"] and not processor.pads_exactly
    assert Processor(SPEC, assets).pads_exactly


def test_text_needs_a_tokenizer(assets: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no tokenizer among its assets"):
        Processor(SPEC)("the")
    assert Processor(SPEC)(np.array([1, 2]))["input_ids"].tolist() == [1, 2]
    with pytest.raises(InputError, match="found int"):
        Processor(SPEC, assets)(3)
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(InputError, match="is no tokenizer file"):
        Processor(SPEC, {"tokenizer": tmp_path / "t.json"})("the")


def test_streamed_text_waits_for_whole_characters() -> None:
    class Bytes(TextReader):
        def decode(self, ids: Any) -> str:
            return bytes(ids).decode("utf-8", errors="replace")

    reader = Bytes(SPEC, Path("any"))
    data = "aé€z".encode()
    tokens = list(with_text(iter(data), reader))
    assert [token.text for token in tokens] == ["a", "", "é", "", "", "€", "z"]
    assert [token.id for token in tokens] == list(data)


def test_arrays() -> None:
    processor = Processor({"kind": "array", "input": "observation", "shape": [2, "time"], "dtype": "float32"})
    found = processor([[1, 2, 3], [4, 5, 6]])["observation"]
    assert found.dtype == np.float32 and found.shape == (2, 3)
    assert processor.collate([{"observation": found}] * 3)["observation"].shape == (3, 2, 3)
    for raw, message in (([1.0], "takes one example of shape"), (np.zeros((3, 3)), "takes one example"), ([[np.nan], [0]], "not finite"), ("word", "takes numbers")):
        with pytest.raises(InputError, match=message):
            processor(raw)
    with pytest.raises(InputError, match="different shapes"):
        processor.collate([{"observation": np.zeros((2, 1))}, {"observation": np.zeros((2, 2))}])
    with pytest.raises(InputError, match="at least one"):
        processor.collate([])


def test_tables_and_parts(assets: dict[str, Path]) -> None:
    array = {"kind": "array", "input": "observation", "shape": [2]}
    processor = Processor({"kind": "parts", "parts": {"text": SPEC, "state": array}}, assets)
    examples = [processor({"text": "the cat sat", "state": [1, 2]}), processor({"text": "the", "state": [3, 4]})]
    batch = processor.collate(examples)
    assert batch["input_ids"].tolist() == [[0, 2, 3, 4, 1], [0, 2, 1, 9, 9]] and batch["attention_mask"][1].tolist() == [1, 1, 1, 0, 0]
    assert batch["observation"].tolist() == [[1, 2], [3, 4]]
    with pytest.raises(InputError, match="a table with text, state, found text"):
        processor({"text": "the"})
    assert Processor({"kind": "tensors"})({"a": [1, 2]})["a"].tolist() == [1, 2]
    with pytest.raises(InputError, match="table of named inputs"):
        Processor({"kind": "tensors"})([1, 2])


def test_specs_are_checked() -> None:
    with pytest.raises(ManifestError, match="kind 'video'"):
        Processor({"kind": "video"})
    with pytest.raises(ManifestError, match="lacks input, size_px"):
        Processor({"kind": "image"})


def test_answers_by_kind() -> None:
    row = {"logits": np.array([[0, 9, 0], [0, 9, 0], [9, 0, 0], [0, 9, 0], [0, 0, 9]], np.float32), "features": np.arange(2.0)}
    assert interpret(row, {"kind": "ctc", "blank_id": 0, "separator": "|"}, ["_", "a", "b"], 5) == "aab"
    assert interpret({"logits": row["logits"][:, [2, 1, 0]]}, {"kind": "ctc", "blank_id": 0, "separator": "|"}, ["_", "|", "b"], 5) == "b"
    assert interpret(row, {"kind": "features"}, [], 5).tolist() == [0.0, 1.0]
    assert interpret(row, {"kind": "denoising"}, [], 5) == row
    tied = interpret({"logits": np.array([1.0, 3.0, 3.0], np.float32)}, {"kind": "classification"}, ["a", "b"], 2)
    assert tied.label == "b" and [label for label, _ in tied.top] == ["b", "2"]
    with pytest.raises(GraphError, match="reads output 'logits' with 1 axes"):
        interpret(row, {"kind": "classification"}, [], 5)

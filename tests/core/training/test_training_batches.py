"""Batches: what fills them up, and rows that do not see each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import polyadapt as pa
from polyadapt.data.dataset import Dataset, Example
from polyadapt.errors import UserError
from polyadapt.model import Model
from polyadapt.signature import Task
from polyadapt.sources.processors import audio_spec, make_processor, text_spec, tiny_tokenizer
from polyadapt.training import TrainingData, TrainSettings, fit
from polyadapt.training.batches import Examples
from polyadapt.training.noising import Noising
from polyadapt.training.optimisation import load_optimiser, make_optimiser, optimiser_tensors, rate_at
from polyadapt.training.randomness import isolated, states

Tiny = Callable[..., Model]


def texts(model: Model, tmp_path: Path, side: str = "right") -> Model:
    model.processor = make_processor(text_spec(pad_id=0, maximum_tokens=12, pad_side=side), {"tokenizer": tiny_tokenizer(tmp_path / "tokenizer.json", 128)})
    model.generation = {"eos_ids": [3], "start_ids": [2]}
    return model


def code(text: str) -> list[int]:
    """Ids of the tiny tokenizer: four special ones, then the characters from the space on."""
    return [ord(character) - 32 + 4 for character in text]


def test_a_run_puts_texts_of_like_length_together(tiny: Tiny, tmp_path: Path, method_of: Callable[[str], Any]) -> None:
    model, lora = texts(tiny("gpt2", "causal-lm"), tmp_path), method_of("lora")
    rows = Dataset("t", [Example(str(row), "ab" * (1 + row % 2), text="cd" * (1 + row % 2)) for row in range(12)], "text")
    filled: list[int] = []
    hook = model.module.register_forward_pre_hook(lambda module, arguments, inputs: filled.append(int((inputs["attention_mask"] == 0).sum())), with_kwargs=True)
    for group in (False, True):
        filled.clear()
        fit(model, lora, lora.card.options(), TrainingData(rows), TrainSettings(epochs=2, batch_size=2, group_by_length=group))
        assert (sum(filled) == 0) == group
    hook.remove()


def test_rate_rises_then_falls() -> None:
    linear = [rate_at(step, 10, 1.0, "linear", 0.2) for step in range(10)]
    assert linear == pytest.approx([1 / 3, 2 / 3, *(1 - step / 8 for step in range(8))])
    cosine = [rate_at(step, 8, 2.0, "cosine", 0.0) for step in range(8)]
    assert cosine == pytest.approx([1 + np.cos(np.pi * step / 8) for step in range(8)])
    assert {rate_at(step, 8, 0.5, "constant", 0.0) for step in range(8)} == {0.5}


def test_the_optimiser_goes_on_from_its_tensors() -> None:
    values = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2, 2))]
    twins = [torch.nn.Parameter(value.detach().clone()) for value in values]

    def step(optimiser: Any, parameters: list[torch.nn.Parameter], number: int) -> None:
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, float(number)) * parameter.detach()
        optimiser.step()

    one = make_optimiser(values, 0.1, 0.01)
    step(one, values, 1)
    with torch.no_grad():
        for twin, value in zip(twins, values, strict=True):
            twin.copy_(value)
    two = make_optimiser(twins, 0.1, 0.01)
    load_optimiser(two, {name: value.clone() for name, value in optimiser_tensors(one).items()})
    for number in (2, 3):
        step(one, values, number)
        step(two, twins, number)
    assert all(torch.equal(left, right) for left, right in zip(values, twins, strict=True))


def test_random_states_are_put_back() -> None:
    import random

    device = torch.device("cpu")
    random.gauss(0, 1)
    before = states(device)
    with isolated(1, device):
        inside = (torch.rand(1).item(), np.random.rand(), random.random())
    with isolated(1, device):
        assert inside == (torch.rand(1).item(), np.random.rand(), random.random())
    assert all(torch.equal(value, before[name]) for name, value in states(device).items())


def test_prompts_are_masked_and_padding_is_ignored(tiny: Tiny, tmp_path: Path) -> None:
    model = texts(tiny("gpt2", "causal-lm"), tmp_path)
    rows = Dataset("t", [Example("a", "ab", text="cd"), Example("b", "abc", text="d!e")], "text")
    batch = Examples(rows, model, 2**20).batch([0, 1])
    assert batch.inputs["input_ids"].tolist() == [[*code("abcd"), 3, 0, 0], [*code("abcd!e"), 3]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0, 0], [1] * 7]
    assert batch.targets["tokens"].tolist() == [[-100, -100, *code("cd"), 3, -100, -100], [-100, -100, -100, *code("d!e"), 3]]


def test_targets_stand_where_left_padded_inputs_stand(tiny: Tiny, tmp_path: Path) -> None:
    model = texts(tiny("gpt2", "causal-lm"), tmp_path, "left")
    rows = Dataset("t", [Example("a", "ab", text="c"), Example("b", "abc", text="de")], "text")
    batch = Examples(rows, model, 2**20).batch([0, 1])
    assert batch.inputs["input_ids"].tolist() == [[0, 0, *code("abc"), 3], [*code("abcde"), 3]]
    assert batch.targets["tokens"].tolist() == [[-100, -100, -100, -100, *code("c"), 3], [-100, -100, -100, *code("de"), 3]]


def test_a_prompt_that_fills_the_limit_is_named(tiny: Tiny, tmp_path: Path) -> None:
    model = texts(tiny("gpt2", "causal-lm"), tmp_path)
    rows = Dataset("t", [Example("a", "a" * 12, text="c", source="t.csv:4")], "text")
    with pytest.raises(UserError, match=r"t\.csv:4.*maximum_tokens"):
        Examples(rows, model, 2**20).batch([0])


def test_a_decoder_reads_the_start_and_is_scored_on_text_and_end(tiny: Tiny, tmp_path: Path) -> None:
    model = texts(tiny("t5", "seq2seq-lm"), tmp_path)
    model.generation["start_ids"] = [2, 7]
    rows = Dataset("t", [Example("a", "xy", text="ab"), Example("b", "x", text="c")], "text")
    batch = Examples(rows, model, 2**20).batch([0, 1])
    assert batch.inputs["decoder_input_ids"].tolist() == [[2, 7, *code("ab")], [2, 7, *code("c"), 0]]
    assert batch.targets["tokens"].tolist() == [[-100, *code("ab"), 3], [-100, *code("c"), 3, -100]]


def sounds(tiny: Tiny, lengths: list[int], text: str = "ab") -> tuple[Model, Examples]:
    model = tiny("wav2vec2", "ctc")
    model.task = Task("ctc", ("-", "|", "A", "B"))
    model.processor = make_processor(audio_spec())
    generator = np.random.default_rng(0)
    rows = [Example(f"{row}", (generator.normal(size=length).astype(np.float32), 16000), text=text, source=f"s.tsv:{row + 2}") for row, length in enumerate(lengths)]
    return model, Examples(Dataset("s", rows, "audio"), model, 2**24)


def test_sounds_of_different_lengths_do_not_share_a_batch(tiny: Tiny) -> None:
    """What fills them up is not masked, so a clip would see the length of its neighbours."""
    _, examples = sounds(tiny, [4000, 5000, 4000])
    assert examples.groups([0, 1, 2]) == [[0, 2], [1]]


def test_transcripts_become_symbols_and_frames(tiny: Tiny) -> None:
    model, examples = sounds(tiny, [4000], "a  b")
    batch = examples.batch([0])
    assert batch.targets["tokens"].tolist() == [[2, 1, 3]]
    assert batch.targets["frames"].tolist() == [model.module(**batch.inputs)["logits"].shape[1]]


def test_a_strange_character_and_a_text_too_long_are_named(tiny: Tiny) -> None:
    with pytest.raises(UserError, match=r"s\.tsv:2.*'x'"):
        sounds(tiny, [4000], "axb")
    with pytest.raises(UserError, match=r"s\.tsv:2.*do not fit"):
        sounds(tiny, [1000], "ab" * 40)[1].batch([0])


def test_letters_outside_the_alphabet_are_counted_before_anything_trains(tiny: Tiny) -> None:
    with pytest.raises(UserError, match=r"s\.tsv:2: transcripts hold 2 letters that are not in the alphabet of .*: 'x' \(6\), 'é' \(3\); spell them out"):
        sounds(tiny, [4000, 4000, 4000], "axé b x")
    assert len(sounds(tiny, [4000, 4000], "A B b")[1]) == 2  # in either case


def test_processed_examples_are_kept_up_to_a_limit(tiny: Tiny, labelled_rows: Callable[..., Dataset]) -> None:
    model = tiny("vit")
    calls = []
    processor = model.processor

    class Counting:
        spec = processor.spec
        collate = staticmethod(processor.collate)

        def __call__(self, raw: Any) -> Any:
            calls.append(1)
            return processor(raw)

    model.processor = Counting()  # type: ignore[assignment]
    size = 3 * 32 * 32 * 4 + 8
    examples = Examples(labelled_rows(model, 4, 1), model, 2 * size)
    for _ in range(3):
        examples.batch([0, 1, 2, 3])
    assert len(calls) == 4 + 2 + 2


def test_a_label_that_the_model_does_not_know_is_named(tiny: Tiny) -> None:
    model = tiny("vit")
    rows = Dataset("t", [Example("a", np.zeros((3, 32, 32), np.float32), "lift", source="t.csv:9")], "array")
    with pytest.raises(UserError, match=r"t\.csv:9: label 'lift'.*did you mean 'left'"):
        Examples(rows, model, 2**20).batch([0])


def latents(size: int, tokens: int = 3) -> Dataset:
    generator = np.random.default_rng(0)
    rows = [generator.normal(size=(4, 8, 8)).astype(np.float32) for _ in range(size)]
    texts = [generator.normal(size=(tokens, 24)).astype(np.float32) for _ in range(size)]
    return Dataset("l", [Example(f"{row}", rows[row], extra={"encoder_hidden_states": texts[row]}) for row in range(size)], "array")


@pytest.mark.parametrize("prediction", ["epsilon", "velocity"])
def test_noise_follows_from_seed_epoch_and_row(prediction: str, tiny: Tiny) -> None:
    """And the clean sample can be computed back from the noisy one and the target (equations of both papers)."""
    model = tiny("unet", "denoising")
    model.processor = make_processor({"kind": "tensors"})
    examples = Examples(latents(4), model, 2**20)
    noising = Noising(Task("denoising", details={"prediction": prediction, "beta_schedule": "linear", "noise_steps": 50, "beta_start": 0.01, "beta_end": 0.2}), seed=1)
    batch = noising(examples.batch([2, 0]), 1)
    alone, later = noising(examples.batch([0]), 1), noising(examples.batch([0]), 2)
    assert torch.equal(batch.inputs["sample"][1], alone.inputs["sample"][0])
    assert not torch.equal(later.inputs["sample"], alone.inputs["sample"])
    kept = torch.tensor(np.cumprod(1 - np.linspace(0.01, 0.2, 50))[batch.inputs["timestep"].numpy()], dtype=torch.float32).reshape(2, 1, 1, 1)
    noisy, target = batch.inputs["sample"], batch.targets["target"]
    clean = (noisy - (1 - kept).sqrt() * target) / kept.sqrt() if prediction == "epsilon" else kept.sqrt() * noisy - (1 - kept).sqrt() * target
    torch.testing.assert_close(clean, torch.from_numpy(np.stack([examples.dataset[2].raw, examples.dataset[0].raw])), rtol=1e-4, atol=1e-4)


def test_a_unet_trains_on_clean_samples(tiny: Tiny, method_of: Callable[[str], Any]) -> None:
    model, lora = tiny("unet", "denoising"), method_of("lora")
    model.processor = make_processor({"kind": "tensors"})
    events: list[Any] = []
    data = TrainingData(latents(4), latents(2))
    fit(model, lora, lora.card.options(), data, TrainSettings(epochs=3, batch_size=2, learning_rate=0.02, schedule="constant"), events.append)
    losses = [event["validation"]["loss"] for event in events if event.kind == "epoch"]
    assert losses[-1] < losses[0], "validation draws the same noise in every epoch, so its loss can be compared"


def spoken_rows(seconds: float, text: str) -> Dataset:
    sound = np.random.default_rng(0).uniform(-0.1, 0.1, round(16000 * seconds)).astype(np.float32)
    return Dataset("talk", [Example("a", (sound, 16000), None, "a", {}, "talk.csv:2"), Example("b", (sound, 16000), None, text, {}, "talk.csv:3")], "audio")


@pytest.mark.parametrize("reference", ["polyadapt:tiny-whisper", "polyadapt:tiny-wav2vec2"])
def test_what_is_written_down_is_heard_whole(reference: str) -> None:
    """A model that heard the beginning would learn to write what it never hears, and be measured by it."""
    pytest.importorskip("transformers", reason="the host alone brings no models of sound")
    model = pa.load(reference)
    limit = 0.5
    model.processor = make_processor({**model.processor.spec, "maximum_seconds": limit}, model.processor.assets)
    long = spoken_rows(limit + 0.3, "a b")
    with pytest.raises(UserError, match=rf"talk\.csv:2: .* is longer than maximum_seconds = {limit:g} s, and its text is of all of it; cut both, or raise maximum_seconds"):
        pa.adapt(model, "lora", long, train={"max_steps": 1}, split={"fractions": {"train": 1}})
    with pytest.raises(UserError, match="is longer than maximum_seconds"):
        pa.evaluate(model, long)


def test_texts_that_a_decoder_cannot_write_are_found_before_training() -> None:
    pytest.importorskip("transformers", reason="the host alone brings no models of sound")
    model = pa.load("polyadapt:tiny-whisper")
    held = model.family.positions(model.backbone)
    assert held is not None
    with pytest.raises(UserError, match=rf"1 texts of .* are longer than polyadapt:tiny-whisper writes, the first in talk\.csv:3 with \d+ tokens \(it holds {held}"):
        pa.adapt(model, "lora", spoken_rows(0.2, "a" * (held + 1)), train={"max_steps": 1}, split={"fractions": {"train": 1}})


@pytest.mark.parametrize(
    ("prompt", "target", "is_told"), [("What is red", "blue", True), ("What is red:", "blue", False), ("What is red", " blue", False), ("赤は何", "青", False)]
)
def test_words_that_grow_together_are_told_of(prompt: str, target: str, is_told: bool, tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = texts(tiny("gpt2", "causal-lm"), tmp_path)
    Examples(Dataset("pairs", [Example("a", prompt, None, target)], "text"), model, 0)
    assert ("'blue' is learned as 'What is redblue'" in caplog.text) == is_told

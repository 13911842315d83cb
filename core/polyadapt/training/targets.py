"""What one example becomes for each task: the model's inputs, and what its outputs are compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from polyadapt.data.dataset import Dataset, Example
from polyadapt.errors import UserError, nearest
from polyadapt.model import Model
from polyadapt.training.losses import IGNORED
from polyadapt.training.reading import hear, read, text_inputs
from polyadapt.training.texts import heard_whole, join, target_tokens, transcript_tokens

Arrays = dict[str, np.ndarray]
Prepared = tuple[Arrays, Arrays]
Prepare = Callable[[Example], Prepared]

DECODER_INPUT = "decoder_input_ids"
BESIDE = "beside."  # prefix of inputs that no processor makes; they are stacked, and filled up with 0 at their end


def prepare_for(model: Model) -> Prepare:
    """The function that turns an example into (inputs, targets) for the model's task.

    Raises:
        UserError: nothing can be learned from examples in this task.
    """
    makers: dict[str, Callable[[Model], Prepare]] = {
        "classification": _classification,
        "control": _numbers,
        "ctc": _transcript,
        "causal-lm": _continuation,
        "seq2seq-lm": _translation,
        "transcription": _translation,
        "image-text": _pair,
        "denoising": _sample,
        "synthesis": Reading,
    }
    if model.task.kind not in makers:
        raise UserError(f"the common loop cannot make targets for task {model.task.kind!r}; it does: {', '.join(makers)}")
    return makers[model.task.kind](heard_whole(model))


def _classification(model: Model) -> Prepare:
    index = {label: position for position, label in enumerate(model.task.labels)}

    def prepare(example: Example) -> Prepared:
        if example.label not in index:
            found = "no label" if example.label is None else f"label {example.label!r} is not one of the model's{nearest(example.label, index)}"
            raise UserError(f"{example.source or example.id}: {found}; label the row by one of its classes or leave it out")
        return _inputs(model, example.raw), {"label": np.array(index[example.label], dtype=np.int64)}

    return prepare


def _numbers(model: Model) -> Prepare:
    return lambda example: (_inputs(model, example.raw), {"target": example.target})


def _transcript(model: Model) -> Prepare:
    """CTC: the text as symbols, and the frames that the clip gives."""

    def prepare(example: Example) -> Prepared:
        inputs = _inputs(model, example.raw)
        frames = model.frames(next(iter(inputs.values())).shape[0])
        tokens = transcript_tokens(model, _text(example))
        repeats = int((tokens[1:] == tokens[:-1]).sum())  # a blank must stand between two equal symbols
        if len(tokens) + repeats > frames:
            raise UserError(f"{example.source or example.id}: {len(tokens)} symbols do not fit into {frames} frames of sound; check the transcript, or leave the row out")
        return inputs, {"tokens": tokens, "frames": np.array(frames, dtype=np.int64)}

    return prepare


def _continuation(model: Model) -> Prepare:
    """Causal language: prompt and target as one text, scored on the target; a text alone is scored whole."""

    def prepare(example: Example) -> Prepared:
        inputs, start = join(model, example)
        ids = inputs[str(model.processor.spec["inputs"]["ids"])]
        labels = ids.astype(np.int64)
        labels[:start] = IGNORED
        return inputs, {"tokens": labels}

    return prepare


def _translation(model: Model) -> Prepare:
    """Encoder and decoder: the decoder reads the start tokens and the text, and is scored on the text and its end."""
    prompt = np.array(model.generation.get("start_ids") or [0], dtype=np.int64)  # (start,)

    def prepare(example: Example) -> Prepared:
        inputs = _inputs(model, example.raw)
        answer = target_tokens(model, _text(example))  # (answer,)
        unscored = np.full(len(prompt) - 1, IGNORED, dtype=np.int64)
        inputs[DECODER_INPUT] = np.concatenate([prompt, answer[:-1]])  # (start + answer - 1,)
        return inputs, {"tokens": np.concatenate([unscored, answer])}

    return prepare


def _pair(model: Model) -> Prepare:
    """A picture and its caption; the pairs of a batch are each other's wrong answers."""
    keys = {("text" if part.get("kind") == "text" else "other"): key for key, part in (model.processor.spec.get("parts") or {}).items()}
    if set(keys) != {"text", "other"}:
        raise UserError(f"task 'image-text' needs a processor with a text and an image, {model.reference} has {model.processor.spec.get('kind')!r}; load it with its tokenizer")

    def prepare(example: Example) -> Prepared:
        return _inputs(model, {keys["other"]: example.raw, keys["text"]: _text(example)}), {"pair": np.array(0, dtype=np.int64)}

    return prepare


def _sample(model: Model) -> Prepare:
    """A clean sample with its conditions in columns of their names; or a noisy one, with columns `timestep` and `target`."""
    names = [spec.name for spec in model.signature.inputs if spec.name not in ("sample", "timestep")]

    def prepare(example: Example) -> Prepared:
        if lacking := [name for name in names if name not in example.extra]:
            raise UserError(f"{example.source or example.id}: no column {lacking[0]!r}; found: {', '.join(example.extra) or 'none'}; the model needs {', '.join(names)}")
        inputs = {"sample": np.asarray(example.raw, dtype=np.float32), **{name: np.asarray(example.extra[name], dtype=np.float32) for name in names}}
        if "timestep" not in example.extra:
            return inputs, {"target": inputs["sample"]}
        return {**inputs, "timestep": np.asarray(example.extra["timestep"], dtype=np.int64)}, {"target": example.target}

    return prepare


class Reading:
    """Synthesis: a text, and what the model hears in the recording of someone who reads it.

    What the model says of the texts by itself is asked before anything trains: of weights that move it would be another each time.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._said: dict[str, Arrays] = {}

    def ask(self, dataset: Dataset) -> None:
        """Have the model as it is now say of every text what it says of one."""
        self._said |= {example.id: read(self._model, text_inputs(self._model, example)) for example in dataset}

    def __call__(self, example: Example) -> Prepared:
        model = self._model
        text, heard = text_inputs(model, example), hear(model, example)
        tokens = len(next(iter(text.values())))
        if tokens > heard.get("frames", tokens):
            raise UserError(f"{example.source or example.id}: {tokens} tokens do not fit into {heard['frames']} frames of sound; check the transcript, or leave the row out")
        beside = {**{name: value for name, value in heard.items() if name not in model.conditions}, **self._said[example.id], **model.conditions}
        return {**text, **{f"{BESIDE}{name}": value for name, value in beside.items()}}, {"row": np.array(0, dtype=np.int64)}


def _inputs(model: Model, raw: Any) -> Arrays:
    return dict(model.processor(raw))


def _text(example: Example) -> str:
    if not example.text:
        raise UserError(f"{example.source or example.id}: no text goes with this example; add a column text (or target, beside prompt)")
    return example.text

"""Texts as targets: token ids behind a prompt, for a decoder, and symbols for CTC."""

from __future__ import annotations

import functools
import logging
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from polyadapt.data.dataset import Dataset, Example
from polyadapt.errors import MissingExtraError, UserError
from polyadapt.model import Model
from polyadapt_runtime.preprocess import Processor

_log = logging.getLogger(__name__)


def join(model: Model, example: Example) -> tuple[dict[str, np.ndarray], int]:
    """Prompt, target and the end token as one row of tokens, and where the target starts.

    The two are put together as text and tokenised once, as the model will meet them. The target starts behind
    the longest beginning that the whole shares with the prompt's own tokens. Without a target text the whole row counts.

    Raises:
        UserError: the limit of tokens leaves no room for the target.
    """
    names = model.processor.spec.get("inputs") or {}
    ids = names.get("ids")
    if ids is None:
        raise UserError(f"task 'causal-lm' needs a processor of texts, {model.reference} has {model.processor.spec.get('kind')!r}; load it with its tokenizer")
    prompt = example.raw
    whole = dict(model.processor(prompt + example.text if isinstance(prompt, str) and example.text else prompt))
    start = 0
    if isinstance(prompt, str) and example.text and model.processor.text is not None:
        own, tokens = np.array(model.processor.text.encode(prompt)[0], dtype=np.int64), whole[ids]  # (p,), (t,); a prompt may be empty
        shared = min(len(own), len(tokens))
        differs = np.flatnonzero(own[:shared] != tokens[:shared])
        start = int(differs[0]) if differs.size else shared
        if start >= len(tokens):
            raise UserError(f"{example.source or example.id}: the prompt takes all {len(tokens)} tokens and leaves none to the target; raise maximum_tokens or shorten the prompt")
    return _ended(model, whole, names), start


def target_tokens(model: Model, text: str) -> np.ndarray:
    """A text as a decoder should write it: its tokens without the tokenizer's own frame, then the end token. int64 [tokens]."""
    tokenizer = _tokenizer_of(model)
    ids = list(tokenizer.encode(text, add_special_tokens=False).ids)
    return np.array([*ids, *(model.generation.get("eos_ids") or [])[:1]], dtype=np.int64)


def refuse_long_texts(model: Model, dataset: Dataset) -> None:
    """Refuse what a decoder cannot write to its end, before anything trains.

    Raises:
        UserError: with the first such text, and how many there are.
    """
    held, before = model.family.positions(model.backbone), len(model.generation.get("start_ids") or [0])
    if held is None:
        return
    sizes = {example: len(target_tokens(model, example.text)) for example in dataset if example.text}
    if long := [example for example, size in sizes.items() if before + size - 1 > held]:
        first = long[0]
        raise UserError(
            f"{len(long)} texts of {dataset.name!r} are longer than {model.reference} writes, the first in {first.source or first.id} with {sizes[first]} tokens "
            f"(it holds {held}, of which {before - 1} stand before a text); cut them with their recordings, or leave them out"
        )


def warn_of_joined_words(dataset: Dataset) -> None:
    """Say when a prompt's last word and its target's first one are put together as one in every row."""
    pairs = [(example.raw, example.text) for example in dataset if isinstance(example.raw, str) and example.raw and example.text]
    if pairs and all(prompt[-1].isalnum() and target[0].isalnum() and prompt.isascii() for prompt, target in pairs):
        prompt, target = pairs[0]
        _log.warning("no space stands between prompts and targets: %r is learned as %r; let every target begin with one", target[:20], f"{prompt[-20:]}{target[:20]}")


def vocabulary_of(model: Model) -> tuple[str, ...]:
    """Symbols of a task `ctc`: its labels, else what the checkpoint's vocabulary was found to be; none where only a tokenizer knows."""
    details: dict[str, Any] = model.task.details
    return tuple(str(symbol) for symbol in model.task.labels or details.get("vocabulary") or ())


def transcript_tokens(model: Model, text: str) -> np.ndarray:
    """A transcript as symbols of the task's vocabulary (its labels, or `vocabulary` of its details), else as tokens of the tokenizer. int64 [symbols].

    Raises:
        UserError: a character that the vocabulary lacks, or neither vocabulary nor tokenizer.
    """
    vocabulary = vocabulary_of(model)
    index = {symbol: number for number, symbol in enumerate(vocabulary)}
    if not index:
        if not _tokenizer_path(model):
            raise UserError(f"the vocabulary of {model.reference} is not known, so transcripts cannot be targets; name its symbols as the task's labels")
        return np.array(_tokenizer_of(model).encode(text, add_special_tokens=False).ids, dtype=np.int64)
    symbols = []
    for character in " ".join(text.split()):
        found = _written(character, index, model.task.separator)
        if found is None:
            raise UserError(f"character {character!r} of {text!r} is not in the model's vocabulary ({''.join(vocabulary)[:60]}); spell it out or remove it")
        symbols.append(index[found])
    return np.array(symbols, dtype=np.int64)


def spelled(text: str, vocabulary: Collection[str], separator: str | None) -> str:
    """A transcript in the letters that a model writes: those of the other case where its vocabulary has no more, what it lacks as it stands.

    A model of capitals that hears every word is right, whatever the case of the transcripts: what training takes for a letter, measuring does too.
    """
    written = ((character, _written(character, vocabulary, separator)) for character in " ".join(text.split()))
    return "".join(character if found is None or found == separator else found for character, found in written)


def _written(character: str, vocabulary: Collection[str], separator: str | None) -> str | None:
    """The symbol that stands for a character: the separator for a space, itself, or itself in the other case; None where there is none."""
    forms = (separator if character == " " else character, character, character.upper(), character.lower())
    return next((form for form in forms if form is not None and form in vocabulary), None)


def heard_whole(model: Model) -> Model:
    """The model with a processor that refuses a recording of which a part would have to stand for the whole transcript."""
    processor = model.processor
    if not model.task.transcribes or processor.kind != "audio":
        return model
    return replace(model, processor=Processor({**processor.spec, "refuse_cut": True}, processor.assets))


def _ended(model: Model, whole: dict[str, np.ndarray], names: dict[str, Any]) -> dict[str, np.ndarray]:
    """The row with the token that ends a text, where there is room for it and it is not there already."""
    ends, limit = model.generation.get("eos_ids") or [], model.processor.spec.get("maximum_tokens")
    tokens = whole[names["ids"]]
    if not ends or (limit and len(tokens) >= int(limit)) or (len(tokens) and int(tokens[-1]) in ends):
        return whole
    last = {names["ids"]: ends[0], names.get("mask"): 1, names.get("types"): 0}
    return {name: np.append(value, np.array(last[name], dtype=value.dtype)) if name in last else value for name, value in whole.items()}


def _tokenizer_path(model: Model) -> Path | None:
    assets: dict[str, Path] = model.processor.assets
    return assets.get("tokenizer")


def _tokenizer_of(model: Model) -> Any:
    path = _tokenizer_path(model)
    if path is None:
        raise UserError(f"{model.reference} has no tokenizer, so texts cannot be targets; load it from a folder with a tokenizer.json")
    return _read_tokenizer(str(path))


@functools.lru_cache(maxsize=4)
def _read_tokenizer(path: str) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtraError("tokenizers", "text", "turning target texts into tokens") from error
    made = Tokenizer.from_file(path)
    made.no_padding()
    made.no_truncation()
    return made

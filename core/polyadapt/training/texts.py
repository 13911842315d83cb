"""Texts as targets: token ids behind a prompt, for a decoder, and symbols for CTC."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

from polyadapt.data.dataset import Example
from polyadapt.errors import MissingExtraError, UserError
from polyadapt.model import Model


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
    if isinstance(prompt, str) and example.text:
        own, tokens = model.processor(prompt)[ids], whole[ids]  # (p,), (t,)
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
    separator = model.task.separator
    symbols = []
    for character in " ".join(text.split()):
        forms = (separator if character == " " else character, character, character.upper(), character.lower())
        found = next((index[form] for form in forms if form in index), None)
        if found is None:
            raise UserError(f"character {character!r} of {text!r} is not in the model's vocabulary ({''.join(vocabulary)[:60]}); spell it out or remove it")
        symbols.append(found)
    return np.array(symbols, dtype=np.int64)


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

"""Text generation: token after token, with or without a key/value cache.

Causal models: one graph serves the prompt (past of length 0) and every further token (past of all before it).
Learned prompts (`prepend` slots) are fed with the prompt only: they are in the cache from then on. Prefixes (`keys` slots)
act inside each attention call and are not cached, so they are fed at every step.
Encoder-decoders (an input `decoder_input_ids`): the whole graph runs for every token. Simple, and slow for long texts.

`generation` of a manifest: `eos_ids` end a text, `suppress_ids` are never taken, `begin_suppress_ids` not as the first token,
`start_ids` begin a decoder's text, `past` {layers, heads, head_size} is the shape of the cache.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyadapt_runtime.errors import InputError, ManifestError
from polyadapt_runtime.manifest import Manifest
from polyadapt_runtime.postprocess import softmax
from polyadapt_runtime.preprocess import Processor
from polyadapt_runtime.session import Session
from polyadapt_runtime.text import TextReader

TASKS = ("causal-lm", "seq2seq-lm", "transcription")
TARGET = "decoder_input_ids"


@dataclass(frozen=True)
class Token:
    """One generated token and the text it adds; empty while a character is not complete."""

    id: int
    text: str


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. Temperature 0 takes the most likely one; otherwise top-k, then top-p, then a draw.

    Attributes:
        temperature: divides the scores.
        top_k: how many of the best tokens stay; None for all.
        top_p: the smallest set of best tokens with at least this probability stays.
        seed: of the draws; None draws differently each time.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < float("inf") or not 0.0 < self.top_p <= 1.0 or (self.top_k is not None and self.top_k < 1):
            raise InputError(f"temperature is 0 or above, top_p above 0 and at most 1, top_k at least 1; found {self.temperature}, {self.top_p}, {self.top_k}")

    def pick(self, scores: np.ndarray, generator: np.random.Generator) -> int:
        """The next token from scores [vocabulary]."""
        if self.temperature == 0.0:
            return int(scores.argmax())
        order = np.argsort(-scores, kind="stable")[: self.top_k]
        chances = softmax(scores[order] / self.temperature)
        kept = int(np.searchsorted(np.cumsum(chances), self.top_p)) + 1  # the token that reaches top_p stays
        chances = chances[:kept] / chances[:kept].sum()
        return int(generator.choice(order[:kept], p=chances))


Steps = Generator[np.ndarray, int, None]  # gives scores [vocabulary], takes the token that was chosen


class Writer:
    """The loop around a graph that scores next tokens."""

    def __init__(self, session: Session, manifest: Manifest, processor: Processor | None) -> None:
        self._session, self._manifest, self._processor = session, manifest, processor
        self._settings = manifest.generation
        reader = processor.text if processor is not None else None
        if reader is None and processor is not None and "tokenizer" in processor.assets:
            reader = TextReader({"inputs": {}}, processor.assets["tokenizer"])  # a model for sounds writes text as well
        self.reader = reader

    def stream(self, raw: Any, slots: Mapping[str, Any], max_tokens: int, sampling: Sampling, stop_ids: Sequence[int] | None) -> Iterator[Token]:
        """Tokens one by one, without the one that ends the text.

        Args:
            raw: a prompt (text or token ids) of a causal model, or the raw input of an encoder-decoder.
            slots: OrtValues of an artifact.
            max_tokens: the most tokens to give.
            sampling: how the next token is drawn.
            stop_ids: ids that end the text, in place of the manifest's.

        Raises:
            InputError: an empty prompt, or no text where text is needed.
            ManifestError: the bundle does not generate text.
        """
        if TARGET in self._session.inputs:
            scores = self._recomputed(self._read(raw), slots)
        else:
            scores = self._cached(self._prompt(raw), slots)
        stops = set((self._settings.get("eos_ids") or ()) if stop_ids is None else stop_ids)
        return with_text(self._tokens(scores, max_tokens, sampling, stops), self.reader)

    def _tokens(self, scores: Steps, max_tokens: int, sampling: Sampling, stops: set[int]) -> Iterator[int]:
        generator = np.random.default_rng(sampling.seed)
        never, first = (np.array(self._settings.get(key) or (), np.int64) for key in ("suppress_ids", "begin_suppress_ids"))
        row = next(scores)  # (vocabulary,)
        for step in range(max_tokens):
            row = row.copy()
            row[never] = -np.inf
            if step == 0:
                row[first] = -np.inf
            token = sampling.pick(row, generator)
            if token in stops:
                return
            yield token
            if step + 1 < max_tokens:
                row = scores.send(token)

    def _cached(self, prompt: Sequence[int], slots: Mapping[str, Any]) -> Steps:
        """Scores after the prompt, then after each token that is sent."""
        if not len(prompt):
            raise InputError("the prompt is empty; give at least one token")
        past = self._empty_past()
        ids, cached = np.array([prompt], np.int64), 0  # (1, tokens)
        while True:
            inputs = {"input_ids": ids, "attention_mask": np.ones((1, cached + ids.shape[1]), np.int64)}
            outputs = self._session.run({**slots, **past, **{name: self._session.value(array) for name, array in inputs.items()}})
            ids = np.array([[(yield outputs["logits"].numpy()[0, -1])]], np.int64)
            past = {name: outputs[name.replace("past.", "present.", 1)] for name in past}
            cached = past["past.0.key"].shape()[2]
            slots = {name: value for name, value in slots.items() if name not in self._manifest.slots or self._manifest.slots[name].kind != "prepend"}

    def _recomputed(self, inputs: Mapping[str, np.ndarray], slots: Mapping[str, Any]) -> Steps:
        """Scores after the start tokens, then after each token that is sent."""
        settings = self._settings
        start = settings.get("start_ids") or settings.get("decoder_start_ids") or [settings.get("decoder_start_id") or 0]
        ids = np.array([start], np.int64)  # (1, tokens)
        fixed = {name: self._session.value(array) for name, array in inputs.items()}
        while True:
            outputs = self._session.run({**slots, **fixed, TARGET: self._session.value(ids)})
            ids = np.append(ids, [[(yield outputs["logits"].numpy()[0, -1])]], axis=1)

    def _prompt(self, raw: Any) -> list[int]:
        if not isinstance(raw, str):
            return [int(token) for token in raw]
        if self.reader is None:
            raise InputError("this bundle does not read text; give token ids")
        return self.reader.encode(raw, cut=False)[0]

    def _read(self, raw: Any) -> dict[str, np.ndarray]:
        if self._processor is None:
            raise InputError("this bundle describes no pre-processing; use run()")
        return self._processor.collate([self._processor(raw)])

    def _empty_past(self) -> dict[str, Any]:
        shape = self._settings.get("past")
        if not isinstance(shape, dict) or not all(isinstance(shape.get(key), int) for key in ("layers", "heads", "head_size")):
            raise ManifestError(f"this bundle does not generate text: its manifest has no generation.past (task {self._manifest.task!r})")
        known = self._session.inputs
        names = [f"past.{layer}.{part}" for layer in range(shape["layers"]) for part in ("key", "value")]
        if lacking := [name for name in (*names, "input_ids", "attention_mask") if name not in known]:
            raise ManifestError(f"the graph has no input {', '.join(lacking[:3])}, which generation.past promises")
        return {name: self._session.value(np.zeros((1, shape["heads"], 0, shape["head_size"]), known[name])) for name in names}


def with_text(ids: Iterator[int], reader: TextReader | None) -> Iterator[Token]:
    """Tokens with the text each adds. Text is held back while its last character is not complete."""
    if reader is None or not reader.has_tokenizer:
        yield from (Token(token, "") for token in ids)
        return
    seen: list[int] = []
    given = ""
    for token in ids:
        seen.append(token)
        text = reader.decode(seen)
        whole = "" if text.endswith("\ufffd") else text[len(given) :]
        given += whole
        yield Token(token, whole)

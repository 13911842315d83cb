"""Text generation: the loop around a graph with an explicit key/value cache.

One graph serves the prompt (past of length 0) and every further token (past of all before it). Learned
prompts (`prepend` slots) are fed with the prompt only: they are in the cache from then on. Prefixes (`keys` slots)
act inside each attention call and are not cached, so they are fed at every step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyadapt_runtime.errors import InputError, ManifestError
from polyadapt_runtime.manifest import Manifest
from polyadapt_runtime.postprocess import softmax
from polyadapt_runtime.session import Session
from polyadapt_runtime.text import TextReader


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


def generate_ids(
    session: Session, manifest: Manifest, prompt: Sequence[int], slots: Mapping[str, Any], max_tokens: int, sampling: Sampling, stop_ids: Sequence[int] | None = None
) -> Iterator[int]:
    """Token ids one by one, without the one that ends the text.

    Args:
        session: the graph.
        manifest: its `generation` names the cache's shape and the ids that end a text.
        prompt: token ids, at least one.
        slots: OrtValues of an artifact.
        max_tokens: the most ids to give.
        sampling: how the next token is drawn.
        stop_ids: ids that end the text, in place of the manifest's.

    Raises:
        InputError: an empty prompt.
        ManifestError: the graph has no cache that `generation` describes.
    """
    if not len(prompt):
        raise InputError("the prompt is empty; give at least one token")
    past = _empty_past(session, manifest)
    stops = set(manifest.generation.get("eos_ids", ()) if stop_ids is None else stop_ids)
    later = {name: value for name, value in slots.items() if manifest.slots[name].kind != "prepend"}
    generator, ids = np.random.default_rng(sampling.seed), np.array([prompt], np.int64)  # (1, tokens)
    for step in range(max_tokens):
        cached = 0 if step == 0 else past["past.0.key"].shape()[2]
        inputs = {"input_ids": ids, "attention_mask": np.ones((1, cached + ids.shape[1]), np.int64)}
        if "position_ids" in session.inputs:
            inputs["position_ids"] = np.arange(cached, cached + ids.shape[1])[None]
        outputs = session.run({**(slots if step == 0 else later), **past, **{name: session.value(array) for name, array in inputs.items()}})
        token = sampling.pick(outputs["logits"].numpy()[0, -1], generator)
        if token in stops:
            return
        yield token
        past = {name: outputs[name.replace("past.", "present.", 1)] for name in past}
        ids = np.array([[token]], np.int64)


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


def _empty_past(session: Session, manifest: Manifest) -> dict[str, Any]:
    shape = manifest.generation.get("past")
    if not isinstance(shape, dict) or not all(isinstance(shape.get(key), int) for key in ("layers", "heads", "head_size")):
        raise ManifestError(f"this bundle does not generate text: its manifest has no generation.past (task {manifest.task!r})")
    names = [f"past.{layer}.{part}" for layer in range(shape["layers"]) for part in ("key", "value")]
    if lacking := [name for name in (*names, "input_ids", "attention_mask") if name not in session.inputs]:
        raise ManifestError(f"the graph has no input {', '.join(lacking[:3])}, which generation.past promises")
    return {name: session.value(np.zeros((1, shape["heads"], 0, shape["head_size"]), session.inputs[name])) for name in names}

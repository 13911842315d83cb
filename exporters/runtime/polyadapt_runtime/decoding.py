"""The state of a text while it is written: what is cached, and what goes into the graph with every step.

One graph serves the prompt (past of length 0) and every further token (past of all before it). Caches stay OrtValues:
they come out of one step and go into the next without a copy. Learned prompts (`prepend` slots) are fed with the first
step only: they are in the cache from then on. Prefixes (`keys` slots) act inside each attention call and are not cached,
so they are fed at every step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from polyadapt_runtime.session import Session

TARGET = "decoder_input_ids"


class Decoding:
    """One text, or the rows of a beam search.

    Args:
        session: the graph that scores next tokens.
        slots: OrtValues that every step is fed.
        prompts: OrtValues of `prepend` slots.
        memory: what the encoder gave for the decoder, as OrtValues; empty for causal models.
        past: caches by input name; empty ones before a prompt.
    """

    def __init__(self, session: Session, slots: Mapping[str, Any], prompts: Mapping[str, Any], memory: Mapping[str, Any], past: Mapping[str, Any]) -> None:
        self._session, self._slots = session, dict(slots)
        self._once, self._memory, self._past = dict(prompts), dict(memory), dict(past)
        self._tokens = TARGET if TARGET in session.inputs else "input_ids"
        self._has_mask = "attention_mask" in session.inputs
        self._present = {name: name.replace("past.", "present.", 1) for name in past}
        self._cached = length_of(past)

    @property
    def prompted(self) -> int:
        """Places that learned prompts take before the text: they are numbered like its tokens."""
        return max((value.shape()[-2] for name, value in self._once.items() if name.endswith(".tokens")), default=0)

    def scores(self, ids: np.ndarray) -> np.ndarray:
        """Scores of the next token after more tokens; int64 [rows, tokens] -> [rows, vocabulary]."""
        value = self._session.value
        fed = {self._tokens: value(ids)}
        if self._has_mask:
            fed["attention_mask"] = value(np.ones((ids.shape[0], self._cached + ids.shape[1]), np.int64))
        outputs = self._session.run({**self._slots, **self._once, **self._memory, **self._past, **fed})
        self._past = {name: outputs[present] for name, present in self._present.items()}
        self._once = {}
        self._cached = length_of(self._past)  # a learned prompt has places in it, too
        return np.asarray(outputs["logits"].numpy()[:, -1])

    def take(self, rows: np.ndarray) -> None:
        """Go on with copies of these rows, in this order."""
        before = next(iter(self._past.values())).shape()[0]
        if np.array_equal(rows, np.arange(before)):
            return
        self._past = self._copied(self._past, rows)
        if len(rows) != before:  # all rows read the same memory, so another order changes nothing there
            self._memory = self._copied(self._memory, rows)

    def _copied(self, values: Mapping[str, Any], rows: np.ndarray) -> dict[str, Any]:
        return {name: self._session.value(value.numpy()[rows]) for name, value in values.items()}


def length_of(past: Mapping[str, Any]) -> int:
    """Places in caches [batch, heads, past, head size]."""
    return int(next(iter(past.values())).shape()[2])

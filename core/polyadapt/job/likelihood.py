"""Likelihood of target texts from a bundle's graphs, as training and evaluation count it: what perplexity is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from polyadapt.data.dataset import Dataset, Example
from polyadapt.evaluation.prediction import Prediction, Predictor
from polyadapt.model import Model
from polyadapt.training.losses import IGNORED
from polyadapt.training.targets import prepare_for

if TYPE_CHECKING:
    from polyadapt_runtime import Bundle

Arrays = dict[str, np.ndarray]
NO_PAST = {"batch": 1, "past": 0}


def scoring(bundle: Bundle, model: Model, artifact: str | None) -> Predictor:
    """A predictor of negative log likelihoods, in nats; one example at a time, each in one pass without a cache.

    Args:
        bundle: of a model that writes text.
        model: the one that was exported: it turns examples into tokens, as for training.
        artifact: a name of the bundle's; None is the base, or what a merged bundle is.
    """
    prepare, foretells = prepare_for(model), model.task.kind == "causal-lm"

    def likelihood(example: Example) -> dict[str, float]:
        arrays, targets = prepare(example)
        logits, tokens = next_token_scores(bundle, arrays, artifact)[0], targets["tokens"]  # (T, V), (T,)
        if foretells:  # the scores at a position are those of the token behind it
            logits, tokens = logits[:-1], tokens[1:]
        is_scored = tokens != IGNORED
        chosen = log_softmax(logits[is_scored])[np.arange(is_scored.sum()), tokens[is_scored]]  # (scored,)
        return {"nll": float(-chosen.sum()), "tokens": float(len(chosen))}

    def predict(dataset: Dataset) -> list[Prediction]:
        return [Prediction(example.id, example.text, None, {}, likelihood(example)) for example in dataset]

    return predict


def next_token_scores(bundle: Bundle, arrays: Mapping[str, np.ndarray], artifact: str | None) -> np.ndarray:
    """Scores [1, tokens, vocabulary] of one example: every graph once, with an empty cache."""
    feeds: Arrays = {name: value[None] for name, value in arrays.items()}
    found: Arrays = {}
    for name in bundle.manifest.chain:
        given = {**feeds, **found}
        taken = {port.name: given[port.name] if port.name in given else empty(port) for port in bundle.manifest.graphs[name].inputs if port.name != "artifact_id"}
        found = bundle.run(taken, artifact, graph=name)
    return found["logits"]


def empty(port: Any) -> np.ndarray:
    """A cache of length 0 for an input of a graph."""
    return np.zeros([size if isinstance(size, int) else NO_PAST[size] for size in port.shape], port.dtype)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """In float64, over the last axis."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))

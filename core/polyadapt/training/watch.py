"""Watches the loss: a run whose numbers have left the finite stops, and says where and what to do."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from polyadapt.errors import TrainingError

DIVERGED = 1e3  # times the larger of 1 and the first loss; ours


class Watch:
    """Looks at every step's loss without waiting for a GPU at each of them.

    Args:
        ids: step -> names of its examples, for the message.
        advice: settings to change.
    """

    def __init__(self, ids: Callable[[int], Sequence[str]], advice: str) -> None:
        self._ids, self._advice = ids, advice
        self._pending: list[tuple[int, torch.Tensor, int]] = []
        self._limit: float | None = None

    def see(self, step: int, loss: torch.Tensor, count: int) -> None:
        """Note the mean loss of a step over `count` items."""
        self._pending.append((step, loss, count))

    def check(self) -> list[tuple[float, int]]:
        """(loss, count) of every step noted since the last check.

        Raises:
            TrainingError: one of them is not a number, or has grown out of all proportion.
        """
        if not self._pending:
            return []
        losses = torch.stack([loss for _, loss, _ in self._pending]).tolist() if len(self._pending) > 1 else [float(self._pending[0][1])]
        for (step, _, _), loss in zip(self._pending, losses, strict=True):
            if not math.isfinite(loss):
                raise self._error(step, f"the loss is {'not a number' if math.isnan(loss) else 'infinite'}")
            if self._limit is None:
                self._limit = DIVERGED * max(1.0, loss)
            if loss > self._limit:
                raise self._error(step, f"the loss has grown to {loss:.3g}")
        seen = [(loss, count) for (_, _, count), loss in zip(self._pending, losses, strict=True)]
        self._pending.clear()
        return seen

    def check_parameters(self, step: int, parameters: Sequence[nn.Parameter]) -> None:
        """Refuse weights that are not finite, before they are written anywhere.

        Raises:
            TrainingError: naming the step.
        """
        if not all(bool(torch.isfinite(parameter).all()) for parameter in parameters):
            raise self._error(step, "a trained weight is not finite")

    def _error(self, step: int, what: str) -> TrainingError:
        ids = self._ids(step)
        names = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
        return TrainingError(f"training stopped at step {step}: {what}; its examples: {names}; {self._advice}")


def memory_error(error: BaseException) -> TrainingError | None:
    """What to say when memory ran out; None when `error` is something else."""
    text = str(error)
    is_memory = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in text or "not enough memory" in text
    if not is_memory:
        return None
    first = text.splitlines()[0] if text else type(error).__name__
    return TrainingError(
        f"memory ran out ({first}); raise train.accumulation or set train.gradient_checkpointing (same result, less memory), lower train.batch_size, set train.precision = 'bf16', "
        "or train sites in upper blocks only, so that train.frozen_prefix can leave the lower ones out"
    )

"""What a model said about one example, beside what is true."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from polyadapt.data.dataset import Dataset

Answer = str | tuple[float, ...] | None


@dataclass(frozen=True)
class Prediction:
    """One answer.

    Attributes:
        id: of the example.
        truth: the right label, text or numbers; None when there is none.
        answer: what was predicted; None where only `numbers` were measured (perplexity).
        scores: probabilities of the likeliest labels, likeliest first.
        numbers: further figures of this example, such as `nll` (natural log) and `tokens`.
    """

    id: str
    truth: Answer
    answer: Answer
    scores: Mapping[str, float] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_correct(self) -> bool:
        """Whether the answer equals the truth."""
        return self.answer is not None and self.answer == self.truth

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        row: dict[str, Any] = {"id": self.id, "truth": _plain(self.truth), "answer": _plain(self.answer)}
        if self.scores:
            row["scores"] = {label: round(float(value), 6) for label, value in self.scores.items()}
        if self.numbers:
            row["numbers"] = {name: float(value) for name, value in self.numbers.items()}
        return row

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Prediction:
        """The inverse of `to_dict`."""
        return cls(row["id"], _answer(row["truth"]), _answer(row["answer"]), dict(row.get("scores", {})), dict(row.get("numbers", {})))


Predictor = Callable[[Dataset], Sequence[Prediction]]


def _plain(value: Answer) -> str | list[float] | None:
    return list(value) if isinstance(value, tuple) else value


def _answer(value: Any) -> Answer:
    return tuple(float(number) for number in value) if isinstance(value, list) else value

"""What training tells the outside: one small mapping for everything that happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Event(Mapping[str, Any]):
    """One thing that happened: `event.kind`, or `event["kind"]` beside its other values, which are plain.

    kinds and their values:
        started: method, steps, epochs, step (the first one to come, above 0 after `resume`), parameters, examples, device, processes, prefix.
        cached: prefix, examples, seconds: activations below the lowest trained block are computed.
        step: step, steps, epoch, loss (mean since the last such event), learning_rate, seconds_left.
        epoch: epoch, step, loss (mean of the epoch), and after validation `validation` with its metrics.
        checkpoint: step, name.
        finished: step, epochs, seconds, metrics.
    """

    kind: str
    values_of: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.kind if name == "kind" else self.values_of[name]

    def __iter__(self) -> Iterator[str]:
        yield "kind"
        yield from self.values_of

    def __len__(self) -> int:
        return 1 + len(self.values_of)


Emit = Callable[[Event], None]


def ignore(event: Event) -> None:
    """An `emit` for those who do not listen."""

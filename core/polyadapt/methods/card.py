"""Method cards: what a method is and what it can do, as data that imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field

from polyadapt.options import Options

DOMAINS = ("any", "speech", "vision", "text", "robotics")


@dataclass(frozen=True)
class Paper:
    """Where a method comes from. `arxiv` is empty for methods without a paper there."""

    title: str
    arxiv: str = ""
    year: int = 0


@dataclass(frozen=True)
class MethodCard:
    """An adaptation algorithm. `implementation` is `"package.module:Class"`, imported at first use.

    kind: a row of the table of kinds: `edits`, `procedure`, `decoding`, `program`, `compute`, `data`, `evaluation`.
    ports: sorts of ports that must exist in a family for the method to apply.
    exports: forms that the method's lowered edits can take.
    folds: whether `merged` leaves no extra operation in the graph.
    learning_rate, weight_decay: defaults of the common loop for this method.
    identity_at_start: empty when attaching changes nothing, else the reason why it does.
    separates: column of the data by which an artifact that holds several, such as a language each, tells them apart; empty where none does.
    """

    id: str
    title: str
    kind: str
    domains: tuple[str, ...]
    options: type[Options]
    implementation: str
    paper: Paper | None = None
    ports: tuple[str, ...] = ()
    families: tuple[str, ...] = ("any",)
    exports: tuple[str, ...] = ("slots", "merged")
    folds: bool = False
    identity_at_start: str = ""
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    separates: str = ""
    notes: str = ""
    extra: dict[str, str] = field(default_factory=dict)

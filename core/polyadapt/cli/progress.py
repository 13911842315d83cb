"""Progress of long work: a bar with loss, metric and time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click

LINE_EVERY_S = 10.0


class Lines:
    """Events as lines on standard error."""

    def __init__(self) -> None:
        self._last_s = -LINE_EVERY_S

    def __call__(self, event: Mapping[str, Any]) -> None:
        kind = event["kind"]
        if kind == "step":
            now_s = time.monotonic()
            if now_s - self._last_s >= LINE_EVERY_S:
                self._last_s = now_s
                click.echo(f"  step {event.get('step')}/{event.get('steps')}  loss {_number(event.get('loss'))}  {_left(event)}", err=True)
        elif kind == "epoch":
            validation = _metrics(event.get("validation"))
            loss = f"  loss {_number(event['loss'])}" if "loss" in event else ""
            click.echo(f"  epoch {event.get('epoch')}{loss}{validation}", err=True)
        elif line := describe(event):
            click.echo(line, err=True)


class Bar:
    """Events as a bar; what is worth keeping stays above it."""

    def __init__(self, progress: Any) -> None:
        self._progress = progress
        self._task: Any = None
        self._metric = ""

    def __call__(self, event: Mapping[str, Any]) -> None:
        kind = event["kind"]
        if kind == "started":
            self._close()
            self._metric = ""
            self._task = self._progress.add_task(str(event.get("arm") or event.get("method", "")), total=event.get("steps"), completed=event.get("step", 0), state="")
        elif kind == "step" and self._task is not None:
            state = f"loss {_number(event.get('loss'))}{self._metric}"
            self._progress.update(self._task, completed=event.get("step", 0), total=event.get("steps"), state=state)
        elif kind == "epoch":
            self._metric = _metrics(event.get("validation"))
        elif kind == "finished":
            self._close()
        if line := describe(event):
            self._progress.console.print(line, markup=False, highlight=False)

    def _close(self) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None


@contextmanager
def showing(is_quiet: bool = False) -> Iterator[Any]:
    """Something to call with events, for the time of the block."""
    if is_quiet:
        yield lambda event: None
        return
    if not sys.stderr.isatty():
        yield Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[state]}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield Bar(progress)


def describe(event: Mapping[str, Any]) -> str:
    """The line of an event that is worth one."""
    kind = event["kind"]
    if kind == "started":
        begun = f", from step {event['step']}" if event.get("step") else ""
        who = event.get("arm") or event.get("method", "")
        return f"training {who}: {event.get('parameters', 0):,} values, {event.get('examples', 0)} examples, {event.get('steps')} steps{begun}"
    if kind == "arm" and event["state"] == "kept":
        return f"{event['name']}: finished before, kept"
    if kind == "arm" and event["state"] == "finished":
        return f"{event['name']}: {event['metric']} {_number(event['value'])}"
    if kind == "export" and event["state"] == "started":
        return f"exporting as {event['form']}"
    if kind == "export":
        return f"exported; self-test of {event['cases']} outputs passed, largest error {event['max_relative_error']:.1e} of {event['tolerance']:.0e}"
    return ""


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else "–"


def _metrics(metrics: Mapping[str, Any] | None) -> str:
    return "".join(f"  validation {name} {_number(value)}" for name, value in (metrics or {}).items())


def _left(event: Mapping[str, Any]) -> str:
    seconds = event.get("seconds_left")
    return f"{seconds:.0f} s left" if isinstance(seconds, (int, float)) else ""

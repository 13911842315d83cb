"""`python -m polyadapt.testing.matrix`: every method on every family and task, in every form, written to docs/matrix.md.

A unit of work is a family's task; units run in processes of their own. What is finished is kept beside the page until
all is done, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from polyadapt.errors import UserError
from polyadapt.files import replacing_file
from polyadapt.host import Host
from polyadapt.methods.base import Method, load_method
from polyadapt.model import Model
from polyadapt.testing.conformance import applies, check_method, has_form, tasks_of, tiny_model
from polyadapt.testing.exporting import check_bank, check_export, check_merged
from polyadapt_runtime.manifest import read_manifest

FORMS = ("adapt", "slots", "merged", "bank")
PASSED, REFUSED, FAILED = "passed", "refused", "failed"
VERSIONS = ("torch", "transformers", "timm", "torchaudio", "diffusers", "onnx", "onnxscript", "onnxruntime")

_log = logging.getLogger("polyadapt.matrix")


@dataclass(frozen=True)
class Cell:
    """One method on one family's task in one form. `reason` says why it is refused or how it failed."""

    family: str
    task: str
    method: str
    form: str
    state: str
    reason: str = ""


def run_unit(family: str, task: str, only: Sequence[str] = ()) -> list[Cell]:
    """All cells of one family's task.

    Args:
        family: id.
        task: one that the family exports.
        only: ids of methods; empty for all.
    """
    import torch

    torch.set_num_threads(1)
    registry = Host().registry
    card = registry.families.get(family).card
    methods = [load_method(claim.card) for claim in registry.methods.claims() if not only or claim.card.id in only]
    methods = [method for method in methods if has_form(method)]
    reasons = {method.card.id: applies(method, tiny_model(card, task)) for method in methods}
    cells = [Cell(family, task, name, form, REFUSED, reason) for name, reason in reasons.items() if reason for form in FORMS]
    taken = [method for method in methods if not reasons[method.card.id]]
    with tempfile.TemporaryDirectory() as folder:
        for method in taken:
            cells.append(_cell(family, task, method, "adapt", lambda model, method=method: check_method(method, model, Path(folder))))
        cells += _joint(family, task, "slots", taken, lambda able, model: check_export(able, model, Path(folder)))
        cells += _joint(family, task, "bank", taken, lambda able, model: check_bank(able, model, Path(folder)))
        for method in taken:
            if "merged" not in method.card.exports:
                cells.append(Cell(family, task, method.card.id, "merged", REFUSED, f"its card exports {' and '.join(method.card.exports)} only"))
                continue
            cells.append(_cell(family, task, method, "merged", lambda model, method=method: check_merged([method], model, Path(folder))))
    return cells


def _joint(family: str, task: str, form: str, methods: Sequence[Method], check: Callable[[Sequence[Method], Model], Any]) -> list[Cell]:
    """One graph for all; only when that fails, one for each, to see whose fault it is."""
    able = [method for method in methods if form in method.card.exports]
    cells = [Cell(family, task, method.card.id, form, REFUSED, f"its card exports {' and '.join(method.card.exports)} only") for method in methods if method not in able]
    proved: set[str] = set()

    def check_all(model: Model) -> None:
        proved.update(read_manifest(check(able, model).directory, verify=False).artifacts)

    together = [_cell(family, task, method, form, check_all) for method in able[:1]]
    left = [method for method in able if method.card.id not in proved]  # a bank leaves out what cannot stand beside the others
    alone = [_cell(family, task, method, form, lambda model, method=method: check([method], model)) for method in left]
    if proved:
        return cells + [Cell(family, task, method.card.id, form, PASSED) for method in able if method not in left] + alone
    if all(cell.state == PASSED for cell in alone):
        return cells + [Cell(family, task, method.card.id, form, FAILED, f"passes alone, but not beside the others: {together[0].reason}") for method in able]
    return cells + alone


def _cell(family: str, task: str, method: Method, form: str, check: Any) -> Cell:
    """Run one check on a fresh model; whatever it raises is its result."""
    model: Model = tiny_model(Host().registry.families.get(family).card, task)
    try:
        check(model)
    except UserError as error:
        state = REFUSED if form == "bank" else FAILED  # a bank is refused by sites of a family, which no card of a method can tell
        return Cell(family, task, method.card.id, form, state, str(error)[:300])
    except Exception as error:
        return Cell(family, task, method.card.id, form, FAILED, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    finally:
        gc.collect()
    return Cell(family, task, method.card.id, form, PASSED)


def units(families: Iterable[str] = ()) -> list[tuple[str, str]]:
    """(family, task) of everything that is proved, in the registry's order."""
    wanted = set(families)
    return [(claim.card.id, task) for claim in Host().registry.families.claims() if not wanted or claim.card.id in wanted for task in tasks_of(claim.card)]


def fingerprint(only: Iterable[str] = ()) -> str:
    """Changes with the code, the libraries, the forms, what is registered and what was asked for: results of another state are not taken over."""
    registry = Host().registry
    ids = [sorted(claim.card.id for claim in table.claims()) for table in (registry.families, registry.methods)]
    return hashlib.sha256(json.dumps([ids, FORMS, versions(), sorted(only), _source_digest()]).encode()).hexdigest()[:16]


def _source_digest() -> str:
    """Of every module of the packages that prove and are proved."""
    packages = {"polyadapt", "polyadapt_onnx", "polyadapt_runtime", *(claim.plugin.value.partition(".")[0] for claim in Host().registry.methods.claims())}
    digest = hashlib.sha256()
    for package in sorted(packages):
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
            for path in sorted(Path(folder).rglob("*.py")):
                digest.update(path.read_bytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of the libraries that are present."""
    found = {}
    for name in VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def page(cells: Sequence[Cell]) -> str:
    """The page: a table per family, methods by tasks and forms, with numbered reasons."""
    counts = {state: sum(cell.state == state for cell in cells) for state in (PASSED, REFUSED, FAILED)}
    lines = [
        "# What works with what",
        "",
        "Written by `make matrix`, never by hand. Each cell is a check that ran on the family's tiny random network:",
        "",
        "- **adapt**: identity at the start, only declared tensors train, gradients, checkpoint, swap, save and load, fold, and the base bit for bit afterwards;",
        "- **slots**: all methods' artifacts in one graph, through the gate (parity with torch, an effect of every slot, swapping bit for bit);",
        "- **merged**: this method alone baked into a graph, through the same gate;",
        "- **bank**: all methods' artifacts stacked in one graph, every row of a batch with its own, through the same gate.",
        "",
        f"{counts[PASSED]} cells passed, {counts[REFUSED]} do not apply for the reason given, {counts[FAILED]} failed. "
        f"Libraries: {', '.join(f'{name} {version}' for name, version in versions().items())}.",
    ]
    for family in dict.fromkeys(cell.family for cell in cells):
        lines += ["", f"## {family}", "", *_table([cell for cell in cells if cell.family == family])]
    return "\n".join(lines) + "\n"


def _table(cells: Sequence[Cell]) -> list[str]:
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    columns = [(task, form) for task in tasks for form in FORMS]
    by_place = {(cell.method, cell.task, cell.form): cell for cell in cells}
    reasons: dict[str, int] = {}

    def word(method: str, task: str, form: str) -> str:
        cell = by_place.get((method, task, form))
        if cell is None:
            return "not run"
        if cell.state == PASSED:
            return "yes"
        number = reasons.setdefault(cell.reason, len(reasons) + 1)
        return f"{'**failed**' if cell.state == FAILED else 'no'} ({number})"

    lines = ["| method | " + " | ".join(f"{task}: {form}" for task, form in columns) + " |", "|---|" + "---|" * len(columns)]
    for method in sorted({cell.method for cell in cells}):
        lines.append(f"| {method} | " + " | ".join(word(method, task, form) for task, form in columns) + " |")
    if reasons:
        lines += ["", *(f"{number}. {reason}" for reason, number in reasons.items())]
    return lines


class State:
    """Finished units, one JSON line each, behind a first line with the fingerprint."""

    def __init__(self, path: Path, only: Sequence[str] = ()) -> None:
        self.path, self._fingerprint = path, fingerprint(only)

    def load(self) -> dict[tuple[str, str], list[Cell]]:
        """What an earlier run with the same fingerprint finished; anything else is forgotten."""
        done: dict[tuple[str, str], list[Cell]] = {}
        if self.path.is_file():
            head, *lines = self.path.read_text(encoding="utf-8").splitlines() or [""]
            if head == self._fingerprint:
                for line in lines:
                    try:
                        cells = [Cell(**row) for row in json.loads(line)]
                    except json.JSONDecodeError:
                        break  # the run was stopped while it wrote
                    done[(cells[0].family, cells[0].task)] = cells
        self.path.write_text("\n".join([self._fingerprint, *(self._line(cells) for cells in done.values())]) + "\n", encoding="utf-8")
        return done

    def add(self, cells: Sequence[Cell]) -> None:
        """Keep a finished unit."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(self._line(cells) + "\n")

    def _line(self, cells: Sequence[Cell]) -> str:
        return json.dumps([asdict(cell) for cell in cells])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked and write the page; 1 when a cell failed."""
    parser = argparse.ArgumentParser(prog="python -m polyadapt.testing.matrix", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/matrix.md"), help="the page")
    parser.add_argument("--families", default="", help="ids, separated by commas; all by default")
    parser.add_argument("--methods", default="", help="ids, separated by commas; all by default")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    wanted = units(filter(None, given.families.split(",")))
    only = [name for name in given.methods.split(",") if name]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    state = State(given.out.with_name(f".{given.out.name}.partial"), only)
    done = {unit: cells for unit, cells in state.load().items() if unit in wanted}
    began = time.monotonic()
    with ProcessPoolExecutor(given.jobs, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        running = {pool.submit(run_unit, family, task, only): (family, task) for family, task in wanted if (family, task) not in done}
        for future in as_completed(running):
            cells = done[running[future]] = future.result()
            state.add(cells)
            _log.info("%s, %s: %s, %d of %d, %.0f s", *running[future], _summary(cells), len(done), len(wanted), time.monotonic() - began)
    cells = [cell for unit in wanted for cell in done[unit]]
    with replacing_file(given.out) as staging:
        staging.write_text(page(cells), encoding="utf-8")
    state.path.unlink()
    return 1 if any(cell.state == FAILED for cell in cells) else 0


def _summary(cells: Sequence[Cell]) -> str:
    failed = [cell for cell in cells if cell.state == FAILED]
    return f"{len(failed)} failed ({failed[0].method}, {failed[0].form}: {failed[0].reason})" if failed else f"{sum(cell.state == PASSED for cell in cells)} passed"


if __name__ == "__main__":
    sys.exit(main())

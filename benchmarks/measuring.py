"""What the benchmarks share: interleaved rounds, load from other programs, intervals of medians, tables.

A figure is a ratio of two sides that run in turns in one process, each with its own best number of threads. A target is
met when the median meets it, for costs and for gains alike; where the 95 % interval of the median holds the bound, the
verdict says that the run does not decide it. A run during which other programs kept more than 0.3 processors busy on
average is void: it prints its table and says so.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

BUSY = 0.3  # processors that other programs may keep busy
RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("torch", "timm", "transformers", "peft", "onnx", "onnxruntime", "numpy", "scikit-learn", "polyadapt")


@dataclass(frozen=True)
class Side:
    """One of the things that are compared.

    Attributes:
        run: does the work once.
        threads: numbers of threads to choose from; one entry where threads are no choice.
        set_threads: called before every run with the chosen number.
    """

    name: str
    run: Callable[[], object]
    threads: tuple[int, ...] = (1, 2)
    set_threads: Callable[[int], object] = lambda count: None


@dataclass(frozen=True)
class Target:
    """A bound on a figure. `at_most` is False for figures that should be large."""

    bound: float
    at_most: bool = True

    @classmethod
    def parse(cls, text: str) -> Target:
        """The inverse of `str`, for results that were measured earlier."""
        sign, bound = text.split()
        return cls(float(bound), sign == "<=")

    def is_met(self, value: float) -> bool:
        """Whether a value meets it."""
        return value <= self.bound if self.at_most else value >= self.bound

    def verdict(self, median: float, low: float, high: float) -> str:
        """What a median with its interval says: `met`, `met, undecided`, `undecided` or `MISSED`.

        It is undecided where one end of the interval meets the bound and the other does not.
        """
        is_decided = self.is_met(low) == self.is_met(high)
        if self.is_met(median):
            return "met" if is_decided else "met, undecided"
        return "MISSED" if is_decided else "undecided"

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.bound:g}"


@dataclass(frozen=True)
class Row:
    """One figure of a table, with the 95 % interval of its median."""

    name: str
    median: float
    low: float
    high: float
    unit: str = "x"
    target: Target | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        """Its target's, or nothing where there is none."""
        return "" if self.target is None else self.target.verdict(self.median, self.low, self.high)

    def to_dict(self) -> dict[str, Any]:
        """For the results file."""
        return {**asdict(self), "target": None if self.target is None else str(self.target), "verdict": self.verdict}


class Load:
    """Mean number of processors that other programs keep busy while the block runs."""

    others: float = 0.0

    def __enter__(self) -> Load:
        self._began = (time.monotonic(), busy_seconds(), own_seconds())
        return self

    def __exit__(self, *error: object) -> None:
        wall, busy, own = self._began
        rest = (busy_seconds() - busy) - (own_seconds() - own)
        self.others = rest if math.isnan(rest) else max(0.0, rest) / max(1e-3, time.monotonic() - wall)


def busy_seconds() -> float:
    """Processor time of the whole machine that was not idle, stolen time included; not a number where nobody tells."""
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    except OSError:
        return math.nan
    user, nice, system, _, _, hard, soft, stolen = (int(value) for value in fields[:8])
    return (user + nice + system + hard + soft + stolen) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(median, low, high): the distribution-free 95 % interval of the median by order statistics.

    With fewer than 6 values no such interval exists, and the extremes are given.
    """
    ordered = sorted(values)
    count, rank, outside = len(ordered), 0, 0.0
    while rank < count // 2:
        outside += math.comb(count, rank) / 2.0**count
        if 2 * outside > 0.05:
            break
        rank += 1
    rank = max(rank, 1)
    return statistics.median(ordered), ordered[rank - 1], ordered[count - rank]


def t_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high): the 95 % t interval of a mean over independent values, such as seeds or speakers; without an end where there is one value.

    Few values are no reason for a bootstrap: it draws nothing beyond them, and of four that lie on one side of zero never comes to the other.
    """
    from scipy import stats

    mean, count = statistics.fmean(values), len(values)
    half = float(stats.t.ppf(0.975, count - 1)) * statistics.stdev(values) / math.sqrt(count) if count > 1 else math.inf
    return mean, mean - half, mean + half


def best_threads(side: Side, clock: Callable[[], float], repeats: int = 3) -> int:
    """The number of threads at which a side is fastest."""
    if len(side.threads) == 1:
        return side.threads[0]
    best: dict[int, float] = dict.fromkeys(side.threads, math.inf)
    for _ in range(repeats):
        for count in side.threads:
            side.set_threads(count)
            settle()
            side.run()  # the pool of threads is made here
            best[count] = min(best[count], timed(side.run, clock))
    return min(best, key=lambda count: best[count])


def timed(run: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one run."""
    began = clock()
    run()
    return clock() - began


@dataclass(frozen=True)
class Rounds:
    """Times of every side in every round, and the threads that each side ran with."""

    times: Mapping[str, list[float]]
    threads: Mapping[str, int]

    def ratio(self, left: str, right: str, name: str, target: Target | None = None, note: str = "") -> Row:
        """left / right by rounds."""
        ratios = [a / b for a, b in zip(self.times[left], self.times[right], strict=True)]
        threads = f"{self.threads[left]} and {self.threads[right]} threads"
        return Row(name, *median_interval(ratios), "x", target, f"{note}; {threads}" if note else threads)

    def seconds(self, side: str) -> str:
        """The median time of a side, for notes."""
        seconds = statistics.median(self.times[side])
        return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def settle() -> None:
    """Wait until this process is idle.

    Worker threads of onnxruntime and OpenMP look out for more work long after a run (some 50 ms for onnxruntime's), and would
    take a processor from the side that runs next.
    """
    for _ in range(100):
        before = time.process_time()
        time.sleep(0.01)
        if time.process_time() - before < 0.002:
            return


def in_turns(sides: Sequence[Side], rounds: int, clock: Callable[[], float] = time.perf_counter) -> Rounds:
    """Run all sides once a round, beginning with another one in every round."""
    threads = {side.name: best_threads(side, clock) for side in sides}
    times: dict[str, list[float]] = {side.name: [] for side in sides}
    for turn in range(rounds):
        start = turn % len(sides)
        for side in [*sides[start:], *sides[:start]]:
            side.set_threads(threads[side.name])
            settle()
            times[side.name].append(timed(side.run, clock))
    return Rounds(times, threads)


@dataclass
class Report:
    """A table with what is needed to make it again."""

    name: str
    title: str
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    others: float | None = 0.0  # None where it does not count, as for memory
    is_trial: bool = False

    @property
    def is_void(self) -> bool:
        """Whether other programs were too busy, or the run was a trial."""
        return self.is_trial or (self.others is not None and not self.others <= BUSY)

    def finish(self, arguments: argparse.Namespace) -> int:
        """Print the table, write it where the user wants it; 1 where a target of a valid run is missed."""
        print(self.text())
        if arguments.out is not None or not self.is_void:
            path = arguments.out or RESULTS / f"{self.name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        return int(not self.is_void and any(row.verdict == "MISSED" for row in self.rows))

    def text(self) -> str:
        """The table for people."""
        lines = [self.title, f"  command: {command()}", f"  machine: {machine()}{'' if self.others is None else f'; other programs kept {self.others:.2f} processors busy'}", ""]
        width = max([len(row.name) for row in self.rows], default=0)
        for row in self.rows:
            target = f"target {row.target}: {row.verdict}" if row.target is not None else ""
            lines.append(f"  {row.name:<{width}}  {row.median:9.4g} {row.unit:<3} [{row.low:.4g} … {row.high:.4g}]  {target:<24} {row.note}".rstrip())
        lines += ["", *(f"  {note}" for note in self.notes)]
        if self.is_void:
            why = "a trial (few rounds, or processor time)" if self.is_trial else f"other programs kept more than {BUSY} processors busy"
            lines.append(f"  VOID: {why}; figures of this run do not count")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """For the results file."""
        return {
            "benchmark": self.name,
            "command": command(),
            "machine": machine(),
            "versions": versions(),
            "load_of_others": None if self.others is None else round(self.others, 3),
            "is_void": self.is_void,
            "rows": [row.to_dict() for row in self.rows],
            "notes": self.notes,
        }


def command() -> str:
    """How this run was started, without the machine's paths."""
    script = Path(sys.argv[0])
    return shlex.join(["python", str(Path(*script.parts[script.parts.index("benchmarks") :])) if "benchmarks" in script.parts else f"benchmarks/{script.name}", *sys.argv[1:]])


def machine() -> str:
    """Processor, GPU and Python in a few words."""
    try:
        models = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    except OSError:
        models = []
    torch = sys.modules.get("torch")
    graphics = f", {torch.cuda.get_device_name()}" if torch is not None and torch.cuda.is_available() else ""
    return f"{os.cpu_count()} x {models[0] if models else platform.machine()}{graphics}, {platform.system()}, Python {platform.python_version()}"


def versions() -> dict[str, str]:
    """Versions of the libraries that figures depend on."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def arguments_of(description: str, rounds: int, add: Callable[[argparse.ArgumentParser], None] | None = None) -> argparse.Namespace:
    """The options that every benchmark takes, and some of its own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=rounds, help=f"turns of every side (default {rounds}; fewer make the run a trial)")
    parser.add_argument("--cpu-time", action="store_true", help="measure processor time with one thread: a look on a busy machine, always a trial")
    parser.add_argument("--out", type=Path, help="where the results go (default: benchmarks/results, if the run is valid)")
    parser.set_defaults(device="cpu")
    if add is not None:
        add(parser)
    arguments = parser.parse_args()
    arguments.is_trial = arguments.rounds < rounds or arguments.cpu_time
    arguments.clock = time.process_time if arguments.cpu_time else time.perf_counter
    arguments.threads = (1,) if arguments.cpu_time or arguments.device == "cuda" else (1, 2)
    return arguments


def add_device(parser: argparse.ArgumentParser) -> None:
    """An option for benchmarks that run on a GPU as well; their results are kept under a name of their own."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where everything is measured (default cpu)")


def on_device(name: str, arguments: argparse.Namespace) -> str:
    """The name of a report that may be of a GPU."""
    return name if arguments.device == "cpu" else f"{name}_{arguments.device}"


def keep_apart(mark: Path, identity: str, other: str) -> None:
    """Figures of one model, artifact or setting never stand beside those of another.

    Raises:
        SystemExit: they would.
    """
    if mark.is_file() and mark.read_text(encoding="utf-8") != identity:
        raise SystemExit(f"what stands beside {mark} is of {other}; give another place, or delete it with {mark.name}")
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.write_text(identity, encoding="utf-8")

"""The sections of a report, each from the run's JSON to markup. Every text of the user goes through `tag`, which escapes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polyadapt.evaluation.metrics import METRICS
from polyadapt.report import charts
from polyadapt.report.figures import MINUS, THIN, count, duration, size, value_of
from polyadapt.report.html import Html, join, table, tag

COLOURS = 6
DASH = "–"

Result = Mapping[str, Any]


@dataclass(frozen=True)
class View:
    """A run's JSON with what several sections need: evaluated arms from best to worst, and their colours."""

    run: Result
    ranked: tuple[Result, ...]
    colours: Mapping[str, str]
    metric: str

    @classmethod
    def of(cls, run: Result) -> View:
        """Rank the arms by the metric of the first evaluated one."""
        evaluated = [arm for arm in run["arms"] if arm["evaluation"]]
        metric = str(evaluated[0]["evaluation"]["metric"]) if evaluated else ""
        same = [arm for arm in evaluated if arm["evaluation"]["metric"] == metric]
        is_higher = METRICS[metric].is_better_higher if metric in METRICS else True
        ranked = sorted(same, key=lambda arm: -arm["evaluation"]["value"] if is_higher else arm["evaluation"]["value"])
        names = [arm["name"] for arm in run["arms"] if arm["role"] == "arm"]
        colours = {name: f"var(--s{index % COLOURS + 1})" for index, name in enumerate(names)}
        return cls(run, tuple(ranked), colours, metric)

    @property
    def title(self) -> str:
        """The metric in words."""
        return METRICS[self.metric].title if self.metric in METRICS else self.metric

    def best(self, role: str) -> Result | None:
        """The best evaluated arm or baseline."""
        return next((arm for arm in self.ranked if arm["role"] == role), None)

    def colour(self, arm: Result) -> str:
        """Of an arm; baselines are grey."""
        return self.colours.get(arm["name"], "var(--muted)")

    def comparison(self, first: str, second: str) -> Result | None:
        """The paired difference of two arms, if the run made it in this order."""
        return next((row for row in self.run["comparisons"] if row["first"] == first and row["second"] == second and row["metric"] == self.metric), None)


def headline(view: View) -> Html | None:
    """One sentence: the best arm against the best baseline, with what the data can and cannot say."""
    arm, baseline = view.best("arm"), view.best("baseline")
    if arm is None:
        return None
    value = value_of(view.metric, arm["evaluation"]["value"])
    start = [tag("strong", arm["name"]), f" reaches {view.title} ", tag("strong", value), f" {_interval(view.metric, arm['evaluation'])} on {arm['evaluation']['n']} test examples"]
    if baseline is None:
        return tag("p", *start, ". No baseline was run, so this number has nothing to be compared with.", class_="lead")
    difference = arm["evaluation"]["value"] - baseline["evaluation"]["value"]
    found = view.comparison(arm["name"], baseline["name"])
    middle = [", ", tag("strong", value_of(view.metric, difference, signed=True)), " against the best baseline, ", tag("strong", baseline["name"])]
    if found is None:
        return tag("p", *start, *middle, ". The two were not compared pair by pair.", class_="lead")
    low, high = (value_of(view.metric, found["interval"][end], signed=True) for end in ("low", "high"))
    verdict = "" if found["is_clear"] else " The interval holds zero: this test set cannot tell the two apart."
    return tag("p", *start, *middle, f" ({low} to {high} pair by pair).", verdict, class_="lead")


def tiles(view: View) -> Html:
    """The few numbers that a reader looks for first."""
    run, arm = view.run, view.best("arm")
    cells = []
    if arm is not None:
        cells.append(_tile(view.title, value_of(view.metric, arm["evaluation"]["value"]), arm["name"]))
        percent = 100 * arm["trainable_parameters"] / run["base_parameters"] if run["base_parameters"] else 0.0
        share = f"{percent:{'.0f' if percent >= 10 else '.2g'}}{THIN}% of the base" if run["base_parameters"] else "values"
        cells.append(_tile("trained", count(arm["trainable_parameters"]), share))
        cells.append(_tile("artifact", size(arm["artifact_bytes"]), f"trained in {duration(arm['seconds'])}" if arm["seconds"] else ""))
    bundle = run["bundle"] or {}
    if parity := bundle.get("parity"):
        error = parity.get("max_relative_error")
        is_equal = bool(parity.get("ok"))
        said = f"to torch, largest error {error:.1e}" if error is not None else "to torch"
        cells.append(_tile("exported graph", "equal" if is_equal else "differs", said, "good" if is_equal else "bad"))
    if bundle.get("latency_ms") is not None:
        cells.append(_tile("latency", *_latency(bundle["latency_ms"])))
    return tag("div", *cells, class_="tiles")


def results(view: View) -> Html | None:
    """Arms and baselines with intervals, as a picture and as a table."""
    if not view.ranked:
        return None
    rows = []
    for arm in view.ranked:
        interval, value, is_baseline = arm["evaluation"]["interval"], arm["evaluation"]["value"], arm["role"] == "baseline"
        shown, note = value_of(view.metric, value), _interval(view.metric, arm["evaluation"])
        rows.append(charts.Row(arm["name"], value, interval["low"], interval["high"], shown, note, view.colour(arm), is_baseline))
    level = view.ranked[0]["evaluation"]["interval"].get("level", 0.95)
    direction = "higher is better" if view.metric not in METRICS or METRICS[view.metric].is_better_higher else "lower is better"
    others = list(dict.fromkeys(name for arm in view.ranked for name in arm["evaluation"].get("others", {})))
    head = ["", "method", view.title, *(METRICS[name].title if name in METRICS else name for name in others), "trained", "artifact", "training"]
    bounds = (0.0, 1.0) if view.metric in ("accuracy", "macro-f1") else None
    picture = charts.forest(rows, f"{view.title}, {direction}", lambda tick: value_of(view.metric, tick, is_tick=True), bounds=bounds)
    note = f"Filled: adapted. Hollow: baseline. Bars are {100 * level:g}{THIN}% intervals over test examples (bootstrap); they say nothing about other seeds."
    return _section("Results", picture, tag("p", note, class_="quiet"), table(head, [_arm_row(view, arm, others) for arm in view.ranked], "numbers"))


def comparisons(view: View) -> Html | None:
    """Paired differences."""
    found = [row for row in view.run["comparisons"] if row["metric"] == view.metric]
    if not found:
        return None
    rows = []
    for row in found:
        low, high = (value_of(row["metric"], row["interval"][end], signed=True) for end in ("low", "high"))
        colour = view.colours.get(row["first"], "var(--muted)")
        shown = value_of(row["metric"], row["difference"], signed=True)
        note = f"{low} to {high} · better in {100 * row['wins']:.0f}{THIN}% of draws"
        name = f"{row['first']} {MINUS} {row['second']}"
        rows.append(charts.Row(name, row["difference"], row["interval"]["low"], row["interval"]["high"], shown, note, colour, not row["is_clear"]))
    picture = charts.forest(rows, f"difference in {view.title}", lambda tick: value_of(view.metric, tick, signed=True, is_tick=True), zero=True)
    several = f" {len(rows)} comparisons were made; among so many, some look clear by chance." if len(rows) > 1 else ""
    note = f"Both sides are drawn with the same test examples. Hollow: the interval holds zero.{several}"
    return _section("Differences, pair by pair", picture, tag("p", note, class_="quiet"))


def curves(view: View) -> Html | None:
    """Training curves: one chart a quantity, one line an arm."""
    names = list(dict.fromkeys(name for arm in view.run["arms"] for name, points in arm["curves"].items() if points))
    if not names:
        return None
    figures, is_smooth = [], False
    for name in names:
        series = [charts.Series(arm["name"], arm["curves"][name], view.colour(arm), arm["role"] == "baseline") for arm in view.run["arms"] if arm["curves"].get(name)]
        is_smooth |= any(len(row.points) > charts.SMOOTH_FROM for row in series)
        legend = tag("div", *(_key(row) for row in series), class_="legend")
        figures.append(tag("figure", tag("figcaption", name), legend, charts.lines(series, "step")))
    note = tag("p", f"Lines of over {charts.SMOOTH_FROM} steps are moving means; the pale ones are what was measured.", class_="quiet") if is_smooth else None
    return _section("Training", tag("div", *figures, class_="charts"), note)


def data(view: View) -> Html | None:
    """The split with sizes and hashes."""
    found = view.run["data"]
    if not found:
        return None
    rows = [[name, count(part["n"]), tag("code", str(part.get("hash", ""))[:16], title=part.get("hash", ""))] for name, part in found.get("parts", {}).items()]
    options = [(name, tag("code", _option(value))) for name, value in found.get("options", {}).items()]
    facts = [("source", tag("code", found.get("uri", ""))), *options, ("hash", tag("code", found.get("hash", "")))]
    facts += [("split by", found.get("by")), ("seed", view.run["seed"])]
    return _section("Data", _facts(facts), table(["part", "examples", "hash"], rows, "numbers narrow") if rows else None)


def export(view: View) -> Html | None:
    """Parity and latency of the bundle."""
    bundle = view.run["bundle"]
    if not bundle:
        return None
    parity = bundle.get("parity") or {}
    verdict = None
    if parity:
        error, tolerance = parity.get("max_relative_error"), parity.get("tolerance")
        said = f"largest error {error:.2e} of the largest value, {tolerance:.0e} allowed" if error is not None and tolerance is not None else ""
        verdict = join(tag("span", "equal to torch" if parity.get("ok") else "NOT equal to torch", class_="pill good" if parity.get("ok") else "pill bad"), " ", said)
    latency = bundle.get("latency_ms")
    facts = [("bundle", tag("code", bundle.get("path", ""))), ("parity", verdict), ("latency", " ".join(_latency(latency)) if latency is not None else None)]
    known = ("path", "parity", "latency_ms")
    return _section("Export", _facts([*facts, *((name, value) for name, value in bundle.items() if name not in known and not isinstance(value, (dict, list)))]))


def setup(view: View) -> Html:
    """Model, options and training settings of every arm, versions."""
    run = view.run
    base = f"{count(run['base_parameters'])} parameters" if run["base_parameters"] else None
    facts = [("model", run["model"]), ("reference", tag("code", run["reference"])), ("base id", tag("code", run["base_id"])), ("size", base), ("task", run["task"])]
    arms = []
    for arm in run["arms"]:
        tables = [_settings("option", arm["options"]), _settings("training", arm.get("train", {}))]
        shown = [found for found in tables if found is not None] or [tag("p", "no options", class_="quiet")]
        arms.append(tag("details", tag("summary", tag("strong", arm["name"]), f" {arm['method']}"), *shown))
    versions = tag("p", *(join(tag("span", tag("strong", name), f" {version}", class_="chip"), " ") for name, version in run["versions"].items()))
    return _section("Set-up", _facts(facts), *arms, tag("h3", "Versions") if run["versions"] else None, versions if run["versions"] else None)


def notes(view: View) -> Html | None:
    """What a reader must know."""
    return tag("ul", *(tag("li", note) for note in view.run["notes"]), class_="notes") if view.run["notes"] else None


def _section(title: str, *children: Any) -> Html:
    return tag("section", tag("h2", title), *children)


def _settings(title: str, values: Mapping[str, Any]) -> Html | None:
    rows = [[name, tag("code", _option(value))] for name, value in values.items()]
    return table([title, "value"], rows, "narrow") if rows else None


def _facts(rows: Sequence[tuple[str, Any]]) -> Html:
    return tag("dl", *(join(tag("dt", name), tag("dd", value)) for name, value in rows if value not in (None, "", "<code></code>")))


def _tile(name: str, value: str, note: str, class_: str = "") -> Html:
    return tag("div", tag("div", name, class_="quiet"), tag("div", value, class_=f"big {class_}".strip()), tag("div", note, class_="quiet"), class_="tile")


def _interval(metric: str, evaluation: Result) -> str:
    interval = evaluation["interval"]
    low, high = value_of(metric, interval["low"]), value_of(metric, interval["high"])
    unit = f"{THIN}%"
    return f"[{low.removesuffix(unit)}, {high}]"


def _arm_row(view: View, arm: Result, others: Sequence[str]) -> list[Any]:
    name = join(tag("i", class_="swatch hollow" if arm["role"] == "baseline" else "swatch", style=f"--c:{view.colour(arm)}"), arm["name"])
    evaluation = arm["evaluation"]
    cells: list[Any] = [name, arm["method"], join(tag("strong", value_of(view.metric, evaluation["value"])), " ", tag("span", _interval(view.metric, evaluation), class_="quiet"))]
    for other in others:
        measured = evaluation.get("others", {}).get(other)
        cells.append(value_of(other, measured["value"]) if measured else DASH)
    return [*cells, count(arm["trainable_parameters"]), size(arm["artifact_bytes"]) if arm["artifact_bytes"] else DASH, duration(arm["seconds"]) if arm["seconds"] else DASH]


def _latency(value: Any) -> tuple[str, str]:
    """A number of milliseconds, or a mapping with `median` and what else was measured."""
    if isinstance(value, Mapping):
        rest = ", ".join(f"{name} {number:.3g}" if isinstance(number, float) else f"{name} {number}" for name, number in value.items() if name != "median")
        return (duration(value["median"] / 1000), rest) if "median" in value else (rest, "")
    return duration(value / 1000), "an example"


def _key(row: charts.Series) -> Html:
    return tag("span", tag("i", class_="dash" if row.is_dashed else "line", style=f"--c:{row.colour}"), row.name)


def _option(value: Any) -> str:
    return ", ".join(str(item) for item in value) if isinstance(value, (list, tuple)) else str(value)

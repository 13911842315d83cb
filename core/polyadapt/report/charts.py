"""Charts as inline SVG and positioned boxes: they scale, follow light and dark, and need no script."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from polyadapt.report.figures import significant, ticks
from polyadapt.report.html import Html, join, tag

WIDTH, HEIGHT = 560, 260
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 34
MAXIMUM_POINTS = 400
SMOOTH_FROM = 80


@dataclass(frozen=True)
class Row:
    """One line of a forest plot: a value with its interval, in the units of the axis."""

    name: str
    value: float
    low: float
    high: float
    shown: str
    note: str
    colour: str
    is_hollow: bool = False


@dataclass(frozen=True)
class Series:
    """One line of a line chart."""

    name: str
    points: Sequence[Sequence[float]]
    colour: str
    is_dashed: bool = False


def forest(rows: Sequence[Row], label: str, write: Callable[[float], str] = significant, zero: bool = False, bounds: tuple[float, float] | None = None) -> Html:
    """Values with intervals over one axis.

    Args:
        rows: top to bottom.
        label: of the axis.
        write: a tick as text.
        zero: draws a line at 0, for differences.
        bounds: values that the axis never exceeds, such as (0, 1) for shares.
    """
    low, high = axis_of(rows, zero, bounds)

    def place(value: float) -> str:
        return f"{100 * (value - low) / (high - low):.2f}%"

    marks = ticks(low, high, 6)
    grid = join(*(tag("i", class_="grid zero" if zero and tick == 0 else "grid", style=f"left:{place(tick)}") for tick in marks))
    lines = []
    for row in rows:
        ends = (max(low, min(row.low, high)), max(low, min(row.high, high)))
        span = tag("b", class_="span", style=f"left:{place(ends[0])};width:{100 * (ends[1] - ends[0]) / (high - low):.2f}%;background:{row.colour}")
        dot = tag("b", class_="dot hollow" if row.is_hollow else "dot", style=f"left:{place(max(low, min(row.value, high)))};--c:{row.colour}")
        track = tag("div", grid, span, dot, class_="track", title=f"{row.name}: {row.shown} {row.note}")
        lines.append(join(tag("div", row.name, class_="name"), track, tag("div", tag("strong", row.shown), " ", tag("span", row.note, class_="quiet"), class_="value")))
    axis = join(*(tag("span", write(tick), style=f"left:{place(tick)}") for tick in marks))
    foot = join(tag("div"), tag("div", axis, class_="axis"), tag("div"), tag("div"), tag("div", label, class_="axis-label"), tag("div"))
    return tag("div", *lines, foot, class_="forest")


def axis_of(rows: Sequence[Row], zero: bool = False, bounds: tuple[float, float] | None = None) -> tuple[float, float]:
    """Ends of a forest plot's axis: all finite values with a margin."""
    values = [value for row in rows for value in (row.value, row.low, row.high) if math.isfinite(value)] + ([0.0] if zero else [])
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.05
    low, high = low - margin, high + margin
    if bounds:
        low, high = max(low, bounds[0] - 0.001), min(high, bounds[1] + 0.001)
    return low, high


def lines(series: Sequence[Series], x_label: str) -> Html:
    """A line chart over steps. Values that are not finite break a line."""
    kept = [[(float(step), float(value)) for step, value in row.points] for row in series]
    finite = [(step, value) for points in kept for step, value in points if math.isfinite(value)]
    if not finite:
        return tag("p", "no finite value was recorded", class_="quiet")
    x_low, x_high = _widened(min(step for step, _ in finite), max(step for step, _ in finite), 0)
    y_low, y_high = _widened(min(value for _, value in finite), max(value for _, value in finite), 0.05)

    def x(step: float) -> float:
        return LEFT + (step - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in ticks(y_low, y_high, 5):
        parts += [tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=f"{y(tick):.1f}", y2=f"{y(tick):.1f}", class_="grid")]
        parts += [tag("text", significant(tick, 3), x=LEFT - 8, y=f"{y(tick) + 4:.1f}", text_anchor="end")]
    for tick in ticks(x_low, x_high, 6):
        parts += [tag("text", significant(tick, 6), x=f"{x(tick):.1f}", y=HEIGHT - BOTTOM + 18, text_anchor="middle")]
    parts += [tag("text", x_label, x=WIDTH - RIGHT, y=HEIGHT - 3, text_anchor="end", class_="unit")]
    for row, points in zip(series, kept, strict=True):
        if len(points) > SMOOTH_FROM:
            parts.append(tag("path", d=_path(points, x, y), fill="none", stroke=row.colour, class_="pale"))
    for row, points in zip(series, kept, strict=True):
        parts.append(_line(row, smoothed(points) if len(points) > SMOOTH_FROM else points, x, y))
    return tag("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=", ".join(row.name for row in series), class_="lines")


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MAXIMUM_POINTS` of them, evenly taken; the last one always stays."""
    if len(points) <= MAXIMUM_POINTS:
        return list(points)
    step = math.ceil((len(points) - 1) / (MAXIMUM_POINTS - 1))
    kept = list(points[::step])
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def bars(values: Sequence[float], height: int = 44) -> Html:
    """A waveform or a vector as thin bars around the middle; values are taken relative to the largest."""
    peak = max((abs(value) for value in values), default=0.0) or 1.0
    marks = []
    for index, value in enumerate(values):
        size = max(1.0, abs(value) / peak * (height - 4))
        marks.append(tag("rect", x=index * 3, y=f"{(height - size) / 2:.1f}", width=2, height=f"{size:.1f}", rx=1))
    return tag("svg", *marks, viewBox=f"0 0 {max(1, len(values)) * 3} {height}", class_="bars", preserveAspectRatio="none", aria_hidden="true")


def smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """A centred moving mean over a twentieth of the points; at the ends over what is there. Values that are not finite stay."""
    half = max(1, len(points) // 40)
    result = []
    for index, (step, value) in enumerate(points):
        near = [other for _, other in points[max(0, index - half) : index + half + 1] if math.isfinite(other)]
        result.append((step, sum(near) / len(near) if near and math.isfinite(value) else value))
    return result


def _path(points: Sequence[tuple[float, float]], x: Callable[[float], float], y: Callable[[float], float]) -> str:
    """An SVG path; it breaks where a value is not finite."""
    path, is_open = [], False
    for step, value in thinned(points):
        if math.isfinite(value):
            path.append(f"{'L' if is_open else 'M'}{x(step):.1f} {y(value):.1f}")
        is_open = math.isfinite(value)
    return "".join(path)


def _line(row: Series, points: Sequence[tuple[float, float]], x: Callable[[float], float], y: Callable[[float], float]) -> Html:
    title = tag("title", f"{row.name}: {significant(points[-1][1])} at the end")
    drawn = tag("path", title, d=_path(points, x, y), fill="none", stroke=row.colour, stroke_width=2, stroke_linejoin="round", stroke_dasharray="5 4" if row.is_dashed else None)
    last = next(((step, value) for step, value in reversed(points) if math.isfinite(value)), None)
    dot = tag("circle", tag("title", row.name), cx=f"{x(last[0]):.1f}", cy=f"{y(last[1]):.1f}", r=3.5, fill=row.colour) if last else None
    return join(drawn, dot)


def _widened(low: float, high: float, margin: float) -> tuple[float, float]:
    extra = (high - low) * margin
    if high > low:
        return low - extra, high + extra
    return low - (abs(low) * 0.1 or 1), high + (abs(high) * 0.1 or 1)

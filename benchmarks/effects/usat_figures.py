"""Figures of the experiment with voices: cosine and character errors of every take, written down once, and what they say together."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measuring import t_interval

DRAWS = 10_000
FEWEST = 3  # voices, for a word on voices in general
COSINE, ERRORS = "cosine", "character_error_rate"
MOST_ERRORS, MOST_LOST, MOST_SECONDS, MOST_SHARE = 0.15, 0.05, 900.0, 0.02


@dataclass(frozen=True)
class Figure:
    """One take, measured. `character_error_rate` is None where what was said is not known, or not English."""

    voice: str
    arm: str
    number: int
    cosine: float
    character_error_rate: float | None
    heard: str


class Notebook:
    """Figures, one JSON line each, and those of an earlier run that was stopped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        self.figures = {(row.voice, row.arm, row.number): row for row in (Figure(**json.loads(line)) for line in lines)}

    def get(self, voice: str, arm: str, number: int, measure: Callable[[], Figure]) -> Figure:
        """A figure, measured and written down where it is missing."""
        key = (voice, arm, number)
        if key not in self.figures:
            self.figures[key] = measure()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(self.figures[key])) + "\n")
        return self.figures[key]

    def values(self, voices: Sequence[str], arm: str, what: str) -> np.ndarray:
        """One figure of an arm, [voices, takes]; empty where a take is missing or was not measured by it."""
        rows = [[getattr(row, what) for (voice, name, _), row in sorted(self.figures.items()) if (voice, name) == (wanted, arm)] for wanted in voices]
        if not rows or not rows[0] or len({len(row) for row in rows}) > 1 or any(value is None for row in rows for value in row):
            return np.zeros((len(voices), 0))
        return np.array(rows, float)


def letters(text: str) -> str:
    """A text as what is said: small letters, digits and single spaces."""
    return " ".join(re.findall(r"[a-z0-9']+", text.lower()))


def interval(values: np.ndarray) -> list[float]:
    """95 % bootstrap interval of the mean of [voices, takes], for these voices: takes are drawn, for all voices together."""
    generator = np.random.default_rng(0)
    takes = values.shape[1]
    by_take = generator.multinomial(takes, np.full(takes, 1 / takes), DRAWS) / takes  # (draws, takes)
    return [round(float(end), 4) for end in np.percentile(by_take @ values.mean(0), [2.5, 97.5])]


def interval_of_any(values: np.ndarray) -> list[float] | None:
    """95 % t interval of the mean of [voices, takes] for voices in general; None for two voices or fewer, which say nothing of others."""
    if len(values) < FEWEST:
        return None
    _, low, high = t_interval(values.mean(1).tolist())
    return [round(low, 4), round(high, 4)]


def arm_row(notebook: Notebook, voices: Sequence[str], arm: str) -> dict[str, Any]:
    """Means of an arm with their intervals, by voice too. Errors are of the voices whose texts are English: of real clips not all are."""
    row: dict[str, Any] = {}
    for what in (COSINE, ERRORS):
        measured = [voice for voice in voices if notebook.values([voice], arm, what).size]
        values = notebook.values(measured, arm, what)
        if values.size:
            by_voice = [round(float(value), 4) for value in values.mean(1)]
            row[what] = {"voices": measured, "mean": round(float(values.mean()), 4), "interval": interval(values), "by_voice": by_voice}
    return row


def compared(notebook: Notebook, voices: Sequence[str], left: str, right: str, what: str) -> dict[str, Any] | None:
    """Mean difference of two arms on the same sentences, over the voices that both spoke as; None where there are none."""
    both = [voice for voice in voices if notebook.values([voice], left, what).size and notebook.values([voice], right, what).size]
    a, b = notebook.values(both, left, what), notebook.values(both, right, what)
    if not a.size or a.shape != b.shape:
        return None
    return {"voices": both, **changed(a - b)}


def compared_means(notebook: Notebook, voices: Sequence[str], left: str, right: str, what: str) -> dict[str, Any]:
    """Difference of the means of two arms that say different texts: by voice alone, as no take of one has its like in the other."""
    means = np.stack([np.concatenate([notebook.values([voice], arm, what).mean(1) for voice in voices]) for arm in (left, right)])  # (2, voices)
    return {**changed((means[0] - means[1])[:, None]), "interval": None}


def changed(change: np.ndarray) -> dict[str, Any]:
    """Of differences [voices, takes]: their mean, its interval for these voices and for any, and the means by voice."""
    by_voice = [round(float(value), 4) for value in change.mean(1)]
    return {"difference": round(float(change.mean()), 4), "interval": interval(change), "interval_of_any": interval_of_any(change), "by_voice": by_voice}


def is_above_zero(row: Mapping[str, Any] | None, which: str) -> bool:
    """Whether an interval of a difference is."""
    return row is not None and row[which] is not None and row[which][0] > 0


def checks(found: Mapping[str, Any]) -> dict[str, bool]:
    """What is to be shown, and whether the figures show it."""
    made: dict[str, bool] = {}
    for pair, what in (("instant - average", "instant is nearer than the average voice"), ("adapted - instant", "adapted is nearer than instant")):
        for which, whom in (("interval", "sentences"), ("interval_of_any", "voices")):
            made[f"{what}, the interval over {whom} above zero"] = is_above_zero(found["compared"].get(pair), which)
    for arm in ("instant", "adapted"):
        if ERRORS in found["arms"].get(arm, {}):
            made[f"{arm}: at most {MOST_ERRORS:g} of character errors, in the mean"] = found["arms"][arm][ERRORS]["mean"] <= MOST_ERRORS
    if lost := found["errors_compared"].get("adapted - instant"):
        made[f"adapted: at most {MOST_LOST:g} more errors than instant, in the mean"] = lost["difference"] <= MOST_LOST
        made[f"adapted: at most {MOST_LOST:g} more errors than instant, of every voice"] = max(lost["by_voice"]) <= MOST_LOST
    adapted = found["arms"].get("adapted", {})
    if "seconds" in adapted:
        made[f"every adaptation took less than {MOST_SECONDS / 60:g} minutes"] = max(adapted["seconds"].values()) < MOST_SECONDS
    if "parameters" in adapted and "parameters" in found["arms"].get("full", {}):
        made[f"adapters are at most {MOST_SHARE:.0%} of all weights"] = adapted["parameters"] <= MOST_SHARE * found["arms"]["full"]["parameters"]
    return made


def table(found: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    whom = f"{len(found['voices'])} voices that training did not hear ({', '.join(found['voices'])})"
    is_adapted = any("parameters" in row for row in found["arms"].values())
    adapted = f"Adaptations ran in {found['precision'].replace('no', 'float32')}." if is_adapted else "Nobody was adapted to."
    synthetic = [voice for voice in found["voices"] if voice.startswith("espeak")]
    few = f", {len(synthetic)} of them variants of the synthesiser whose other variants training heard" if synthetic else ""
    intervals = f"Intervals are over sentences, for these voices; of differences also over the {len(found['voices'])} voices (t){few}"
    lines = [f"{whom}, {found['sentences']} sentences each. {intervals}. {adapted}", ""]
    lines += ["| stage of the voice | steps | seconds a step | precision | on |", "|---|---|---|---|---|"]
    for name, stage in found["stages"].items():
        precision = stage.get("precision", "no").replace("no", "float32")
        lines.append(f"| {name} | {stage['steps']} | {stage['seconds_a_step']:.3f} | {precision} | {stage['device']} |")
    lines.append("")
    lines += ["| arm | cosine to the voice | character errors | parameters | steps | seconds | on |", "|---|---|---|---|---|---|---|"]
    for name, arm in found["arms"].items():
        name = name if arm[COSINE]["voices"] == found["voices"] else f"{name} ({', '.join(arm[COSINE]['voices'])})"
        errors = _cell(arm.get(ERRORS)) + (" (English speakers)" if ERRORS in arm and arm[ERRORS]["voices"] != arm[COSINE]["voices"] else "")
        where = ", ".join(sorted({*arm.get("device", {}).values()})) or "–"
        took = f"{arm.get('parameters') or '–'} | {_range(arm.get('steps'))} | {_range(arm.get('seconds'))} | {where}"
        lines.append(f"| {name} | {_cell(arm.get(COSINE))} | {errors} | {took} |")
    lines.append("")
    for name, arm in found["arms"].items():
        if any(arm.get("left_out", {}).values()):
            lines += [f"{name}: clips whose text was doubted and left out: {', '.join(f'{voice} {count}' for voice, count in arm['left_out'].items() if count)}.", ""]
    for what, rows in (("cosine", found["compared"]), ("character errors", found["errors_compared"])):
        for name, row in rows.items():
            whom = f" ({', '.join(row['voices'])})" if row.get("voices", found["voices"]) != found["voices"] else ""
            lines.append(f"- {what}, {name}{whom}: {_change(row)}; by voice {', '.join(f'{value:+.3f}' for value in row['by_voice'])}")
    if found["forgetting"]:
        lines += ["", f"What other voices lose while an adaptation is on the model (difference to the model as it was, over {found['remembered']} sentences):", ""]
        lines += ["| adapted by | voice | cosine | character errors |", "|---|---|---|---|"]
        lines += [f"| {row['method']} | {row['other']} | {_change(row[COSINE], 'adaptations')} | {_change(row[ERRORS], 'adaptations')} |" for row in found["forgetting"]]
    lines += ["", *(f"- {what}: {'yes' if holds else 'NO'}" for what, holds in found["checks"].items())]
    return "\n".join([*lines, ""])


def _cell(row: Mapping[str, Any] | None) -> str:
    return "–" if row is None else f"{row['mean']:.3f} [{row['interval'][0]:.3f} … {row['interval'][1]:.3f}]"


def _change(row: Mapping[str, Any] | None, units: str = "voices") -> str:
    """A difference with its interval over sentences, and over voices or adaptations."""
    if row is None:
        return "–"
    of_any = row["interval_of_any"]
    return f"{row['difference']:+.3f}{_ends(row['interval'])}{f', over {units}{_ends(of_any)}' if of_any else ''}"


def _ends(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f" [{interval[0]:+.3f} … {interval[1]:+.3f}]"


def _range(by_voice: Mapping[str, float] | None) -> str:
    if not by_voice or not any(by_voice.values()):
        return "–"
    least, most = (f"{value:.0f}" for value in (min(by_voice.values()), max(by_voice.values())))
    return least if least == most else f"{least} … {most}"

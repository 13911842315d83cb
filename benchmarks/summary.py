"""Writes the tables of README.md and of the methods' pages from the results: python benchmarks/summary.py."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from measuring import Target

ROOT = Path(__file__).parent
README = ROOT / "README.md"
METHOD_PAGES = ROOT.parent / "docs" / "methods"


def peers() -> str:
    """One table of all benchmarks of speed and size."""
    lines = []
    for path in sorted((ROOT / "results").glob("*.json")):
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        void = " **void**" if found["is_void"] else ""
        load = "" if found["load_of_others"] is None else f"Other programs kept {found['load_of_others']:.2f} processors busy{void}. "
        lines += [f"### `{found['command']}`", "", f"{load}{found['machine']}.", ""]
        lines += ["| figure | median | 95 % interval | target | |", "|---|---|---|---|---|"]
        for row in found["rows"]:
            unit = "" if row["unit"] in ("x", "") else f" {row['unit']}"
            target = f"{row['target']}: {Target.parse(row['target']).verdict(row['median'], row['low'], row['high'])}" if row["target"] else ""
            lines.append(f"| {row['name']} | {row['median']:.4g}{unit} | {row['low']:.4g} … {row['high']:.4g} | {target} | {row['note']} |")
        lines += ["", *(f"- {note}" for note in found["notes"]), ""]
    return "\n".join(lines)


def effect(path: Path) -> str:
    """The tables of one experiment."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    lines = [f"### `{found['command']}`", ""]
    if "table" in found:  # an experiment that writes its own
        return "\n".join([*lines, found["table"]])
    for shift, figures in found["shifts"].items():
        seeds = len(next(iter(figures["arms"].values()))["all"])
        lines += [f"{shift.capitalize()} digits, test accuracy in percent over {seeds} seeds; the net as it is: {figures['pretrained_as_it_is']['mean']:.1f}.", ""]
        lines += ["| arm | mean | sd | range | parameters |", "|---|---|---|---|---|"]
        for name, arm in figures["arms"].items():
            test = arm["test"]
            lines.append(f"| {name} | {test['mean']:.1f} | {test['sd']:.1f} | {test['low']:.1f} … {test['high']:.1f} | {arm['parameters']} |")
        lines.append("")
        for what, check in figures["checks"].items():
            low, high = check["interval"]
            verdict = "shown" if check["shown"] else "not shown" if check["holds"] else "**does not hold**"
            lines.append(f"- {what}: {verdict}; {check['difference']:+.1f} points [{low:+.1f} … {high:+.1f}], above zero on {check['wins']} of {check['seeds']} seeds")
        lines.append("")
    return "\n".join(lines)


def effects() -> str:
    """The tables of all experiments."""
    return "\n".join(effect(path) for path in sorted((ROOT / "effects" / "results").glob("*.json")))


def filled(text: str, name: str, table: str) -> str:
    """A page with a table between its marks."""
    return re.sub(rf"(<!-- {name} -->\n).*?(<!-- end of {name.partition(':')[0]} -->)", lambda hit: f"{hit[1]}{table}{hit[2]}", text, flags=re.DOTALL)


def main() -> None:
    text = README.read_text(encoding="utf-8")
    for name, table in (("peers", peers()), ("effects", effects())):
        text = filled(text, name, table)
    README.write_text(text, encoding="utf-8")
    for page in METHOD_PAGES.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        for path in (ROOT / "effects" / "results").glob("*.json"):
            text = filled(text, f"effect:{path.stem}", effect(path))
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

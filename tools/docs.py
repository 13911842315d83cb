"""Writes what the documentation takes from the registry, so that it cannot grow old.

A page has parts between `<!-- name:begin -->` and `<!-- name:end -->`: this script owns those, people own the rest. Writes

- `docs/methods/ID.md` for every method (created when missing) and `docs/methods/index.md`,
- the tables of `docs/models.md`, `docs/families.md`, `docs/data.md` and `docs/recipes.md`, and the exporter's options in `docs/formats.md`,
- the hooks in `docs/plugins.md`, the functions in `docs/python.md`, the commands in `docs/commands.md`, and the table of methods in `README.md`.

    python tools/docs.py            # write
    python tools/docs.py --check    # say what is out of date, write nothing
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel

import polyadapt
from polyadapt import hookspecs
from polyadapt.cli.app import cli
from polyadapt.data.readers.card import TableOptions
from polyadapt.data.split import Split
from polyadapt.evaluation.metrics import METRICS
from polyadapt.host import Host
from polyadapt.host.checks import known_hooks
from polyadapt.host.registry import Claim
from polyadapt.methods.card import MethodCard
from polyadapt.options import describe_options
from polyadapt.recipe import ArmSection, DataSection, EvaluateSection, ExportSection, ModelSection, Recipe
from polyadapt.signature import DEFAULT_METRICS
from polyadapt.training.settings import TrainSettings
from polyadapt_onnx.options import ExportOptions

ROOT = Path(__file__).resolve().parent.parent
DOMAINS = ("speech", "vision", "text", "robotics")
OURS = "core,onnx,speech,vision,text,robotics"
"""Plugins of this repository: what else is installed does not enter its documentation."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pages, or check them.

    Returns:
        0 when all is current (or was written), 1 when `--check` found a page that is not.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when a page is out of date")
    options = parser.parse_args(arguments)
    stale = []
    for path, text in pages(Host(environment={**os.environ, "POLYADAPT_PLUGINS": OURS, "POLYADAPT_STRICT": "1"})).items():
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(str(path.relative_to(ROOT)))
        if not options.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    for name in stale:
        print(f"out of date: {name}; run: make docs-update" if options.check else f"wrote {name}")
    return 1 if options.check and stale else 0


def pages(host: Host) -> dict[Path, str]:
    """Every page with the text that it should have."""
    methods = host.registry.methods.claims()
    docs = ROOT / "docs"
    result = {docs / "methods" / f"{claim.card.id}.md": _method_page(docs, claim) for claim in methods}
    for path, name, block in (
        (docs / "methods" / "index.md", "methods", _methods_table(methods, "")),
        (ROOT / "README.md", "methods", _methods_table(methods, "docs/methods/")),
        *((docs / "guides" / f"{domain}.md", "methods", _methods_table(_of(domain, methods), "../methods/")) for domain in DOMAINS),
        (docs / "models.md", "models", _models_table(host)),
        (docs / "families.md", "families", _families_table(host)),
        (docs / "formats.md", "export", _options_table(ExportOptions)),
        (docs / "python.md", "api", _functions()),
        (docs / "recipes.md", "recipe", _recipe_tables()),
        (docs / "plugins.md", "hooks", _hooks()),
        (docs / "commands.md", "commands", _commands(cli, "polyadapt")),
    ):
        result[path] = with_block(path.read_text(encoding="utf-8"), name, block, path)
    page = (docs / "data.md").read_text(encoding="utf-8")
    for name, block in (("readers", _readers_table(host)), ("columns", _options_table(TableOptions)), ("metrics", _metrics_table())):
        page = with_block(page, name, block, docs / "data.md")
    return {**result, docs / "data.md": page}


def with_block(page: str, name: str, block: str, path: Path) -> str:
    """A page with one of its generated parts replaced.

    Raises:
        SystemExit: the page has no such part.
    """
    pattern = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
    if not pattern.search(page):
        raise SystemExit(f"{path.relative_to(ROOT)} has no part between <!-- {name}:begin --> and <!-- {name}:end -->; put the two lines where the table belongs")
    return pattern.sub(lambda hit: f"{hit[1]}{block.rstrip()}\n{hit[2]}", page, count=1)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; bars inside cells are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(" ".join(str(cell).split()).replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def _method_page(docs: Path, claim: Claim[MethodCard]) -> str:
    path = docs / "methods" / f"{claim.card.id}.md"
    page = path.read_text(encoding="utf-8") if path.is_file() else f"# {claim.card.title}\n\n<!-- card:begin -->\n<!-- card:end -->\n"
    return with_block(page, "card", _method_block(claim), path)


def _method_block(claim: Claim[MethodCard]) -> str:
    card = claim.card
    rows = [
        ("id", f"`{card.id}`"),
        ("kind", card.kind),
        ("domains", ", ".join(card.domains)),
        ("plugin", f"`{claim.plugin.distribution}`"),
        ("paper", _paper(card)),
        ("families", ", ".join(card.families)),
        ("attaches at", ", ".join(card.ports) or "nothing: it leaves the network as it is"),
        ("exports as", _exports(card)),
        ("learning rate", f"{card.learning_rate:g}" + (f", weight decay {card.weight_decay:g}" if card.weight_decay else "")),
        ("at the start", card.identity_at_start or "changes nothing: the first step starts from the base"),
    ]
    parts = [table(("", ""), rows)]
    if card.notes:
        parts.append(f"{card.notes}\n")
    if card.options.model_fields:
        parts.append(f"## Options\n\n{_options_table(card.options)}")
    parts.append(f"```\npolyadapt show {card.id}\n```\n")
    return "\n".join(parts)


def _paper(card: MethodCard) -> str:
    if card.paper is None:
        return "none"
    title = f"[{card.paper.title}](https://arxiv.org/abs/{card.paper.arxiv})" if card.paper.arxiv else card.paper.title
    return f"{title} ({card.paper.year})" if card.paper.year else title


def _exports(card: MethodCard) -> str:
    if not card.exports:
        return "not into a graph"
    return ", ".join(f"{form} (folds into the weights)" if form == "merged" and card.folds else form for form in card.exports)


def _default(value: Any) -> str:
    return "required" if "PydanticUndefined" in repr(value) else f"`{value!r}`"


def _of(domain: str, claims: Sequence[Claim[MethodCard]]) -> list[Claim[MethodCard]]:
    return [claim for claim in claims if domain in claim.card.domains]


def _methods_table(claims: Sequence[Claim[MethodCard]], folder: str) -> str:
    rows = [
        (
            f"[`{claim.card.id}`]({folder}{claim.card.id}.md)",
            claim.card.title,
            claim.card.kind,
            ", ".join(claim.card.domains),
            ", ".join(claim.card.exports) or "–",
            f"`{claim.plugin.distribution}`",
        )
        for claim in claims
    ]
    return table(("method", "what", "kind", "domains", "exports", "comes with"), rows) if rows else "No method is for this domain alone.\n"


def _models_table(host: Host) -> str:
    rows = []
    for claim in host.registry.models.claims():
        card = claim.card
        size = f"{card.parameters / 1e6:.1f} M" if card.parameters else "–"
        rows.append((f"`{card.reference}`", card.title, card.task, size, card.licence or "the model's own", "yes" if card.offline else "no", f"`{claim.plugin.distribution}`"))
    return table(("reference", "what", "task", "parameters", "licence", "offline", "comes with"), rows)


def _families_table(host: Host) -> str:
    parts = []
    for claim in host.registry.families.claims():
        card = claim.card
        rows = [
            ("libraries", ", ".join(f"{name} {version}".strip() for name, version in card.libraries.items()) or "none besides torch"),
            ("classes", ", ".join(f"`{name}`" for name in card.classes)),
            ("tasks", ", ".join(card.tasks)),
            ("projections, convolutions, norms", ", ".join(f"`{site}`" for site in card.sites)),
            ("spans", ", ".join(f"`{site}`" for site in card.spans) or "–"),
            ("attention", ", ".join(f"`{site}`" for site in card.attention) or "–"),
            ("streams", ", ".join(f"`{site}`" for site in card.streams) or "–"),
        ]
        rows += [("no effect", f"`{site}`: {reason}") for site, reason in card.no_effect.items()]
        parts.append(f"## `{card.id}`: {card.title}\n\n{table(('', ''), rows)}" + (f"\n{card.notes}\n" if card.notes else ""))
    return "\n".join(parts)


def _readers_table(host: Host) -> str:
    rows = [
        (
            f"`{claim.card.scheme}{'' if ':' in claim.card.scheme else ':'}`",  # `data:sonic-pi` is a whole URI, `csv:` begins one
            claim.card.title,
            ", ".join(claim.card.tasks),
            ", ".join(f"`{row['name']}`" for row in describe_options(claim.card.options)) or "–",
            f"`{claim.plugin.distribution}`",
        )
        for claim in host.registry.readers.claims()
    ]
    return table(("URI", "what", "tasks", "options", "comes with"), rows)


def _metrics_table() -> str:
    """Every metric, and the tasks that are measured by it when nobody says otherwise."""
    tasks = {name: [task for task, chosen in DEFAULT_METRICS.items() if chosen == name] for name in METRICS}
    return table(
        ("metric", "what", "better", "default of"),
        [(f"`{name}`", row.title, "higher" if row.is_better_higher else "lower", ", ".join(tasks[name]) or "–") for name, row in METRICS.items()],
    )


def _recipe_tables() -> str:
    """Every section of a recipe with its keys."""
    sections: dict[str, type[BaseModel]] = {
        "[model]": ModelSection,
        "[data]": DataSection,
        "[data.split]": Split,
        "[[arm]]": ArmSection,
        "[train]": TrainSettings,
        "[evaluate]": EvaluateSection,
        "[export]": ExportSection,
    }
    top = f"## At the top\n\n{_options_table(Recipe, ('format', 'name', 'seed'))}"
    return "\n".join([top, *(f"## `{name}`\n\n{_options_table(section)}" for name, section in sections.items())])


def _options_table(cls: type[BaseModel], names: Sequence[str] = ()) -> str:
    described = [row for row in describe_options(cls) if not names or row["name"] in names]
    rows = [(f"`{row['name']}`", f"`{row['type']}`", _default(row["default"]), row["description"]) for row in described]
    return table(("key", "type", "default", "meaning"), rows)


def _hooks() -> str:
    """Every hook with its exact signature and its own description."""
    parts = []
    for name in known_hooks():
        function = getattr(hookspecs, name)
        signature = str(inspect.signature(function)).replace("'", "")
        parts.append(f"### `{name}`\n\n```python\ndef {name}{signature}: ...\n```\n\n{_prose(inspect.getdoc(function) or '')}\n")
    return "\n".join(parts)


def _functions() -> str:
    """What `import polyadapt` offers to call, with signatures and descriptions."""
    parts = []
    for name in polyadapt.__all__:
        function = getattr(polyadapt, name)
        if inspect.isfunction(function):
            parts.append(f"## `pa.{name}`\n\n```python\ndef {name}({_arguments(function)}): ...\n```\n\n{_prose(inspect.getdoc(function) or '')}\n")
    return "\n".join(parts)


def _arguments(function: Any) -> str:
    """Parameters of a function without their types."""
    plain = [value.replace(annotation=inspect.Parameter.empty) for value in inspect.signature(function).parameters.values()]
    return str(inspect.Signature(plain))[1:-1].replace("'", '"')  # as ruff writes strings, in pages too


def _prose(docstring: str) -> str:
    """A Google-form docstring as Markdown: sections become bold words, their entries a list."""
    lines = []
    section = ""
    for line in docstring.splitlines():
        if re.fullmatch(r"(Args|Returns|Raises|Since|Attributes):", line):
            section = line[:-1]
            lines.append(f"**{'Arguments' if section == 'Args' else section}**\n")
        elif section in ("Args", "Attributes", "Raises") and re.match(r" {4}\S", line):
            entry, _, rest = line.strip().partition(": ")
            lines.append(f"- `{entry}`: {rest}")
        elif section in ("Args", "Attributes", "Raises") and line.strip():
            lines.append(f"  {line.strip()}")
        else:
            lines.append(line.strip())
    return "\n".join(lines)


def _commands(command: click.Command, name: str) -> str:
    """Every command with its arguments and options, a heading each."""
    context = click.Context(command, info_name=name)
    parts = []
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            if found is not None and not found.hidden:
                parts.append(_commands(found, f"{name} {child}"))
        return "\n".join(parts)
    usage = " ".join(command.collect_usage_pieces(context))
    parts.append(f"## `{name}`\n\n```\n{name} {usage}\n```\n\n{inspect.cleandoc(command.help or '')}\n")
    records = [record for parameter in command.get_params(context) if (record := parameter.get_help_record(context))]
    options = [record for record in records if not record[0].startswith("--help")]
    if options:
        parts.append(table(("option", "meaning"), [(f"`{option}`", meaning) for option, meaning in options]))
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())

"""`polyadapt show ID`: one card in full, with its options."""

from __future__ import annotations

import contextlib
from dataclasses import fields
from typing import Any

import click

from polyadapt.cli.context import host_of, print_facts, print_json, print_table
from polyadapt.errors import PolyadaptError, UserError, nearest
from polyadapt.host import Host
from polyadapt.options import describe_options


@click.command()
@click.argument("name", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def show(ctx: click.Context, name: str, as_json: bool) -> None:
    """Everything about one method, model, family, reader or plugin, options included."""
    found = _find(host_of(ctx), name)
    if as_json:
        print_json(found)
        return
    for position, item in enumerate(found):
        if position:
            click.echo()
        options = item.pop("options", [])
        print_facts((key, value) for key, value in item.items())
        if options:
            click.echo("\noptions")
            print_table(("name", "type", "default", "description"), ([row["name"], row["type"], repr(row["default"]), row["description"]] for row in options))


def _find(host: Host, name: str) -> list[dict[str, Any]]:
    """Every card with this id, whatever its sort."""
    registry = host.registry
    found: list[dict[str, Any]] = []
    known: list[str] = []
    for table in registry.tables().values():
        known += table.ids()
        if name in table:
            claim = table.get(name)
            found.append({"sort": table.sort, **_card(claim.card), "plugin": claim.plugin.name})
    plugins = {plugin.name: plugin for plugin in host.plugins()}
    if name in plugins:
        found.append({"sort": "plugin", **plugins[name].to_dict()})
    for sort, find in (("reader", registry.reader), ("model", registry.model)):
        if not found and ":" in name:  # a URI or a reference, which begin with what is registered
            with contextlib.suppress(PolyadaptError):
                named = find(name)
                found.append({"sort": sort, **_card(named.card), "plugin": named.plugin.name})
    if not found:
        raise UserError(f"nothing is called {name!r}{nearest(name, [*known, *plugins])}")
    return found


def _card(card: Any) -> dict[str, Any]:
    """A card's fields as plain values."""
    values: dict[str, Any] = {}
    for field in fields(card):
        value = getattr(card, field.name)
        if field.name == "options":
            values["options"] = describe_options(value)
        elif field.name == "paper" and value is not None:
            values["paper"] = f"{value.title}{f', arXiv {value.arxiv}' if value.arxiv else ''}{f', {value.year}' if value.year else ''}"
        elif field.name == "package" and value is not None:
            values["package"] = f"{', '.join(value.requirements)} ({value.size_bytes / 1e6:.0f} MB, {value.licence})"
        elif field.name in ("sites", "spans", "attention", "streams", "export"):
            values[field.name] = sorted(value)
        elif isinstance(value, dict):
            values[field.name] = {str(key): str(item) for key, item in value.items()}
        else:
            values[field.name] = value
    return values

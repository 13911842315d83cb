"""Listings: plugins, models, families, methods and readers. None of them imports torch."""

from __future__ import annotations

from typing import Any

import click

from polyadapt.cli.context import host_of, print_json, print_table
from polyadapt.errors import unknown
from polyadapt.methods.card import DOMAINS

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command()
@json_option
@click.pass_context
def plugins(ctx: click.Context, as_json: bool) -> None:
    """Installed plugins and what became of them."""
    host = host_of(ctx)
    rows = [plugin.to_dict() for plugin in host.plugins()]
    if as_json:
        print_json(rows)
        return
    print_table(("name", "distribution", "version", "state", "error"), (row.values() for row in rows))
    for line in host.registry.clashes():
        click.echo(f"clash: {line}")


@click.command()
@json_option
@click.pass_context
def models(ctx: click.Context, as_json: bool) -> None:
    """Model references that can be loaded. One that ends with `:` stands for every name of its library."""
    rows = [
        {
            "reference": claim.card.reference,
            "task": claim.card.task,
            "parameters": claim.card.parameters,
            "licence": claim.card.licence,
            "offline": claim.card.offline,
            "plugin": claim.plugin.name,
        }
        for claim in host_of(ctx).registry.models.claims()
    ]
    _print(rows, as_json, parameters=lambda count: f"{count:,}" if count else "")


@click.command()
@json_option
@click.pass_context
def families(ctx: click.Context, as_json: bool) -> None:
    """Kinds of backbones."""
    rows = [
        {
            "id": claim.card.id,
            "title": claim.card.title,
            "media": list(claim.card.media),
            "architecture": claim.card.architecture,
            "tasks": list(claim.card.tasks),
            "libraries": dict(claim.card.libraries),
            "plugin": claim.plugin.name,
        }
        for claim in host_of(ctx).registry.families.claims()
    ]
    _print(rows, as_json, libraries=lambda libraries: ", ".join(libraries))


@click.command()
@click.option("--domain", help=f"Only methods of one domain: {', '.join(DOMAINS)}.")
@json_option
@click.pass_context
def methods(ctx: click.Context, domain: str | None, as_json: bool) -> None:
    """Adaptation methods."""
    if domain is not None and domain not in DOMAINS:
        raise unknown("domain", domain, DOMAINS)
    rows = [
        {
            "id": claim.card.id,
            "title": claim.card.title,
            "kind": claim.card.kind,
            "domains": list(claim.card.domains),
            "families": list(claim.card.families),
            "exports": list(claim.card.exports),
            "paper": claim.card.paper.arxiv or claim.card.paper.title if claim.card.paper else "",
            "plugin": claim.plugin.name,
        }
        for claim in host_of(ctx).registry.methods.claims()
        if domain is None or {domain, "any"} & set(claim.card.domains)
    ]
    _print(rows, as_json)


@click.command()
@json_option
@click.pass_context
def readers(ctx: click.Context, as_json: bool) -> None:
    """Data readers, by the scheme of their URIs."""
    rows = [
        {"scheme": claim.card.scheme, "title": claim.card.title, "tasks": list(claim.card.tasks), "licence": claim.card.licence, "plugin": claim.plugin.name}
        for claim in host_of(ctx).registry.readers.claims()
    ]
    _print(rows, as_json)


def _print(rows: list[dict[str, Any]], as_json: bool, **words: Any) -> None:
    """Print rows as JSON, or as a table in which `words` turn values of a column into text."""
    if as_json:
        print_json(rows)
    elif rows:
        print_table(rows[0], ([words[name](value) if name in words else value for name, value in row.items()] for row in rows))
    else:
        click.echo("none is registered; see: polyadapt plugins")

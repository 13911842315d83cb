"""`polyadapt sites` and `polyadapt plan`: what can be adapted in a model, and what a method would do."""

from __future__ import annotations

from collections import Counter
from typing import Any

import click

from polyadapt.cli.context import download_option, host_of, load_model, option_pairs, parse_pairs, print_facts, print_json, print_table


@click.command()
@click.argument("reference", metavar="REF")
@click.option("--port", help="Only ports of one sort: op, span, attention, stream or head.")
@click.option("--match", "pattern", help="Only sites that this glob fits, such as 'block.*.attn.q'.")
@option_pairs("-m", "--model-option", "model_options")
@download_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def sites(ctx: click.Context, reference: str, port: str | None, pattern: str | None, model_options: tuple[str, ...], allow_download: bool, as_json: bool) -> None:
    """Places of the model REF where edits can be attached."""
    from polyadapt.errors import unknown
    from polyadapt.sites import matches

    sorts = ("op", "span", "attention", "stream", "head")
    if port is not None and port not in sorts:
        raise unknown("port", port, sorts)
    model = load_model(host_of(ctx), reference, parse_pairs(model_options, "--model-option"), allow_download)
    rows = [
        {"site": site, "port": sort, **_port(found)}
        for sort in sorts
        if port in (None, sort)
        for site, found in model.ports.of(sort).items()
        if pattern is None or matches(site, pattern)
    ]
    if as_json:
        print_json({"reference": model.reference, "family": model.family.card.id, "base_id": model.base_id, "sites": rows})
        return
    print_facts([("model", model.reference), ("family", model.family.card.title), ("base_id", model.base_id)])
    click.echo()
    print_table(("site", "port", "kind", "in", "out", "notes"), ([row[key] for key in ("site", "port", "kind", "in", "out", "notes")] for row in rows))
    click.echo(f"\n{len(rows)} sites: {', '.join(f'{count} {sort}' for sort, count in Counter(row['port'] for row in rows).items()) or 'none'}")


def _port(port: Any) -> dict[str, Any]:
    """What a user needs to know of a port."""
    notes = [word for word, holds in (("tied", getattr(port, "tied", False)), ("parametrised", getattr(port, "parametrised", False))) if holds]
    if getattr(port, "rows", None):
        notes.append(f"rows {port.rows[0]}–{port.rows[1]} of a fused weight")
    if hasattr(port, "heads"):
        return {"kind": "cross attention" if port.cross else "attention", "in": port.heads, "out": port.head_size, "notes": f"{port.heads} heads of {port.head_size}"}
    if hasattr(port, "width"):
        return {"kind": port.mode, "in": port.width, "out": port.width, "notes": f"tokens of width {port.width}"}
    return {"kind": port.kind, "in": port.in_features, "out": port.out_features, "notes": ", ".join(notes)}


@click.command()
@click.argument("reference", metavar="REF")
@click.argument("method")
@option_pairs("-o", "--option", "options")
@option_pairs("-m", "--model-option", "model_options")
@click.option("--labels", help="Class names, separated by commas: the plan then holds the class head.")
@click.option("--seed", default=0, show_default=True, help="Of the starting values.")
@download_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def plan(
    ctx: click.Context,
    reference: str,
    method: str,
    options: tuple[str, ...],
    model_options: tuple[str, ...],
    labels: str | None,
    seed: int,
    allow_download: bool,
    as_json: bool,
) -> None:
    """What METHOD would attach to the model REF and train. Nothing is trained."""
    from polyadapt.options import read_options

    host = host_of(ctx)
    card = host.registry.methods.get(method).card
    chosen = read_options(card.options, parse_pairs(options, "--option"), f"method {method!r}")
    from polyadapt.methods.base import load_method

    model = load_model(host, reference, parse_pairs(model_options, "--model-option"), allow_download)
    if labels:
        model = model.with_labels(tuple(label.strip() for label in labels.split(",")))
    found = load_method(card).plan(model, chosen, seed).to_dict()
    if as_json:
        print_json({"reference": model.reference, "base_id": model.base_id, **found})
        return
    print_table(
        ("site", "kind", "variant", "values", "shapes", "folds"),
        ([row["site"], row["kind"], row["variant"], f"{row['values']:,}", _shapes(row["shapes"]), row["folds"]] for row in found["rows"]),
    )
    click.echo()
    print_facts(
        [
            ("method", f"{card.title} ({card.id})"),
            ("trains", f"{found['trainable']:,} of {found['base']:,} values ({100 * found['share']:.3g} %)"),
            ("slots", f"{found['slot_bytes'] / 1e6:.3g} MB"),
            ("identity at the start", found["identity_at_start"]),
            ("trains the base", "yes" if found["trains_base"] else ""),
            ("exports as", card.exports),
        ]
    )


def _shapes(shapes: dict[str, list[int]]) -> str:
    return "  ".join(f"{name} [{', '.join(map(str, shape))}]" for name, shape in shapes.items())

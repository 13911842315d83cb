"""What commands share: one host for each call of the command line, and values written as KEY=VALUE."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from polyadapt.errors import UserError

if TYPE_CHECKING:
    from polyadapt.host import Host
    from polyadapt.model import Model

HOST = "polyadapt.host"
DecoratedT = TypeVar("DecoratedT", bound=Callable[..., Any])


def host_of(ctx: click.Context) -> Host:
    """The host of this call, made at first use."""
    from polyadapt.host import Host

    meta = ctx.find_root().meta
    if HOST not in meta:
        meta[HOST] = Host()
    host: Host = meta[HOST]
    return host


def parse_pairs(pairs: Iterable[str], flag: str) -> dict[str, Any]:
    """Turn `rank=8 sites=["attn.q"]` into values: TOML where it is TOML, plain text otherwise.

    Raises:
        UserError: no `=`, or a key twice.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise UserError(f"{flag} {pair!r}: expected KEY=VALUE, for instance {flag} rank=8")
        if key in values:
            raise UserError(f"{flag} gives {key!r} twice; keep one")
        values[key] = _value(text)
    return values


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def print_json(value: Any) -> None:
    """Print a value as JSON on standard output; what is infinite or not a number becomes null, as in `report.json`."""
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:
        from polyadapt_runtime.seal import finite  # only for commands that have measured something

        text = json.dumps(finite(value), indent=2, ensure_ascii=False, default=str)
    click.echo(text)


def print_table(columns: Iterable[str], rows: Iterable[Iterable[Any]], title: str = "") -> None:
    """Print rows under headings: as wide as the terminal, or unbroken when the output goes elsewhere."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=400)
    table = Table(box=None, pad_edge=False, title=title or None, title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_word(cell)) for cell in row))
    console.print(table)


def print_facts(facts: Iterable[tuple[str, Any]]) -> None:
    """Print names and values in two columns, leaving out empty values."""
    shown = [(name, _word(value)) for name, value in facts if value not in ("", None, (), [], {})]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        click.echo(f"{name.ljust(width)}  {value}")


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value)
    return str(value)


def option_pairs(short: str, flag: str, name: str) -> Callable[[DecoratedT], DecoratedT]:
    """A click option KEY=VALUE that may be given several times."""
    return click.option(short, flag, name, multiple=True, metavar="KEY=VALUE", help="May be given several times; values as in TOML, or plain text.")


download_option = click.option("--allow-download", is_flag=True, help="Let the model's library use the network.")


def load_model(host: Host, reference: str, options: dict[str, Any], allow_download: bool) -> Model:
    """Load a model, allowing its library the network where that was asked for and the reference knows the word."""
    known = host.registry.model(reference).card.options.model_fields
    if allow_download and "allow_download" in known:
        options = {**options, "allow_download": True}
    return host.load(reference, options)


def title_of(key: str) -> str:
    """A key as a heading; its unit goes with the figure."""
    return key.removesuffix("_bytes").replace("_", " ") if key != "seconds" else "time"


def readable(key: str, value: Any) -> str:
    """A figure with its unit; what is not known before a run is a dash."""
    if value is None:
        return "–"
    if key.endswith("_bytes"):
        return f"{value / 1e6:,.1f} MB"
    if key == "seconds":
        return f"{value:,.0f} s"
    if isinstance(value, int):
        return f"{value:,}"
    return ", ".join(value) if isinstance(value, list) else str(value)

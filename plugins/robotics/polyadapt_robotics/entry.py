"""Entry point of the robotics plugin: what it registers. Imports cards only, so that a listing stays light."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from polyadapt.data.card import ReaderCard
from polyadapt.hookspecs import hookimpl
from polyadapt.sources.card import ModelCard
from polyadapt_robotics.cards import POLICY, TABLE_WORLD

if TYPE_CHECKING:
    import click

HOOK_API_RANGE = (1, 1)


@hookimpl
def polyadapt_register_models(register: Callable[[ModelCard], None]) -> None:
    """Policies for the table world."""
    register(POLICY)


@hookimpl
def polyadapt_register_data(register: Callable[[ReaderCard], None]) -> None:
    """Demonstrations from the table world."""
    register(TABLE_WORLD)


@hookimpl
def polyadapt_register_commands(cli: click.Group) -> None:
    """`polyadapt robotics rollout`."""
    from polyadapt_robotics.commands import rollout

    cli.add_command(rollout)

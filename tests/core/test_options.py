"""Options: what a class says of its fields, and whose fault a value or a class is."""

from __future__ import annotations

import pytest

from polyadapt.errors import PluginError, UserError
from polyadapt.options import Options, read_options


class Rank(Options):
    rank: int = 4


class Opaque:
    """Nothing that pydantic knows a check for."""


class Unchecked(Options):
    place: Opaque | None = None


def test_a_value_that_does_not_fit_is_the_users() -> None:
    with pytest.raises(UserError, match=r"^method 'm': option 'rank': .*valid integer.*, got 'many'$"):
        read_options(Rank, {"rank": "many"}, "method 'm'")


def test_a_class_that_cannot_be_checked_is_its_plugins() -> None:
    with pytest.raises(PluginError, match=r"^method 'm': its options class .*\.Unchecked cannot be checked: Unable to generate pydantic-core schema for .*Opaque'>$"):
        read_options(Unchecked, {}, "method 'm'")

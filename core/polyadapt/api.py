"""The facade: load, attach, adapt, evaluate, infer and export, in one line each.

Every function takes `host=`; without it the installed plugins are used, found once for each process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyadapt.artifact import Artifact
from polyadapt.errors import UserError
from polyadapt.host import Host
from polyadapt.hookspecs import AdaptOptions, Event
from polyadapt.methods.base import load_method
from polyadapt.model import Model
from polyadapt.options import read_options

if TYPE_CHECKING:
    from polyadapt.data.dataset import Dataset
    from polyadapt.data.split import Parts
    from polyadapt.edits import Form


@cache
def installed_host() -> Host:
    """The host with all installed plugins."""
    return Host()

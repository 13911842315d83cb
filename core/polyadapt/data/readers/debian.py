"""Where Debian packages put their data, and what to say when they are not installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from polyadapt.errors import UserError


def find_directory(data: str, package: str, directories: Sequence[str], given: str) -> Path:
    """The folder of a data set.

    Args:
        data: its URI, for messages.
        package: the Debian package that brings it.
        directories: where the package puts it.
        given: what the user named instead; empty for nothing.

    Raises:
        UserError: it is in none of these places.
    """
    places = [given] if given else list(directories)
    for place in places:
        folder = Path(place).expanduser()
        if folder.is_dir():
            return folder
    if given:
        raise UserError(f"{data}: no folder {given!r}; correct the option directory, or leave it out and run: apt install {package}")
    raise UserError(f"{data} is not installed (looked in {', '.join(places)}); run: apt install {package}, or name its folder in the option directory")

"""`data:sonic-pi` reads the sound samples of Sonic Pi (CC0) as Debian packages them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from polyadapt.data.dataset import Dataset, Example, natural_key
from polyadapt.data.readers.card import SonicPiOptions
from polyadapt.data.readers.debian import find_directory
from polyadapt.data.readers.recordings import prepared
from polyadapt.errors import UserError

DIRECTORIES = ("/usr/share/sonic-pi/samples", "/usr/share/sonic-pi/etc/samples", "/usr/lib/sonic-pi/etc/samples")


def read(rest: str, options: SonicPiOptions) -> Dataset:
    """Read the FLAC files; the class is the file's name up to the first underscore (`drum`, `tabla`, `bass` …).

    Raises:
        UserError: the samples are not installed, or no class has enough files.
    """
    root = find_directory("data:sonic-pi", "sonic-pi-samples", DIRECTORIES, options.directory)
    files = sorted(root.glob("*.flac"), key=lambda path: natural_key(path.name))
    counts = Counter(_instrument(path) for path in files)
    kept = [path for path in files if counts[_instrument(path)] >= options.minimum]
    if not kept:
        raise UserError(f"data:sonic-pi: no instrument has {options.minimum} files in {root} ({len(files)} FLAC files found); lower the option minimum")
    examples = [Example(path.name, path, _instrument(path), None, {}, path.name) for path in kept]
    return Dataset("data:sonic-pi", prepared(examples, options), "audio", licence="CC0-1.0")


def _instrument(path: Path) -> str:
    return path.stem.partition("_")[0]

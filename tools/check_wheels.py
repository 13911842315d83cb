"""Builds every distribution's wheel and proves each in a fresh environment: itself and what it declares, nothing else.

A workspace where everything is installed hides an import that no pyproject.toml declares; here it fails.

    python tools/check_wheels.py                  # all six
    python tools/check_wheels.py runtime vision   # some
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Distribution:
    """A distribution and what proves it.

    Attributes:
        name: as on an index.
        folder: where its pyproject.toml is.
        packages: what must import.
        needs: our other distributions that it is installed with.
        tests: its own tests; a folder that does not exist is left out.
        tested_with: what its tests need besides pytest, installed after everything else was looked at.
        absent: modules that must not have come along.
        plugin: the entry that `polyadapt plugins` must show as ok; empty for none.
    """

    name: str
    folder: str
    packages: tuple[str, ...]
    needs: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()
    tested_with: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    plugin: str = ""


def _domain(name: str) -> Distribution:
    return Distribution(f"polyadapt-{name}", f"plugins/{name}", (f"polyadapt_{name}",), ("runtime", "host"), (f"tests/plugins/{name}",), plugin=name)


DISTRIBUTIONS = {
    "runtime": Distribution(
        "polyadapt-runtime",
        "exporters/runtime",
        ("polyadapt_runtime",),
        tests=("tests/exporters/runtime",),
        tested_with=("onnx", "pillow", "safetensors", "soundfile", "tokenizers"),
        absent=("torch", "transformers", "onnx", "pydantic", "click", "polyadapt"),
    ),
    "host": Distribution(
        "polyadapt", ".", ("polyadapt", "polyadapt_onnx"), ("runtime",), ("tests/core/host", "tests/core/cli"), absent=("timm", "transformers", "diffusers"), plugin="core"
    ),
    "speech": _domain("speech"),
    "vision": _domain("vision"),
    "text": _domain("text"),
    "robotics": _domain("robotics"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the named distributions.

    Returns:
        0 when each is whole and works on its own, else 1.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", help=f"any of {', '.join(DISTRIBUTIONS)}; all when none is named")
    parser.add_argument("--keep", action="store_true", help="leave the environments in place and say where they are")
    options = parser.parse_args(arguments)
    names = options.names or list(DISTRIBUTIONS)
    for name in names:
        if name not in DISTRIBUTIONS:
            parser.error(f"unknown distribution {name!r}; known: {', '.join(DISTRIBUTIONS)}")
    failures = []
    scratch = Path(tempfile.mkdtemp(prefix="polyadapt-wheels-"))
    try:
        wheels = {name: build(distribution, scratch / "dist") for name, distribution in DISTRIBUTIONS.items()}
        for name in names:
            began = time.monotonic()
            problem = prove(name, wheels, scratch / name)
            print(f"{DISTRIBUTIONS[name].name}: {problem or 'ok'} ({time.monotonic() - began:.0f} s)", flush=True)
            failures += [name] if problem else []
            if not options.keep:
                shutil.rmtree(scratch / name, ignore_errors=True)
    finally:
        if options.keep:
            print(f"kept in {scratch}")
        else:
            shutil.rmtree(scratch, ignore_errors=True)
    return 1 if failures else 0


def build(distribution: Distribution, target: Path) -> Path:
    """Build one wheel with the hatchling of this environment."""
    before = set(target.glob("*.whl")) if target.is_dir() else set()
    _run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(target), str(ROOT / distribution.folder)])
    (wheel,) = set(target.glob("*.whl")) - before
    return wheel


def prove(name: str, wheels: dict[str, Path], environment: Path) -> str:
    """Install one wheel with what it declares and use it.

    Returns:
        What is wrong, in one line; empty when nothing is.
    """
    distribution = DISTRIBUTIONS[name]
    try:
        python = _install([wheels[key] for key in (*distribution.needs, name)], environment)
        for package in distribution.packages:
            _run([str(python), "-P", "-c", f"import {package}"], cwd=environment)
        found = json.loads(_run([str(python), "-P", "-c", _FIND, *distribution.absent], cwd=environment))
        if found:
            return f"brings along what it must do without: {', '.join(found)}"
        if distribution.plugin:
            rows = json.loads(_run([str(python.parent / "polyadapt"), "plugins", "--json"], cwd=environment))
            states = {row["name"]: f"{row['state']} {row['error']}".strip() for row in rows}
            if states.get(distribution.plugin) != "ok":
                return f"polyadapt plugins shows {distribution.plugin!r} as {states.get(distribution.plugin, 'missing')}"
        _test(python, distribution)
    except subprocess.CalledProcessError as error:
        print(f"{error.stdout or ''}{error.stderr or ''}", flush=True)
        return f"failed: {' '.join(map(str, error.cmd))[:300]}"
    return ""


_FIND = "import importlib.util, json, sys; print(json.dumps([name for name in sys.argv[1:] if importlib.util.find_spec(name)]))"


def _install(wheels: list[Path], environment: Path) -> Path:
    """A new environment with the given wheels and an engine; returns its Python."""
    _run([sys.executable, "-m", "venv", str(environment)])
    python = environment / "bin" / "python"
    _pip(python, [f"{wheel}[cpu]" if wheel.name.startswith("polyadapt_runtime-") else str(wheel) for wheel in wheels])
    return python


def _pip(python: Path, names: Sequence[str]) -> None:
    _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--progress-bar", "off", "--constraint", str(ROOT / "constraints.txt"), *names])


def _test(python: Path, distribution: Distribution) -> None:
    """The distribution's own tests, from the repository but with the installed wheel: no source folder is on the path."""
    folders = [str(ROOT / folder) for folder in distribution.tests if (ROOT / folder).is_dir() and any((ROOT / folder).rglob("test_*.py"))]
    if not folders:
        print(f"{distribution.name}: has no tests of its own yet", flush=True)
        return
    _pip(python, ["pytest", "pytest-socket", "hypothesis", *distribution.tested_with])
    output = _run([str(python), "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml"), *folders], cwd=ROOT)
    print(f"{distribution.name}: {output.strip().splitlines()[-1].strip('= ')}", flush=True)


def _run(command: list[str], cwd: Path | None = None) -> str:
    """Run a command that must succeed; returns its standard output."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    return subprocess.run(command, cwd=cwd, env=environment, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())

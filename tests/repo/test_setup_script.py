"""`make setup`: installs everything once, then costs next to nothing, and starts again when something changed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def fake_environment(folder: Path) -> Path:
    """A virtual environment whose Python writes down what it is asked to do."""
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$@" >>"{folder}/asked"\n', encoding="utf-8")
    python.chmod(0o755)
    return folder


def set_up(venv: Path, **environment: str) -> list[str]:
    """Run the script; what its Python was asked since."""
    asked = venv / "asked"
    asked.unlink(missing_ok=True)
    subprocess.run([ROOT / "tools" / "setup.sh"], env={**os.environ, "PYTHON": sys.executable, "VENV": str(venv), **environment}, check=True, capture_output=True)
    return asked.read_text(encoding="utf-8").splitlines() if asked.exists() else []


def test_first_run_installs_every_distribution_from_the_tested_set(tmp_path: Path) -> None:
    asked = set_up(fake_environment(tmp_path / "venv"))
    installs = [line for line in asked if line.startswith("-m pip install")]
    assert installs
    assert all("--constraint constraints.txt" in line for line in installs)
    for editable in ("-e exporters/runtime[cpu]", "-e .[all,test,docs,dev]", *(f"-e plugins/{path.name}" for path in sorted((ROOT / "plugins").iterdir()) if path.is_dir())):
        assert editable in installs[-1]


def test_second_run_does_nothing_and_takes_no_time(tmp_path: Path) -> None:
    venv = fake_environment(tmp_path / "venv")
    set_up(venv)
    began = time.monotonic()
    assert set_up(venv) == []
    assert time.monotonic() - began < 5


def test_another_engine_installs_again(tmp_path: Path) -> None:
    venv = fake_environment(tmp_path / "venv")
    set_up(venv)
    assert any("exporters/runtime[gpu]" in line for line in set_up(venv, ENGINE="gpu"))


def test_an_unfinished_install_leaves_no_stamp(tmp_path: Path) -> None:
    venv = fake_environment(tmp_path / "venv")
    (venv / "bin" / "python").write_text('#!/bin/sh\ncase "$*" in *install*) exit 1;; esac\n', encoding="utf-8")
    result = subprocess.run([ROOT / "tools" / "setup.sh"], env={**os.environ, "PYTHON": sys.executable, "VENV": str(venv)}, capture_output=True, check=False)
    assert result.returncode != 0
    assert not (venv / ".polyadapt-setup").exists()


def test_an_old_python_is_refused_in_one_line(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.1 && exit 0\nexit 1\n', encoding="utf-8")
    old.chmod(0o755)
    result = subprocess.run([ROOT / "tools" / "setup.sh"], env={**os.environ, "PYTHON": str(old), "VENV": str(tmp_path / "venv")}, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "needs Python 3.11" in result.stderr
    assert "Python 3.9.1" in result.stderr

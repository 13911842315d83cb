"""The doctor names what does not fit together, and the command that mends it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from polyadapt.cli import doctor as doctor_module
from polyadapt.cli import main
from polyadapt.cli.doctor import LIBRARIES, Check, engines, imports, plugin_checks, torch_siblings
from polyadapt.host import Host


def versions(**found: str) -> dict[str, str]:
    return dict.fromkeys(LIBRARIES, "") | {name.replace("_", "-"): value for name, value in found.items()}


def states(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.state for check in checks}


def test_two_engines_or_none_are_broken() -> None:
    (both,) = engines(versions(onnxruntime="1.32.0", onnxruntime_gpu="1.32.0"))
    assert both.state == "failed" and "pip uninstall -y onnxruntime onnxruntime-gpu" in both.remedy
    (neither,) = engines(versions())
    assert neither.state == "failed" and "polyadapt[cpu]" in neither.remedy and "polyadapt[gpu]" in neither.remedy
    assert states(engines(versions(onnxruntime_gpu="1.32.0"))) == {"onnxruntime": "ok"}


@pytest.mark.parametrize(
    ("torch", "torchvision", "torchaudio", "expected"),
    [
        ("2.11.0", "0.26.0", "2.11.0", {"torchvision": "ok", "torchaudio": "ok"}),
        ("2.11.0", "0.25.0", "2.10.0", {"torchvision": "failed", "torchaudio": "failed"}),
        ("2.13.0+cpu", "0.28.0", "", {"torchvision": "warning"}),
        ("2.11.0+cu130", "0.26.0+cu130", "2.11.0+cu130", {"torchvision": "ok", "torchaudio": "ok"}),
        ("2.13.0", "", "2.11.0", {"torchaudio": "failed"}),
        ("", "0.26.0", "", {"torch": "failed"}),
    ],
)
def test_torch_and_its_siblings(torch: str, torchvision: str, torchaudio: str, expected: dict[str, str]) -> None:
    assert states(torch_siblings(versions(torch=torch, torchvision=torchvision, torchaudio=torchaudio))) == expected


def test_a_torchaudio_that_does_not_import_is_explained_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As its wheel does beside a CPU-only torch: the extension cannot be loaded."""
    (tmp_path / "torchaudio").mkdir()
    (tmp_path / "torchaudio" / "__init__.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file: No such file or directory')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (found,) = imports(versions(torch="2.11.0", torchaudio="2.11.0"))
    assert (found.name, found.state) == ("import torchaudio", "warning")
    assert found.found == "OSError: libcudart.so.13: cannot open shared object file: No such file or directory"
    assert "install torch and torchaudio from one index" in found.remedy and "\n" not in found.remedy
    (tmp_path / "torchaudio" / "__init__.py").write_text("")
    (tmp_path / "torchaudio" / "functional.py").write_text("")
    assert imports(versions(torch="2.11.0", torchaudio="2.11.0")) == []


def test_failed_plugins_are_named() -> None:
    host = Host(plugins=[type("Bad", (), {"HOOK_API_RANGE": (9, 9)})()], discover=False, environment={})
    found = plugin_checks(host)
    assert states(found) == {"plugins": "ok", "plugin Bad": "failed"}
    assert "hook versions 9 to 9" in found[1].found


def test_the_command_reports_and_ends_with_1_when_something_is_broken(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "imports", lambda found: [])
    monkeypatch.setattr(doctor_module, "_devices", lambda found: [])
    monkeypatch.setattr(doctor_module, "plugin_checks", lambda host: [Check("plugins", "ok", "core")])
    monkeypatch.setattr(doctor_module, "installed", lambda: versions(torch="2.11.0", onnxruntime="1.32.0"))
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {check["name"]: check["state"] for check in report["checks"]} == {"onnxruntime": "ok", "plugins": "ok", "cache": "ok"}
    monkeypatch.setattr(doctor_module, "installed", lambda: versions(torch="2.11.0"))
    assert main(["doctor"]) == 1
    assert "none is installed" in capsys.readouterr().out

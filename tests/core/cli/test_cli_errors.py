"""What goes wrong is one line and an exit code: 1 the user's input, 2 a plugin, 130 Ctrl-C."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import click
import pytest

import polyadapt.cli.context as context
from polyadapt.cli import main
from polyadapt.errors import PluginError
from polyadapt.hookspecs import hookimpl
from polyadapt.host import Host
from polyadapt.training.interrupt import TrainingInterrupted


def use(monkeypatch: pytest.MonkeyPatch, host: Host) -> None:
    """Let the command line use this host instead of the installed plugins."""
    monkeypatch.setattr(context, "Host", lambda: host, raising=False)
    monkeypatch.setattr("polyadapt.host.Host", lambda: host)


def failing(error: BaseException) -> Any:
    """A host whose registry raises."""

    class Failing:
        @property
        def registry(self) -> Any:
            raise error

        def command_owners(self) -> list[Any]:
            return []

    return Failing()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["methds"], "error: unknown command 'methds'; did you mean 'methods'?; see: polyadapt --help"),
        (["methods", "--jsn"], "error: No such option '--jsn'"),
        (["methods", "--domain", "speach"], "error: unknown domain 'speach'; did you mean 'speech'?"),
        (["show"], "error: Missing argument 'ID'"),
        (["show", "lorra"], "error: nothing is called 'lorra'; did you mean 'lora'"),
        (["show", "tim:x"], "error: nothing is called 'tim:x'"),
        (["plan", "polyadapt:tiny-vit", "lorra"], "error: unknown method 'lorra'; did you mean 'lora'"),
        (["plan", "polyadapt:tiny-vit", "lora", "-o", "rnk=3"], "error: method 'lora' has no option 'rnk'; did you mean 'rank'"),
        (["plan", "polyadapt:tiny-vit", "lora", "-o", "rank"], "error: --option 'rank': expected KEY=VALUE"),
        (["plan", "polyadapt:tiny-vitt", "lora"], "error: unknown model 'polyadapt:tiny-vitt'; did you mean 'polyadapt:tiny-vit'"),
        (["fetch", "polyadapt:tiny-vit"], "error: polyadapt:tiny-vit needs no fetch"),
        (["fetch", "data:sonic-pi"], "error: data:sonic-pi needs no fetch: Debian package sonic-pi-samples"),
        (["run", "no-such.toml"], "error: recipe no-such.toml: No such file"),
        (["verify", "no-such.bundle"], "error: "),
        (["evaluate", "polyadapt:tiny-mlp-policy", "npz:rows.npz", "--seed", "-1"], "error: Invalid value for '--seed': -1 is not in the range x>=0"),
        (["new-plugin", "Bad_Name"], "error: plugin name 'Bad_Name': expected lower-case letters"),
    ],
)
def test_wrong_input_is_one_line_and_status_1(capsys: pytest.CaptureFixture[str], arguments: list[str], line: str) -> None:
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(line) and printed.err.count("\n") == 1
    assert "Traceback" not in printed.err


def test_a_plugin_s_failure_is_status_2(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, failing(PluginError("plugin 'x' (y 1) failed")))
    assert main(["methods"]) == 2
    assert capsys.readouterr().err == "error: plugin 'x' (y 1) failed\n"


def test_the_unexpected_is_status_2_and_shows_its_traceback_with_debug(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, failing(ZeroDivisionError("by\nzero")))
    assert main(["methods"]) == 2
    assert capsys.readouterr().err == "error: unexpected ZeroDivisionError: by zero; run again with --debug for the traceback\n"
    assert main(["methods", "--debug"]) == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), TrainingInterrupted("training was interrupted after step 3")])
def test_ctrl_c_is_status_130_and_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    use(monkeypatch, failing(error))
    assert main(["methods"]) == 130
    printed = capsys.readouterr().err
    assert printed.startswith("stopped by Ctrl-C") and printed.count("\n") == 1


def test_a_closed_pipe_is_no_error() -> None:
    script = f"{sys.executable} -m polyadapt.cli show lora --json | head -c 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    assert done.stdout.endswith("0\n") and done.stderr == ""


def test_the_bare_command_shows_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "new-plugin" in capsys.readouterr().out


def command_plugin(name: str, error: BaseException | None = None) -> tuple[str, types.ModuleType]:
    module = types.ModuleType(name)

    def polyadapt_register_commands(cli: click.Group) -> None:
        if error is not None:
            raise error

        @cli.command()
        def play() -> None:
            """Play a sound."""
            click.echo("la la la")

    module.polyadapt_register_commands = hookimpl(polyadapt_register_commands)  # type: ignore[attr-defined]
    return name, module


def test_plugins_bring_commands_under_their_own_name(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    plugins = [command_plugin("music"), command_plugin("noise", RuntimeError("broken commands")), command_plugin("quitter", SystemExit(3)), command_plugin("plan")]
    use(monkeypatch, Host(plugins=plugins, discover=False, environment={}))
    assert main(["music", "play"]) == 0
    assert capsys.readouterr().out == "la la la\n"
    assert main(["--help"]) == 0
    printed = capsys.readouterr()
    assert "music" in printed.out and "Commands of plugins" in printed.out
    assert "plugin 'noise' (given by the caller) failed in polyadapt_register_commands: RuntimeError: broken commands" in printed.err
    assert "plugin 'quitter' (given by the caller) failed in polyadapt_register_commands: SystemExit: 3" in printed.err
    assert "'plan'" in printed.err and "rename the plugin" in printed.err
    assert main(["noise", "play"]) == 1


def test_json_has_no_word_for_what_is_not_finite(capsys: pytest.CaptureFixture[str]) -> None:
    context.print_json({"loss": float("nan"), "interval": [float("-inf"), 0.5], "path": Path("a"), "n": 3})

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    assert json.loads(capsys.readouterr().out, parse_constant=refuse) == {"loss": None, "interval": [None, 0.5], "path": "a", "n": 3}

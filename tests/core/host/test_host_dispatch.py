"""Dispatch: the owner is called, others may wrap, the default comes last, and failures name the guilty plugin."""

from __future__ import annotations

import logging
import types
from pathlib import Path
from typing import Any

import pytest

from polyadapt.artifact import Artifact
from polyadapt.errors import PluginError, UserError
from polyadapt.hookspecs import AdaptOptions, hookimpl
from polyadapt.host import Host
from polyadapt.methods.card import MethodCard
from polyadapt.model import Model
from polyadapt.options import Options
from polyadapt.sources.card import ModelCard


class SeedOptions(Options):
    seed: int = 0


class Owner:
    """Owns the reference `toy:` and the method `toy-method`."""

    def __init__(self, answer: Any = "owner's model") -> None:
        self.answer = answer
        self.calls: list[Any] = []

    @hookimpl
    def polyadapt_register_models(self, register: Any) -> None:
        register(ModelCard("toy:", "t", "features", "f", SeedOptions, f"{__name__}:load_by_card"))

    @hookimpl
    def polyadapt_register_methods(self, register: Any) -> None:
        register(MethodCard(id="toy-method", title="t", kind="edits", domains=("any",), options=Options, implementation="nowhere:Nothing"))

    @hookimpl
    def polyadapt_load_model(self, reference: str, options: SeedOptions) -> Any:
        self.calls.append((reference, options.seed))
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    @hookimpl
    def polyadapt_adapt(self, model: Any, method: str, data: Any, options: AdaptOptions) -> str:
        options.emit({"kind": "step", "loss": 1.0})
        return f"{method} on {model} by {type(options.options).__name__}"

    @hookimpl
    def polyadapt_export(self, model: Any, artifacts: Any, target: str, directory: Path) -> str:
        return f"{target} in {directory}"


class Bystander:
    """Implements the same hooks and owns nothing: it must never be asked."""

    @hookimpl(tryfirst=True)
    def polyadapt_load_model(self, reference: str) -> str:
        raise AssertionError("only the owner is called")

    @hookimpl(tryfirst=True)
    def polyadapt_adapt(self, model: Any) -> str:
        raise AssertionError("only the owner is called")


class Wrapping:
    """Wraps loading."""

    def __init__(self, fails: bool = False) -> None:
        self.seen: list[str] = []
        self.fails = fails

    @hookimpl(wrapper=True)
    def polyadapt_load_model(self, reference: str) -> Any:
        self.seen.append(reference)
        if self.fails:
            raise RuntimeError("wrapper broke")
        result = yield
        return f"<{getattr(result, 'reference', result)}>"


class Listener:
    """Hears events, or fails on them."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.heard: list[Any] = []
        self.error = error

    @hookimpl
    def polyadapt_event(self, event: Any) -> None:
        if self.error is not None:
            raise self.error
        self.heard.append(event)


class Answering:
    """Owns a reference or a method, and answers for it or leaves it to the next."""

    def __init__(self, answer: Any, calls: list[str], owns: str = "bystander") -> None:
        self.answer, self.calls, self.owns = answer, calls, owns

    @hookimpl
    def polyadapt_register_models(self, register: Any) -> None:
        if self.owns in ("reference", "both"):
            register(ModelCard("toy:", "t", "features", "f", SeedOptions, f"{__name__}:load_by_card"))

    @hookimpl
    def polyadapt_register_methods(self, register: Any) -> None:
        if self.owns in ("method", "both"):
            register(MethodCard(id="toy-method", title="t", kind="edits", domains=("any",), options=Options, implementation="nowhere:Nothing"))

    @hookimpl(tryfirst=True)
    def polyadapt_infer(self, inputs: list[Any]) -> Any:
        self.calls.append(self.owns)
        return self.answer


class Around:
    """Wraps inference."""

    def __init__(self, calls: list[str]) -> None:
        self.calls = calls

    @hookimpl(wrapper=True)
    def polyadapt_infer(self) -> Any:
        self.calls.append("around")
        return (yield)


def load_by_card(card: ModelCard, name: str, options: SeedOptions) -> Model:
    model = Model.__new__(Model)
    model.reference = f"{card.reference}{name} {options.seed}"
    return model


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `load_by_card` importable under the name its card gives, whatever pytest calls this module."""
    module = types.ModuleType(__name__)
    module.load_by_card = load_by_card  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, __name__, module)


def host(*plugins: object, **environment: str) -> Host:
    return Host(plugins=[(f"{type(item).__name__.lower()}{index}", item) for index, item in enumerate(plugins)], discover=False, environment=environment)


def test_only_the_owner_is_called_and_options_come_from_both_sides() -> None:
    owner = Owner()
    assert host(Bystander(), owner, Bystander()).load("toy:net?seed=7") == "owner's model"
    assert owner.calls == [("toy:net", 7)]
    with pytest.raises(UserError, match="model 'toy:net' has no option 'sed'; did you mean 'seed'"):
        host(owner).load("toy:net?sed=7")


def test_an_owner_without_an_answer_gets_the_card_s_implementation() -> None:
    assert host(Bystander(), Owner(answer=None)).load("toy:net", {"seed": 3}).reference == "toy:net 3"


def test_others_wrap() -> None:
    wrapping = Wrapping()
    assert host(wrapping, Owner()).load("toy:net") == "<owner's model>"
    assert host(wrapping, Owner(answer=None)).load("toy:net") == "<toy:net 0>"
    assert wrapping.seen == ["toy:net", "toy:net"]


def test_failures_name_the_plugin_in_which_they_arose() -> None:
    with pytest.raises(PluginError, match=r"plugin 'owner0' \(given by the caller\) failed in polyadapt_load_model: ValueError: no good") as caught:
        host(Owner(answer=ValueError("no good"))).load("toy:net")
    assert caught.value.exit_code == 2
    with pytest.raises(PluginError, match="plugin 'wrapping0'.*wrapper broke"):
        host(Wrapping(fails=True), Owner()).load("toy:net")
    with pytest.raises(PluginError, match=r"plugin 'owner0' \(given by the caller\) failed in polyadapt_load_model: SystemExit: 3"):
        host(Owner(answer=SystemExit(3))).load("toy:net")
    with pytest.raises(UserError, match="as it is"):
        host(Owner(answer=UserError("as it is"))).load("toy:net")


@pytest.mark.parametrize("error", [RuntimeError("deaf"), SystemExit(3)])
def test_events_reach_everybody_and_a_deaf_plugin_is_logged_once(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    before, deaf, after = Listener(), Listener(error), Listener()
    own: list[Any] = []
    made = host(before, deaf, after, Owner())
    with caplog.at_level(logging.ERROR, "polyadapt.host"):
        for _ in range(3):
            assert made.adapt("model", "toy-method", None, AdaptOptions(options=Options(), emit=own.append)) == "toy-method on model by Options"  # type: ignore[arg-type]
    assert len(before.heard) == len(after.heard) == len(own) == 3
    assert [record.message for record in caplog.records] == ["plugin 'listener1' failed in polyadapt_event; the work goes on, its later failures are not logged"]


def adapted_toy() -> tuple[Model, Artifact]:
    model, artifact = Model.__new__(Model), Artifact.__new__(Artifact)
    model.reference = "toy:net"
    object.__setattr__(artifact, "method", "toy-method")
    object.__setattr__(artifact, "edits", ())
    return model, artifact


@pytest.mark.parametrize("is_reversed", [False, True])
@pytest.mark.parametrize(
    ("method_s", "reference_s", "expected", "asked"),
    [("by method", "by reference", "by method", ["around", "method"]), (None, "by reference", "by reference", ["around", "method", "reference"])],
)
def test_inference_asks_the_method_s_owner_then_the_reference_s(is_reversed: bool, method_s: Any, reference_s: Any, expected: str, asked: list[str]) -> None:
    """In this order however they were registered, inside the wrappers once, and nobody else."""
    calls: list[str] = []
    plugins = [Answering(method_s, calls, "method"), Answering(reference_s, calls, "reference"), Answering("nobody asked", calls), Around(calls)]
    model, artifact = adapted_toy()
    assert host(*(reversed(plugins) if is_reversed else plugins)).infer(model, [1], artifact) == expected
    assert calls == asked


def test_inference_without_an_owner_s_answer_gets_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyadapt.host.inference.answer", lambda model, inputs, artifact, options: "by default")
    for owners in (("method", "reference"), ("both",)):
        calls: list[str] = []
        model, artifact = adapted_toy()
        assert host(*(Answering(None, calls, owns) for owns in owners)).infer(model, [1], artifact) == "by default"
        assert calls == list(owners)


def test_export_goes_to_the_plugin_whose_name_is_the_target() -> None:
    made = host(Listener(), Owner())
    assert made.export("model", {}, Path("x.bundle"), "owner1") == "owner1 in x.bundle"  # type: ignore[arg-type]
    with pytest.raises(UserError, match="unknown export target 'owner2'; did you mean 'owner1'"):
        made.export("model", {}, Path("x.bundle"), "owner2")  # type: ignore[arg-type]


def test_trace_prints_calls_with_their_owner(capsys: pytest.CaptureFixture[str]) -> None:
    host(Owner(), POLYADAPT_TRACE="1").load("toy:net")
    printed = capsys.readouterr().err
    assert "polyadapt trace: polyadapt_load_model(reference='toy:net', options=<SeedOptions>) -> polyadapt defaults, owner0" in printed
    assert '= "owner\'s model"' in printed
    host(Owner()).load("toy:net")
    assert capsys.readouterr().err == ""


def test_a_card_that_names_nothing_is_the_plugin_s_fault() -> None:
    class Lost:
        @hookimpl
        def polyadapt_register_models(self, register: Any) -> None:
            register(ModelCard("lost:x", "t", "features", "f", Options, "polyadapt.no_such_module:load"))

    with pytest.raises(PluginError, match="No module named 'polyadapt.no_such_module'"):
        host(Lost()).load("lost:x")

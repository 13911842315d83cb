"""Discovery and isolation: a broken plugin is listed with its cause and everything else works."""

from __future__ import annotations

import types
from dataclasses import replace
from pathlib import Path

import pytest

from polyadapt.errors import PluginError, UserError
from polyadapt.families.mlp_policy.card import CARD
from polyadapt.hookspecs import HOOK_API, hookimpl
from polyadapt.host import Host
from polyadapt.methods.card import MethodCard
from polyadapt.options import Options
from polyadapt.sources.card import ModelCard

GOOD = """
from polyadapt.hookspecs import hookimpl
from polyadapt.methods.card import MethodCard
from polyadapt.options import Options
HOOK_API_RANGE = (1, 1)
@hookimpl
def polyadapt_register_methods(register):
    register(MethodCard(id="{id}", title="t", kind="edits", domains=("any",), options=Options, implementation="nowhere:Nothing"))
"""


def method(name: str) -> MethodCard:
    return MethodCard(id=name, title="t", kind="edits", domains=("any",), options=Options, implementation="nowhere:Nothing")


def plugin(name: str, **attributes: object) -> types.ModuleType:
    module = types.ModuleType(name)
    for key, value in attributes.items():
        setattr(module, key, value)
    return module


def registering(*cards: object, hook: str = "polyadapt_register_methods") -> object:
    def register_all(register):  # type: ignore[no-untyped-def]
        for card in cards:
            register(card)

    register_all.__name__ = hook
    return hookimpl(register_all)


def install(folder: Path, distribution: str, name: str, source: str, version: str = "1.2") -> str:
    """Write a distribution with one entry point; returns the module's name."""
    module = f"{distribution.replace('-', '_')}_entry"
    (folder / f"{module}.py").write_text(source)
    info = folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[polyadapt]\n{name} = {module}\n")
    return module


def states(host: Host) -> dict[str, str]:
    return {item.name: item.state for item in host.plugins()}


def test_an_installed_plugin_is_found_with_its_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "pa-found", "found", GOOD.format(id="found-method"))
    monkeypatch.syspath_prepend(str(tmp_path))
    host = Host(environment={})
    row = next(item.to_dict() for item in host.plugins() if item.name == "found")
    assert row == {"name": "found", "distribution": "pa-found", "version": "1.2", "state": "ok", "error": ""}
    assert host.registry.methods.get("found-method").plugin.name == "found"


def test_a_plugin_that_cannot_be_imported_is_listed_and_the_others_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "pa-broken", "broken", "import no_such_library_anywhere")
    install(tmp_path, "pa-fine", "fine", GOOD.format(id="fine-method"))
    monkeypatch.syspath_prepend(str(tmp_path))
    host = Host(environment={})
    row = next(item.to_dict() for item in host.plugins() if item.name == "broken")
    assert (row["state"], row["distribution"], row["version"]) == ("failed", "pa-broken", "1.2")
    assert "no_such_library_anywhere" in row["error"]
    assert "fine-method" in host.registry.methods


def test_a_plugin_that_exits_at_import_does_not_take_the_host_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "pa-quitter", "quitter", "raise SystemExit(3)")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert states(Host(environment={}))["quitter"] == "failed"


def test_strict_raises_with_the_plugin_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "pa-strict", "strict", "1 / 0")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(PluginError, match=r"'strict' \(pa-strict 1\.2\) failed: ZeroDivisionError"):
        Host(environment={"POLYADAPT_STRICT": "1"})
    assert states(Host(environment={"POLYADAPT_STRICT": "0"}))["strict"] == "failed"


def test_the_limit_skips_other_distributions_and_refuses_unknown_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "pa-one", "one", GOOD.format(id="one-method"))
    install(tmp_path, "pa-two", "two", GOOD.format(id="two-method"))
    monkeypatch.syspath_prepend(str(tmp_path))
    host = Host(environment={"POLYADAPT_PLUGINS": "one"})
    assert (states(host)["one"], states(host)["two"]) == ("ok", "skipped")
    assert "two-method" not in host.registry.methods
    with pytest.raises(UserError, match="names the plugin 'onne', which is not installed; did you mean 'one'"):
        Host(environment={"POLYADAPT_PLUGINS": "onne"})


def test_one_plugin_name_from_two_distributions_is_nobodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "pa-left", "same", GOOD.format(id="left-method"))
    install(tmp_path, "pa-right", "same", GOOD.format(id="right-method"))
    monkeypatch.syspath_prepend(str(tmp_path))
    host = Host(environment={})
    errors = [item.error for item in host.plugins() if item.name == "same"]
    assert len(errors) == 2 and all("pa-left 1.2" in error and "pa-right 1.2" in error for error in errors)
    assert "left-method" not in host.registry.methods


def misspelt(register):  # type: ignore[no-untyped-def]
    pass


def wrong_argument(register, cards):  # type: ignore[no-untyped-def]
    pass


def unmarked(register):  # type: ignore[no-untyped-def]
    pass


unmarked.__module__ = "bad"


@pytest.mark.parametrize(
    ("attributes", "cause"),
    [
        ({"polyadapt_regster_methods": hookimpl(misspelt)}, "unknown hook 'polyadapt_regster_methods'; did you mean 'polyadapt_register_methods'"),
        ({"polyadapt_register_methods": hookimpl(wrong_argument)}, "polyadapt_register_methods has no argument 'cards'"),
        ({"polyadapt_register_methods": unmarked}, "is not marked; put @hookimpl"),
        ({"HOOK_API_RANGE": (HOOK_API + 1, HOOK_API + 2)}, "update polyadapt"),
        ({"HOOK_API_RANGE": (HOOK_API - 2, HOOK_API - 1)}, "update the plugin"),
        ({"HOOK_API_RANGE": HOOK_API}, "must be a pair of integers"),
        ({"polyadapt_register_methods": registering("lora")}, "register takes a MethodCard"),
        ({"polyadapt_register_methods": registering(method("twice"), method("twice"))}, "registered method 'twice' twice"),
        ({"polyadapt_register_methods": registering(method(""))}, "without an id"),
        ({"polyadapt_register_methods": registering(method(7))}, "registered a method whose id is 7; MethodCard.id takes str"),  # type: ignore[arg-type]
        ({"polyadapt_register_methods": registering(replace(method("m"), domains="any"))}, "whose domains is 'any'; MethodCard.domains takes tuple[str, ...]"),
        ({"polyadapt_register_methods": registering(replace(method("m"), options=dict))}, "MethodCard.options takes type[Options]"),
        ({"polyadapt_register_families": registering(replace(CARD, classes=None), hook="polyadapt_register_families")}, "family whose classes is None"),
        ({"polyadapt_register_families": registering(replace(CARD, sites={"a": "b"}), hook="polyadapt_register_families")}, "FamilyCard.sites takes Mapping[str, Op]"),
        ({"polyadapt_event": hookimpl(wrapper=True)(misspelt)}, "polyadapt_event cannot be wrapped"),
    ],
)
def test_what_breaks_the_contract_is_said(attributes: dict[str, object], cause: str) -> None:
    host = Host(plugins=[plugin("bad", **attributes), plugin("good", polyadapt_register_methods=registering(method("good")))], discover=False, environment={})
    assert states(host) == {"bad": "failed", "good": "ok"}
    assert cause in host.plugins()[0].error
    assert host.registry.methods.ids() == ["good"]


def test_a_plugin_that_fails_halfway_leaves_nothing_behind() -> None:
    def fail(register):  # type: ignore[no-untyped-def]
        raise RuntimeError("half done")

    heard: list[object] = []
    module = plugin(
        "half",
        polyadapt_register_methods=registering(method("early")),
        polyadapt_register_data=hookimpl(fail),
        polyadapt_event=hookimpl(lambda event: heard.append(event)),
    )
    host = Host(plugins=[module], discover=False, environment={})
    assert host.registry.methods.ids() == []
    assert host.plugins()[0].error == "RuntimeError: half done"
    host.event({"kind": "step"})
    assert heard == []


def test_a_clash_makes_the_id_unusable_and_names_both_owners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "pa-first", "first", GOOD.format(id="clashing"))
    install(tmp_path, "pa-second", "second", GOOD.format(id="clashing"))
    monkeypatch.syspath_prepend(str(tmp_path))
    host = Host(environment={})
    with pytest.raises(PluginError, match=r"method 'clashing' is claimed by the plugins 'first' \(pa-first 1\.2\) and 'second' \(pa-second 1\.2\)") as caught:
        host.registry.methods.get("clashing")
    assert caught.value.exit_code == 2
    assert "clashing" not in host.registry.methods.ids()
    assert len(host.registry.clashes()) == 1
    assert states(host)["first"] == states(host)["second"] == "ok"


def test_references_go_to_the_most_exact_card_and_never_around_a_clash() -> None:
    def model(reference: str) -> ModelCard:
        return ModelCard(reference, "t", "features", "f", Options, "nowhere:load")

    left = plugin("left", polyadapt_register_models=registering(model("toy:"), model("toy:exact"), model("twice:"), hook="polyadapt_register_models"))
    right = plugin("right", polyadapt_register_models=registering(model("toy:taken"), model("twice:"), hook="polyadapt_register_models"))
    registry = Host(plugins=[left, right], discover=False, environment={}).registry
    assert registry.model("toy:exact?seed=1").card.reference == "toy:exact"
    assert registry.model("toy:taken").plugin.name == "right"
    assert registry.model("toy:anything").card.reference == "toy:"
    with pytest.raises(PluginError, match="twice"):
        registry.model("twice:x")
    with pytest.raises(UserError, match="did you mean 'toy:'"):
        registry.model("toys:x")

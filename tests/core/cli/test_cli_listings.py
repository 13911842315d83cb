"""Listings: the documented keys, filters, and one card in full."""

from __future__ import annotations

import json
from typing import Any

import pytest

from polyadapt.cli import main


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("command", "keys"),
    [
        ("plugins", ["name", "distribution", "version", "state", "error"]),
        ("methods", ["id", "title", "kind", "domains", "families", "exports", "paper", "plugin"]),
        ("models", ["reference", "task", "parameters", "licence", "offline", "plugin"]),
        ("families", ["id", "title", "media", "architecture", "tasks", "libraries", "plugin"]),
        ("readers", ["scheme", "title", "tasks", "licence", "plugin"]),
    ],
)
def test_every_listing_has_its_documented_keys(capsys: pytest.CaptureFixture[str], command: str, keys: list[str]) -> None:
    rows = listed(capsys, command)
    assert rows and all(list(row) == keys for row in rows)
    assert main([command]) == 0
    table = capsys.readouterr().out
    assert all(row[keys[0]] in table for row in rows)


def test_every_installed_plugin_is_ok(capsys: pytest.CaptureFixture[str]) -> None:
    assert {row["name"]: row["error"] for row in listed(capsys, "plugins") if row["state"] != "ok"} == {}


def test_the_domain_filter_keeps_what_fits_any_domain(capsys: pytest.CaptureFixture[str]) -> None:
    everything = listed(capsys, "methods")
    text = {row["id"] for row in listed(capsys, "methods", "--domain", "text")}
    assert text == {row["id"] for row in everything if {"text", "any"} & set(row["domains"])}
    assert "lora" in text


def test_show_tells_options_with_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    (card,) = listed(capsys, "show", "lora")
    rank = next(row for row in card["options"] if row["name"] == "rank")
    assert (card["sort"], card["plugin"], rank["default"], rank["type"]) == ("method", "core", 8, "int")
    assert main(["show", "lora"]) == 0
    assert "rank" in capsys.readouterr().out


def test_show_finds_a_scheme_by_any_of_its_references(capsys: pytest.CaptureFixture[str]) -> None:
    for uri, scheme in (("folder:photos", "folder"), ("data:tux-paint-digits?language=de", "data:tux-paint-digits")):
        (card,) = listed(capsys, "show", uri)
        assert (card["sort"], card["scheme"]) == ("reader", scheme)
    (card,) = listed(capsys, "show", "timm:resnet18")
    assert (card["sort"], card["reference"]) == ("model", "timm:")


def test_show_knows_plugins_and_families(capsys: pytest.CaptureFixture[str]) -> None:
    assert listed(capsys, "show", "core")[0]["sort"] == "plugin"
    assert "block.{n}.attn.q" in listed(capsys, "show", "vit")[0]["sites"]

"""What the pages say exists: generated parts are current, recipes are valid, commands, targets and links are real."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from polyadapt.cli.app import COMMANDS
from polyadapt.host import Host
from polyadapt.recipe import parse_recipe

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("*.md", "docs/**/*.md", "examples/**/*.md", "plugins/*/README.md", "exporters/runtime/README.md")
PAGES = sorted(path for pattern in PLACES for path in ROOT.glob(pattern) if "node_modules" not in path.parts)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(*languages: str) -> Iterator[tuple[str, str]]:
    """Fenced blocks of the given languages with where they stand."""
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        for found in re.finditer(r"^```([a-z]*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            if found[1] in languages:
                yield f"{name_of(path)}:{text.count(chr(10), 0, found.start()) + 1}", found[2]


def spoken(pattern: str) -> list[tuple[str, str]]:
    """What a pattern captures in code, fenced or inline, with the page it is on."""
    found = []
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        code = [*re.findall(r"^```[a-z]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL), *re.findall(r"`([^`\n]+)`", text)]
        found += [(name_of(path), hit) for piece in code for hit in re.findall(pattern, piece, re.MULTILINE)]
    return found


@pytest.fixture(scope="module")
def host() -> Host:
    return Host(environment={"POLYADAPT_PLUGINS": "core,onnx,speech,vision,text,robotics", "POLYADAPT_STRICT": "1"})


def test_generated_parts_are_current() -> None:
    result = subprocess.run([sys.executable, ROOT / "tools" / "docs.py", "--check"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(("place", "text"), list(blocks("python")))
def test_python_blocks_are_python(place: str, text: str) -> None:
    ast.parse(text, filename=place)


@pytest.mark.parametrize(("place", "text"), [(place, text) for place, text in blocks("toml") if re.match(r"format = \d", text)])
def test_recipes_are_valid_and_name_what_exists(place: str, text: str, host: Host) -> None:
    recipe = parse_recipe(tomllib.loads(text), place)
    host.registry.model(recipe.model.reference)
    host.registry.reader(recipe.data.uri)
    for arm in recipe.arm:
        card = host.registry.methods.get(arm.method).card
        assert set(arm.method_options()) <= set(card.options.model_fields), place


def test_commands_exist() -> None:
    said = spoken(r"^(?:\$ )?polyadapt ([a-z][a-z-]+)")
    assert said
    known = {*COMMANDS, "my-lab", "speech", "vision", "text", "robotics"}
    assert [(page, command) for page, command in said if command not in known] == []


def test_make_targets_exist() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", text, re.MULTILINE))
    said = spoken(r"^(?:\$ )?make ([a-z][a-z-]*)")
    assert said
    assert [(page, target) for page, target in said if target not in targets] == []


def test_every_make_target_is_phony() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = set(re.search(r"^\.PHONY: (.+)$", text, re.MULTILINE)[1].split())  # type: ignore[index]
    assert phony == set(re.findall(r"^([a-z-]+):", text, re.MULTILINE))


def test_references_in_pages_exist(host: Host) -> None:
    said = spoken(r"(polyadapt:[a-z0-9][a-z0-9.-]*[a-z0-9])")
    assert said
    known = set(host.registry.models.ids())
    assert [(page, reference) for page, reference in said if reference not in known] == []


def test_data_sets_in_pages_exist(host: Host) -> None:
    """A set of its own is named whole: `data:sonic-pi:` would be refused."""
    said = spoken(r"(?<![\w/])(data:[a-z0-9][a-z0-9-]*:?)")
    assert said
    known = set(host.registry.readers.ids())
    assert [(page, uri) for page, uri in said if uri not in known] == []


def test_links_lead_somewhere() -> None:
    """A page of the site cannot link to a file beside the site: it is a page that is not found there."""
    dead = []
    for path in PAGES:
        text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        site = ROOT / "docs" if (ROOT / "docs") in path.parents else ROOT
        for target in re.findall(r"\]\(([^)#\s]+)", text):
            if re.match(r"[a-z]+:", target):
                continue
            led = (path.parent / target).resolve()
            if not led.exists() or not led.is_relative_to(site):
                dead.append(f"{name_of(path)}: {target}")
    assert not dead, "\n".join(dead)

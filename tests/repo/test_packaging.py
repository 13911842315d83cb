"""Six distributions: what they declare, what they import, what their wheels hold."""

from __future__ import annotations

import ast
import functools
import re
import sys
import tomllib
import zipfile
from collections.abc import Mapping
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("hatchling", reason="builds wheels; run: make setup")

from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from polyadapt.cli.doctor import LIBRARIES
from polyadapt.host import Host

ROOT = Path(__file__).resolve().parents[2]
DOMAINS = ("speech", "vision", "text", "robotics")
FOLDERS = {"polyadapt": ".", "polyadapt-runtime": "exporters/runtime", **{f"polyadapt-{name}": f"plugins/{name}" for name in DOMAINS}}
PACKAGES = {
    "polyadapt": ("core/polyadapt", "exporters/onnx/polyadapt_onnx"),
    "polyadapt-runtime": ("exporters/runtime/polyadapt_runtime",),
    **{f"polyadapt-{name}": (f"plugins/{name}/polyadapt_{name}",) for name in DOMAINS},
}
UNPINNED = {"onnxruntime-gpu"}
"""Not part of the tested set: the GPU engine, which replaces the pinned one."""
USED_WITHOUT_IMPORT = {
    "polyadapt-runtime", "onnxscript", "torchvision", "mkdocs", "mkdocs-material", "editables", "hatchling", "import-linter", "mypy", "ruff",
    "pytest-socket", "pytest-xdist", "gguf", "tokenizers", "pyopenssl",
}  # fmt: skip
"""What another library, pytest or the Makefile loads by itself."""


def project(name: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / FOLDERS[name] / "pyproject.toml").read_text(encoding="utf-8"))


@functools.cache
def requirements(name: str) -> list[Requirement]:
    """Dependencies and every extra of one distribution."""
    table = project(name)["project"]
    lines = [*table.get("dependencies", ()), *(line for extra in table.get("optional-dependencies", {}).values() for line in extra)]
    return [Requirement(line) for line in lines]


@functools.cache
def distributions() -> Mapping[str, list[str]]:
    """Distributions by the modules they bring: the installed ones, and ours, which may be installed in place."""
    return {**packages_distributions(), **{Path(package).name: [name] for name, packages in PACKAGES.items() for package in packages}}


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines if line and not line.startswith("#")}


@functools.cache
def imported(folder: str) -> dict[str, str]:
    """Top-level modules that a package imports, by statement or by name, with one place for each."""
    found: dict[str, str] = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("import_module", "importorskip", "library") and node.args:
                names = [node.args[0].value] if isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str) else []
            for name in names:
                found.setdefault(name.split(".")[0], f"{path.relative_to(ROOT)}:{node.lineno}")
    return {name: place for name, place in found.items() if name not in sys.stdlib_module_names and name != "__future__"}


def extras_of(call: ast.Call) -> list[str]:
    """Extras that a call names: the second argument of the error for a missing library, or `extra=` of a card."""
    name = ast.unparse(call.func).rpartition(".")[2]
    values = [keyword.value for keyword in call.keywords if keyword.arg == "extra"] if name.endswith("Card") else []
    if name in ("MissingExtraError", "MissingLibraryError"):
        values = call.args[1:2]
    return [value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str) and value.value]


def test_versions_licences_and_pythons_agree() -> None:
    tables = {name: project(name)["project"] for name in FOLDERS}
    assert {name: table["name"] for name, table in tables.items()} == {name: name for name in FOLDERS}
    assert len({table["version"] for table in tables.values()}) == 1
    assert {table["requires-python"] for table in tables.values()} == {">=3.11"}
    assert {table["license"] for table in tables.values()} == {"Apache-2.0"}
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert {name for name, folder in FOLDERS.items() if (ROOT / folder / "LICENSE").read_text(encoding="utf-8") != licence} == set()


def test_families_name_the_ranges_of_their_libraries() -> None:
    table = project("polyadapt")["project"]
    declared = {line.split(">=")[0]: f">={line.split('>=')[1]}" for lines in (table["dependencies"], *table["optional-dependencies"].values()) for line in lines if ">=" in line}
    for claim in Host(environment={"POLYADAPT_PLUGINS": "core"}).registry.families.claims():
        assert dict(claim.card.libraries) == {name: declared[name] for name in claim.card.libraries}, claim.card.id


def test_modules_state_the_version_of_their_distribution() -> None:
    for name, packages in PACKAGES.items():
        text = (ROOT / packages[0] / "__init__.py").read_text(encoding="utf-8")
        assert re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)[1] == project(name)["project"]["version"], name  # type: ignore[index]


@pytest.mark.parametrize("name", FOLDERS)
def test_every_import_is_declared(name: str) -> None:
    declared = {canonicalize_name(requirement.name) for requirement in requirements(name)}
    ours = {canonicalize_name(other) for other in FOLDERS}
    reached = set(declared)
    for other in ours & declared:  # a plugin may use what its host declares, extras included
        reached |= {canonicalize_name(requirement.name) for requirement in requirements(other)}
    known = distributions()
    own = {Path(package).name for package in PACKAGES[name]}
    missing = []
    for package in PACKAGES[name]:
        for module, place in imported(package).items():
            brought_by = {canonicalize_name(distribution) for distribution in known.get(module, [module])}
            if module not in own and not brought_by & reached:
                missing.append(f"{place} imports {module}, which {name} does not declare")
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize("name", FOLDERS)
def test_every_dependency_is_used(name: str) -> None:
    modules = {module for package in PACKAGES[name] for module in imported(package)} | set(imported("tests"))
    known = distributions()
    used = {canonicalize_name(distribution) for module in modules for distribution in known.get(module, [module])}
    declared = {canonicalize_name(requirement.name) for requirement in requirements(name)}
    assert declared - used - USED_WITHOUT_IMPORT - UNPINNED - {"polyadapt"} == set()


def test_the_tested_set_fits_the_ranges() -> None:
    pins = constraints()
    wrong = []
    for name in FOLDERS:
        for requirement in requirements(name):
            key = canonicalize_name(requirement.name)
            if key in FOLDERS or key in UNPINNED:
                continue
            if key not in pins:
                wrong.append(f"{name}: {requirement} is not in constraints.txt")
            elif not requirement.specifier.contains(pins[key]):
                wrong.append(f"{name}: {requirement} leaves out the tested {pins[key]}")
    assert not wrong, "\n".join(wrong)


def test_the_tested_set_is_plain_pins() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line)] == []
    assert {name: constraints()[name] for name in ("torch", "torchvision", "torchaudio")} == {"torch": "2.11.0", "torchvision": "0.26.0", "torchaudio": "2.11.0"}


def test_the_runtime_needs_numpy_alone() -> None:
    table = project("polyadapt-runtime")["project"]
    assert [Requirement(line).name for line in table["dependencies"]] == ["numpy"]
    engines = {extra: [Requirement(line).name for line in table["optional-dependencies"][extra]] for extra in ("cpu", "gpu")}
    assert engines == {"cpu": ["onnxruntime"], "gpu": ["onnxruntime-gpu"]}


def test_plugins_depend_on_the_host_and_on_no_other_plugin() -> None:
    for domain in DOMAINS:
        names = {canonicalize_name(requirement.name) for requirement in requirements(f"polyadapt-{domain}")}
        assert names & set(FOLDERS) == {"polyadapt"}


@pytest.mark.parametrize("name", FOLDERS)
def test_extras_that_messages_name_exist(name: str) -> None:
    """`pip install 'polyadapt[x]'` in an error must work."""
    named: dict[tuple[str, str], str] = {}
    own = "polyadapt-runtime" if name == "polyadapt-runtime" else "polyadapt"
    for package in PACKAGES[name]:
        for path in sorted((ROOT / package).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Call):
                    named.update({(own, extra): f"{path.relative_to(ROOT)}:{node.lineno}" for extra in extras_of(node)})
            for distribution, extras in re.findall(r"pip install '?(polyadapt[a-z-]*)\[([\w,-]+)\]", text):
                named.update({(distribution, extra): str(path.relative_to(ROOT)) for extra in extras.split(",")})
    known = {other: set(project(other)["project"].get("optional-dependencies", {})) for other in FOLDERS}
    assert {key: place for key, place in named.items() if key[1] not in known[key[0]]} == {}


def test_doctor_names_the_extra_that_brings_a_library() -> None:
    table = project("polyadapt")["project"]
    always = {canonicalize_name(Requirement(line).name) for line in table["dependencies"]} | {"polyadapt"}
    extras = {name: {canonicalize_name(Requirement(line).name) for line in lines} for name, lines in table["optional-dependencies"].items()}
    engines = project("polyadapt-runtime")["project"]["optional-dependencies"]
    extras.update({name: {Requirement(line).name for line in engines[name]} for name in ("cpu", "gpu")})
    wrong = {library: extra for library, extra in LIBRARIES.items() if library not in (extras.get(extra, set()) if extra else always)}
    assert wrong == {}


def test_the_extra_of_a_family_brings_its_libraries() -> None:
    extras = {name: {canonicalize_name(Requirement(line).name) for line in lines} for name, lines in project("polyadapt")["project"]["optional-dependencies"].items()}
    for claim in Host(environment={"POLYADAPT_PLUGINS": "core"}).registry.families.claims():
        needed = {canonicalize_name(library) for library in claim.card.libraries} - {"torch"}
        assert needed <= extras.get(claim.card.extra, set()), f"family {claim.card.id}: extra {claim.card.extra!r} does not bring {sorted(needed)}"


@pytest.mark.parametrize("name", FOLDERS)
def test_wheels_hold_the_package_its_types_and_its_licence(name: str, tmp_path: Path) -> None:
    (built,) = WheelBuilder(str(ROOT / FOLDERS[name])).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(built) as wheel:
        members = wheel.namelist()
        metadata = wheel.read(next(member for member in members if member.endswith("/METADATA"))).decode()
        entries = wheel.read(next(member for member in members if member.endswith("/entry_points.txt"))).decode() if name != "polyadapt-runtime" else ""
    packages = {Path(package).name for package in PACKAGES[name]}
    assert {member.split("/")[0] for member in members if ".dist-info/" not in member} == packages
    for package in PACKAGES[name]:
        top = Path(package).name
        sources = {f"{top}/{path.relative_to(ROOT / package)}" for path in (ROOT / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts}
        assert sources <= set(members)
        assert f"{top}/py.typed" in members
    assert any(member.endswith(".dist-info/licenses/LICENSE") for member in members)
    assert "License-Expression: Apache-2.0" in metadata
    assert not re.search(r"^Requires-Dist: .*( @ |file:)", metadata, re.MULTILINE)
    assert ("[polyadapt]" in entries) == (name != "polyadapt-runtime")


@pytest.mark.parametrize("name", [name for name in FOLDERS if name != "polyadapt-runtime"])
def test_entry_points_name_modules_that_exist(name: str) -> None:
    homes = {Path(package).name: ROOT / package for packages in PACKAGES.values() for package in packages}
    for module in project(name)["project"]["entry-points"]["polyadapt"].values():
        top, _, rest = module.partition(".")
        assert (homes[top] / f"{rest.replace('.', '/')}.py").is_file(), module

"""The house rules that a newcomer relies on: sizes, names, and what never appears."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (
    "core/polyadapt",
    "exporters/onnx/polyadapt_onnx",
    "exporters/runtime/polyadapt_runtime",
    "tools",
    *(f"plugins/{d}/polyadapt_{d}" for d in ("speech", "vision", "text", "robotics")),
)
LONGEST_FILE, LONGEST_CLASS, LONGEST_FUNCTION = 600, 200, 60


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py") if "node_modules" not in path.parts)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def trees(*folders: str) -> Iterator[tuple[Path, ast.Module]]:
    for path in python_files(*folders):
        yield path, parse(path)


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def test_files_classes_and_functions_stay_short() -> None:
    too_long = []
    for path, tree in trees(*SOURCES, "tests"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > LONGEST_FILE:
            too_long.append(f"{relative(path)}: {lines} lines")
        for node in ast.walk(tree):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > (LONGEST_CLASS if isinstance(node, ast.ClassDef) else LONGEST_FUNCTION):
                    too_long.append(f"{relative(path)}:{node.lineno} {node.name}: {length} lines")
    assert not too_long, "\n".join(too_long)


def test_test_files_have_unique_names_and_no_packages() -> None:
    files = python_files("tests")
    names: dict[str, list[str]] = {}
    for path in files:
        if path.name != "conftest.py":
            names.setdefault(path.name, []).append(relative(path))
    assert not [paths for paths in names.values() if len(paths) > 1]
    assert not [relative(path) for path in files if path.name == "__init__.py"]


def test_tests_mirror_the_tree() -> None:
    rooms = {"core", "exporters", "plugins", "data", "e2e", "gpu", "repo", "examples"}
    assert {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"} <= rooms
    plugins = {path.name for path in (ROOT / "plugins").iterdir() if path.is_dir()}
    tested = ROOT / "tests" / "plugins"
    assert {path.name for path in tested.iterdir() if path.is_dir() and path.name != "__pycache__"} <= plugins if tested.is_dir() else True


@pytest.mark.parametrize("folder", [folder for folder in SOURCES if folder != "tools"])
def test_every_folder_of_a_package_is_a_package_with_types(folder: str) -> None:
    top = ROOT / folder
    assert (top / "py.typed").is_file()
    missing = {relative(path.parent) for path in top.rglob("*.py") if not (path.parent / "__init__.py").is_file()}
    assert not missing


def test_every_module_says_what_it_is_for() -> None:
    silent = [relative(path) for path, tree in trees(*SOURCES) if not ast.get_docstring(tree)]
    assert not silent


def test_nothing_is_unpickled() -> None:
    found = []
    for path, tree in trees(*SOURCES, "examples", "benchmarks"):
        for node in ast.walk(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                if {module.split(".")[0] for module in modules} & {"dill", "cloudpickle", "joblib", "shelve", "marshal"}:
                    found.append(f"{relative(path)}:{node.lineno} imports a pickler")
            if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("pickle.") and not node.attr.endswith("Error"):
                found.append(f"{relative(path)}:{node.lineno} uses pickle")
            if isinstance(node, ast.ImportFrom) and node.module == "pickle":
                found.append(f"{relative(path)}:{node.lineno} imports from pickle")
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                switches = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                if switches.get("weights_only") != "True":
                    found.append(f"{relative(path)}:{node.lineno} torch.load without weights_only=True")
            if isinstance(node, ast.Call) and any(keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False" for keyword in node.keywords):
                found.append(f"{relative(path)}:{node.lineno} allow_pickle")
    assert not found, "\n".join(found)


def test_library_code_never_seeds_globally() -> None:
    """`torch.manual_seed` stands only inside `with torch.random.fork_rng(...)`: libraries that draw their own weights leave no other way."""
    found = []
    for path, tree in trees(*(folder for folder in SOURCES if folder != "tools")):
        forked = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.With) and any("fork_rng" in ast.unparse(item.context_expr) for item in node.items)
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and id(node) not in forked:
                name = ast.unparse(node.func)
                if name in ("torch.manual_seed", "torch.seed", "np.random.seed", "numpy.random.seed", "random.seed", "set_seed"):
                    found.append(f"{relative(path)}:{node.lineno} {name}")
    assert not found, "\n".join(found)


def test_no_file_names_a_machine_or_leaves_work_for_later() -> None:
    machine = re.compile(r"(?<![\w.\-/*])/(?:root|work|Users|home(?!/jane))/[\w.]")
    later = re.compile(r"\b(?:TODO|FIXME|XXX)\b")
    suffixes = {".py", ".md", ".toml", ".yml", ".txt", ".sh", ".json", ".html", ".js", ".mjs", ".css"}
    found = []
    for folder in (*SOURCES, "tests", "docs", "examples", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix not in suffixes or path == Path(__file__).resolve() or {"runs", "node_modules"} & set(path.parts):
                continue
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
                if machine.search(line) or later.search(line):
                    found.append(f"{relative(path)}:{number}: {line.strip()[:120]}")
    assert not found, "\n".join(found)

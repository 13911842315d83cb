"""`polyadapt new-plugin NAME`: a plugin that installs, registers a method and a model, and passes its check."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import click

from polyadapt.errors import UserError
from polyadapt.files import replacing_directory

# Template in the package -> path in the plugin; `PACKAGE` stands for the plugin's own package.
TEMPLATES = {
    "pyproject.toml.txt": "pyproject.toml",
    "README.md.txt": "README.md",
    "init.py.txt": "PACKAGE/__init__.py",
    "entry.py.txt": "PACKAGE/entry.py",
    "cards.py.txt": "PACKAGE/cards.py",
    "method.py.txt": "PACKAGE/method.py",
    "model.py.txt": "PACKAGE/model.py",
    "test_plugin.py.txt": "tests/test_PLUGIN.py",
}
RESERVED = ("core", "onnx", "module", "polyadapt", "data", "timm", "hf", "torchaudio", "diffusers")


@click.command()
@click.argument("name")
@click.option("--directory", type=click.Path(path_type=Path), help="Where to write it (default: polyadapt-NAME).")
def new_plugin(name: str, directory: Path | None) -> None:
    """Write a plugin called NAME: lower-case letters, digits and single hyphens."""
    target = directory or Path(f"polyadapt-{name}")
    write_plugin(name, target)
    click.echo(f"wrote {target}\nnext:  pip install -e {target}   then:  polyadapt plugins   and:  polyadapt plan {name}:tiny {name}-gain")


def render(name: str) -> dict[str, str]:
    """Every file of the plugin by its path.

    Args:
        name: the plugin's name.

    Raises:
        UserError: the name cannot be a plugin's.
    """
    from polyadapt.cli.app import COMMANDS

    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise UserError(f"plugin name {name!r}: expected lower-case letters, digits and single hyphens, for instance 'my-lab'")
    if name in COMMANDS or name in RESERVED:
        raise UserError(f"plugin name {name!r} is used by polyadapt itself; choose another")
    package = f"polyadapt_{name.replace('-', '_')}"
    folder = files("polyadapt.cli") / "template"
    rendered = {}
    for template, path in TEMPLATES.items():
        text = (folder / template).read_text(encoding="utf-8")
        text = text.replace("{{name}}", name).replace("{{package}}", package)
        rendered[path.replace("PACKAGE", package).replace("PLUGIN", package)] = text
    return rendered


def write_plugin(name: str, target: Path) -> None:
    """Write the plugin's folder, whole or not at all.

    Raises:
        UserError: the name cannot be a plugin's, or the folder exists.
    """
    rendered = render(name)
    if target.exists():
        raise UserError(f"{target} exists already; choose another name, give --directory, or remove it")
    with replacing_directory(target) as staging:
        for path, text in rendered.items():
            (staging / path).parent.mkdir(parents=True, exist_ok=True)
            (staging / path).write_text(text, encoding="utf-8")

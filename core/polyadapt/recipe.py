"""Recipes: a whole job in one TOML file, read strictly.

format = 1
seed = 0

[model]
reference = "polyadapt:efficientnet-lite0"

[data]
uri = "folder:photos"

[[arm]]
name = "lora"
method = "lora"
options = { rank = 8 }

[export]
form = "slots"
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field

from polyadapt.errors import UserError, nearest
from polyadapt.options import Options, read_options

FORMAT = 1
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
FORMS = ("slots", "merged", "bank")


class ModelSection(Options):
    """`[model]`: what is adapted."""

    reference: str = Field(description="model reference, such as timm:NAME")
    task: str = Field("", description="what the model is asked to do; empty for the reference's own")
    options: dict[str, Any] = Field(default_factory=dict, description="options of the reference")


class DataSection(Options):
    """`[data]`: what it is adapted to."""

    uri: str = Field(description="scheme:rest, such as folder:photos or csv:rows.csv")
    columns: dict[str, str] = Field(default_factory=dict, description="part to column name, for readers of tables")
    options: dict[str, Any] = Field(default_factory=dict, description="options of the reader")
    split: dict[str, Any] = Field(default_factory=dict, description="by, seed, fractions and counts per class")


class ArmSection(Options):
    """`[[arm]]`: one method with its options."""

    name: str = Field(description="letters, digits, - and _; names the artifact in the run and in the bundle")
    method: str = Field(description="id of a method")
    options: dict[str, Any] = Field(default_factory=dict, description="options of the method")
    sites: tuple[str, ...] = Field((), description="globs over sites; the method's own when empty")
    train: dict[str, Any] = Field(default_factory=dict, description="training settings of this arm alone, over those of [train]")
    role: Literal["arm", "baseline"] = Field("arm", description="a baseline is measured and compared, and stays out of the bundle")
    model: dict[str, Any] = Field(default_factory=dict, description="options of the reference for this baseline alone, such as pretrained = false")

    def method_options(self) -> dict[str, Any]:
        """The options with the sites among them."""
        return {**self.options, **({"sites": list(self.sites)} if self.sites else {})}


class EvaluateSection(Options):
    """`[evaluate]`: what is measured, and against what."""

    metrics: tuple[str, ...] = Field((), description="metrics; those of the task when empty")
    baselines: tuple[str, ...] | None = Field(None, description="frozen (the base as it is), majority, mean, or a method's id such as linear-probe; by default what suits the task")


class ExportSection(Options):
    """`[export]`: what is written at the end."""

    form: str = Field("slots", description="slots, merged or bank")
    directory: str = Field("bundle", description="folder of the bundle inside the run's directory")
    target: str = Field("onnx", description="name of the plugin that exports")
    options: dict[str, Any] = Field(default_factory=dict, description="further options of the target")


class Recipe(Options):
    """A job. `export` is None when the recipe has no such section: then nothing is exported."""

    format: int = Field(description=f"always {FORMAT}")
    name: str = Field("", description="shown in the report; the file's name when empty")
    seed: int = Field(0, ge=0, lt=2**63, description="of training, of the split and of intervals, where [train] and [data.split] give none of their own")
    model: ModelSection
    data: DataSection
    arm: tuple[ArmSection, ...]
    train: dict[str, Any] = Field(default_factory=dict)
    evaluate: EvaluateSection = EvaluateSection()
    export: ExportSection | None = None

    @property
    def digest(self) -> str:
        """sha256 of what decides what is trained and measured: two runs with equal digests are the same job, whatever is exported of it."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json", exclude={"name", "export"}), sort_keys=True).encode()).hexdigest()


SectionT = TypeVar("SectionT", bound=Options)


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe file.

    Raises:
        UserError: no such file, no TOML, an unknown key (with the nearest known one), or a value that does not fit.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"recipe {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"recipe {path} is not a text file in UTF-8 ({error})") from error
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"recipe {path} is not TOML: {error}") from error
    return parse_recipe(table, str(path), Path(path).stem)


def parse_recipe(table: Mapping[str, Any], where: str = "recipe", name: str = "recipe") -> Recipe:
    """Check the content of a recipe.

    Args:
        table: as TOML gives it.
        where: named in errors.
        name: used when the recipe has none.

    Raises:
        UserError: as `read_recipe`.
    """
    for key in table:
        if key not in Recipe.model_fields:
            raise UserError(f"{where} has no key {key!r}{nearest(key, Recipe.model_fields)}")
    if table.get("format") != FORMAT:
        found = f"found format = {table['format']!r}" if "format" in table else "found none"
        raise UserError(f"{where}: expected format = {FORMAT}, {found}; write format = {FORMAT} on the first line")
    for section in ("model", "data", "arm"):
        if not table.get(section):
            raise UserError(f"{where} has no [{section}]; a recipe needs [model], [data] and at least one [[arm]]")
    sections = {
        "model": _section(ModelSection, table["model"], f"{where} [model]"),
        "data": _section(DataSection, table["data"], f"{where} [data]"),
        "evaluate": _section(EvaluateSection, table.get("evaluate", {}), f"{where} [evaluate]"),
        "export": _section(ExportSection, table["export"], f"{where} [export]") if "export" in table else None,
        "arm": _arms(table["arm"], where),
    }
    named = {"name": name} if table.get("name", "") == "" else {}
    return read_options(Recipe, {**table, **named, **sections}, where)


def _section(cls: type[SectionT], value: Any, where: str) -> SectionT:
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: expected a table, found {value!r}")
    section = read_options(cls, value, where)
    if isinstance(section, ExportSection):
        _check_export(section, where)
    return section


def _arms(value: Any, where: str) -> tuple[ArmSection, ...]:
    if not isinstance(value, list):
        raise UserError(f"{where}: [arm] must be written [[arm]], once for each method")
    arms = tuple(_section(ArmSection, arm, f"{where} [[arm]] {position}") for position, arm in enumerate(value, 1))
    seen: set[str] = set()
    for arm in arms:
        if not NAME.fullmatch(arm.name):
            raise UserError(f"{where}: arm name {arm.name!r}; expected letters, digits, - and _")
        if arm.name in seen:
            raise UserError(f"{where}: two arms are called {arm.name!r}; rename one")
        if arm.sites and "sites" in arm.options:
            raise UserError(f"{where}: arm {arm.name!r} gives sites twice, in `sites` and in `options`; keep one")
        seen.add(arm.name)
    return arms


def _check_export(section: ExportSection, where: str) -> None:
    if section.form not in FORMS:
        raise UserError(f"{where}: unknown form {section.form!r}{nearest(section.form, FORMS)}")
    if section.options.get("layout", "bundle") != "bundle":
        raise UserError(
            f"{where}: a run proves and measures a bundle; leave layout out, and make a repository of the run's artifacts by polyadapt export --layout {section.options['layout']}"
        )
    folder = Path(section.directory)
    if folder.is_absolute() or ".." in folder.parts or not section.directory:
        raise UserError(f"{where}: directory {section.directory!r}; expected a path inside the run's directory")

"""Run a recipe: load, split, adapt every arm, evaluate, export, verify, report."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from polyadapt.data.dataset import Dataset
from polyadapt.data.split import Parts, split_data
from polyadapt.errors import ExportError, UserError, unknown
from polyadapt.evaluation.evaluation import Evaluation, compare
from polyadapt.evaluation.interval import Comparison
from polyadapt.evaluation.metrics import default_metric, metric
from polyadapt.files import read_json, write_json
from polyadapt.hookspecs import Event
from polyadapt.host import Host
from polyadapt.job.arms import Arm, Bench, arms_of
from polyadapt.job.directory import RunDirectory, open_directory
from polyadapt.job.variants import bundle_evaluator
from polyadapt.model import Model
from polyadapt.options import read_options
from polyadapt.recipe import DataSection, ExportSection, Recipe
from polyadapt.report import ArmResult, RunResult, write_report
from polyadapt.report.examples import pick_examples
from polyadapt.training.processes import find_processes
from polyadapt.training.settings import TrainSettings
from polyadapt_runtime.fields import OWN_CASES

LIBRARIES = ("polyadapt", "torch", "timm", "transformers", "torchaudio", "diffusers", "onnx", "onnxruntime", "numpy")
LATENCY_CALLS = 10


@dataclass(frozen=True)
class Prepared:
    """What every way of running a recipe begins with."""

    model: Model
    dataset: Dataset
    parts: Parts
    arms: tuple[Arm, ...]
    metrics: tuple[str, ...]


def prepare(recipe: Recipe, host: Host, allow_download: bool = False, has_export: bool = True) -> Prepared:
    """Load the model, read and split the data, and check everything that can be checked before training.

    Args:
        recipe: read and checked.
        host: whose plugins do the work.
        allow_download: whether the model's library may use the network.
        has_export: False leaves the export out, whatever the recipe says.

    Raises:
        UserError: anything in the recipe that does not fit.
    """
    for name in recipe.evaluate.metrics:
        metric(name)
    for settings in (recipe.train, *({**recipe.train, **arm.train} for arm in recipe.arm)):
        read_options(TrainSettings, settings, "recipe [train]")
    base = host.registry.model(recipe.model.reference).card
    for arm in recipe.arm:
        read_options(base.options, {**recipe.model.options, **arm.model}, f"arm {arm.name!r}, model {recipe.model.reference!r}")
        card = host.registry.methods.get(arm.method).card
        read_options(card.options, arm.method_options(), f"arm {arm.name!r}, method {arm.method!r}")
    if has_export and recipe.export is not None:
        _check_export(recipe, recipe.export, host)
    model = host.load(recipe.model.reference, model_options(recipe, host, allow_download))
    dataset = host.open_dataset(recipe.data.uri, data_options(recipe.data, host))
    parts = split_data(dataset, {"seed": recipe.seed, **recipe.data.split}, not model.task.transcribes)
    metrics = recipe.evaluate.metrics or (model.task.metric or default_metric(model.task.kind),)
    return Prepared(model, dataset, parts, tuple(arms_of(recipe, model, dataset, host)), metrics)


def _check_export(recipe: Recipe, section: ExportSection, host: Host) -> None:
    """Refuse an export that training would only lead up to.

    Raises:
        UserError: an unknown target, a method that does not take the form, or several arms for a form that holds one.
    """
    targets = host.targets()
    if section.target not in targets:
        raise unknown("export target", section.target, targets)
    arms = [arm for arm in recipe.arm if arm.role == "arm"]
    for arm in arms:
        if arm.name in OWN_CASES:
            raise UserError(f"recipe [export]: a bundle calls a case of its own proof {arm.name!r}, so no arm of it can be called that; rename the arm")
        forms = host.registry.methods.get(arm.method).card.exports
        if section.form not in forms:
            found, remedy = (f"as {' or '.join(forms)} only", f"set form = {forms[0]!r}, ") if forms else ("into no graph", "")
            raise UserError(
                f"recipe [export] asks for form {section.form!r}, and method {arm.method!r} of arm {arm.name!r} exports {found}; "
                f"{remedy}give the arm role = 'baseline', or leave [export] out"
            )
    if section.form == "merged" and len(arms) > 1:
        names = ", ".join(arm.name for arm in arms)
        raise UserError(f"recipe [export]: form 'merged' bakes in exactly one arm, found {len(arms)} ({names}); set form = 'slots', or give the others role = 'baseline'")


def run_recipe(
    recipe: Recipe,
    root: Path,
    host: Host,
    *,
    resume: bool = False,
    examples: bool = True,
    allow_download: bool = False,
    has_export: bool = True,
    emit: Callable[[Event], None] = lambda event: None,
) -> RunResult | None:
    """Do what a recipe says. Under a launcher of several processes the main one alone measures, writes and answers.

    Args:
        recipe: read and checked.
        root: directory of the run.
        host: whose plugins do the work.
        resume: go on with what is in `root`: finished arms are kept, training goes on from its checkpoints.
        examples: whether the report shows single examples.
        allow_download: whether the model's library may use the network.
        has_export: False leaves the export out, whatever the recipe says.
        emit: hears of everything.

    Returns:
        What the report shows; None in every process but the main one.

    Raises:
        UserError: something in the recipe does not fit, or the directory belongs to another run.
        TrainingError: training cannot go on.
        ExportError: the export or its self-test failed; artifacts and evaluations are kept.
    """
    prepared = prepare(recipe, host, allow_download, has_export)
    processes = find_processes(str(recipe.train.get("device", "auto")), "no")
    directory = open_directory(root, recipe, prepared.dataset.hash, resume) if processes.is_main else RunDirectory(root)
    options = model_options(recipe, host, allow_download)
    bench = Bench(host, recipe, prepared.model, prepared.parts, prepared.metrics, prepared.arms, directory, resume, emit, options)
    if not processes.is_main:
        bench.follow(processes)
        return None
    result = describe(recipe, prepared, bench.lead(processes), examples)
    write_report(result, root, examples)  # before the export, which may fail
    if has_export and recipe.export is not None:
        result = replace(result, bundle=_export(bench, prepared))
        write_report(result, root, examples)
    return result


def model_options(recipe: Recipe, host: Host, allow_download: bool) -> dict[str, Any]:
    """Options of the reference, with the task and the permission to download among them."""
    known = host.registry.model(recipe.model.reference).card.options.model_fields
    options = dict(recipe.model.options)
    if recipe.model.task:
        options["task"] = recipe.model.task
    if allow_download and "allow_download" in known:
        options["allow_download"] = True
    return options


def data_options(section: DataSection, host: Host) -> dict[str, Any]:
    """Options of the reader, with the columns among them."""
    return {**section.options, **({"columns": section.columns} if section.columns else {})}


def describe(recipe: Recipe, prepared: Prepared, results: list[ArmResult], examples: bool) -> RunResult:
    """Everything a report shows but the bundle."""
    model, parts = prepared.model, prepared.parts
    evaluations = {result.name: result.evaluation for result in results if isinstance(result.evaluation, Evaluation)}
    return RunResult(
        title=recipe.name,
        model=model.family.card.title,
        reference=model.reference,
        base_id=model.base_id,
        task=model.task.kind,
        base_parameters=sum(parameter.numel() for parameter in model.backbone.parameters()),
        data={"uri": recipe.data.uri, "options": dict(recipe.data.options), "hash": prepared.dataset.hash, **parts.to_dict()},
        arms=results,
        comparisons=comparisons(results, recipe.seed),
        versions=_versions(),
        seed=recipe.seed,
        examples=pick_examples(parts.test, evaluations) if examples else (),
        notes=_notes(prepared),
    )


def comparisons(results: list[ArmResult], seed: int) -> list[Comparison]:
    """Paired differences on the test part: each arm against each baseline, and against the arms before it."""
    found = []
    arms = [result for result in results if result.role == "arm"]
    baselines = [result for result in results if result.role == "baseline"]
    for position, arm in enumerate(arms):
        for other in [*baselines, *arms[:position]]:
            if isinstance(arm.evaluation, Evaluation) and isinstance(other.evaluation, Evaluation):
                found.append(compare(arm.evaluation, other.evaluation, (arm.name, other.name), generator=np.random.default_rng([seed, 2])))
    return found


def _export(bench: Bench, prepared: Prepared) -> dict[str, Any]:
    """Export the arms, prove the bundle with the runtime alone, and time it."""
    from polyadapt_runtime import Bundle

    section = bench.recipe.export
    assert section is not None
    target = bench.directory.root / section.directory
    arms = [arm for arm in prepared.arms if arm.role == "arm"]
    made_by = section.model_dump(mode="json")
    is_there = bench.resume and (target / "manifest.json").is_file() and bench.directory.exported.is_file()
    if not (is_there and read_json(bench.directory.exported, "run") == made_by):
        bench.announce({"kind": "export", "state": "started", "form": section.form})
        artifacts = {arm.name: bench.artifact(arm) for arm in arms}
        options: dict[str, Any] = {"form": section.form, **section.options}
        if options.get("variants"):
            single = tuple(name for name, artifact in artifacts.items() if bench.host.separated(bench.model, artifact) is None)
            options["evaluate"] = bundle_evaluator(bench.model, bench.metrics, single, section.form, prepared.parts.test)
        bench.host.export(bench.model, artifacts, target, section.target, options)
        if not (target / "manifest.json").is_file():
            raise UserError(
                f"recipe [export]: target {section.target!r} writes no bundle that a run could prove and measure ({target} has no manifest.json); "
                f"leave [export] out and go on with --resume, then export the run's artifacts by polyadapt export --target {section.target}"
            )
        write_json(bench.directory.exported, made_by)
    opened = Bundle(target, device="cpu")
    proof = opened.selftest()
    if not proof.ok:
        worst = max(proof.cases, key=lambda case: case.error / case.tolerance)
        raise ExportError(f"{target}: the self-test failed in case {worst.case!r}: {worst.output} differs by {worst.error:.2e}, allowed is {worst.tolerance:.0e}")
    parity = {"ok": proof.ok, "max_relative_error": max(case.error for case in proof.cases), "tolerance": max(case.tolerance for case in proof.cases)}
    latency_ms = _latency_ms(opened, prepared.parts.test, arms[0].name if arms and section.form != "merged" else None)
    bench.announce({"kind": "export", "state": "finished", "cases": len(proof.cases), **parity})
    row: dict[str, Any] = {"path": section.directory, "form": section.form, "parity": parity, "latency_ms": latency_ms}
    if variants := opened.manifest.raw.get("variants"):
        row["metrics"] = opened.manifest.raw["parity"].get("metrics", {})
        row["variants"] = {name: {"parity": entry["parity"], "metrics": entry.get("metrics", {})} for name, entry in variants.items()}
    return row


def _latency_ms(bundle: Any, dataset: Dataset, artifact: str | None) -> float | None:
    """Median time of a call with one example of the test part, pre-processing included; None where raw inputs are not what the bundle takes."""
    from polyadapt_runtime import BundleError

    raw = dataset[0].raw
    taken = []
    try:
        for _ in range(LATENCY_CALLS + 1):
            began = time.perf_counter()
            bundle(raw, artifact)
            taken.append(time.perf_counter() - began)
    except BundleError:
        return None
    return 1000 * float(np.median(taken[1:]))  # the first call also loads the artifact


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _notes(prepared: Prepared) -> list[str]:
    notes = [f"Data: {prepared.dataset.licence}."] if prepared.dataset.licence else []
    notes += [f"{what}: {licence}." for what, licence in prepared.model.licences.items() if licence]
    if prepared.model.task.kind == "classification" and not set(prepared.dataset.labels) <= set(prepared.model.task.labels):
        notes.append("The base has no scores for these classes and cannot be measured as it is; a linear probe on its frozen features is the baseline nearest to it.")
    return notes

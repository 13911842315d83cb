"""Everything of a bundle but its graph: artifacts, assets, recorded cases, README and the manifest."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from polyadapt.artifact import Artifact
from polyadapt.edits.edit import slots_of
from polyadapt.edits.streams import prompted
from polyadapt.files import replacing_file, sha256_file, write_json
from polyadapt.model import Model
from polyadapt.tensors import save_tensors
from polyadapt_onnx.adapters import write_adapter_file
from polyadapt_onnx.conditioned import condition_of, describe_conditioners
from polyadapt_onnx.essentials import stamp
from polyadapt_onnx.forms.job import Job, Made
from polyadapt_onnx.gate import Case
from polyadapt_onnx.picture import describe_picture_graph, described_spec
from polyadapt_onnx.required import describe_required
from polyadapt_onnx.slots import describe
from polyadapt_onnx.variants.build import MadeVariant
from polyadapt_onnx.views import View, writes
from polyadapt_runtime.seal import sealed

FORMAT = 1
RAW = {
    "image": "a path of a picture, a PIL image or an array",
    "audio": "a path of a recording, or (samples, rate in Hz)",
    "text": "a text",
    "phonemes": "a text",
    "array": "an array",
}
"""What a bundle takes, by the kind of its pre-processing."""
LIBRARIES = ("polyadapt", "torch", "onnx", "onnxruntime", "onnxscript", "transformers", "timm", "torchaudio", "diffusers")


def write_bundle_files(job: Job, made: Made, form: str, name: str, variants: Sequence[MadeVariant] = ()) -> None:
    """Write what belongs beside `onnx/` and, last of all, the manifest with every file's digest."""
    staging, model, artifacts, report = job.staging, job.model, job.artifacts, made.report
    write_parity(staging, made.cases, {**report.to_dict(), "variants": {row.variant.name: row.report.to_dict() for row in variants}})
    described = {title: write_artifact(staging, title, artifact, form, number) for number, (title, artifact) in enumerate(artifacts.items(), 1)}
    if job.options.adapters:
        for title in (title for title, entry in described.items() if entry["slots"]):
            described[title]["onnx_adapter"] = write_adapter_file(staging, title, artifacts[title])
    assets = write_assets(staging, model)
    spec = described_spec(model.processor.spec) if model.processor is not None else None
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "name": name,
        "base_id": model.base_id,
        "family": model.family.card.id,
        "reference": shown_reference(model.reference),
        "form": form,
        "task": {"kind": model.task.kind, "labels": list(_labels(model, artifacts, form)), "metric": model.task.metric, "details": dict(model.task.details)},
        "graphs": {**{view.name: describe_graph(job.path(view), view) for view in made.views or job.views}, **describe_picture_graph(staging, spec)},
        "slots": describe(made.groups),
        "artifacts": described,
        "preprocess": spec,
        "postprocess": postprocess(model),
        "assets": assets,
        "licences": model.licences,
        "versions": versions(),
        "parity": report.summary(),
    }
    if conditioners := describe_conditioners(model):
        manifest["conditioners"] = conditioners
    if model.generation:
        manifest["generation"] = dict(model.generation)
    if writes(model):
        layers, heads, size = model.family.cache_shape(model.backbone)
        positions = model.family.positions(model.backbone)
        held = {"maximum_tokens": positions - prompted(edit for edit in made.baked if not model.family.encodes(edit.site))} if positions else {}
        manifest["generation"] = {**model.generation, **held, "past": {"layers": layers, "heads": heads, "head_size": size}}
    if variants:
        manifest["variants"] = {row.variant.name: row.describe(staging) for row in variants}
    seal(staging, manifest)


def shown_reference(reference: str) -> str:
    """A model's reference without the folders of whoever exported it: of a path on his machine its last name alone."""
    place = re.sub(r"^([\w.+-]{2,}:)+", "", reference)  # schemes; one letter is a drive
    is_local = re.match(r"[/\\~]|[A-Za-z]:[/\\]", place)
    return re.split(r"[/\\]", place.rstrip("/\\"))[-1] if is_local else reference


def seal(staging: Path, manifest: dict[str, Any]) -> None:
    """Write the essentials into the graphs, the card, and last of all the manifest with the digest of every file that lies there."""
    stamp(staging, manifest)
    (staging / "README.md").write_text(readme(manifest), encoding="utf-8")
    listed = [path for path in sorted(staging.rglob("*")) if path.is_file() and path != staging / "manifest.json"]
    manifest["files"] = {path.relative_to(staging).as_posix(): {"sha256": sha256_file(path), "size": path.stat().st_size} for path in listed}
    with replacing_file(staging / "manifest.json") as target:
        target.write_text(sealed(manifest), encoding="utf-8")


def postprocess(model: Model) -> dict[str, Any]:
    """How the runtime turns outputs into an answer."""
    details = model.task.details
    spec: dict[str, Any] = {"kind": model.task.kind, **{name: details[name] for name in ("blank_id", "separator", "vocabulary") if name in details}}
    if model.task.kind == "ctc":
        spec["separator"] = model.task.separator
    if model.task.kind == "synthesis" and (rate_hz := model.family.config(model.backbone).get("sample_rate_hz")):
        spec["sample_rate_hz"] = int(rate_hz)
    return spec


def describe_graph(path: Path, view: View) -> dict[str, Any]:
    """One entry of the manifest's `graphs`."""
    import onnx

    head = onnx.load(str(path), load_external_data=False)
    return {
        "file": view.file,
        "data": [f"{view.file}.data"] if path.with_name(f"{path.name}.data").is_file() else [],
        **describe_required(path),
        "opset": head.opset_import[0].version,
        "ir": head.ir_version,
        "exporter": view.recipe.exporter,
        "inputs": [spec.to_dict() for spec in view.signature.inputs],
        "outputs": [spec.to_dict() for spec in view.signature.outputs],
    }


def write_artifact(staging: Path, name: str, artifact: Artifact, form: str, number: int = 0) -> dict[str, Any]:
    """An artifact's lowered slots and its line in the manifest; in a merged graph or a bank, which gives it a number, it has no file of its own."""
    entry: dict[str, Any] = {
        "method": artifact.method,
        "base_id": artifact.base_id,
        "labels": list(artifact.labels),
        "metrics": dict(artifact.provenance.get("metrics", {})),
        "slots": [],
    }
    if condition := condition_of(artifact):
        entry["condition"] = condition
    if form == "merged":
        return entry
    if form == "bank":
        return {**entry, "artifact_id": number}
    folder = staging / "artifacts" / name
    if slots := slots_of(artifact.edits):  # an artifact may bring an input alone, such as the vector of a speaker
        save_tensors(folder / "slots.safetensors", slots)
        entry["slots"] = list(slots)
        entry["file"] = f"artifacts/{name}/slots.safetensors"
    write_json(folder / "slots.json", {"name": name, **{key: value for key, value in entry.items() if key != "file"}})
    return entry


def write_assets(staging: Path, model: Model) -> dict[str, str]:
    """Copies of the files that the runtime's pre-processing needs."""
    assets = {}
    for name, source in (model.processor.assets if model.processor is not None else {}).items():
        target = staging / "assets" / Path(source).name
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target)
        assets[name] = f"assets/{target.name}"
    return assets


def write_parity(staging: Path, cases: Sequence[Case], report: Mapping[str, Any]) -> None:
    """The gate's report and the recorded cases, with which a bundle tests itself without torch."""
    tensors: dict[str, torch.Tensor] = {}
    listed = []
    for case in cases:
        listed.append({"name": case.name, "graph": case.graph, "artifact": case.artifact, "sizes": dict(case.sizes)})
        for part, arrays in (("in", case.inputs), ("out", case.expected)):
            tensors.update({f"{case.name}/{part}/{key}": torch.from_numpy(value) for key, value in arrays.items()})
        if case.artifact is None:
            tensors.update({f"{case.name}/slot/{key}": torch.from_numpy(value) for key, value in case.slots.items()})
    folder = staging / "parity"
    save_tensors(folder / "cases.safetensors", tensors)
    write_json(folder / "cases.json", {"cases": listed})
    write_json(folder / "report.json", report)


def versions() -> dict[str, str]:
    """Versions of the libraries that were present."""
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def readme(manifest: Mapping[str, Any]) -> str:
    """A card with the lines of code that run the bundle."""
    names = list(manifest["artifacts"])
    call = f'b(x, artifact="{names[0]}")' if names and manifest["form"] != "merged" else "b(x)"
    if manifest["form"] == "bank":
        call = f'b([x, y], artifact=["{names[0]}", None])'
    for name, conditioner in manifest.get("conditioners", {}).items():
        call = f'b(x, condition=b.condition("{conditioner["preprocess"]["kind"]} of the {name}"))'
    raw = RAW.get((manifest["preprocess"] or {}).get("kind", ""), "a table of the graph's inputs, arrays by name")
    licences = "\n".join(f"- {what}: {licence}" for what, licence in manifest["licences"].items()) or "- none recorded"
    artifacts = "\n".join(f"- `{name}`: method {entry['method']}, {len(entry['labels'])} classes" for name, entry in manifest["artifacts"].items()) or "- none"
    parity = manifest["parity"]
    return (
        f"# {manifest['name']}\n\nTask {manifest['task']['kind']}, family {manifest['family']}, form `{manifest['form']}`.\n"
        f"Agreement with torch: largest relative error {parity['max_relative_error']:.1e}, tolerance {parity['tolerance']:.0e}.\n\n"
        "```python\n"
        'from polyadapt_runtime import Bundle\n\nb = Bundle(".")  # the folder in which this file lies\n'
        f"x = ...  # {raw}\nprint({call})\n```\n\n## Artifacts\n\n{artifacts}\n\n## Licences\n\n{licences}\n"
    )


def _labels(model: Model, artifacts: Mapping[str, Artifact], form: str) -> tuple[str, ...]:
    if form == "merged":
        return next(iter(artifacts.values())).labels or model.task.labels
    own = model.ports.head is not None and len(model.task.labels) == model.ports.head.out_features
    return model.task.labels if own else ()

"""What slots and their proof add to an export: ViT-S with 48 slots against a bare `torch.onnx.export` of the base.

LoRA at q and v of every block, rank 8. Sides: the bare call as one writes it, with a dynamic batch; tracing and writing
the graph with its slots; the whole export, with the gate, the recorded cases and the manifest. One thread each, as
tracing uses no more.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from measuring import Load, Report, Side, Target, arguments_of, in_turns
from subjects import vit_small
from torch.export import Dim

from polyadapt.artifact import Artifact
from polyadapt.edits import slots_of
from polyadapt.methods.base import load_method
from polyadapt.methods.lora.card import CARD as LORA
from polyadapt.methods.lora.card import LoraOptions
from polyadapt.model import Model
from polyadapt.testing.conformance import non_degenerate
from polyadapt_onnx.exporter import export, recipe_of
from polyadapt_onnx.forms.job import attached
from polyadapt_onnx.graph import SLOT_FORM, Traced, quiet, write_graph
from polyadapt_onnx.slots import example_edits, slot_groups
from polyadapt_onnx.views import views_of

SLOTS = 48


def lora(model: Model) -> Artifact:
    """An artifact without a zero factor at q and v of every block."""
    form = load_method(LORA).build(model, LoraOptions(sites=("attn.q", "attn.v"), rank=8), torch.Generator().manual_seed(1))
    non_degenerate(form)
    edits = tuple(edit for edit in form.lower() if edit.site != "head")
    return Artifact("lora", model.base_id, model.family.card.id, model.task.kind, edits)


def bare(model: Model, folder: Path) -> None:
    """The library's module alone."""
    example = torch.zeros(2, 3, 224, 224)
    with torch.no_grad(), quiet():
        program: Any = torch.onnx.export(model.backbone, (example,), dynamo=True, opset_version=20, dynamic_shapes=({0: Dim("batch")},), verbose=False)
        program.save(str(folder / "bare.onnx"), external_data=True)


def graph_alone(model: Model, artifact: Artifact, folder: Path) -> None:
    """Trace and write the graph with its slots, nothing proved."""
    recipe = recipe_of(model)
    [view] = views_of(model, recipe)
    generator = torch.Generator().manual_seed(0)
    groups = [group for group in slot_groups(model.ports, [artifact]) if group.site != "head"]
    sketch = example_edits(model.ports, groups, (3, 5, 2), generator)
    slots = slots_of(sketch)
    if len(slots) != SLOTS:
        raise RuntimeError(f"{len(slots)} slots, expected {SLOTS}")
    with attached(model, sketch):
        write_graph(Traced(view.inner, view.signature, view.example(recipe.trace, generator), groups, slots, recipe, f"{view.prefix}{SLOT_FORM}.slots."), folder / "graph.onnx")


def main() -> int:
    arguments = arguments_of("Export of ViT-S with 48 slots against the bare exporter.", 6)
    report = Report("export", "Export of ViT-S with 48 slots (LoRA at q and v of 12 blocks)", is_trial=arguments.is_trial)
    model = vit_small()
    artifact = lora(model)
    with tempfile.TemporaryDirectory() as name, Load() as load_of_others:
        folder = Path(name)
        sides = [
            Side("bare", lambda: bare(model, folder), (1,), torch.set_num_threads),
            Side("graph", lambda: graph_alone(model, artifact, folder), (1,), torch.set_num_threads),
            Side("whole", lambda: export(model, {"a": artifact}, folder / f"{time.monotonic_ns()}.bundle"), (1,), torch.set_num_threads),
        ]
        for side in sides:
            side.run()  # imports and first tracings are not measured
        rounds = in_turns(sides, arguments.rounds, arguments.clock)
    report.others = load_of_others.others
    report.rows += [
        rounds.ratio("graph", "bare", "graph with 48 slots / bare export", Target(1.7), rounds.seconds("bare")),
        rounds.ratio("whole", "bare", "whole export, gate included / bare export", Target(4.0), rounds.seconds("whole")),
    ]
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())

"""Form `slots`: artifacts are fed at run time; with nothing fed the graph is the base."""

from __future__ import annotations

from collections.abc import Sequence

from polyadapt.edits import Edit, slots_of
from polyadapt_onnx.forms.job import Job, Made, attached, cases_of
from polyadapt_onnx.gate import Case, GateReport, Graph, check_artifact_effect, check_parity, check_slot_effects, check_swap
from polyadapt_onnx.graph import SLOT_FORM, Traced, write_graph
from polyadapt_onnx.required import check_required, defaults_of, write_required
from polyadapt_onnx.slots import SlotGroup, example_edits, extra_groups, slot_groups
from polyadapt_onnx.views import View


def build(job: Job) -> Made:
    """Trace every graph with the union of all artifacts' slots, and prove it."""
    ports = job.model.ports
    groups = list({group.key: group for group in (*extra_groups(ports, job.options.extra_slots), *slot_groups(ports, job.artifacts.values()))}.values())
    report, cases = job.report(), []
    for view in job.views:
        cases += _graph(job, view, view.groups(groups), report)
    return Made(groups, cases, report)


def _graph(job: Job, view: View, groups: Sequence[SlotGroup], report: GateReport) -> list[Case]:
    generator = job.generator()
    sketch = example_edits(job.model.ports, groups, (3, 5, 2), generator)
    with attached(job.model, sketch):
        example = view.example(view.recipe.trace, generator)
        write_graph(Traced(view.inner, view.signature, example, groups, slots_of(sketch), view.recipe, f"{view.prefix}{SLOT_FORM}.slots."), job.path(view))
    graph = Graph(job.path(view))
    random = example_edits(job.model.ports, groups, (5, 3, 4), generator)
    given: dict[str, tuple[str | None, Sequence[Edit]]] = {"base": (None, ()), "random": (None, random)}
    given |= {name: (name, artifact.edits) for name, artifact in job.artifacts.items()}
    by_name = {name: cases_of(job, view, name, artifact, edits, generator) for name, (artifact, edits) in given.items()}
    cases = [case for part in by_name.values() for case in part]
    check_parity(graph, cases, report, view.recipe.tolerance)
    # What has no slot in this graph is the base here.
    reaching = [name for name in job.artifacts if by_name[name][0].slots]
    base = by_name["base"][0]
    check_swap(graph, {None: base, **{name: by_name[name][0] for name in reaching}}, report)
    for name in reaching:
        check_artifact_effect(graph, base, by_name[name][0], report)
    check_slot_effects(graph, by_name["random"], job.model.family.no_effect(job.model.backbone), report)
    if defaults := defaults_of(groups):
        required = write_required(job.path(view), defaults)
        check_required(graph, required, defaults, [part[0] for part in by_name.values()], report)
    return cases

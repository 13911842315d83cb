"""Form `merged`: one artifact inside the graph, folded into the weights where it is linear and as constants elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from polyadapt.artifact import Artifact
from polyadapt.edits import Edit, Lowered, attachments_of
from polyadapt.edits.merge import folded
from polyadapt.errors import UserError
from polyadapt.model import Model
from polyadapt_onnx.forms.job import Job, Made, attached, cases_of, tensors_of
from polyadapt_onnx.gate import Arrays, Case, GateReport, Graph, check_parity, expected_outputs
from polyadapt_onnx.graph import Traced, write_graph
from polyadapt_onnx.views import View


def build(job: Job) -> Made:
    """Trace every graph with the artifact inside.

    Raises:
        UserError: not exactly one artifact was given.
    """
    if len(job.artifacts) != 1:
        raise UserError(f"form 'merged' bakes in exactly one artifact, {len(job.artifacts)} were given; use form 'slots' for several")
    [(name, artifact)] = job.artifacts.items()
    report, cases, changed = job.report(), [], False
    for view in job.views:
        found, moves = _graph(job, view, name, artifact, report)
        cases += found
        changed = changed or moves
    if not changed:
        report.effects.append({"check": "artifact", "artifact": name, "ok": False, "message": f"artifact {name} changes nothing"})
    return Made([], cases, report, baked=artifact.edits)


def _graph(job: Job, view: View, name: str, artifact: Artifact, report: GateReport) -> tuple[list[Case], bool]:
    """(recorded cases, whether the artifact moves the answers of this graph)."""
    model, generator = job.model, job.generator()
    patches = [edit for edit in artifact.edits if edit.kind == "patch"]
    with attached(model, patches), folded(model.ports, [edit for edit in artifact.edits if edit.kind != "patch"]) as remaining, also_attached(model, remaining):
        write_graph(Traced(view.inner, view.signature, view.example(view.recipe.trace, generator), [], {}, view.recipe), job.path(view))
    cases = [replace(case, slots={}, artifact=None) for case in cases_of(job, view, name, name, artifact.edits, generator)]
    graph = Graph(job.path(view))
    check_parity(graph, cases, report, view.recipe.tolerance)
    plain = cases_of(job, view, "base", None, (), job.generator(1))[0]
    with attached(model, artifact.edits):
        adapted = expected_outputs(lambda: view.inner(**tensors_of(plain.inputs)), view.outputs)
    moves = any(adapted[output].shape != plain.expected[output].shape or (adapted[output] != plain.expected[output]).any() for output in adapted)
    if moves:
        check_baked_effect(name, plain.expected, adapted, graph.run(plain.inputs, {}), report)
    return cases, moves


def check_baked_effect(name: str, plain: Arrays, expected: Arrays, found: Arrays, report: GateReport) -> None:
    """What the artifact changes in the graph is what it changes in torch: the error is small beside the change, which a tolerance alone would drown.

    Args:
        name: of the artifact.
        plain: torch's answers without it.
        expected: torch's answers with it.
        found: the graph's answers.
        report: takes the finding.
    """
    change = worst = 0.0
    for output, value in expected.items():
        if value.shape == plain[output].shape == found[output].shape:
            change = max(change, float(np.abs(value.astype(np.float64) - plain[output]).max(initial=0.0)))
            worst = max(worst, float(np.abs(found[output].astype(np.float64) - value).max(initial=0.0)))
    other_shape = any(value.shape != plain[output].shape for output, value in expected.items())  # then parity says all there is to say
    message = f"artifact {name} changes the output; error {worst:.2g} beside a change of {change:.2g}"
    report.effects.append({"check": "artifact", "artifact": name, "change": change, "ok": other_shape or worst <= 0.01 * change, "message": message})


@contextlib.contextmanager
def also_attached(model: Model, edits: Sequence[Edit]) -> Iterator[None]:
    """More edits beside those of `attached`: what folding left over."""
    if not edits:
        yield
        return
    attachments = attachments_of(model.module, model.ports, model.backbone)
    attachments.add("remaining", Lowered(edits).eval(), activate=False)
    attachments.activate(*attachments.active, "remaining")
    try:
        yield
    finally:
        attachments.remove("remaining")

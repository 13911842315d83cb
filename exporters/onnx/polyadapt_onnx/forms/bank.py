"""Form `bank`: every row of a batch names its artifact by a number; 0 is the base.

Slots hold the tensors of all artifacts, [artifacts, …], and the graph looks up those of each row. The defaults are the
exported artifacts, so plain onnxruntime needs the numbers alone; another bank may be fed in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from polyadapt.edits import Bank, Edit, kind_of, slots_of, stacked_edits
from polyadapt.errors import UserError
from polyadapt.signature import Signature, TensorSpec
from polyadapt.sites import Ports, SpanPort, StreamPort
from polyadapt_onnx.forms.bank_proof import BankProof
from polyadapt_onnx.forms.job import Job, Made, attached, case_name, with_form
from polyadapt_onnx.gate import Arrays, Case, GateReport, Graph, check_parity, check_slot_effects, expected_outputs, numpy_of
from polyadapt_onnx.graph import SLOT_FORM, Traced, write_graph
from polyadapt_onnx.slots import SlotGroup, example_edits, extra_groups, slot_groups
from polyadapt_onnx.views import View

ARTIFACT_ID = TensorSpec("artifact_id", ("batch",), "int64", "number of the artifact of each row; 0 is the base")

Sets = Sequence[Sequence[Edit]]


class BankModule(nn.Module):
    """A view's module with one input more: which artifact each row of the batch has."""

    def __init__(self, inner: nn.Module, bank: Bank) -> None:
        super().__init__()
        self.inner = inner
        self._bank = [bank]  # in a list: it is a submodule of the inner one already

    def forward(self, artifact_id: torch.Tensor, **inputs: torch.Tensor) -> Any:
        with self._bank[0].choosing(artifact_id):
            return self.inner(**inputs)


def build(job: Job) -> Made:
    """Trace every graph with a bank of all artifacts, and prove every row of it.

    Raises:
        UserError: no artifact, or one with an edit that rows of a batch cannot each have their own of; the message gives the reason.
    """
    if not job.artifacts:
        raise UserError("form 'bank' stacks artifacts and none was given; name at least one, or use form 'slots'")
    ports = job.model.ports
    groups = list({group.key: group for group in (*extra_groups(ports, job.options.extra_slots), *slot_groups(ports, job.artifacts.values()))}.values())
    sets: Sets = [(), *(artifact.edits for artifact in job.artifacts.values())]
    banked = bank_groups(job, groups, sets)
    report, cases, views = job.report(), [], []
    for view in job.views:
        mine = view.groups(groups)
        if mine:
            refuse_uneven_caches(view, mine)
            refuse_shared_ops(job, view, mine)
            view = replace(view, signature=Signature((*view.signature.inputs, ARTIFACT_ID), view.signature.outputs))
        views.append(view)
        cases += _graph(job, view, mine, view.groups(banked), sets, report)
    return Made(banked, cases, report, views, list(job.artifacts))


def bank_groups(job: Job, groups: Sequence[SlotGroup], sets: Sets) -> list[SlotGroup]:
    """Groups whose tensors have the artifacts in front, with stacked artifacts as defaults."""
    edits = stacked_edits(job.model.ports, [(group.site, group.kind, group.variant) for group in groups], sets)
    return [
        replace(group, shapes={name: ("artifacts", *group.shapes.get(name, ())) for name in edit.tensors}, default=edit.tensors) for group, edit in zip(groups, edits, strict=True)
    ]


def refuse_uneven_caches(view: View, groups: Sequence[SlotGroup]) -> None:
    """Refuse prompts in a graph that gives its caches out.

    Raises:
        UserError: naming the group of slots.
    """
    if any(name.startswith("present.") for name in view.outputs) and (prompts := [group.key for group in groups if group.kind == "prepend"]):
        raise UserError(
            f"form 'bank' cannot hold {prompts[0]}: prompts of other lengths give the rows of a batch caches of other lengths, the base's 0 among them; "
            "use form 'slots', or prefixes in place of prompts"
        )


def refuse_shared_ops(job: Job, view: View, groups: Sequence[SlotGroup]) -> None:
    """Refuse edits at modules that do not see the rows of the batch: what runs once for all rows cannot differ from row to row.

    Raises:
        UserError: naming the group of slots.
    """
    seen = {batch: rows_seen(job, view, groups, batch) for batch in (2, 3)}
    for key, smaller in seen[2].items():
        # An axis of 1, as that of position ids, broadcasts over the rows.
        if set(zip(smaller, seen[3][key], strict=True)) - {(2, 3), (1, 1)}:
            raise UserError(
                f"form 'bank' cannot hold {key}: its module does not run on the rows of the batch (they share what it computes), so rows cannot differ there; "
                "leave the site out of the artifact, or use form 'slots'"
            )


def rows_seen(job: Job, view: View, groups: Sequence[SlotGroup], batch: int) -> dict[str, list[int]]:
    """First axes of what the modules of each group are given in a batch of that size; 0 where there is but one axis."""
    seen: dict[str, list[int]] = {}

    def watch(key: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
            seen.setdefault(key, []).append(x.shape[0] if x.dim() > 1 else 0)

        return hook

    handles = [module.register_forward_pre_hook(watch(group.key), with_kwargs=True) for group in groups for module in modules_of(job.model.ports, group)]
    try:
        inputs = view.example({**view.recipe.trace, "batch": batch}, job.generator())
        view.inner(**{spec.name: inputs[spec.name] for spec in view.signature.inputs})
    finally:
        for handle in handles:
            handle.remove()
    return seen


def modules_of(ports: Ports, group: SlotGroup) -> list[nn.Module]:
    """The modules at which a group's edits act."""
    port = ports.get(kind_of(group.kind).port, group.site)
    if isinstance(port, SpanPort):
        return [port.start.module, port.end.module]
    if isinstance(port, StreamPort):
        reader = port.blocks[port.index] if port.blocks else port.embed
        return [port.tower if reader is None else reader]
    return [port.module]


def _graph(job: Job, view: View, groups: Sequence[SlotGroup], banked: Sequence[SlotGroup], sets: Sets, report: GateReport) -> list[Case]:
    ports, generator = job.model.ports, job.generator()
    names = [(group.site, group.kind, group.variant) for group in groups]
    sketch = stacked_edits(ports, names, [(), example_edits(ports, groups, (3, 5, 2), generator), example_edits(ports, groups, (4, 2, 3), generator)])
    with with_form(job.model, bank := Bank(sketch).eval()):
        example = {**view.example(view.recipe.trace, generator), ARTIFACT_ID.name: torch.arange(view.recipe.trace["batch"]) % 3}
        inner = BankModule(view.inner, bank) if groups else view.inner
        write_graph(Traced(inner, view.signature, example, banked, slots_of(sketch), view.recipe, f"inner.{view.prefix}{SLOT_FORM}.stacked.slots."), job.path(view))
    graph = Graph(job.path(view))
    random: Sets = [(), example_edits(ports, groups, (5, 3, 4), generator), example_edits(ports, groups, (2, 4, 6), generator)]
    fed = numpy_of(slots_of(stacked_edits(ports, names, random)))
    mixed = [case for turn in range(len(sets)) for case in mixed_cases(job, view, f"mixed-{turn}", sets, turn, {})]
    others = mixed_cases(job, view, "random", random, 1, fed)
    cases = [*{(case.name.rpartition("/")[2], tuple(case.inputs.get(ARTIFACT_ID.name, ()))): case for case in mixed}.values(), *others]
    check_parity(graph, cases, report, view.recipe.tolerance)
    if groups:
        identity = numpy_of(slots_of(stacked_edits(ports, names, [()] * len(random))))
        check_slot_effects(graph, others, job.model.family.no_effect(job.model.backbone), report, identity)
        probe = probe_of(view, generator)
        rows = [spec.name for spec in view.signature.outputs if spec.shape[:1] == ("batch",)]
        BankProof(graph, numpy_of(probe), [None, *job.artifacts], rows, report).check([torch_answers(job, view, probe, edits) for edits in sets])
    return cases


def probe_of(view: View, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Inputs of the largest checked batch in which every row is the first one."""
    inputs = view.example(max(view.recipe.check, key=lambda sizes: sizes["batch"]), generator)
    made = {}
    for spec in view.signature.inputs:
        if spec is not ARTIFACT_ID:
            value = inputs[spec.name]
            made[spec.name] = value[:1].expand_as(value).contiguous() if spec.shape[:1] == ("batch",) else value
    return made


def mixed_cases(job: Job, view: View, name: str, sets: Sets, turn: int, slots: Arrays) -> list[Case]:
    """A case for each checked size whose row i has set (i + turn * batch) of `sets`; torch answers set by set."""
    cases = []
    for index, sizes in enumerate(view.recipe.check):
        inputs = view.example(sizes, job.generator(index))
        inputs = {spec.name: inputs[spec.name] for spec in view.signature.inputs if spec is not ARTIFACT_ID}
        ids = (np.arange(sizes["batch"]) + turn * sizes["batch"]) % len(sets)
        answers = {int(number): torch_answers(job, view, inputs, sets[number]) for number in set(ids.tolist())}
        expected = {spec.name: joined(spec, [answers[number][spec.name] for number in ids.tolist()], classes_of(job, sets)) for spec in view.signature.outputs}
        chosen = {ARTIFACT_ID.name: ids} if ARTIFACT_ID in view.signature.inputs else {}
        absent = ("logits",) if classes_of(job, sets) else ()
        cases.append(Case(case_name(job, view, name, index), None, dict(sizes), {**numpy_of(inputs), **chosen}, slots, expected, view.name, absent))
    return cases


def torch_answers(job: Job, view: View, inputs: Mapping[str, torch.Tensor], edits: Sequence[Edit]) -> Arrays:
    """The whole batch with one artifact attached as always: the reference of every row that has it."""
    with attached(job.model, edits):
        return expected_outputs(lambda: view.inner(**inputs), view.outputs)


def classes_of(job: Job, sets: Sets) -> int:
    """Classes of a bank's graph: those of the artifact that has most, the base among them; 0 without a class head."""
    if job.model.ports.head is None:
        return 0
    return max([job.model.ports.head.out_features, *(edit.tensors["bias"].shape[0] for edits in sets for edit in edits if edit.kind == "prototypes")])


def joined(spec: TensorSpec, answers: Sequence[np.ndarray], classes: int) -> np.ndarray:
    """Row i of answer i; class scores that an artifact does not have are minus infinity.

    Raises:
        UserError: rows of different lengths, which no batch can hold as each would be alone.
    """
    if spec.shape[0] != "batch":
        return answers[0]
    rows = [answer[index] for index, answer in enumerate(answers)]
    if classes and spec.name == "logits":
        rows = [np.pad(row, [(0, 0)] * (row.ndim - 1) + [(0, classes - row.shape[-1])], constant_values=-np.inf) for row in rows]
    if len({row.shape for row in rows}) > 1:
        raise UserError(f"form 'bank' cannot hold this model: the length of output {spec.name!r} depends on the artifact, and rows of one batch share it; use form 'slots'")
    return np.stack(rows)

"""Conformance: what every family and every method must hold, checked from their cards alone.

Registering is all it takes to be tested. Each check raises `AssertionError` with one clear sentence.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from polyadapt.artifact import Artifact
from polyadapt.edits import Edit, Form, Lowered, attachments_of, kind_of
from polyadapt.edits.merge import folded
from polyadapt.edits.patches import parameter_slices
from polyadapt.errors import UserError
from polyadapt.families.base import Family
from polyadapt.families.card import ExportRecipe, FamilyCard
from polyadapt.methods.base import Method
from polyadapt.model import Model, build_model
from polyadapt.signature import Task

FLOAT32_EPSILON = 1.2e-7
# Torch against torch, relative to the largest value, and the same for every family: what an exported graph may differ by is another matter.
# The tiny networks stay below 1.8e-6 (DoRA on vits, whose norm of a column is counted and divided by) and 4.9e-6 (norms of vits, folded).
IDENTITY = 20 * FLOAT32_EPSILON  # below it two answers count as one
RELOADED = 1e-5
GRADIENT_TRIES = 6
LABELS = ("left", "middle", "right")


def load_family(card: FamilyCard) -> Family:
    """Import the class that a family's card names."""
    module, _, name = card.implementation.partition(":")
    family: Family = getattr(importlib.import_module(module), name)(card)
    return family


def tiny_model(card: FamilyCard, task: str = "", seed: int = 0) -> Model:
    """A family's tiny random backbone as a model; seeds the global generator within a fork of its state."""
    family = load_family(card)
    kind = task or card.tasks[0]
    labels = LABELS if kind == "classification" else ()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = family.tiny(Task(kind, labels))
    model = build_model(family, backbone, Task(kind, labels), None, reference=f"polyadapt:tiny-{card.id}")  # type: ignore[arg-type]
    return model if model.ports.head is None else model.with_labels(LABELS)  # symbols of frames are learned as classes are


def tasks_of(card: FamilyCard) -> list[str]:
    """Tasks of a family that are proved: those it can export, the usual one first."""
    return [task for task in card.tasks if task in card.export]


def has_form(method: Method) -> bool:
    """Whether a method attaches edits, so that these checks concern it: it says which by `form`, or by `build` with the class head in it."""
    return type(method).form is not Method.form or type(method).build is not Method.build


def example_of(model: Model, seed: int = 1, sizes: Mapping[str, int] | None = None) -> dict[str, torch.Tensor]:
    """Seeded inputs at the sizes that the export recipe traces."""
    recipe = model.family.card.export[model.task.kind]
    return model.example(sizes or recipe.trace, torch.Generator().manual_seed(seed))


def state_of(model: Model) -> dict[str, torch.Tensor]:
    """Copies of all parameters and buffers, persistent or not."""
    return {name: value.detach().clone() for name, value in (*model.module.named_parameters(), *model.module.named_buffers())}


def non_degenerate(form: Form, seed: int = 2, parameters: Iterable[torch.nn.Parameter] | None = None) -> None:
    """Move every trainable value of a form away from its start, so that no factor is zero.

    Args:
        form: whose parameters are moved.
        seed: of the noise.
        parameters: in place of the form's own, for forms that train the base's.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in form.parameters() if parameters is None else parameters:
            if parameter.requires_grad:
                spread = float(parameter.std()) if parameter.numel() > 1 else 0.0
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise * max(spread, max(1, *parameter.shape[:1], 1) ** -0.5) * 0.5)


def applies(method: Method, model: Model) -> str:
    """Why a method does not apply to a model; empty when it does. The reason is the method's own refusal."""
    try:
        method.build(model, method.card.options(), torch.Generator().manual_seed(0))
    except UserError as error:
        return str(error)
    return ""


def check_method(method: Method, model: Model, directory: Path) -> None:
    """All invariants of a method on a model.

    Args:
        method: any registered method.
        model: a tiny model that the method applies to (see `applies`).
        directory: where an artifact may be written.
    """
    options = method.card.options()
    before = state_of(model)
    inputs = example_of(model)
    with torch.no_grad():
        base = model.module(**inputs)
    form = method.build(model, options, torch.Generator().manual_seed(0))
    plan = method.plan(model, options)
    unused = _unused(model, inputs) if form.trains_base else set()
    attachments = attachments_of(model.module, model.ports, model.backbone)
    attachments.add("test", form)
    try:
        attachments.check_seen(inputs)
        _check_identity(method, model, form, base, inputs)
        _check_trainable(method, model, form, plan.trainable)
        non_degenerate(form, parameters=attachments.trainable())
        _check_gradients(model, form, inputs, unused)
        _one_step(model, inputs)
        with torch.no_grad():
            adapted = model.module(**inputs)
        lowered = tuple(form.lower())
        assert _has_effect(lowered, adapted, base), f"{method.card.id} changes nothing on {model.family.card.id} at a non-degenerate state"
        _check_checkpoint(method, model, form, adapted, inputs)
    finally:
        attachments.remove_all()
    _check_restored(model, before)
    _check_artifact(method, model, lowered, adapted, inputs, directory)
    _check_restored(model, before)
    _check_swap(method, model, lowered, base, inputs)
    _check_restored(model, before)
    _check_fold(model, lowered, adapted, inputs)
    _check_restored(model, before)


def _check_identity(method: Method, model: Model, form: Form, base: Mapping[str, torch.Tensor], inputs: Mapping[str, torch.Tensor]) -> None:
    if method.card.identity_at_start:
        return
    with torch.no_grad():
        found = model.module(**inputs)
    for name, value in found.items():
        if name == "logits" and model.ports.head is not None:
            continue  # a new class head starts at zero on purpose
        error = _error(value, base[name])
        assert error <= _identity(model), f"{method.card.id} on {model.family.card.id}: {name} moves by {error:.2g} at the start, but the card declares identity"


def _identity(model: Model) -> float:
    """Below it two answers count as one: by as much more as a network makes of roundings, which its export allows for (3.1e-6 on vits, by processor)."""
    return IDENTITY * max(1.0, model.family.card.export[model.task.kind].tolerance / ExportRecipe.tolerance)


def _check_trainable(method: Method, model: Model, form: Form, declared: int) -> None:
    trains = [(name, parameter) for name, parameter in model.module.named_parameters() if parameter.requires_grad]
    count = sum(parameter.numel() for _, parameter in trains)
    assert count == declared, f"{method.card.id} on {model.family.card.id}: plan says {declared} values train, {count} do"
    if not form.trains_base:
        foreign = [name for name, _ in trains if not name.startswith("polyadapt.")]
        assert not foreign, f"{method.card.id} trains the base's {foreign[0]}"


def _check_gradients(model: Model, form: Form, inputs: Mapping[str, torch.Tensor], unused: set[int]) -> None:
    """Every trained parameter gets a gradient, but those of edits that are declared to have no effect, and of the base's own what it does not use itself."""
    attachments = attachments_of(model.module)
    silent = _silent(model, form)
    trained = {_short(name): value for name, value in model.module.named_parameters() if value.requires_grad and id(value) not in unused | silent}
    dead = set(trained)
    # A unit of a tiny network may sleep behind its activation at one state; not at every one of these.
    for seed in range(2, 2 + GRADIENT_TRIES):
        model.module.zero_grad(set_to_none=True)
        _loss(model.module(**inputs)).backward()  # type: ignore[no-untyped-call]
        dead -= {name for name, value in trained.items() if value.grad is not None and bool(value.grad.abs().max() > 0)}
        if not dead:
            break
        non_degenerate(form, seed + 1, attachments.trainable())
    assert not dead, f"no gradient reaches {', '.join(sorted(dead)[:3])} on {model.family.card.id}"


def _unused(model: Model, inputs: Mapping[str, torch.Tensor]) -> set[int]:
    """Parameters of the bare base, by identity, on which these outputs do not depend: a pooler that none of them needs, a weight that meets zeros only."""
    required = {parameter: parameter.requires_grad for parameter in model.module.parameters()}
    for parameter in required:
        parameter.requires_grad_(True)
    gradients = torch.autograd.grad(_loss(model.module(**inputs)), list(required), allow_unused=True)
    for parameter, was in required.items():
        parameter.requires_grad_(was)
    return {id(parameter) for parameter, gradient in zip(required, gradients, strict=True) if gradient is None or not bool(gradient.any())}


def _silent(model: Model, form: Form) -> set[int]:
    """Parameters, by identity, whose edits are declared to have no effect: the form's own, and biases of the base where a shift has none."""
    declared = model.family.no_effect(model.backbone)
    sites = {edit.site for edit in form.edits() if any(fnmatchcase(edit.key, glob) for glob in declared)}
    own = {id(parameter) for name, parameter in form.named_parameters() if _site_in(name) in sites}
    slices = parameter_slices(model.backbone, model.ports) if form.trains_base else []
    heard = {id(part.parameter) for part in slices if part.tensor != "bias" or not any(fnmatchcase(f"{part.site}:shift", glob) for glob in declared)}
    return own | ({id(part.parameter) for part in slices} - heard)


def _one_step(model: Model, inputs: Mapping[str, torch.Tensor]) -> None:
    optimiser = torch.optim.AdamW(attachments_of(model.module).trainable(), lr=1e-2)
    optimiser.zero_grad(set_to_none=True)
    model.module.train()
    _loss(model.module(**inputs)).backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    model.module.eval()


def _check_checkpoint(method: Method, model: Model, form: Form, adapted: Mapping[str, torch.Tensor], inputs: Mapping[str, torch.Tensor]) -> None:
    """What `trained` gives brings a form that went on training back to the same outputs, bit for bit."""
    state = {name: value.clone() for name, value in form.trained().items()}
    for moved in (*form.parameters(), *attachments_of(model.module).trainable()):
        if moved.requires_grad:
            moved.data.add_(0.1)
    form.load_trained(state)
    with torch.no_grad():
        again = model.module(**inputs)
    assert not _differs(again, adapted), f"{method.card.id} on {model.family.card.id}: a checkpoint does not bring back the outputs"


def _check_swap(method: Method, model: Model, lowered: tuple[Edit, ...], base: Mapping[str, torch.Tensor], inputs: Mapping[str, torch.Tensor]) -> None:
    """A, B, A and the bare base, with both attached: every answer repeats bit for bit."""
    attachments = attachments_of(model.module, model.ports, model.backbone)
    other = [Edit(edit.site, edit.kind, {name: value * 1.25 for name, value in edit.tensors.items()}, edit.variant, structure=edit.structure) for edit in lowered]
    attachments.add("a", Lowered(lowered))
    attachments.add("b", Lowered(other), activate=False)
    try:
        with torch.no_grad():
            first, second, third, bare = (_with_active(model, *names, inputs=inputs) for names in (("a",), ("b",), ("a",), ()))
    finally:
        attachments.remove_all()
    assert _has_effect(lowered, second, first), f"{method.card.id} on {model.family.card.id}: swapping to another adapter changes nothing"
    assert not _differs(third, first), f"{method.card.id} on {model.family.card.id}: A, B, A does not repeat A"
    assert not _differs(bare, base), f"{method.card.id} on {model.family.card.id}: with nothing active the base does not answer as before"


def _with_active(model: Model, *names: str, inputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    with attachments_of(model.module).using(*names):
        outputs: Mapping[str, torch.Tensor] = model.module(**inputs)
    return outputs


def _check_restored(model: Model, before: Mapping[str, torch.Tensor]) -> None:
    after = state_of(model)
    assert set(after) == set(before), f"detaching leaves {sorted(set(after) ^ set(before))[:3]}"
    changed = [name for name in before if not torch.equal(after[name], before[name])]
    assert not changed, f"detaching does not restore {changed[:3]} bit for bit"


def _check_artifact(method: Method, model: Model, lowered: tuple[Edit, ...], adapted: Mapping[str, torch.Tensor], inputs: Mapping[str, torch.Tensor], directory: Path) -> None:
    artifact = Artifact(method.card.id, model.base_id, model.family.card.id, model.task.kind, lowered, method.card.options().model_dump(mode="json"), model.task.labels)
    artifact.save(directory / "artifact")
    loaded = method.restored(Artifact.load(directory / "artifact"))
    assert list(loaded.slots) and all(torch.equal(loaded.slots[name], value) for name, value in artifact.slots.items()), "tensors change between save and load"
    loaded.attach(model)
    try:
        with torch.no_grad():
            again = model.module(**inputs)
    finally:
        attachments_of(model.module).remove_all()
    # A weight comes back from a patch as base plus difference, a rounding away from the one that trained. Networks whose exported graph is given
    # more room for what they make of roundings make the same of these: up to 4.5e-5 on vits, by how many threads summed up the gradients.
    is_patch = any(edit.kind == "patch" for edit in lowered)
    limit = max(RELOADED, 2 * model.family.card.export[model.task.kind].tolerance) if is_patch else RELOADED
    _close(again, adapted, f"{method.card.id} on {model.family.card.id}: a loaded artifact", limit)


def _check_fold(model: Model, lowered: tuple[Edit, ...], adapted: Mapping[str, torch.Tensor], inputs: Mapping[str, torch.Tensor]) -> None:
    folding = [edit for edit in lowered if kind_of(edit.kind).folds and edit.kind != "patch"]
    if not folding:
        return
    attachments = attachments_of(model.module, model.ports, model.backbone)
    with folded(model.ports, lowered) as remaining:
        attachments.add("remaining", Lowered(remaining))
        try:
            with torch.no_grad():
                found = model.module(**inputs)
        finally:
            attachments.remove_all()
    _close(found, adapted, f"folded edits on {model.family.card.id}")


def _close(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], what: str, limit: float = RELOADED) -> None:
    for name, value in expected.items():
        error = _error(found[name], value)
        assert error <= limit, f"{what}: {name} differs by {error:.2g} of its largest value (tolerance {limit:.0e})"


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


def _has_effect(edits: Sequence[Edit], found: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    """Whether edits move an output by more than rounding.

    A class head moves the scores by itself. Where there are other edits, the features must move, which stand beside the scores of every head.
    """
    is_head_alone = all(edit.kind == "prototypes" for edit in edits)
    looked_at = [name for name in other if name != "logits" or is_head_alone or "features" not in other]
    return any(_error(found[name], other[name]) > IDENTITY for name in looked_at)


def _short(name: str) -> str:
    """A parameter's name within the module: as the form calls it, where it is the form's."""
    return name.removeprefix("polyadapt.forms.test.")


def _site_in(name: str) -> str:
    """The site within a parameter's name, as `module_name` wrote it."""
    return next((part.replace("/", ".") for part in name.split(".") if "/" in part), "")


def _differs(found: Mapping[str, torch.Tensor], base: Mapping[str, torch.Tensor]) -> bool:
    return any(found[name].shape != value.shape or bool((found[name] != value).any()) for name, value in base.items())


def _loss(outputs: Mapping[str, Any]) -> torch.Tensor:
    """A loss with a gradient for every output: weighted by seeded noise, so that nothing cancels by symmetry."""
    total = torch.zeros(())
    for value in outputs.values():
        weights = torch.randn(value.shape, generator=torch.Generator().manual_seed(7))
        if not value.is_floating_point():
            continue
        total = total + (value * weights).mean() + value.pow(2).mean()
    return total

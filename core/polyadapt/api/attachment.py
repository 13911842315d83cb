"""Attach a method without training it: for people with a training loop of their own."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from polyadapt.api.work import installed_host
from polyadapt.artifact import Artifact
from polyadapt.edits import Form, attachments_of
from polyadapt.edits.attach import HOLDER, Attachments
from polyadapt.errors import PolyadaptError, UserError
from polyadapt.families.base import Family
from polyadapt.families.card import FamilyCard
from polyadapt.host import Host
from polyadapt.methods.base import load_method
from polyadapt.methods.card import MethodCard
from polyadapt.model import Model, build_model
from polyadapt.options import Options, read_options
from polyadapt.signature import Task
from polyadapt.sources.custom import custom_family, discover
from polyadapt.sources.families import family_of

if TYPE_CHECKING:
    from torch import nn


_log = logging.getLogger(__name__)


@dataclass
class Attached:
    """A method's form on a model, for people with a training loop of their own.

    Attributes:
        model: the model, or the passed module wrapped as one.
        form: its trainable parameters.
        name: under which it is attached.
    """

    model: Model
    root: nn.Module
    form: Form
    name: str
    card: MethodCard
    options: Options

    def parameters(self) -> Iterable[nn.Parameter]:
        """What an optimiser should train: the form's own parameters, and those of the base where the method moves them."""
        own = (parameter for parameter in self.form.parameters() if parameter.requires_grad)
        return iter([*own, *self.form.parameters_of_base()])

    def artifact(self, **provenance: Any) -> Artifact:
        """The present state as an artifact.

        Args:
            provenance: plain values to keep with it, such as `seed` or `metrics`.
        """
        dtype = str(next(self.model.module.parameters()).dtype).removeprefix("torch.")
        return Artifact(
            method=self.card.id,
            base_id=self.model.base_id,
            family=self.model.family.card.id,
            task=self.model.task.kind,
            edits=tuple(self.form.lower()),
            options=self.options.model_dump(mode="json"),
            labels=self.model.task.labels if self.model.ports.head is not None else (),
            dtype=dtype,
            provenance=provenance,
        )

    def detach(self) -> None:
        """Take it off; the model is as before, bit for bit."""
        attachments_of(self.root).remove(self.name)


def attach(
    model: Model | nn.Module,
    method: str,
    *,
    name: str = "adapter",
    seed: int = 0,
    ports: Mapping[str, str] | None = None,
    example: Any = None,
    host: Host | None = None,
    **options: Any,
) -> Attached:
    """Attach a method's trainable edits without training them.

    A library's own module is adapted in place: it keeps its class and its way of being called, its base is frozen,
    and the new parameters appear among its own, so that any trainer finds them.

    Args:
        model: a loaded model, a module of a library that some family knows, or any module with `ports` or `sites="auto"`.
        method: id of a method.
        name: of this attachment; several may be attached.
        seed: of the starting values.
        ports: for a module of no known family: site -> path of a submodule.
        example: inputs of the module (a tensor, a tuple or a mapping); every edit must be reached by it. With
            `sites="auto"` it also finds the ports, which are logged before anything is attached.
        host: where the method is looked up.
        options: of the method.

    Raises:
        UserError: nobody knows the method, it does not fit, no family knows the module, it does not take the example, or an edit is never
            reached; nothing is attached then.
    """
    used = host or installed_host()
    card = used.registry.methods.get(method).card
    root = model.module if isinstance(model, Model) else model
    with bare(root):
        if not isinstance(model, Model) and options.get("sites") == "auto":
            ports, options = found_ports(model, example), {**options, "sites": ("*",)}
        chosen = read_options(card.options, options, f"method {method!r}")
        wrapped = model if isinstance(model, Model) else as_model(model, ports=ports, host=used)
        form = load_method(card).build(wrapped, chosen, torch.Generator().manual_seed(seed)).to(wrapped.device)
    attachments = attachments_of(root, wrapped.ports, wrapped.backbone)
    attachments.add(name, form)
    if not isinstance(model, Model):
        resting(root, attachments)
    if example is not None:
        try:
            attachments.check_seen(example)
        except BaseException as error:
            attachments.remove(name)
            if isinstance(error, PolyadaptError) or not isinstance(error, Exception):
                raise
            raise UserError(f"the module does not take the example ({type(error).__name__}: {error}); give inputs as it is called with") from error
    return Attached(wrapped, root, form, name, card, chosen)


@contextlib.contextmanager
def bare(module: nn.Module) -> Iterator[None]:
    """Within the block a module is as it was before anything was attached to it: what is read of it then is the base's alone.

    Its training modes are put back behind the block: the next attachment notes them, and detaching restores what it noted.
    """
    modes = {inner: inner.training for inner in module.modules()}
    held = getattr(module, HOLDER, None)
    held = held if isinstance(held, Attachments) else None
    try:
        with held.using() if held is not None else contextlib.nullcontext():
            if held is not None:
                delattr(module, HOLDER)
            try:
                yield
            finally:
                if held is not None:
                    module.add_module(HOLDER, held)
    finally:
        for inner, was_training in modes.items():
            inner.training = was_training


def resting(root: nn.Module, attachments: Attachments) -> None:
    """Put a library's module into evaluation mode, its adapters as they are: a frozen base rests until its user says otherwise."""
    training = attachments.training
    root.eval()
    attachments.train(training)


def found_ports(module: nn.Module, example: Any) -> dict[str, str]:
    """Ports of an unknown module, found by running it on an example; what was found and refused is logged.

    Raises:
        UserError: no example was given, or nothing can be adapted.
    """
    if example is None:
        raise UserError('sites="auto" watches a forward pass: pass example=… (a tensor, a tuple or a mapping of inputs)')
    discovery = discover(module, example)
    for path, why in discovery.refused.items():
        _log.warning("no port at %s: %s", path, why)
    if not discovery.found:
        raise UserError("sites='auto' found nothing to adapt: no linear, convolution, embedding or norm is called in both modes")
    _log.info("ports found: %s", ", ".join(discovery.found))
    return {path: path for path in discovery.found}


def as_model(module: nn.Module, task: str = "", *, ports: Mapping[str, str] | None = None, host: Host | None = None) -> Model:
    """Wrap a library's module as a model with the reference `module:<base_id>`.

    Args:
        module: of a class that a family's card names.
        task: what it is asked; the family's first task when empty.
        ports: makes a family of its own for this module.
        host: whose families are looked through.

    Raises:
        UserError: no family knows its class.
    """
    from polyadapt_runtime.preprocess import Processor

    cards = [claim.card for claim in (host or installed_host()).registry.families.claims()]
    family = custom_family(module, ports) if ports is not None else _family(module, cards)
    model = build_model(family, module, Task(task or family.card.tasks[0]), Processor({"kind": "tensors"}, {}), reference="module:")
    model.reference = f"module:{model.base_id}"
    return model


def _family(module: nn.Module, cards: list[FamilyCard]) -> Family:
    """The family of a module, looked for under the library of its class and of those it derives from."""
    libraries = dict.fromkeys(kind.__module__.partition(".")[0] for kind in type(module).__mro__ if kind is not object)
    errors = []
    for library in libraries:
        try:
            return family_of(module, library, cards)
        except UserError as error:
            errors.append(error)
    raise errors[0]

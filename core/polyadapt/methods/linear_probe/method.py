"""Linear probe: only the class head trains; features of the frozen backbone are computed once, unless a norm trains too."""

from __future__ import annotations

import torch

from polyadapt.edits import Form
from polyadapt.edits.form import Composite
from polyadapt.errors import UserError
from polyadapt.methods.base import Method, select_ops
from polyadapt.methods.linear_probe.card import LinearProbeOptions
from polyadapt.methods.norms import NormForm
from polyadapt.model import Model


class LinearProbe(Method):
    """The method `linear-probe`: an empty form, or chosen norms; the head that every classification gets is the rest."""

    def form(self, model: Model, options: LinearProbeOptions, generator: torch.Generator) -> Form:
        """A fresh form.

        Raises:
            UserError: the task has no classes, or `norms` names something else than norms.
        """
        if not model.task.labels:
            raise UserError(f"linear-probe needs class labels, and the task {model.task.kind!r} of {model.reference} has none; use labelled data, or name them (--labels a,b)")
        return NormForm(select_ops(model, options.norms, ("norm",))) if options.norms else Composite([])

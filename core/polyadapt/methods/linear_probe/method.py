"""Linear probe: only the class head trains; features of the frozen backbone are computed once."""

from __future__ import annotations

import torch

from polyadapt.edits import Form
from polyadapt.edits.form import Composite
from polyadapt.errors import UserError
from polyadapt.methods.base import Method
from polyadapt.methods.base_options import AdapterOptions
from polyadapt.model import Model


class LinearProbe(Method):
    """The method `linear-probe`: an empty form; the head that every classification gets is all there is."""

    def form(self, model: Model, options: AdapterOptions, generator: torch.Generator) -> Form:
        if not model.task.labels:
            raise UserError(f"linear-probe needs class labels, and the task {model.task.kind!r} of {model.reference} has none; use a labelled data set")
        return Composite([])

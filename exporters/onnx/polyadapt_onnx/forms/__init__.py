"""How edits come into a graph: one file a form, each a function `build(job) -> Made`."""

from __future__ import annotations

from collections.abc import Callable

from polyadapt_onnx.forms import bank, merged, slots
from polyadapt_onnx.forms.job import Job, Made

FORMS: dict[str, Callable[[Job], Made]] = {"slots": slots.build, "merged": merged.build, "bank": bank.build}

__all__ = ["FORMS", "Job", "Made"]

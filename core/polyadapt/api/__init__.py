"""The facade: load, attach, adapt, evaluate, infer and export, in one line each.

Every function takes `host=`; without it the installed plugins are used, found once for each process.
"""

from polyadapt.api.attachment import Attached, as_model, attach
from polyadapt.api.measure import evaluate
from polyadapt.api.work import adapt, adapt_parts, add_artifacts, export, fit_labels, infer, installed_host, load, load_artifact, open_dataset

__all__ = [
    "Attached",
    "adapt",
    "adapt_parts",
    "add_artifacts",
    "as_model",
    "attach",
    "evaluate",
    "export",
    "fit_labels",
    "infer",
    "installed_host",
    "load",
    "load_artifact",
    "open_dataset",
]

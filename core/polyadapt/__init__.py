"""Polyadapt: load any pretrained model, adapt it by any method, export it to ONNX with proof.

    import polyadapt as pa

    model = pa.load("timm:vit_tiny_patch16_224")
    artifact = pa.adapt(model, "lora", "folder:photos", rank=8)
    pa.export(model, {"photos": artifact}, "photos.bundle")

Importing this package imports neither torch nor numpy: every name below is fetched at first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polyadapt.api import adapt, add_artifacts, attach, evaluate, export, infer, load, load_artifact, open_dataset
    from polyadapt.artifact import Artifact
    from polyadapt.hookspecs import HOOK_API, hookimpl
    from polyadapt.host import Host

__version__ = "0.1.0"

_HOMES = {
    "load": "polyadapt.api",
    "load_artifact": "polyadapt.api",
    "open_dataset": "polyadapt.api",
    "attach": "polyadapt.api",
    "adapt": "polyadapt.api",
    "add_artifacts": "polyadapt.api",
    "evaluate": "polyadapt.api",
    "infer": "polyadapt.api",
    "export": "polyadapt.api",
    "Artifact": "polyadapt.artifact",
    "Host": "polyadapt.host",
    "hookimpl": "polyadapt.hookspecs",
    "HOOK_API": "polyadapt.hookspecs",
}

__all__ = ["HOOK_API", "Artifact", "Host", "__version__", "adapt", "add_artifacts", "attach", "evaluate", "export", "hookimpl", "infer", "load", "load_artifact", "open_dataset"]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'polyadapt' has no attribute {name!r}; it has: {', '.join(__all__)}")
    from importlib import import_module

    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

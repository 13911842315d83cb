"""Imports of torchvision and torchaudio that survive a CPU-only torch.

Their published wheels carry compiled halves built for CUDA. Beside a CPU-only torch, `import torchvision` dies as an
operator has no schema, and `import torchaudio` as its extension cannot be loaded. Where, and only where, the plain
import fails in that way, the missing piece is declared and the import is tried again. Nothing is replaced in a
library that imports well.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import logging
import sys
from types import ModuleType
from typing import Any

from polyadapt.errors import MissingExtraError, UserError

logger = logging.getLogger(__name__)

_keep_alive: list[object] = []
"""torch drops the schemas of a library object that is collected."""


def import_torchvision() -> ModuleType | None:
    """Import torchvision; None when it is not installed (timm and transformers then do without, or say so)."""
    if importlib.util.find_spec("torchvision") is None:
        return None
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        logger.warning("torchvision's compiled half does not fit this torch (%s); detection operators are declared and everything else works", error)
    _forget("torchvision")
    _declare_detection_operators()
    return importlib.import_module("torchvision")


def import_torchaudio() -> ModuleType:
    """Import torchaudio.

    Raises:
        MissingExtraError: it is not installed.
        UserError: it cannot be imported, even without its extension.
    """
    if importlib.util.find_spec("torchaudio") is None:
        raise MissingExtraError("torchaudio", "torchaudio", "this model")
    try:
        return importlib.import_module("torchaudio")
    except OSError as error:
        logger.warning("torchaudio's extension does not fit this torch (%s); it is left out, forced alignment does not work", error)
    _forget("torchaudio")
    sys.modules["torchaudio._extension"] = _extension_stub()
    try:
        return importlib.import_module("torchaudio")
    except (OSError, ImportError) as error:
        _forget("torchaudio")
        raise UserError(f"torchaudio cannot be imported ({error}); install the torchaudio that belongs to your torch") from error


def import_timm() -> ModuleType:
    """Import timm, after torchvision was seen to import.

    Raises:
        MissingExtraError: it is not installed.
    """
    if importlib.util.find_spec("timm") is None:
        raise MissingExtraError("timm", "timm", "this model")
    import_torchvision()
    return importlib.import_module("timm")


def import_transformers() -> ModuleType:
    """Import transformers, after torchvision was seen to import (its image models need it where it is installed).

    Raises:
        MissingExtraError: it is not installed.
    """
    if importlib.util.find_spec("transformers") is None:
        raise MissingExtraError("transformers", "transformers", "this model")
    import_torchvision()
    return importlib.import_module("transformers")


def _declare_detection_operators() -> None:
    import torch

    library: Any = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _keep_alive.append(library)


def _extension_stub() -> ModuleType:
    """What torchaudio asks of its extension package, answering that nothing is available."""

    def refuse(*_: object, **__: object) -> None:
        raise UserError("torchaudio's extension does not fit this torch, so forced alignment does not work; install the torchaudio that belongs to your torch")

    stub = ModuleType("torchaudio._extension")
    stub.__spec__ = importlib.machinery.ModuleSpec("torchaudio._extension", loader=None)
    for name, value in {
        "_IS_TORCHAUDIO_EXT_AVAILABLE": False,
        "_IS_ALIGN_AVAILABLE": False,
        "_check_cuda_version": lambda: None,
        "fail_if_no_align": lambda function: refuse,
    }.items():
        setattr(stub, name, value)
    return stub


def _forget(package: str) -> None:
    """Drop half-imported modules, so that a second import starts afresh."""
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        del sys.modules[name]

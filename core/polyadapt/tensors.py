"""Tensor files and digests: safetensors in and out, and the identity of a base."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyadapt.errors import UserError
from polyadapt.files import replacing_file

if TYPE_CHECKING:
    import torch
    from torch import nn


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors, beside and then renamed. Names are sorted, so equal tensors give equal bytes.

    Raises:
        UserError: the place cannot be written; nothing was left there.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    ready = {name: tensors[name].detach().cpu().contiguous().clone() for name in sorted(tensors)}
    with replacing_file(Path(path)) as staging:
        try:
            save_file(ready, str(staging), metadata=dict(metadata) if metadata else None)  # an empty table beside no tensors makes a header that nothing reads
        except SafetensorError as error:
            raise _os_error(error) from error


def _os_error(error: Exception) -> OSError:
    """The operating system's error inside an error of safetensors, whose words are all that is left of it."""
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error))


def load_tensors(path: Path, what: str) -> dict[str, torch.Tensor]:
    """Read a safetensors file.

    Raises:
        UserError: the file is missing, truncated or altered so that its header no longer fits.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(path))
    except FileNotFoundError as error:
        raise UserError(f"{what}: no file {path}") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{what}: {path} is not a whole safetensors file ({error}); copy it again") from error


def tensors_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes of tensors, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def base_id(family: str, config: Mapping[str, Any], backbone: nn.Module, excluded: Iterable[str] = ()) -> str:
    """Identity of a base: family, architecture, and the sorted digests of all parameters and persistent buffers.

    Names of the library do not enter, so the identity survives renamed modules. Values are
    hashed as float32 (integers as int64), so it survives a cast that keeps them.

    Args:
        family: id of the family.
        config: numbers that fix the architecture.
        backbone: the library's module, before anything was attached.
        excluded: names of parameters that belong to a replaceable head.

    Returns:
        64 hexadecimal digits.
    """
    left_out = set(excluded)
    digests = sorted(_digest(tensor) for name, tensor in backbone.state_dict().items() if name not in left_out)
    total = hashlib.sha256(json.dumps([family, config], sort_keys=True, default=str).encode())
    for digest in digests:
        total.update(digest)
    return total.hexdigest()


def _digest(tensor: torch.Tensor) -> bytes:
    import torch

    value = tensor.detach().cpu()
    value = value.to(torch.float32) if value.is_floating_point() else value.to(torch.int64)
    digest = hashlib.sha256(str(tuple(value.shape)).encode())
    digest.update(_bytes(value.contiguous()))
    return digest.digest()


def _bytes(tensor: torch.Tensor) -> bytes:
    import torch

    if tensor.numel() == 0:
        return b""
    return bytes(tensor.reshape(-1).view(torch.uint8).numpy().data)

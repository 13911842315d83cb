"""Attach and detach LoRA on a Llama of SmolLM2-135M's size: how long it takes, and what it leaves behind.

`attach` is everything between a loaded model and one that can train: options, form, checks, hooks. After `detach` the
module must be as before: same tensors at the same addresses with the same bytes, no hook, no submodule, the same
`requires_grad` and modes; and the tensors that are alive must take as many bytes as before.
"""

from __future__ import annotations

import gc
import hashlib
import sys
from typing import Any

import torch
from measuring import Load, Report, Row, Side, Target, arguments_of, in_turns, median_interval
from subjects import llama_135m
from torch import nn

import polyadapt as pa
from polyadapt.model import Model


def fingerprint(module: nn.Module) -> dict[str, Any]:
    """Everything about a module that attaching could change."""
    state = {}
    for name, value in (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)):
        digest = hashlib.sha256(value.detach().contiguous().view(torch.uint8).numpy().data).hexdigest()
        state[name] = (value.data_ptr(), tuple(value.shape), value.requires_grad, value.grad is None, digest)
    hooks = {
        path: (inner.training, len(inner._forward_hooks), len(inner._forward_pre_hooks), len(inner._backward_hooks), tuple(inner._modules), tuple(inner.__dict__))
        for path, inner in module.named_modules()
    }
    return {"state": state, "modules": hooks}


def living_bytes() -> int:
    """Bytes of all storages that tensors which Python knows hold on to."""
    gc.collect()
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in gc.get_objects() if isinstance(tensor, torch.Tensor)}
    return sum(storages.values())


def attach_and_detach(model: Model) -> None:
    pa.attach(model, "lora", sites=("attn.q", "attn.v"), rank=8).detach()


def main() -> int:
    arguments = arguments_of("Attach and detach LoRA.", 20)
    report = Report("attach", "Attach and detach LoRA (rank 8 on q and v, 30 blocks) on Llama-135M", is_trial=arguments.is_trial)
    model = llama_135m()
    attach_and_detach(model)  # imports and caches
    before, bytes_before = fingerprint(model.module), living_bytes()
    with Load() as load_of_others:
        rounds = in_turns([Side("attach and detach", lambda: attach_and_detach(model), (1,), torch.set_num_threads)], arguments.rounds, arguments.clock)
    report.others = load_of_others.others
    left = living_bytes() - bytes_before
    if fingerprint(model.module) != before:
        raise RuntimeError("the module is not what it was before attaching")
    report.rows.append(Row("attach and detach", *median_interval(rounds.times["attach and detach"]), "s", Target(1.0)))
    report.rows.append(Row("bytes of tensors left behind", left, left, left, "B", Target(0), f"of {bytes_before} that were alive before"))
    report.notes.append("same tensors at the same addresses, same bytes, hooks, submodules, modes and requires_grad as before")
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())

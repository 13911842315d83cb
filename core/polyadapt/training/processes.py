"""The device and the processes of a run, as accelerate finds them under its launcher, under torchrun, or alone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from polyadapt.errors import UserError


@dataclass(frozen=True)
class Processes:
    """Where this process stands among all that train together."""

    device: torch.device
    rank: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process reports and writes."""
        return self.rank == 0

    def share(self, rows: Sequence[int]) -> Sequence[int]:
        """This process's part of a global batch: sizes differ by one at the most, nothing is repeated or dropped."""
        whole, rest = divmod(len(rows), self.count)
        start = self.rank * whole + min(self.rank, rest)
        return rows[start : start + whole + (self.rank < rest)]

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all processes."""
        if self.count == 1:
            return tensor
        from accelerate.utils import reduce

        summed: torch.Tensor = reduce(tensor, "sum")
        return summed

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of every process, one row each: [n] -> [processes, n]."""
        if self.count == 1:
            return tensor[None]  # (1, n)
        from accelerate.utils import gather

        rows: torch.Tensor = gather(tensor[None].to(self.device))  # (processes, n)
        return rows.to(tensor.device)

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace every gradient by its sum over all processes, in one exchange a dtype.

        Parameters without a gradient count as 0, so a process whose part of a batch is empty takes part too. Those without one
        in any process stay so, and the optimiser leaves them and their moments alone, as in a single process.
        """
        if self.count == 1:
            return
        has_gradient = self.sum(torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int64, device=self.device))
        by_dtype: dict[torch.dtype, list[nn.Parameter]] = {}
        for parameter, processes in zip(parameters, has_gradient.tolist(), strict=True):
            if not processes:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            by_dtype.setdefault(parameter.dtype, []).append(parameter)
        for group in by_dtype.values():
            gradients = [parameter.grad for parameter in group if parameter.grad is not None]
            flat = self.sum(torch.cat([gradient.reshape(-1) for gradient in gradients]))  # (values,)
            position = 0
            for gradient in gradients:
                gradient.copy_(flat[position : position + gradient.numel()].view_as(gradient))
                position += gradient.numel()

    def copy_from_main(self, tensors: Sequence[torch.Tensor]) -> None:
        """Give every process the main one's values, in place."""
        if self.count == 1:
            return
        from accelerate.utils import broadcast

        for tensor in tensors:
            tensor.data.copy_(broadcast(tensor.data.clone()))

    def wait(self) -> None:
        """Go on when every process has come here."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()

    def autocast(self, precision: str) -> contextlib.AbstractContextManager[Any]:
        """The context of a forward pass in `precision`."""
        if precision == "no":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)


def find_processes(device: str, precision: str) -> Processes:
    """Read the launcher's variables and choose the device.

    Raises:
        UserError: the device or the precision is not there, or the launcher asks for a way to shard weights.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" or os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        raise UserError(
            "the launcher asks for FSDP or DeepSpeed, which shard the base's weights; launch plain data-parallel processes (accelerate launch --multi_gpu, or torchrun)"
        )
    has_gpu = torch.cuda.is_available()
    if device.startswith("cuda") and not has_gpu:
        raise UserError(f'device {device!r} was asked for and torch {torch.__version__} finds no GPU; set device = "cpu", or install a driver that fits')
    if device.startswith("cuda:") and int(device.removeprefix("cuda:")) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise UserError(f"device {device!r} was asked for and the last GPU of this machine is 'cuda:{last}'; name one from cuda:0 to cuda:{last}, or 'auto'")
    use_gpu = has_gpu and device != "cpu"
    if precision == "fp16" and not use_gpu:
        raise UserError("precision 'fp16' needs a GPU; use 'bf16' or 'no' on a CPU")
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        name = "cpu" if not use_gpu else device if ":" in device else "cuda"
        return Processes(torch.device(name, torch.cuda.current_device()) if name == "cuda" else torch.device(name))
    from accelerate import PartialState

    state = PartialState(cpu=not use_gpu)
    place = torch.device("cuda", state.local_process_index) if use_gpu else torch.device("cpu")
    return Processes(place, state.process_index, state.num_processes)


@contextlib.contextmanager
def moved(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Have a module on `device` within the block; it goes back to where it was."""
    first = next(module.parameters(), None)
    home = device if first is None else first.device
    module.to(device)
    try:
        yield
    finally:
        module.to(home)

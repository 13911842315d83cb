"""One optimiser step over a global batch.

Each process takes its share of the rows, in `accumulation` pieces; every piece's summed loss is divided by the count
of the whole batch, and gradients are summed over processes. So the result does not depend on how a batch is cut.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import nn

from polyadapt.errors import UserError
from polyadapt.training.batches import Batch
from polyadapt.training.drawing import in_pieces
from polyadapt.training.optimisation import load_optimiser, make_optimiser, optimiser_tensors
from polyadapt.training.processes import Processes
from polyadapt.training.work import Work


class Stepper:
    """The optimiser with its gradient scaler (fp16 only).

    Args:
        work: what to train.
        processes: the device, and who else trains.
    """

    def __init__(self, work: Work, processes: Processes) -> None:
        self._work, self._processes = work, processes
        self._optimiser = make_optimiser(work.parameters, work.learning_rate, work.weight_decay, work.betas)
        self._scaler = torch.GradScaler(processes.device.type) if work.settings.precision == "fp16" else None

    def step(self, rows: Sequence[int], rate: float, is_pressed: bool, resting: Collection[nn.Parameter] = ()) -> tuple[torch.Tensor, int, bool]:
        """Take one step.

        Args:
            rows: of the global batch.
            rate: learning rate of this step.
            is_pressed: whether Ctrl-C reached this process.
            resting: parameters that do not move in this step; without a gradient the optimiser leaves their moments alone, too.

        Returns:
            The mean loss of the global batch (not yet read from the device), the items it runs over, and whether
            Ctrl-C reached any process.
        """
        work, processes = self._work, self._processes
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        batches = [work.train.batch(piece) for piece in self._pieces(rows)]
        count, must_stop = self._agree(sum(work.objective.count(batch.targets) for batch in batches), is_pressed)
        self._optimiser.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=processes.device)
        for batch in batches:
            loss = loss + self._backward(batch, max(1, count))
        self._update(resting)
        return processes.sum(loss), count, must_stop

    def tensors(self) -> dict[str, torch.Tensor]:
        """Moments and the scaler's state, for checkpoints."""
        found = optimiser_tensors(self._optimiser)
        if self._scaler is not None:
            state = self._scaler.state_dict()
            found |= {f"scaler.{name}": torch.tensor(float(state[name]), dtype=torch.float64) for name in ("scale", "_growth_tracker")}
        return found

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """The inverse of `tensors`."""
        load_optimiser(self._optimiser, {name: value for name, value in tensors.items() if not name.startswith("scaler.")})
        if self._scaler is not None:
            saved = {"scale": float(tensors["scaler.scale"]), "_growth_tracker": int(tensors["scaler._growth_tracker"])}
            self._scaler.load_state_dict(self._scaler.state_dict() | saved)

    def _pieces(self, rows: Sequence[int]) -> list[Sequence[int]]:
        work = self._work
        pieces = [group for piece in in_pieces(self._processes.share(rows), work.settings.accumulation) for group in work.train.groups(piece)]
        if len(pieces) > 1 and not work.objective.is_separable:
            raise UserError("this loss compares the examples of a batch with each other, and these are of different lengths; bring them to one length in the data")
        return pieces

    def _agree(self, count: int, is_pressed: bool) -> tuple[int, bool]:
        """What the batch holds over all processes, and whether any of them is to stop."""
        if self._processes.count == 1:
            return count, is_pressed
        both = self._processes.sum(torch.tensor([float(count), float(is_pressed)], device=self._processes.device)).tolist()
        return int(both[0]), both[1] > 0

    def _backward(self, batch: Batch, count: int) -> torch.Tensor:
        with self._processes.autocast(self._work.settings.precision):
            outputs = self._work.train.forward(batch)
        loss = self._work.objective.total(outputs, batch.targets) / count
        (loss if self._scaler is None else self._scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _update(self, resting: Collection[nn.Parameter]) -> None:
        parameters, clip = self._work.parameters, self._work.settings.gradient_clip
        self._processes.sum_gradients(parameters)
        for parameter in resting:
            parameter.grad = None
        if self._scaler is not None:
            self._scaler.unscale_(self._optimiser)
        if clip:
            nn.utils.clip_grad_norm_(parameters, clip)
        if self._scaler is None:
            self._optimiser.step()
        else:
            self._scaler.step(self._optimiser)
            self._scaler.update()

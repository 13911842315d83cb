"""The loop: steps over global batches, epochs, validation, early stopping, checkpoints.

One step computes a global batch, wherever its examples lie: each process takes its share, in `accumulation` pieces,
every piece's summed loss is divided by the count of the whole batch, and gradients are summed over processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from polyadapt.errors import UserError
from polyadapt.training import randomness
from polyadapt.training.batches import Batch, Feed, in_batches, in_pieces, order
from polyadapt.training.checkpoint import Checkpoint, Progress, save_checkpoint
from polyadapt.training.events import Emit, Event
from polyadapt.training.interrupt import Interrupt, stopped
from polyadapt.training.losses import Objective
from polyadapt.training.optimisation import load_optimiser, make_optimiser, optimiser_tensors, rate_at
from polyadapt.training.processes import Processes
from polyadapt.training.settings import TrainSettings
from polyadapt.training.watch import Watch

ADVICE = "try a lower train.learning_rate (a tenth), a longer train.warmup or train.precision = 'no', and look at these examples"


@dataclass
class Work:
    """What a loop trains, and with what.

    Attributes:
        state: the tensors that training changes, for checkpoints and for the best state; `load` is its inverse.
        set_training: True before training steps, False before validation.
        parameters: what the optimiser moves.
        fingerprint: what decides the result.
    """

    state: Callable[[], dict[str, torch.Tensor]]
    load: Callable[[Mapping[str, torch.Tensor]], None]
    set_training: Callable[[bool], None]
    parameters: list[nn.Parameter]
    train: Feed
    validation: Feed | None
    objective: Objective
    settings: TrainSettings
    learning_rate: float
    weight_decay: float
    seed: int
    fingerprint: dict[str, Any]


class Loop:
    """One run over one `Work`.

    Args:
        work: what to train.
        processes: the device, and who else trains.
        emit: hears events, in the main process only.
        directory: where checkpoints go; None for none.

    Raises:
        UserError: settings that do not go with this loss or these data.
    """

    def __init__(self, work: Work, processes: Processes, emit: Emit, directory: Path | None) -> None:
        self.work, self.processes, self._listener, self._directory = work, processes, emit, directory
        settings = work.settings
        check_work(work, processes)
        self.progress = Progress()
        self.size = len(work.train.examples)
        self.steps_per_epoch = -(-self.size // settings.batch_size)
        self.steps = min(settings.epochs * self.steps_per_epoch, settings.max_steps or settings.epochs * self.steps_per_epoch)
        self.optimiser = make_optimiser(work.parameters, work.learning_rate, work.weight_decay)
        self._scaler = torch.amp.GradScaler(processes.device.type) if settings.precision == "fp16" else None
        self._interrupt = Interrupt()
        self._watch = Watch(self._ids, ADVICE)
        self._best: dict[str, torch.Tensor] | None = None
        self._window = (0.0, 0)  # loss sum and count since the last `step` event
        self._is_within_step = self._must_stop = False
        self._started = (time.monotonic(), 0)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Take up a checkpoint."""
        self.progress = checkpoint.progress
        self.work.load(checkpoint.form)
        load_optimiser(self.optimiser, {name: value for name, value in checkpoint.optimiser.items() if not name.startswith("scaler.")})
        if self._scaler is not None and "scaler.scale" in checkpoint.optimiser:
            state = {"scale": float(checkpoint.optimiser["scaler.scale"]), "_growth_tracker": int(checkpoint.optimiser["scaler.growth"])}
            self._scaler.load_state_dict(self._scaler.state_dict() | state)
        self._best = None if checkpoint.best is None else dict(checkpoint.best)
        rows = {name: value[min(self.processes.rank, len(value) - 1)] for name, value in checkpoint.random.items()}
        randomness.restore(rows, self.processes.device)

    def run(self) -> None:
        """Train to the end.

        Raises:
            TrainingError: the numbers left the finite.
            TrainingInterrupted: Ctrl-C was pressed; a checkpoint was written, where there is a directory.
        """
        self._started = (time.monotonic(), self.progress.step)
        try:
            with self._interrupt.listening():
                self.work.set_training(True)
                while not self._is_over():
                    self._epoch()
                self._finish()
        except KeyboardInterrupt as error:
            # Within a step some weights may have moved and others not: then only the last checkpoint is sound.
            name = None if self._is_within_step or self.processes.count > 1 else self._checkpoint()
            raise stopped(self.progress.step, self._directory, name) from error

    def evaluate(self, feed: Feed) -> dict[str, float]:
        """Mean loss and measures over a data set, in evaluation mode, over all processes."""
        objective, device = self.work.objective, self.processes.device
        names = ["loss", *objective.measures]
        total = torch.zeros(len(names), dtype=torch.float64, device=device)
        count = 0
        self.work.set_training(False)
        with torch.no_grad():
            for rows in in_batches(range(len(feed.examples)), self.work.settings.batch_size):
                for group in feed.groups(self.processes.share(rows)):
                    batch = feed.batch(group)
                    with self.processes.autocast(self.work.settings.precision):
                        outputs = feed.forward(batch)
                    sums = [objective.total(outputs, batch.targets), *(measure(outputs, batch.targets) for measure in objective.measures.values())]
                    total += torch.stack([value.double() for value in sums])
                    count += objective.count(batch.targets)
        self.work.set_training(True)
        whole = self.processes.sum(torch.cat([total, total.new_tensor([float(count)])])).tolist()
        return {name: value / max(1.0, whole[-1]) for name, value in zip(names, whole, strict=False)}

    def emit(self, kind: str, **values: Any) -> None:
        """Tell the listener, if this is the main process."""
        if self.processes.is_main:
            self._listener(Event(kind, values))

    def _is_over(self) -> bool:
        progress, patience = self.progress, self.work.settings.early_stopping
        is_last = progress.step >= self.steps or (patience > 0 and progress.waited >= patience)
        return progress.is_finished or (is_last and progress.batch == 0)

    def _epoch(self) -> None:
        progress = self.progress
        batches = list(in_batches(order(self.size, self.work.seed, progress.epoch), self.work.settings.batch_size))
        while progress.batch < len(batches) and progress.step < self.steps:
            self._is_within_step = True
            self._step(batches[progress.batch])
            self._is_within_step = False
            self._after_step()
        self._end_epoch()

    def _step(self, rows: Sequence[int]) -> None:
        work, settings, progress = self.work, self.work.settings, self.progress
        rate = rate_at(progress.step, self.steps, work.learning_rate, settings.schedule, settings.warmup)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        pieces = [group for piece in in_pieces(self.processes.share(rows), settings.accumulation) for group in work.train.groups(piece)]
        if len(pieces) > 1 and not work.objective.is_separable:
            raise UserError("this loss compares the examples of a batch with each other, and these are of different lengths; bring them to one length in the data")
        batches = [work.train.batch(piece) for piece in pieces]
        count, self._must_stop = self._agree(sum(work.objective.count(batch.targets) for batch in batches))
        self.optimiser.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=self.processes.device)
        for batch in batches:
            loss = loss + self._backward(batch, max(1, count))
        self._update()
        progress.step += 1
        progress.batch += 1
        progress.examples += len(rows)
        self._watch.see(progress.step, self.processes.sum(loss), count)

    def _agree(self, count: int) -> tuple[int, bool]:
        """What the batch holds over all processes, and whether Ctrl-C reached any of them."""
        if self.processes.count == 1:
            return count, self._interrupt.was_pressed
        both = self.processes.sum(torch.tensor([float(count), float(self._interrupt.was_pressed)], dtype=torch.float64, device=self.processes.device)).tolist()
        return int(both[0]), both[1] > 0

    def _backward(self, batch: Batch, count: int) -> torch.Tensor:
        with self.processes.autocast(self.work.settings.precision):
            outputs = self.work.train.forward(batch)
        loss = self.work.objective.total(outputs, batch.targets) / count
        (loss if self._scaler is None else self._scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _update(self) -> None:
        parameters, clip = self.work.parameters, self.work.settings.gradient_clip
        self.processes.sum_gradients(parameters)
        if self._scaler is not None:
            self._scaler.unscale_(self.optimiser)
        if clip:
            nn.utils.clip_grad_norm_(parameters, clip)
        if self._scaler is None:
            self.optimiser.step()
        else:
            self._scaler.step(self.optimiser)
            self._scaler.update()

    def _after_step(self) -> None:
        """Report, checkpoint and stop, where it is time for that."""
        settings, progress = self.work.settings, self.progress
        is_reported = progress.step % settings.log_every_steps == 0 or progress.step == self.steps
        # On a CPU a look at the loss is free; on a GPU it waits for the queue, so it is taken with the report.
        if is_reported or self.processes.device.type == "cpu":
            self._look()
        if is_reported:
            loss, count = self._window
            self._window = (0.0, 0)
            self.emit("step", step=progress.step, steps=self.steps, epoch=progress.epoch + 1, loss=loss / max(1, count), learning_rate=self.optimiser.param_groups[0]["lr"], seconds_left=self._seconds_left())
        if settings.checkpoint_every_steps and progress.step % settings.checkpoint_every_steps == 0:
            self._checkpoint()
        if self._must_stop:
            raise stopped(progress.step, self._directory, self._checkpoint())

    def _look(self) -> None:
        progress = self.progress
        for loss, count in self._watch.check():
            progress.loss_sum += loss * count
            progress.loss_count += count
            self._window = (self._window[0] + loss * count, self._window[1] + count)

    def _end_epoch(self) -> None:
        work, progress = self.work, self.progress
        self._look()
        row: dict[str, Any] = {"epoch": progress.epoch + 1, "step": progress.step, "loss": progress.loss_sum / max(1, progress.loss_count)}
        if work.validation is not None:
            row["validation"] = self.evaluate(work.validation)
            self._note_best(row["validation"])
        progress.history.append(row)
        progress.epoch += 1
        progress.batch, progress.loss_sum, progress.loss_count = 0, 0.0, 0
        self.emit("epoch", **row)
        self._checkpoint()

    def _note_best(self, metrics: Mapping[str, float]) -> None:
        progress, metric = self.progress, self.work.objective.metric
        score = -metrics["loss"] if metric == "loss" else metrics[metric]
        if progress.best is None or score > progress.best:
            progress.best, progress.best_epoch, progress.waited = score, progress.epoch + 1, 0
            if self.work.settings.early_stopping:
                self._best = {name: value.detach().cpu().clone() for name, value in self.work.state().items()}
        else:
            progress.waited += 1

    def _finish(self) -> None:
        self._look()
        self._watch.check_parameters(self.progress.step, self.work.parameters)
        if self._best is not None:
            self.work.load(self._best)
        if not self.progress.is_finished:
            self.progress.is_finished = True
            self._checkpoint()

    def _checkpoint(self) -> str | None:
        """Write one, where there is a directory; its name."""
        if self._directory is None:
            return None
        self._look()
        self._watch.check_parameters(self.progress.step, self.work.parameters)
        random = {name: self.processes.gather(value) for name, value in randomness.states(self.processes.device).items()}
        name = None
        if self.processes.is_main:
            moments = optimiser_tensors(self.optimiser)
            if self._scaler is not None:
                moments["scaler.scale"] = torch.tensor(self._scaler.get_scale(), dtype=torch.float64)
                moments["scaler.growth"] = torch.tensor(self._scaler._get_growth_tracker())
            parts = {"form": self.work.state(), "optimiser": moments, "random": random}
            if self._best is not None:
                parts["best"] = self._best
            name = save_checkpoint(self._directory, self.progress, self.work.fingerprint, parts, self.work.settings.keep)
            self.emit("checkpoint", step=self.progress.step, name=name)
        self.processes.wait()
        return name

    def _seconds_left(self) -> float:
        began, step = self._started
        return (time.monotonic() - began) / max(1, self.progress.step - step) * (self.steps - self.progress.step)

    def _ids(self, step: int) -> list[str]:
        """Names of the examples of a step, found again from the seed."""
        epoch, batch = divmod(max(0, step - 1), self.steps_per_epoch)
        rows = order(self.size, self.work.seed, epoch)[batch * self.work.settings.batch_size :][: self.work.settings.batch_size]
        return [self.work.train.examples.id(row) for row in rows]


def check_work(work: Work, processes: Processes) -> None:
    """Refuse settings that cannot be kept.

    Raises:
        UserError: says which and why.
    """
    if not work.parameters:
        raise UserError("nothing would train: the form has no trainable parameter on this model; choose sites or options under which it has")
    if work.settings.early_stopping and work.validation is None:
        raise UserError("train.early_stopping looks at a validation metric, and there is no validation part; give it a share of the split, or set it to 0")
    if not work.objective.is_separable and (work.settings.accumulation > 1 or processes.count > 1):
        raise UserError("this loss compares the examples of a batch with each other: it takes one process and train.accumulation = 1; lower train.batch_size to save memory")

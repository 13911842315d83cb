"""The course of a run: steps, epochs, validation, early stopping, checkpoints, events."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from polyadapt.training import randomness
from polyadapt.training.checkpoint import Checkpoint, Progress, save_checkpoint
from polyadapt.training.events import Emit, Event
from polyadapt.training.interrupt import Interrupt, stopped
from polyadapt.training.optimisation import rate_at
from polyadapt.training.processes import Processes
from polyadapt.training.step import Stepper
from polyadapt.training.validation import measure
from polyadapt.training.watch import Watch
from polyadapt.training.work import Work, check_work

ADVICE = "try a lower train.learning_rate (a tenth), a longer train.warmup or train.precision = 'no', and look at these examples"


class Loop:
    """One run over one `Work`.

    Args:
        work: what to train.
        processes: the device, and who else trains.
        emit: hears events, in the main process only.
        directory: where checkpoints go; None for none.
        began: when the session did, by the monotonic clock; now where nothing came before the loop.

    Raises:
        UserError: settings that do not go with this loss or these data.
    """

    def __init__(self, work: Work, processes: Processes, emit: Emit, directory: Path | None, began: float | None = None) -> None:
        check_work(work, processes)
        self.work, self.processes, self._listener, self._directory = work, processes, emit, directory
        settings = work.settings
        self.progress = Progress()
        self.size = len(work.train.examples)
        self.steps_per_epoch = len(work.batches(work.seed, 0))
        self.steps = min(settings.epochs * self.steps_per_epoch, settings.max_steps or settings.epochs * self.steps_per_epoch)
        self._stepper = Stepper(work, processes)
        self._interrupt = Interrupt()
        self._watch = Watch(self._ids, ADVICE)
        self._best: dict[str, torch.Tensor] | None = None
        self._began, self._earlier = time.monotonic() if began is None else began, 0.0
        self._is_within_step = self._must_stop = False
        self._started = (time.monotonic(), 0)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Take up a checkpoint."""
        self.progress = checkpoint.progress
        self._earlier = checkpoint.progress.seconds
        self.work.load(checkpoint.form)
        self._stepper.load(checkpoint.optimiser)
        self._best = None if checkpoint.best is None else dict(checkpoint.best)
        rows = {name: value[min(self.processes.rank, len(value) - 1)] for name, value in checkpoint.random.items()}
        randomness.restore(rows, self.processes.device)

    @property
    def seconds(self) -> float:
        """That training has taken, sessions before this one included."""
        return self._earlier + time.monotonic() - self._began

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
            if self._is_pressed_anywhere():
                raise stopped(self.progress.step, self._directory, self._checkpoint())
        except KeyboardInterrupt as error:
            # Within a step some weights may have moved and others not: then only the last checkpoint is sound.
            name = None if self._is_within_step or self.processes.count > 1 else self._checkpoint()
            raise stopped(self.progress.step, self._directory, name) from error

    def emit(self, kind: str, **values: Any) -> None:
        """Tell the listener, if this is the main process."""
        if self.processes.is_main:
            self._listener(Event(kind, values))

    def _is_over(self) -> bool:
        progress, patience = self.progress, self.work.settings.early_stopping
        is_last = progress.step >= self.steps or (patience > 0 and progress.waited >= patience)
        return progress.is_finished or (is_last and progress.batch == 0)

    def _epoch(self) -> None:
        work, settings, progress = self.work, self.work.settings, self.progress
        work.train.epoch = progress.epoch + 1
        batches = work.batches(work.seed, progress.epoch)
        while progress.batch < len(batches) and progress.step < self.steps:
            self._is_within_step = True
            rate = rate_at(progress.step, self.steps, work.learning_rate, settings.schedule, settings.warmup)
            rows = batches[progress.batch]
            loss, count, self._must_stop = self._stepper.step(rows, rate, self._interrupt.was_pressed, work.resting(progress.step))
            progress.step += 1
            progress.batch += 1
            self._watch.see(progress.step, loss, count)
            self._is_within_step = False
            self._after_step(rate)
        self._end_epoch()

    def _after_step(self, rate: float) -> None:
        """Report, checkpoint and stop, where it is time for that."""
        settings, progress = self.work.settings, self.progress
        is_reported = progress.step % settings.log_every_steps == 0 or progress.step == self.steps
        # On a CPU a look at the loss is free; on a GPU it waits for the queue, so it is taken with the report.
        if is_reported or self.processes.device.type == "cpu":
            self._look()
        if is_reported:
            loss, count = progress.window_sum, progress.window_count
            progress.window_sum, progress.window_count = 0.0, 0
            at = {"step": progress.step, "steps": self.steps, "epoch": progress.epoch + 1}
            self.emit("step", **at, loss=loss / max(1, count), learning_rate=rate, seconds_left=self._seconds_left())
        if settings.checkpoint_every_steps and progress.step % settings.checkpoint_every_steps == 0:
            self._checkpoint()
        if self._is_stopped():
            raise stopped(progress.step, self._directory, self._checkpoint())

    def _is_stopped(self) -> bool:
        """Whether Ctrl-C is to stop the run here. One process knows at once; several agree within their next step, or at the end of the run."""
        return self._must_stop or (self.processes.count == 1 and self._interrupt.was_pressed)

    def _is_pressed_anywhere(self) -> bool:
        """Whether Ctrl-C reached any process; all of them ask together."""
        return float(self.processes.sum(torch.tensor(float(self._interrupt.was_pressed), device=self.processes.device))) > 0

    def _look(self) -> None:
        progress = self.progress
        for loss, count in self._watch.check():
            progress.loss_sum += loss * count
            progress.loss_count += count
            progress.window_sum += loss * count
            progress.window_count += count

    def _end_epoch(self) -> None:
        work, progress = self.work, self.progress
        self._look()
        row: dict[str, Any] = {"epoch": progress.epoch + 1, "step": progress.step, "loss": progress.loss_sum / max(1, progress.loss_count)}
        if work.validation is not None:
            row["validation"] = measure(work, work.validation, self.processes)
            self._note_best(row["validation"])
        progress.history.append(row)
        progress.epoch += 1
        progress.batch, progress.loss_sum, progress.loss_count = 0, 0.0, 0
        self.emit("epoch", **row)
        name = self._checkpoint()
        if self._is_stopped():
            raise stopped(progress.step, self._directory, name)

    def _note_best(self, metrics: Mapping[str, float]) -> None:
        progress, metric = self.progress, self.work.objective.metric
        score = -metrics["loss"] if metric == "loss" else metrics[metric]
        if self._is_better(score, metrics["loss"]):
            progress.best, progress.best_epoch, progress.waited = score, progress.epoch + 1, 0
            if self.work.settings.early_stopping:
                self._best = {name: value.detach().cpu().clone() for name, value in self.work.state().items()}
        else:
            progress.waited += 1

    def _is_better(self, score: float, loss: float) -> bool:
        """Whether an epoch is better than the best so far: by its metric, and among equal ones by its loss (transcripts stay empty for a while)."""
        progress = self.progress
        if progress.best is None or math.isnan(score):
            return not math.isnan(score)  # not a number is worse than anything
        best_loss = progress.history[progress.best_epoch - 1]["validation"]["loss"]
        return (score, -_or_infinite(loss)) > (progress.best, -_or_infinite(best_loss))

    def _finish(self) -> None:
        self._look()
        self._watch.check_parameters(self.progress.step, self.work.parameters)
        if self._best is not None:
            self.work.load(self._best)
        if not self.progress.is_finished:
            self.progress.is_finished = True
            self._checkpoint()

    def _checkpoint(self) -> str | None:
        """Write one, where there is a directory; its name, in the main process."""
        if self._directory is None:
            return None
        self._look()
        self._watch.check_parameters(self.progress.step, self.work.parameters)
        self.progress.seconds = self.seconds
        random = {name: self.processes.gather(value) for name, value in randomness.states(self.processes.device).items()}
        name = None
        if self.processes.is_main:
            parts = {"form": self.work.state(), "optimiser": self._stepper.tensors(), "random": random}
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
        return [self.work.train.examples.id(row) for row in self.work.batches(self.work.seed, epoch)[batch]]


def _or_infinite(loss: float) -> float:
    """A loss that is not a number is worse than any that is."""
    return math.inf if math.isnan(loss) else float(loss)

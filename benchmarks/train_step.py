"""One LoRA training step: Polyadapt's own step against a loop written by hand and against PEFT.

Every side takes a batch out of the host's memory, runs forward, loss, backward, clips the gradient to norm 1 and steps AdamW
(fused). On timm's fused qkv Polyadapt and the hand-written layer adapt the query and value rows, PEFT can only adapt the
whole projection: `vit-qv` therefore compares different adapters with PEFT, the other cases the same ones.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from measuring import Load, Report, Side, Target, add_device, arguments_of, in_turns, on_device
from subjects import llama_135m, pictures, texts, vit_small, with_hand_written_lora, with_peft_lora
from torch import nn
from torch.nn import functional as F

from polyadapt.methods.base import load_method
from polyadapt.methods.lora.card import CARD as LORA
from polyadapt.methods.lora.card import LoraOptions
from polyadapt.model import Model
from polyadapt.training.batches import TrainingData
from polyadapt.training.drawing import shuffled
from polyadapt.training.feeds import make_feeds
from polyadapt.training.form import attached, trainable
from polyadapt.training.losses import objective_for
from polyadapt.training.modes import training_modes
from polyadapt.training.processes import find_processes
from polyadapt.training.run import Run
from polyadapt.training.settings import TrainSettings
from polyadapt.training.step import Stepper
from polyadapt.training.work import Work

RANK, ALPHA, RATE = 8, 16.0, 1e-3
Step = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """A model, the sites in Polyadapt's words, and the same layers in the library's."""

    family: str
    sites: tuple[str, ...]
    targets: tuple[str, ...]
    batch: int


CASES = {
    "vit-qv": Case("vit", ("attn.q", "attn.v"), ("attn.qkv",), 16),
    "vit-mlp": Case("vit", ("attn.o", "ffn.up", "ffn.down"), ("attn.proj", "mlp.fc1", "mlp.fc2"), 16),
    "llama-qv": Case("llama", ("attn.q", "attn.v"), ("q_proj", "v_proj"), 2),
}
SIDES = ("polyadapt", "by hand", "peft")


def load(case: Case) -> tuple[Model, Any]:
    """(model, data of four batches)."""
    model = vit_small() if case.family == "vit" else llama_135m()
    make = pictures if case.family == "vit" else texts
    return model, make(model, 4 * case.batch)


@contextlib.contextmanager
def our_step(case: Case, model: Model, data: Any, device: str) -> Iterator[Step]:
    """The step that `adapt` takes."""
    settings = TrainSettings(batch_size=case.batch, frozen_prefix="off", device=device)
    run, processes = Run(settings), find_processes(device, "no")
    model.module.to(processes.device)
    form = load_method(LORA).build(model, LoraOptions(sites=case.sites, rank=RANK, alpha=ALPHA), torch.Generator().manual_seed(0)).to(processes.device)
    with attached(model, form) as attachments:
        switch = training_modes(model, attachments, form)
        feeds = make_feeds(model, form, attachments, TrainingData(data), run, processes, switch)
        batches = shuffled(len(feeds.train.examples), settings.batch_size)
        work = Work(form.trained, form.load_trained, switch, trainable(attachments, form), feeds.train, None, objective_for(model.task), settings, RATE, 0.0, 0, {}, batches)
        stepper, turn = Stepper(work, processes), iter(range(1 << 60))
        switch(True)

        def step() -> float:
            start = next(turn) % 4 * case.batch
            loss, _, _ = stepper.step(range(start, start + case.batch), RATE, False)
            return float(loss)

        yield step


def picture_loss(module: Any, model: Model, data: Any, device: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Normalisation, forward and cross entropy, with a new class head."""
    inner: Any = module.get_base_model() if hasattr(module, "get_base_model") else module
    inner.head = nn.Linear(inner.embed_dim, len(model.task.labels), device=device)
    nn.init.zeros_(inner.head.weight)
    nn.init.zeros_(inner.head.bias)
    labels = torch.tensor([model.task.labels.index(row.label) for row in data])
    inputs = torch.stack([torch.from_numpy(model.processor(row.raw)["image"]) for row in data])
    front: Any = model.module.front.to(device)
    return lambda rows: F.cross_entropy(module(front(image=inputs[rows].to(device))["image"]), labels[rows].to(device))


def text_loss(module: Any, model: Model, data: Any, device: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The loss of transformers' own forward."""
    inputs = torch.stack([torch.from_numpy(row.raw) for row in data])

    def loss(rows: torch.Tensor) -> torch.Tensor:
        ids = inputs[rows].to(device)
        found: torch.Tensor = module(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, use_cache=False).loss
        return found

    return loss


@contextlib.contextmanager
def plain_step(case: Case, model: Model, data: Any, wrap: Callable[..., Any], device: str) -> Iterator[Step]:
    """A loop in plain PyTorch around a module that carries its own LoRA. The model's backbone is changed for good."""
    module = wrap(model.backbone, case.targets, RANK, ALPHA).to(device)
    loss_of = (picture_loss if case.family == "vit" else text_loss)(module, model, data, device)
    module.train()
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimiser, turn = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0, fused=True), iter(range(1 << 60))

    def step() -> float:
        start = next(turn) % 4 * case.batch
        loss = loss_of(torch.arange(start, start + case.batch))
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        return float(loss.detach())

    yield step


def steps_of(case: Case, side: str, model: Model, data: Any, device: str) -> contextlib.AbstractContextManager[Step]:
    """The step of one side."""
    if side == "polyadapt":
        return our_step(case, model, data, device)
    return plain_step(case, model, data, with_hand_written_lora if side == "by hand" else with_peft_lora, device)


def measure_times(name: str, arguments: argparse.Namespace, report: Report) -> None:
    case = CASES[name]
    model, data = load(case)
    with contextlib.ExitStack() as stack:
        # Every side has a model of its own: the same seed gives the same weights.
        steps = {side: stack.enter_context(steps_of(case, side, model if side == SIDES[0] else load(case)[0], data, arguments.device)) for side in SIDES}
        losses = {side: checked_loss(case, step) for side, step in steps.items()}
        if max(losses.values()) - min(losses.values()) > 1e-5 * max(losses.values()):
            raise RuntimeError(f"{name}: the sides do not compute the same loss: {losses}")
        rounds = in_turns([Side(side, steps[side], arguments.threads, torch.set_num_threads) for side in SIDES], arguments.rounds, arguments.clock)
    different = "PEFT adapts the whole qkv" if name == "vit-qv" else ""
    report.rows.append(rounds.ratio("polyadapt", "by hand", f"{name}: time / by hand", Target(1.05), rounds.seconds("polyadapt")))
    report.rows.append(rounds.ratio("polyadapt", "peft", f"{name}: time / PEFT", Target(1.05), different))
    report.notes.append(f"{name}: the same loss on every side before the adapters move, {losses['polyadapt']:.6f}")


def checked_loss(case: Case, step: Step) -> float:
    """A loss that all sides must share, whatever their random factors: of the first step, and of the second where the first moves only the zero head."""
    for _ in range(2 if case.family == "vit" else 1):
        loss = float(step())  # type: ignore[arg-type]
    return loss


def main() -> int:
    def add(parser: argparse.ArgumentParser) -> None:
        add_device(parser)
        parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=tuple(CASES), help="some of the cases")

    arguments = arguments_of("LoRA training step against a hand-written loop and PEFT.", 20, add)
    report = Report(on_device("train_step", arguments), "One LoRA training step (rank 8), random weights", is_trial=arguments.is_trial)
    with Load() as load_of_others:
        for name in arguments.cases:
            measure_times(name, arguments, report)
    report.others = load_of_others.others
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())

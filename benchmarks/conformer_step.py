"""One training step of conformer adapters on AST-base against PEFT's LoRA with as many values: 500 frames, 8 spectrograms.

Both sides take a batch of spectrograms out of memory, run forward, loss, backward, clip the gradient to norm 1 and step
AdamW (fused), with a new class head on the mean of class and distillation token. Conformer: r = 8, k = 31, with the norm that
feeds it, 270 720 values; LoRA on q and v, r = 7, 258 048 values (r = 8 would be 294 912).
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from measuring import Load, Report, Side, Target, arguments_of, in_turns
from subjects import CLASSES, with_peft_lora
from torch import nn
from torch.nn import functional as F
from train_step import Step

from polyadapt.data.dataset import Dataset, Example
from polyadapt.families.ast.card import CARD as AST
from polyadapt.families.ast.model import AstFamily
from polyadapt.host import Host
from polyadapt.methods.base import load_method
from polyadapt.model import Model, build_model
from polyadapt.signature import Task
from polyadapt.sources.processors import array_spec, make_processor
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

FRAMES, BANDS, BATCH, RATE = 500, 128, 8, 5e-3
OURS = {"conformer": {"rank": 8, "kernel": 31}, "lora": {"sites": ("attn.q", "attn.v"), "rank": 7, "alpha": 7.0}}
PEFT = "peft lora"


def ast_base() -> Model:
    """AST-base for 500 frames, random weights."""
    from transformers import ASTConfig, ASTModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = ASTModel(ASTConfig(max_length=FRAMES, attn_implementation="sdpa")).eval()
    family, task = AstFamily(AST), Task("classification", CLASSES)
    return build_model(family, backbone, task, make_processor(array_spec(family.signature(backbone, task))), reference="ast-base")


def spectrograms() -> Dataset:
    """Four batches of noise, classes in turn."""
    generator = torch.Generator().manual_seed(0)
    rows = [Example(f"{index}", torch.randn(FRAMES, BANDS, generator=generator).numpy(), CLASSES[index % len(CLASSES)]) for index in range(4 * BATCH)]
    return Dataset("noise", rows, "array", CLASSES)


@contextlib.contextmanager
def our_step(method: str) -> Iterator[tuple[Step, int]]:
    """(the step that `adapt` takes, values that train)."""
    model, data = ast_base(), spectrograms()
    settings = TrainSettings(batch_size=BATCH, frozen_prefix="off", device="cpu")
    run, processes = Run(settings), find_processes("cpu", "no")
    card = Host().registry.methods.get(method).card
    form = load_method(card).build(model, card.options(**OURS[method]), torch.Generator().manual_seed(0))
    with attached(model, form) as attachments:
        switch = training_modes(model, attachments, form)
        feeds = make_feeds(model, form, attachments, TrainingData(data), run, processes, switch)
        parameters = trainable(attachments, form)
        batches = shuffled(len(feeds.train.examples), settings.batch_size)
        work = Work(form.trained, form.load_trained, switch, parameters, feeds.train, None, objective_for(model.task), settings, RATE, 0.0, 0, {}, batches)
        stepper, turn = Stepper(work, processes), iter(range(1 << 60))
        switch(True)

        def step() -> float:
            start = next(turn) % 4 * BATCH
            loss, _, _ = stepper.step(range(start, start + BATCH), RATE, False)
            return float(loss)

        yield step, sum(parameter.numel() for parameter in parameters)


@contextlib.contextmanager
def peft_step() -> Iterator[tuple[Step, int]]:
    """(a loop in plain PyTorch around PEFT's LoRA, values that train)."""
    model, data = ast_base(), spectrograms()
    inputs = torch.stack([torch.from_numpy(row.raw) for row in data])
    labels = torch.tensor([CLASSES.index(str(row.label)) for row in data])
    module: Any = with_peft_lora(model.backbone, ("q_proj", "v_proj"), 7, 7.0)
    head = nn.Linear(768, len(CLASSES))
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    module.train()
    parameters = [*(parameter for parameter in module.parameters() if parameter.requires_grad), *head.parameters()]
    optimiser, turn = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0, fused=True), iter(range(1 << 60))

    def step() -> float:
        start = next(turn) % 4 * BATCH
        rows = slice(start, start + BATCH)
        loss = F.cross_entropy(head(module(inputs[rows]).pooler_output), labels[rows])
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        return float(loss.detach())

    yield step, sum(parameter.numel() for parameter in parameters)


def main() -> int:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--sides", nargs="+", choices=tuple(OURS), default=tuple(OURS), help="some of our methods")

    arguments = arguments_of("Conformer training step on AST-base against PEFT's LoRA.", 20, add)
    report = Report("conformer_step", f"One training step on AST-base, {FRAMES} frames, batch {BATCH}, random weights", is_trial=arguments.is_trial)
    makers: dict[str, Callable[[], contextlib.AbstractContextManager[tuple[Step, int]]]] = {PEFT: peft_step}
    makers |= {name: lambda name=name: our_step(name) for name in arguments.sides}  # type: ignore[misc]
    with Load() as load_of_others, contextlib.ExitStack() as stack:
        steps = {name: stack.enter_context(make()) for name, make in makers.items()}
        firsts = {name: float(step()) for name, (step, _) in steps.items()}  # type: ignore[arg-type]
        if max(firsts.values()) - min(firsts.values()) > 1e-5 * max(firsts.values()):
            raise RuntimeError(f"the sides do not begin at the same loss: {firsts}")
        rounds = in_turns([Side(name, step, arguments.threads, torch.set_num_threads) for name, (step, _) in steps.items()], arguments.rounds, arguments.clock)
    for name in arguments.sides:
        target = Target(1.10) if name == "conformer" else None
        report.rows.append(rounds.ratio(name, PEFT, f"{name}: time / PEFT's LoRA", target, rounds.seconds(name)))
    report.notes.append("; ".join(f"{name} trains {count} values with its head" for name, (_, count) in steps.items()))
    report.others = load_of_others.others
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())

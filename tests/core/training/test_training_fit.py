"""`fit` as a whole: what it learns, what it leaves behind, what stops it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from polyadapt.artifact import Artifact, detach
from polyadapt.data.dataset import Dataset, Example
from polyadapt.edits import Edit, Form
from polyadapt.errors import TrainingError, UserError
from polyadapt.methods.base import Method
from polyadapt.model import Model
from polyadapt.testing.conformance import LABELS, state_of
from polyadapt.training import Objective, TrainingData, TrainPlan, TrainSettings, estimate, fit, train_form
from polyadapt.training.checkpoint import Progress
from polyadapt.training.keep import kept
from polyadapt.training.loop import Loop
from polyadapt.training.processes import find_processes
from polyadapt.training.run import Run
from polyadapt.training.watch import memory_error

Tiny = Callable[..., Model]
Rows = Callable[..., Dataset]
MethodOf = Callable[[str], Method]
QUICK = {"epochs": 2, "batch_size": 4, "log_every_steps": 1}


def flags(model: Model) -> list[tuple[bool, ...]]:
    return [tuple(parameter.requires_grad for parameter in model.module.parameters()), tuple(module.training for module in model.module.modules())]


CASES = [("efficientnet", "full", ("stage.1.*",)), ("vit", "lora", ("block.1.*",)), ("bert", "full", ("*",)), ("efficientnet", "linear_probe", ())]


@pytest.mark.parametrize("prefix", ["off", "auto"])
@pytest.mark.parametrize(("family", "method", "sites"), CASES)
def test_fit_leaves_the_model_as_it_was(prefix: str, family: str, method: str, sites: tuple[str, ...], tiny: Tiny, labelled_rows: Rows, method_of: MethodOf) -> None:
    model, chosen = tiny(family), method_of(method)
    next(model.backbone.parameters()).requires_grad_(False)
    model.backbone.get_submodule(next(name for name, _ in model.backbone.named_children())).train()
    before, marks = state_of(model), flags(model)
    options = chosen.card.options(**({"sites": sites} if sites else {}))
    data = TrainingData(labelled_rows(model, 10, 1), labelled_rows(model, 3, 2))
    artifact = fit(model, chosen, options, data, TrainSettings(**QUICK, frozen_prefix=prefix))

    def fail(event: Any) -> None:
        if event["kind"] == "epoch":
            raise RuntimeError("the listener broke")

    with pytest.raises(RuntimeError, match="the listener broke"):
        fit(model, chosen, options, data, TrainSettings(**QUICK, frozen_prefix=prefix), fail)
    after = state_of(model)
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert flags(model) == marks
    assert all(parameter.grad is None for parameter in model.module.parameters())
    assert artifact.labels == LABELS and any(bool(value.abs().max() > 0) for value in artifact.slots.values() if value.numel())


def test_kept_puts_back_buffers_modes_and_gradients() -> None:
    """Also a buffer that was replaced by another tensor, and after an error."""
    net = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))
    net[0].eval()
    net[1].bias.requires_grad_(False)
    norm: Any = net[0]
    mean, before = norm.running_mean, {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ValueError, match="stop"), kept(net):
        net.train()
        net(torch.randn(4, 3)).sum().backward()
        norm.running_var = torch.zeros(3)
        net[1].bias.requires_grad_(True)
        raise ValueError("stop")
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items()) and norm.running_mean is mean
    assert (net.training, norm.training, net[1].training) == (True, False, True)
    assert [parameter.requires_grad for parameter in net.parameters()] == [True, True, True, False]
    assert all(parameter.grad is None for parameter in net.parameters())


def test_the_artifact_is_what_was_trained(tmp_path: Path, tiny: Tiny, labelled_rows: Rows, method_of: MethodOf) -> None:
    """Its validation loss, computed by hand on the reloaded artifact, is the one that training reported."""
    model, lora = tiny("vit"), method_of("lora")
    data = TrainingData(labelled_rows(model, 12, 1), labelled_rows(model, 6, 2))
    artifact = fit(model, lora, lora.card.options(), data, TrainSettings(**QUICK))
    artifact.save(tmp_path / "a")
    Artifact.load(tmp_path / "a").attach(model)
    images = torch.from_numpy(np.stack([example.raw for example in data.validation]))
    labels = torch.tensor([LABELS.index(example.label) for example in data.validation])
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model.module(image=images)["logits"], labels)
    detach(model)
    assert artifact.provenance["metrics"]["validation"]["loss"] == pytest.approx(float(loss), rel=1e-6)


def test_provenance_says_where_it_comes_from_and_nothing_private(tiny: Tiny, labelled_rows: Rows, method_of: MethodOf) -> None:
    model, lora = tiny("vit"), method_of("lora")
    train = labelled_rows(model, 8, 1)
    artifact = fit(model, lora, lora.card.options(rank=2), TrainingData(train), TrainSettings(**QUICK), seed=5)
    found = artifact.provenance
    assert found["seed"] == 5 and found["settings"]["batch_size"] == 4
    assert found["data"] == {"train": {"examples": 8, "hash": train.hash}}
    assert found["steps"] == 4 and found["epochs"] == 2
    assert found["parameters"] == 2 * 2 * 2 * (32 + 32) + 32 * 3 + 3, "q and v of two blocks with rank 2, and the head"
    assert {"torch", "timm", "python"} <= set(found["versions"])
    text = json.dumps(found)
    assert os.uname().nodename not in text and str(Path.home()) not in text and os.getcwd() not in text


def test_the_same_seed_gives_the_same_bits_and_leaves_the_callers_random_state(job: ModuleType) -> None:
    torch.manual_seed(1)
    state, numbers = torch.get_rng_state(), np.random.get_state()[1].copy()
    one = job.train(None, max_steps=3)
    assert torch.equal(torch.get_rng_state(), state) and np.array_equal(np.random.get_state()[1], numbers)
    torch.manual_seed(2)
    two = job.train(None, max_steps=3)
    assert all(torch.equal(value, two.slots[name]) for name, value in one.slots.items())


def test_accumulation_changes_nothing(job: ModuleType) -> None:
    whole = job.train(None, dropout=0.0, max_steps=5).slots
    pieces = job.train(None, dropout=0.0, max_steps=5, accumulation=3).slots  # 8 = 3 + 3 + 2, and 5 = 2 + 2 + 1
    for name, value in whole.items():
        torch.testing.assert_close(pieces[name], value, rtol=1e-5, atol=1e-6)


def test_a_step_is_adamw_on_the_mean_loss(job: ModuleType) -> None:
    """One step without warm-up or clipping, against torch's own optimiser on the loss written out."""
    model, lora = job.policy_model(), job.load_method(job.LORA)
    options = lora.card.options(sites=("*",))
    data = job.policy_data(8, 1)
    settings = TrainSettings(max_steps=1, batch_size=8, warmup=0, gradient_clip=0, weight_decay=0.1, learning_rate=0.01, schedule="constant")
    artifact = fit(model, lora, options, TrainingData(data), settings)
    form = lora.build(model, options, torch.Generator().manual_seed(0))
    from polyadapt.edits import attachments_of

    attachments_of(model.module, model.ports, model.backbone).add("by-hand", form)
    optimiser = torch.optim.AdamW(form.parameters(), lr=0.01, weight_decay=0.1)
    observations, targets = (torch.from_numpy(np.stack(rows)) for rows in ([row.raw for row in data], [row.target for row in data]))
    ((model.module(observation=observations)["action"] - targets) ** 2).mean().backward()
    optimiser.step()
    expected = {f"{edit.key}.{name}": value for edit in form.lower() for name, value in edit.tensors.items()}
    detach(model)
    for name, value in artifact.slots.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-7)


def test_early_stopping_keeps_the_best_state(job: ModuleType) -> None:
    """With a rate that is far too high the loss gets worse: the run stops, and the first epoch's state is what remains."""
    events: list[Any] = []
    artifact = job.train(None, emit=events.append, epochs=20, learning_rate=0.1, schedule="constant", early_stopping=2, dropout=0.0, warmup=0)
    losses = [event["validation"]["loss"] for event in events if event.kind == "epoch"]
    best = losses.index(min(losses))
    assert len(losses) == best + 3 < 20
    assert artifact.provenance["metrics"]["validation"]["loss"] == losses[best]
    again = job.train(None, epochs=20, learning_rate=0.1, schedule="constant", early_stopping=2, dropout=0.0, warmup=0, max_steps=4 * (best + 1))
    assert all(torch.equal(value, again.slots[name]) for name, value in artifact.slots.items())


@pytest.mark.parametrize("bad", [{1}, {1, 2, 3, 4}, {2, 4}])
def test_a_metric_that_is_not_a_number_is_worse_than_anything(bad: set[int], job: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    epochs: list[int] = []

    def measured(*_: Any) -> dict[str, float]:
        epochs.append(len(epochs) + 1)
        return {"loss": math.nan if epochs[-1] in bad else 1.0 / epochs[-1]}

    monkeypatch.setattr("polyadapt.training.loop.measure", measured)
    artifact = job.train(None, epochs=4, early_stopping=5)
    kept_loss = artifact.provenance["metrics"]["validation"]["loss"]
    good = sorted({1, 2, 3, 4} - bad)
    assert kept_loss == 1.0 / good[-1] if good else math.isnan(kept_loss)


def test_among_equal_metrics_a_loss_that_is_a_number_is_better() -> None:
    loop = Loop.__new__(Loop)
    loop.progress = Progress(best=0.5, best_epoch=1, history=[{"validation": {"loss": math.nan}}])
    assert loop._is_better(0.5, 3.0) and not loop._is_better(0.5, math.nan) and not loop._is_better(0.4, 0.0) and loop._is_better(0.6, math.nan)


class OneVector(Form):
    """Trains the head's bias alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(width))

    def edits(self) -> list[Edit]:
        return [Edit("head", "shift", {"b": self.bias})]


@pytest.mark.parametrize(("step", "factor", "words"), [(3, float("nan"), "not a number"), (4, 1e9, "has grown to")])
def test_a_bad_loss_stops_with_step_examples_and_advice(step: int, factor: float, words: str, job: ModuleType) -> None:
    model, data = job.policy_model(), job.policy_data(8, 1)
    calls = []

    def total(outputs: Any, targets: Any) -> torch.Tensor:
        calls.append(1)
        return ((outputs["action"] - targets["target"]) ** 2).sum() * (factor if len(calls) == step else 1.0)

    objective = Objective(total, lambda targets: len(targets["target"]))
    form = OneVector(job.ACTION)
    with pytest.raises(TrainingError, match=words) as caught:
        train_form(model, form, TrainingData(data), Run(TrainSettings(epochs=4, batch_size=4, frozen_prefix="off")), TrainPlan(1e-3, objective=objective))
    message = str(caught.value)
    order = np.random.default_rng([0, (step - 1) // 2]).permutation(8)[4 * ((step - 1) % 2) :][:4]
    assert f"step {step}" in message and "learning_rate" in message
    assert all(data[int(row)].id in message for row in order), "the examples of that very step are named"
    assert not hasattr(model.module, "polyadapt")


def test_memory_errors_name_the_settings_that_help() -> None:
    error = memory_error(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert error is not None and all(name in str(error) for name in ("batch_size", "accumulation", "precision"))
    assert memory_error(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")) is not None
    assert memory_error(RuntimeError("shapes do not fit")) is None


def test_a_broken_example_is_named(job: ModuleType, method_of: MethodOf) -> None:
    rows = [*job.policy_data(3, 1), Example("bad", np.zeros(5, np.float32), extra={"target": np.zeros(4)}, source="table.csv:7")]
    with pytest.raises(UserError, match=r"table\.csv:7"):
        fit(job.policy_model(), method_of("lora"), method_of("lora").card.options(sites=("*",)), TrainingData(Dataset("d", rows, "array")), TrainSettings(epochs=1))


def test_an_attached_model_is_refused(job: ModuleType, method_of: MethodOf) -> None:
    model, lora = job.policy_model(), method_of("lora")
    artifact = fit(model, lora, lora.card.options(sites=("*",)), TrainingData(job.policy_data(4, 1)), TrainSettings(max_steps=1))
    artifact.attach(model)
    with pytest.raises(UserError, match="detach"):
        fit(model, lora, lora.card.options(sites=("*",)), TrainingData(job.policy_data(4, 1)), TrainSettings(max_steps=1))


def test_settings_that_cannot_be_kept_are_refused(job: ModuleType) -> None:
    with pytest.raises(UserError, match="fp16"):
        job.train(None, precision="fp16")
    with pytest.raises(UserError, match="GPU"):
        job.train(None, device="cuda")


@pytest.mark.parametrize(("device", "message"), [("cuda:7", "the last GPU of this machine is 'cuda:1'; name one from cuda:0 to cuda:1"), ("cuda:2", "device 'cuda:2'")])
def test_a_gpu_beyond_the_last_is_refused(device: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=message):
        find_processes(device, "no")
    assert find_processes("cuda:1", "no").device == torch.device("cuda:1")


def test_bf16_trains_in_bf16_and_keeps_float32_weights(job: ModuleType) -> None:
    artifact = job.train(None, precision="bf16", max_steps=2)
    plain = job.train(None, max_steps=2)
    assert all(value.dtype == torch.float32 for value in artifact.slots.values())
    assert any(not torch.equal(value, plain.slots[name]) for name, value in artifact.slots.items())


def test_a_method_with_its_own_fit_gets_the_run(job: ModuleType) -> None:
    seen: list[Any] = []

    class Staged(Method):
        def fit(self, model: Model, options: Any, data: Any, run: Run) -> str:
            seen.append((run.stage("one", epochs=1).settings.epochs, run.stage("one").directory, run.seed))
            return "artifact"

    assert fit(job.policy_model(), Staged(job.LORA), None, TrainingData(job.policy_data(4, 1)), TrainSettings(seed=4), directory=Path("runs")) == "artifact"  # type: ignore[comparison-overlap]
    assert seen == [(1, Path("runs/one"), 4)]


def test_estimate_counts_what_a_run_takes(job: ModuleType, method_of: MethodOf) -> None:
    model, lora = job.policy_model(), method_of("lora")
    before = state_of(model)
    found = estimate(model, lora, lora.card.options(sites=("*",)), TrainingData(job.policy_data(29, 1)), TrainSettings(epochs=3, batch_size=8))
    plan = lora.plan(model, lora.card.options(sites=("*",)))
    assert found.steps == 12 and found.parameters == plan.trainable
    assert found.disk_bytes == 2 * 12 * plan.trainable + plan.slot_bytes
    assert found.memory_bytes > sum(value.numel() * 4 for value in before.values()) + 16 * plan.trainable
    assert 0 < found.seconds < 60 and math.isfinite(found.seconds)
    assert all(torch.equal(value, before[name]) for name, value in state_of(model).items())


def test_events_and_settings_import_no_torch() -> None:
    code = "import sys; from polyadapt.training import Event, TrainSettings; assert not {'torch', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("family", "method", "options"), [("vit", "lora", {"dropout": 0.1}), ("bert", "full", {}), ("llama", "dora", {}), ("wav2vec2", "bottleneck", {})])
def test_gradient_checkpointing_gives_the_same_bits(family: str, method: str, options: dict[str, Any], tiny: Tiny, labelled_rows: Rows, method_of: MethodOf) -> None:
    """Dropout included: blocks that run again draw what they drew before. And they do run again."""
    model, chosen = tiny(family, "classification"), method_of(method)
    data = TrainingData(labelled_rows(model, 8, 1))
    from polyadapt.sites import stack

    block = model.backbone.get_submodule(stack(model.family.blocks(model.backbone), model.backbone)[-1])
    calls: list[int] = []
    handle = block.register_forward_pre_hook(lambda module, args: calls.append(1))
    results, counts = [], []
    for again in (False, True):
        calls.clear()
        results.append(fit(model, chosen, chosen.card.options(**options), data, TrainSettings(**QUICK, frozen_prefix="off", gradient_checkpointing=again)).slots)
        counts.append(len(calls))
    handle.remove()
    assert counts[1] - counts[0] == 4, "one more run of the block in each of four steps"
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())

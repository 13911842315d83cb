"""A run that is killed and resumed gives the same bits as one that is not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from polyadapt.artifact import Artifact
from polyadapt.data.dataset import Dataset
from polyadapt.errors import UserError
from polyadapt.methods.base import Method
from polyadapt.model import Model
from polyadapt.preprocessing import preprocessing
from polyadapt.sources.fbank import KaldiFbank
from polyadapt.sources.front import ImageNormalize
from polyadapt.sources.processors import make_processor
from polyadapt.training import TrainingData, TrainSettings, fit
from polyadapt.training.checkpoint import Progress, digest, load_checkpoint, save_checkpoint
from polyadapt.training.interrupt import TrainingInterrupted
from polyadapt.training.processes import Processes

JOB = Path(__file__).with_name("job_policy.py")
PARTS = {name: {"x": torch.arange(3.0)} for name in ("form", "optimiser", "random")}
POINTS = {"mid-epoch": ["step-00000003-0000", "step-00000004-0001"], "checkpoint": ["step-00000003-0000", "step-00000004-0001"], "end": ["step-00000012-0003"]}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories of runs that were killed, one a point."""
    directory = tmp_path_factory.mktemp("killed")
    subprocess.run([sys.executable, str(JOB), str(directory), "--kill", *POINTS], check=True, timeout=120)
    return {point: directory / point for point in POINTS}


@pytest.fixture(scope="module")
def unbroken(job: ModuleType) -> dict[str, torch.Tensor]:
    return dict(job.train(None).slots)


@pytest.mark.parametrize("point", POINTS)
def test_resume_after_a_kill_gives_the_same_bits(point: str, killed: dict[str, Path], unbroken: dict[str, torch.Tensor], job: ModuleType) -> None:
    directory = killed[point]
    whole = [entry.name for entry in (directory / "checkpoints").iterdir() if not entry.name.startswith(".")]
    assert set(POINTS[point]) <= set(whole)
    events = []
    artifact = job.train(directory, resume=True, emit=events.append)
    started = next(event for event in events if event.kind == "started")
    assert started["step"] == int(POINTS[point][-1][5:13]), "it began again instead of going on"
    assert set(artifact.slots) == set(unbroken)
    for name, value in artifact.slots.items():
        assert torch.equal(value, unbroken[name]), name
    assert not [entry for entry in (directory / "checkpoints").iterdir() if entry.name.startswith(".")], "what the kill left half-written is still there"


def test_other_weights_without_resume_would_be_seen(unbroken: dict[str, torch.Tensor], job: ModuleType) -> None:
    other = job.train(None, learning_rate=1.0001e-3).slots
    assert any(not torch.equal(value, unbroken[name]) for name, value in other.items())


def pressing(kind: str, step: int) -> Callable[[Mapping[str, Any]], None]:
    """A listener that presses Ctrl-C at an event."""
    return lambda event: os.kill(os.getpid(), signal.SIGINT) if (event["kind"], event.get("step")) == (kind, step) else None


def test_ctrl_c_writes_a_checkpoint_and_resumes(tmp_path: Path, unbroken: dict[str, torch.Tensor], job: ModuleType) -> None:
    press = pressing("step", 5)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(TrainingInterrupted, match=r"after step 5.*step-00000005-0001"):
        job.train(tmp_path, emit=press)
    assert signal.getsignal(signal.SIGINT) is before
    artifact = job.train(tmp_path, resume=True)
    assert all(torch.equal(value, unbroken[name]) for name, value in artifact.slots.items())


def test_losses_and_time_are_those_of_the_whole_run(tmp_path: Path, job: ModuleType) -> None:
    """A report of a run that was stopped shows what an unbroken one does: the mean loss since the last line, and all the time it took."""

    def losses(events: list[Any]) -> dict[int, float]:
        return {event["step"]: event["loss"] for event in events if event.kind == "step"}

    whole: list[Any] = []
    job.train(None, emit=whole.append, log_every_steps=5)
    pressed: list[int] = []

    def press(event: Any) -> None:
        if (event["kind"], event.get("step")) == ("checkpoint", 6) and not pressed:
            pressed.append(1)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingInterrupted):
        job.train(tmp_path, emit=press, log_every_steps=5)
    state_path = max((tmp_path / "checkpoints").iterdir()) / "state.json"
    state = json.loads(state_path.read_text())
    assert 0 < state["progress"]["seconds"] < 1000 and state["progress"]["window_count"] > 0
    state["progress"]["seconds"] += 1000.0  # as if the first session had been a long one
    state_path.write_text(json.dumps(state))
    rest: list[Any] = []
    job.train(tmp_path, resume=True, emit=rest.append, log_every_steps=5)
    assert losses(rest) == {step: loss for step, loss in losses(whole).items() if step > 6}
    assert next(event for event in rest if event.kind == "finished")["seconds"] > 1000


@pytest.mark.parametrize(("kind", "step", "name"), [("step", 12, "step-00000012-0002"), ("epoch", 8, "step-00000008-0002"), ("epoch", 12, "step-00000012-0003")])
def test_ctrl_c_is_heard_in_the_last_step_and_between_epochs(kind: str, step: int, name: str, tmp_path: Path, unbroken: dict[str, torch.Tensor], job: ModuleType) -> None:
    """A run that were to finish all the same would let the next arm of a recipe begin."""
    with pytest.raises(TrainingInterrupted, match=rf"after step {step}; go on from .*{name}"):
        job.train(tmp_path, emit=pressing(kind, step))
    artifact = job.train(tmp_path, resume=True)
    assert all(torch.equal(value, unbroken[name]) for name, value in artifact.slots.items())


def test_ctrl_c_while_the_last_checkpoint_is_written_is_heard(tmp_path: Path, unbroken: dict[str, torch.Tensor], job: ModuleType) -> None:
    last: list[int] = []

    def press(event: Mapping[str, Any]) -> None:
        if (event["kind"], event.get("step")) == ("checkpoint", 12):
            last.append(1)
            if len(last) == 3:  # after those of the last step and of its epoch
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingInterrupted, match=r"after step 12; go on from .*step-00000012-0003"):
        job.train(tmp_path, emit=press)
    artifact = job.train(tmp_path, resume=True)
    assert all(torch.equal(value, unbroken[name]) for name, value in artifact.slots.items())


def test_resume_behind_another_processor_is_refused(tmp_path: Path, tiny: Callable[..., Model], labelled_rows: Callable[..., Dataset], method_of: Callable[[str], Method]) -> None:
    """Texts of another greatest length are other inputs, though weights, options and data are the same."""
    model, method = tiny("bert"), method_of("lora")
    data = TrainingData(labelled_rows(model, 8, 1))

    def run(tokens: int, resume: bool) -> None:
        model.processor = make_processor({**model.processor.spec, "maximum_tokens": tokens})
        fit(model, method, method.card.options(), data, TrainSettings(max_steps=2, batch_size=4, frozen_prefix="off"), directory=tmp_path, resume=resume)

    run(4, resume=False)
    with pytest.raises(UserError, match=r"processor\.maximum_tokens = 4, now it is 32"):
        run(32, resume=True)
    run(4, resume=True)


def test_settings_of_the_front_are_part_of_the_preprocessing() -> None:
    def front(mean: float) -> dict[str, Any]:
        module = SimpleNamespace(front=KaldiFbank(8, 20, mean, 0.5))
        return dict(preprocessing(SimpleNamespace(module=module, processor=SimpleNamespace(spec={}), generation={}))["front"])  # type: ignore[arg-type]

    assert front(0.25) == {**front(0.0), "mean": 0.25}
    assert json.loads(json.dumps(front(0.25)))["kind"] == "KaldiFbank"
    pictures = SimpleNamespace(module=SimpleNamespace(front=ImageNormalize((0.5, 0.25), (1.0, 2.0))), processor=SimpleNamespace(spec={}), generation={})
    assert preprocessing(pictures)["front"] == {"name": "image", "mean": [0.5, 0.25], "deviation": [1.0, 2.0], "kind": "ImageNormalize"}  # type: ignore[arg-type]


def as_of_before(directory: Path, *names: str) -> None:
    """Take parts out of the newest fingerprint, and put in a part of the position that there is no more, as a checkpoint of an earlier version has it."""
    path = sorted(directory.glob("checkpoints/step-*/state.json"))[-1]
    state = json.loads(path.read_text())
    for name in names:
        outer, _, inner = name.partition(".")
        del (state["fingerprint"][outer] if inner else state["fingerprint"])[inner or outer]
    state["digest"], state["progress"]["seconds"] = digest(state["fingerprint"]), 1.5
    path.write_text(json.dumps(state))


def test_a_checkpoint_from_before_a_setting_existed_is_resumed_under_its_default(tmp_path: Path, job: ModuleType, unbroken: dict[str, torch.Tensor]) -> None:
    with pytest.raises(TrainingInterrupted):
        job.train(tmp_path, emit=pressing("step", 5))
    as_of_before(tmp_path, "train.group_by_length", "processor", "front")
    with pytest.raises(UserError, match=r"train\.group_by_length = False, now it is True"):
        job.train(tmp_path, resume=True, group_by_length=True)
    events: list[Any] = []
    artifact = job.train(tmp_path, resume=True, emit=events.append)
    assert next(event["step"] for event in events if event["kind"] == "started") == 5
    assert all(torch.equal(value, unbroken[name]) for name, value in artifact.slots.items())


def test_a_fingerprint_that_was_altered_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, Progress(step=1), {"a": 1}, PARTS, keep=2)
    path = tmp_path / "checkpoints" / "step-00000001-0000" / "state.json"
    path.write_text(path.read_text().replace('"a": 1', '"a": 2'))
    with pytest.raises(UserError, match="the state of checkpoint step-00000001-0000 was altered; remove it"):
        load_checkpoint(tmp_path, {"a": 3})


def test_resume_under_other_settings_is_refused(tmp_path: Path, job: ModuleType) -> None:
    job.train(tmp_path, max_steps=4)
    with pytest.raises(UserError, match=r"train\.batch_size = 8, now it is 4"):
        job.train(tmp_path, resume=True, max_steps=4, batch_size=4)
    job.train(tmp_path, resume=True, max_steps=4, keep=5, log_every_steps=7)


def test_checkpoints_hold_no_pickle_and_no_path(tmp_path: Path, job: ModuleType) -> None:
    job.train(tmp_path, keep=1)
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    folder = "checkpoints/step-00000012-0003"
    assert files == [f"{folder}/best.safetensors", f"{folder}/form.safetensors", f"{folder}/optimiser.safetensors", f"{folder}/random.safetensors", f"{folder}/state.json"]
    text = (tmp_path / folder / "state.json").read_text()
    assert str(tmp_path) not in text and os.uname().nodename not in json.dumps(list(json.loads(text)["fingerprint"]))


@pytest.mark.parametrize(("file", "is_there"), [("form.safetensors", True), ("form.safetensors", False), ("state.json", True), ("state.json", False)])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, file: str, is_there: bool) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, Progress(step=step), {"a": 1}, PARTS, keep=2)
    newest = tmp_path / "checkpoints" / "step-00000002-0000" / file
    whole = newest.read_bytes()
    newest.unlink()
    if is_there:
        newest.write_bytes(whole[: len(whole) // 2])
    found = load_checkpoint(tmp_path, {"a": 1})
    assert found is not None and found.progress.step == 1


def test_a_damaged_checkpoint_of_a_later_step_takes_no_good_one_s_place(tmp_path: Path) -> None:
    """The run that passed it over writes checkpoints of earlier steps; they must outlive it."""
    save_checkpoint(tmp_path, Progress(step=9), {"a": 1}, PARTS, keep=1)
    (tmp_path / "checkpoints" / "step-00000009-0000" / "form.safetensors").write_bytes(b"")
    assert load_checkpoint(tmp_path, {"a": 1}) is None
    for step in (3, 6):
        save_checkpoint(tmp_path, Progress(step=step), {"a": 1}, PARTS, keep=1)
        found = load_checkpoint(tmp_path, {"a": 1})
        assert found is not None and found.progress.step == step


def test_the_main_process_alone_removes_what_a_kill_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And all of them wait for it before they look."""
    save_checkpoint(tmp_path, Progress(step=1), {"a": 1}, PARTS, keep=2)
    left = tmp_path / "checkpoints" / ".step-00000002-0000.x.partial"
    left.mkdir()
    waited: list[tuple[int, bool]] = []
    monkeypatch.setattr(Processes, "wait", lambda self: waited.append((self.rank, left.exists())))
    for rank in (1, 0):
        assert load_checkpoint(tmp_path, {"a": 1}, Processes(torch.device("cpu"), rank, 2)) is not None
    assert waited == [(1, True), (0, False)]


def test_a_new_run_removes_the_checkpoints_of_the_old_one(tmp_path: Path, job: ModuleType) -> None:
    save_checkpoint(tmp_path, Progress(step=999), {"a": 1}, PARTS, keep=2)
    job.train(tmp_path, max_steps=2)
    assert not (tmp_path / "checkpoints" / "step-00000999-0000").exists()


def test_resume_without_a_directory_is_refused(job: ModuleType) -> None:
    with pytest.raises(UserError, match="without a directory"):
        job.train(None, resume=True)


def test_an_artifact_says_when_inputs_are_made_otherwise_than_it_was_trained_on(
    tmp_path: Path, tiny: Callable[..., Model], labelled_rows: Callable[..., Dataset], method_of: Callable[[str], Method], caplog: pytest.LogCaptureFixture
) -> None:
    """Of another language before a text, or another length of a sound, no shape tells: answers are worse, and nobody knows why."""
    model, method = tiny("bert"), method_of("lora")
    artifact = fit(model, method, method.card.options(), TrainingData(labelled_rows(model, 8, 1)), TrainSettings(max_steps=1, batch_size=4))
    artifact.save(tmp_path / "kept")
    for same in (artifact, Artifact.load(tmp_path / "kept")):
        same.attach(model, "same").remove("same")
    assert "made otherwise" not in caplog.text
    model.generation["start_ids"] = [5]
    model.processor = make_processor({**model.processor.spec, "maximum_tokens": 7}, model.processor.assets)
    Artifact.load(tmp_path / "kept").attach(model, "other")
    assert "trained on inputs that were made otherwise (processor.maximum_tokens was" in caplog.text
    assert "start_ids was [" in caplog.text and "now it is [5]); load the model by the same options" in caplog.text

"""A run that is killed and resumed gives the same bits as one that is not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from polyadapt.errors import UserError
from polyadapt.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from polyadapt.training.interrupt import TrainingInterrupted

JOB = Path(__file__).with_name("job_policy.py")
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


def test_ctrl_c_writes_a_checkpoint_and_resumes(tmp_path: Path, unbroken: dict[str, torch.Tensor], job: ModuleType) -> None:
    def press(event: object) -> None:
        if (event["kind"], event.get("step")) == ("step", 5):  # type: ignore[index,attr-defined]
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(TrainingInterrupted, match=r"after step 6.*step-00000006-0001"):
        job.train(tmp_path, emit=press)
    assert signal.getsignal(signal.SIGINT) is before
    artifact = job.train(tmp_path, resume=True)
    assert all(torch.equal(value, unbroken[name]) for name, value in artifact.slots.items())


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


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    parts = {name: {"x": torch.arange(3.0)} for name in ("form", "optimiser", "random")}
    for step in (1, 2):
        save_checkpoint(tmp_path, Progress(step=step), {"a": 1}, parts, keep=2)
    newest = tmp_path / "checkpoints" / "step-00000002-0000" / "form.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    found = load_checkpoint(tmp_path, {"a": 1})
    assert found is not None and found.progress.step == 1


def test_a_new_run_removes_the_checkpoints_of_the_old_one(tmp_path: Path, job: ModuleType) -> None:
    parts = {name: {"x": torch.arange(3.0)} for name in ("form", "optimiser", "random")}
    save_checkpoint(tmp_path, Progress(step=999), {"a": 1}, parts, keep=2)
    job.train(tmp_path, max_steps=2)
    assert not (tmp_path / "checkpoints" / "step-00000999-0000").exists()


def test_resume_without_a_directory_is_refused(job: ModuleType) -> None:
    with pytest.raises(UserError, match="without a directory"):
        job.train(None, resume=True)

"""SpecAugment: what is blanked, that it follows from seed, epoch and row, and that nothing but training sees it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from polyadapt.data.dataset import Dataset, Example
from polyadapt.edits.attach import Attachments
from polyadapt.errors import UserError
from polyadapt.methods.base import load_method
from polyadapt.methods.linear_probe.card import CARD as PROBE
from polyadapt.methods.lora.card import CARD as LORA
from polyadapt.sources.fbank import KaldiFbank
from polyadapt.sources.fbank_picture import FbankPicture
from polyadapt.sources.load import open_reference
from polyadapt.sources.logmel import LogMel
from polyadapt.training import TrainingData, TrainSettings, fit
from polyadapt.training.masking import Masking, find_masking


def holes(clip: torch.Tensor) -> tuple[list[int], list[int]]:
    """Blanked bands and frames of one clip [bands, frames] that was one everywhere."""
    bands = [band for band in range(clip.shape[0]) if not clip[band].any()]
    frames = [frame for frame in range(clip.shape[1]) if not clip[:, frame].any()]
    return bands, frames


@pytest.mark.parametrize(("front", "shape"), [(LogMel(80), (6, 80, 200)), (KaldiFbank(80, 200, 0.0, 0.5), (6, 200, 80)), (FbankPicture(200, 3), (6, 3, 80, 200))])
def test_one_stretch_of_bands_and_one_of_frames_is_blanked(front: LogMel | KaldiFbank | FbankPicture, shape: tuple[int, ...]) -> None:
    masking = Masking(front, 24, 80, seed=3)
    widths = []
    for epoch in range(1, 40):
        masked = masking({front.output: torch.ones(shape), "other": torch.zeros(1)}, range(6), epoch)
        assert torch.equal(masked["other"], torch.zeros(1))
        for row in masked[front.output]:
            clip = row if row.ndim == 2 else row[0]
            assert torch.equal(row, clip.expand_as(row)), "channels of a picture alike"
            bands, frames = holes(clip.T if isinstance(front, KaldiFbank) else clip)
            for stretch in (bands, frames):
                assert stretch == list(range(stretch[0], stretch[0] + len(stretch))) if stretch else True
            widths.append((len(bands), len(frames)))
            assert clip.sum() == (80 - len(bands)) * (200 - len(frames)), "everything else stays"
    assert max(band for band, _ in widths) == 24 and min(band for band, _ in widths) == 0
    assert 75 < max(frame for _, frame in widths) <= 80


def test_at_most_half_of_a_short_clip_is_blanked() -> None:
    masking = Masking(LogMel(), 0, 80, seed=0)
    widths = [len(holes(masking({"mel": torch.ones(1, 80, 50)}, [row], 1)["mel"][0])[1]) for row in range(200)]
    assert max(widths) == 25


def test_masks_follow_from_seed_epoch_and_row_alone() -> None:
    def masked(seed: int, epoch: int, row: int) -> torch.Tensor:
        return Masking(LogMel(), 24, 80, seed)({"mel": torch.ones(1, 80, 300)}, [row], epoch)["mel"]

    whole = Masking(LogMel(), 24, 80, 5)({"mel": torch.ones(2, 80, 300)}, [7, 9], 2)["mel"]
    assert torch.equal(whole[1:], masked(5, 2, 9))
    assert len({tuple(masked(*key).flatten().tolist()) for key in ((5, 2, 9), (5, 2, 8), (5, 3, 9), (6, 2, 9))}) == 4


def sounds() -> TrainingData:
    generator = np.random.default_rng(0)
    rows = [Example(str(row), ((0.1 + 0.2 * (row % 2)) * generator.standard_normal(4000).astype(np.float32), 16000), "ab"[row % 2]) for row in range(8)]
    return TrainingData(Dataset("sounds", rows, "audio"), Dataset("sounds", rows[:2], "audio"))


def probe(**settings: int) -> dict[str, torch.Tensor]:
    model = open_reference("polyadapt:tiny-whisper?task=classification")
    method = load_method(PROBE)
    return dict(fit(model, method, PROBE.options(), sounds(), TrainSettings(epochs=3, batch_size=4, **settings)).slots)


def test_training_sees_masks_anew_in_every_epoch_and_evaluation_none(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, tuple[int, ...]]] = []
    real = Masking.__call__

    def watched(self: Masking, inputs: dict[str, torch.Tensor], rows: list[int], epoch: int) -> dict[str, torch.Tensor]:
        seen.append((epoch, tuple(rows)))
        return real(self, inputs, rows, epoch)

    monkeypatch.setattr(Masking, "__call__", watched)
    plain, masked, again = probe(), probe(mask_bands=8, mask_frames=8), probe(mask_bands=8, mask_frames=8)
    names = [name for name in plain if name.endswith("weight")]
    assert names and all(torch.equal(masked[name], again[name]) for name in masked), "the same seed gives the same masks"
    assert any(not torch.equal(plain[name], masked[name]) for name in names)
    assert {epoch for epoch, _ in seen} == {1, 2, 3}
    assert sorted(row for epoch, rows in seen[: len(seen) // 2] for row in rows if epoch == 1) == list(range(8)), "each training row once an epoch, validation never"


def test_masks_leave_the_table_of_edits_to_be_built_once_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole module is called, so its own hook builds the table; where only parts of it were called, every port would build it anew."""
    built: list[int] = []
    real = Attachments._make_table
    monkeypatch.setattr(Attachments, "_make_table", lambda self: built.append(1) or real(self))
    model = open_reference("polyadapt:tiny-ast?task=classification")
    front, counts = model.module.front, []
    assert front is not None
    for settings in ({}, {"mask_bands": 8, "mask_frames": 8}):
        built.clear()
        fit(model, load_method(LORA), LORA.options(sites=("attn.*",)), sounds(), TrainSettings(max_steps=2, batch_size=4, frozen_prefix="off", **settings))
        counts.append(len(built))
        assert not front._forward_hooks, "the hook that masks is gone"
    assert counts[0] == counts[1] > 0


def test_a_model_of_pictures_that_hears_is_trained_under_masks() -> None:
    pytest.importorskip("timm")
    artifacts = []
    for settings in ({}, {"mask_bands": 24, "mask_frames": 24}):
        model = open_reference("timm:test_vit?sound_frames=64&pretrained=false")
        artifacts.append(fit(model, load_method(LORA), LORA.options(), sounds(), TrainSettings(max_steps=2, batch_size=4, **settings)))
    first, second = (artifact.edits[0].tensors for artifact in artifacts)
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_models_without_a_spectrogram_say_so() -> None:
    model = open_reference("polyadapt:tiny-wav2vec2?task=classification")
    with pytest.raises(UserError, match=r"train\.mask_bands and mask_frames need a spectrogram, and polyadapt:tiny-wav2vec2 computes none"):
        find_masking(model, TrainSettings(mask_bands=4), 0)
    assert find_masking(model, TrainSettings(), 0) is None

"""A transformer of pictures that hears sounds: the spectrogram is the one that AST sees, and every adapter fits it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import polyadapt as pa
from polyadapt.artifact import Artifact
from polyadapt.errors import UserError
from polyadapt.methods.base import load_method
from polyadapt.model import Model
from polyadapt.sources.fbank import KaldiFbank
from polyadapt.sources.fbank_picture import FbankPicture
from polyadapt.testing.conformance import check_method, non_degenerate
from polyadapt_onnx import export
from polyadapt_runtime import Bundle
from polyadapt_speech.conformer.card import CARD as CONFORMER

pytest.importorskip("timm", reason="the plugin alone brings no library of pictures")
REFERENCE = "timm:test_vit"


def heard(**options: object) -> Model:
    return pa.load(REFERENCE, pretrained=False, sound_frames=64, **options)


def test_the_picture_is_asts_spectrogram_turned() -> None:
    audio = 0.1 * torch.randn(2, 9000, generator=torch.Generator().manual_seed(0))
    picture = FbankPicture(64, 3)(audio=audio)["image"]
    frames = KaldiFbank(128, 64, -4.2677393, 4.5689974)(audio=audio)["input_values"]
    assert picture.shape == (2, 3, 128, 64)
    for channel in range(3):
        assert torch.equal(picture[:, channel], frames.transpose(1, 2))


def test_the_model_takes_samples_and_has_no_classes_of_pictures() -> None:
    model = heard()
    assert [spec.name for spec in model.signature.inputs] == ["audio"]
    assert model.processor.spec["kind"] == "audio" and model.task.labels == ()
    grid = model.backbone.patch_embed.grid_size  # type: ignore[union-attr]
    assert tuple(grid) == (8, 4)
    clip = model.processor((np.zeros(16000, np.float32), 16000))["audio"]
    assert model.module(audio=torch.from_numpy(clip)[None])["features"].shape == (1, 64)


def test_a_convolutional_net_hears_too() -> None:
    model = pa.load("timm:resnet18", pretrained=False, sound_frames=64)
    assert model.module(audio=torch.zeros(2, 16000))["features"].shape == (2, 512)


def test_two_sizes_at_once_are_refused() -> None:
    with pytest.raises(UserError, match="leave image_size_px out"):
        heard(image_size_px=224)


def test_conformer_conforms_on_pictures_of_sounds(tmp_path: Path) -> None:
    check_method(load_method(CONFORMER), heard(task="features", pooling="tokens"), tmp_path)


@pytest.mark.wide
def test_a_bundle_takes_samples(tmp_path: Path) -> None:
    model = heard(task="features")
    form = load_method(CONFORMER).form(model, CONFORMER.options(sites=("block.0.ffn",)), torch.Generator().manual_seed(0))
    non_degenerate(form)
    artifact = Artifact("conformer", model.base_id, "vit", "features", tuple(form.lower()))
    export(model, {"a": artifact}, tmp_path / "x.bundle", "slots", {"legacy_fallback": False})
    assert Bundle(tmp_path / "x.bundle", device="cpu").selftest().ok

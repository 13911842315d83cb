"""AST checkpoints at other lengths, and features that are the mean over all tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import polyadapt as pa
from polyadapt.errors import UserError
from polyadapt.families.ast.card import CARD as AST
from polyadapt.sources.spectrograms import fitted
from polyadapt.testing.conformance import tiny_model

ROWS, COLUMNS = 3, 7  # patches of the tiny network: 16 bands and 32 frames in patches of 8, a stride of 4


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    backbone: Any = tiny_model(AST, "classification").backbone
    backbone.save_pretrained(tmp_path / "ast")
    return tmp_path / "ast"


def table_of(model: Any) -> torch.Tensor:
    inner = getattr(model.backbone, "audio_spectrogram_transformer", model.backbone)
    table: torch.Tensor = inner.embeddings.position_embeddings.detach()
    return table


def grid_of(table: torch.Tensor, columns: int) -> torch.Tensor:
    """[rows, columns, width], written out from the order that patches have: all of one frequency, then the next."""
    return torch.stack([torch.stack([table[0, 2 + row * columns + column] for column in range(columns)]) for row in range(ROWS)])


def features(model: Any, frames: int) -> torch.Tensor:
    values = torch.randn(2, frames, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.family.forward(model.backbone, model.task, {"input_values": values})["features"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(("options", "heard_s"), [({}, 0.335), ({"frames": 60}, 0.615), ({"maximum_seconds": 0.2}, 0.2)])
def test_recordings_are_cut_where_the_frames_end_and_not_in_silence(checkpoint: Path, options: dict[str, Any], heard_s: float, caplog: pytest.LogCaptureFixture) -> None:
    """A frame begins every 10 ms and hears 25 ms: 32 of them reach to 0.335 s."""
    model = pa.load(f"hf:{checkpoint}", **options)
    assert model.processor.spec["maximum_seconds"] == pytest.approx(heard_s)
    noise = (0.1 * torch.randn(32000, generator=torch.Generator().manual_seed(0))).numpy()
    kept = torch.from_numpy(model.processor((noise, 16000))["audio"])
    assert len(kept) == round(heard_s * 16000) and "was cut to maximum_seconds" in caplog.text
    front: Any = model.module.front
    heard, less = (front(audio=clip[None])["input_values"] for clip in (kept, torch.cat([kept[:-100], torch.zeros(100)])))
    assert not torch.equal(heard, less), "all that is kept is heard"
    if "maximum_seconds" not in options:  # and nothing behind it would be
        torch.testing.assert_close(heard, front(audio=torch.from_numpy(noise)[None])["input_values"], rtol=0, atol=1e-4)
    caplog.clear()
    model.processor((noise[: len(kept)], 16000))
    assert not caplog.records


def test_models_of_pictures_hear_as_far_as_their_frames() -> None:
    pytest.importorskip("timm", reason="the host alone brings no library of pictures")
    spec = pa.load("timm:test_vit", pretrained=False, sound_frames=64).processor.spec
    assert spec["maximum_seconds"] == pytest.approx((63 * 160 + 400) / 16000)


def test_its_own_length_changes_nothing(checkpoint: Path) -> None:
    plain, asked = pa.load(f"hf:{checkpoint}"), pa.load(f"hf:{checkpoint}", frames=32)
    assert torch.equal(table_of(plain), table_of(asked)) and plain.base_id == asked.base_id
    assert torch.equal(features(plain, 32), features(asked, 32))


@pytest.mark.parametrize(("frames", "columns"), [(8, 1), (15, 2), (24, 5), (28, 6)])
def test_a_shorter_table_is_the_middle_of_the_longer(checkpoint: Path, frames: int, columns: int) -> None:
    plain, shorter = pa.load(f"hf:{checkpoint}"), pa.load(f"hf:{checkpoint}?frames={frames}")
    assert table_of(shorter).shape[1] == 2 + ROWS * columns
    assert torch.equal(table_of(shorter)[:, :2], table_of(plain)[:, :2])
    start = COLUMNS // 2 - columns // 2
    assert torch.equal(grid_of(table_of(shorter), columns), grid_of(table_of(plain), COLUMNS)[:, start : start + columns])
    assert features(shorter, frames).shape == (2, 32) and shorter.base_id != plain.base_id
    assert shorter.module(audio=torch.zeros(1, 16000))["logits"].shape == (1, 3)


def test_a_longer_table_is_interpolated_along_time(checkpoint: Path) -> None:
    """Linear in between, with the centres of the outer columns kept apart as torch's bilinear mode does: 7 columns to 14 lie at quarters."""
    plain, longer = pa.load(f"hf:{checkpoint}"), pa.load(f"hf:{checkpoint}", frames=60)
    known, made = grid_of(table_of(plain), COLUMNS), grid_of(table_of(longer), 2 * COLUMNS)
    assert torch.equal(table_of(longer)[:, :2], table_of(plain)[:, :2])
    for column in range(2 * COLUMNS):
        place = min(max((column + 0.5) / 2 - 0.5, 0.0), COLUMNS - 1.0)
        low, share = int(place), place - int(place)
        expected = (1 - share) * known[:, low] + share * known[:, min(low + 1, COLUMNS - 1)]
        assert torch.allclose(made[:, column], expected, atol=1e-6), column
    assert features(longer, 60).shape == (2, 32)


def test_a_table_of_one_sine_a_row_keeps_its_shape_through_a_table_of_real_size() -> None:
    """12 x 101 to 12 x 202 and back to the middle, at the published grid."""
    time = torch.linspace(0, 3, 101)
    table = torch.cat([torch.zeros(1, 2, 4), torch.sin(time).repeat(12)[None, :, None].expand(1, 1212, 4)], dim=1)
    longer = fitted(table, (12, 101), 202)
    assert longer.shape == (1, 2 + 12 * 202, 4)
    assert torch.allclose(longer[0, 2:204, 0], F.interpolate(torch.sin(time)[None, None], size=202, mode="linear")[0, 0], atol=1e-6)
    assert torch.equal(fitted(table, (12, 101), 11)[0, 2:13, 0], torch.sin(time)[45:56])


def test_features_may_be_the_mean_over_all_tokens(checkpoint: Path) -> None:
    plain, pooled = pa.load(f"hf:{checkpoint}"), pa.load(f"hf:{checkpoint}", pooling="tokens")
    encoder: Any = plain.backbone.audio_spectrogram_transformer  # type: ignore[union-attr]
    values = torch.randn(2, 32, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = encoder(values).last_hidden_state.mean(1)
    assert torch.allclose(features(pooled, 32), expected, atol=1e-6)
    assert pooled.task.labels == () and pooled.ports.head is not None and pooled.ports.head.out_features == 32
    assert pooled.base_id != plain.base_id != pa.load(f"hf:{checkpoint}", task="features").base_id


def test_pooling_is_part_of_what_an_artifact_fits(checkpoint: Path) -> None:
    bare = pa.load(f"hf:{checkpoint}", task="features")
    assert bare.base_id != pa.load(f"hf:{checkpoint}", task="features", pooling="tokens").base_id


def test_mistakes_are_said_in_one_line(checkpoint: Path, tmp_path: Path) -> None:
    from polyadapt.families.bert.card import CARD as BERT

    with pytest.raises(UserError, match="7 frames are fewer than the 8 of one patch"):
        pa.load(f"hf:{checkpoint}", frames=7)
    backbone: Any = tiny_model(BERT, "features").backbone
    backbone.save_pretrained(tmp_path / "bert")
    for options in ({"frames": 20}, {"pooling": "tokens"}):
        with pytest.raises(UserError, match="are for spectrogram transformers"):
            pa.load(f"hf:{tmp_path / 'bert'}", **options)


def test_a_vit_may_pool_all_tokens_too() -> None:
    pytest.importorskip("timm")
    plain = pa.load("timm:vit_tiny_patch16_224", pretrained=False, image_size_px=32)
    pooled = pa.load("timm:vit_tiny_patch16_224", pretrained=False, image_size_px=32, pooling="tokens")
    with torch.no_grad():
        for (name, value), (other, given) in zip(plain.backbone.named_parameters(), pooled.backbone.named_parameters(), strict=False):
            if name == other:
                value.copy_(given)
        picture = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        expected = plain.backbone.forward_features(picture).mean(1)  # type: ignore[operator]
        found = pooled.family.forward(pooled.backbone, pooled.task, {"image": picture})["features"]
    assert torch.allclose(found, expected, atol=1e-6)
    assert pooled.base_id != plain.base_id

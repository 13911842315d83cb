"""The frozen prefix: computed once, it gives what whole passes give, and it is not used where it would not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from polyadapt.data.dataset import Dataset
from polyadapt.edits import attachments_of
from polyadapt.errors import UserError
from polyadapt.methods.base import Method
from polyadapt.model import Model
from polyadapt.sources.front import ImageNormalize
from polyadapt.testing.conformance import state_of
from polyadapt.training import TrainingData, TrainSettings, fit
from polyadapt.training.batches import Examples
from polyadapt.training.bypass import replaced
from polyadapt.training.depth import Depth, find_depth
from polyadapt.training.interrupt import TrainingInterrupted
from polyadapt.training.prefix import Cache, Lower, Part, UnfitError
from polyadapt.training.processes import Processes
from polyadapt.training.store import RowsOnDisk, write_rows
from polyadapt.training.upper import upper_blocks

Tiny = Callable[..., Model]
Rows = Callable[..., Dataset]
MethodOf = Callable[[str], Method]


def run(
    model: Model, method: Method, rows: Rows, prefix: str, directory: Path | None = None, options: dict[str, Any] | None = None, seed: int = 1, **changes: Any
) -> tuple[Any, str, int]:
    """(artifact, what was cached, forward passes of the whole backbone's first block)."""
    events: list[Any] = []
    settings = TrainSettings(**{"epochs": 4, "batch_size": 8, "frozen_prefix": prefix, **changes})
    first = model.backbone.get_submodule(_first_block(model))
    calls: list[int] = []
    handle = first.register_forward_hook(lambda module, args, output: calls.append(1))
    artifact = fit(model, method, method.card.options(**(options or {})), TrainingData(rows(model, 20, seed), rows(model, 5, 2)), settings, events.append, directory)
    handle.remove()
    return artifact, next(event["prefix"] for event in events if event.kind == "started"), len(calls)


def _first_block(model: Model) -> str:
    from polyadapt.sites import stack

    return stack(model.family.blocks(model.backbone), model.backbone)[0]


CASES = [
    ("vit", "linear_probe", {}, "features"),
    ("vit", "lora", {"sites": ("block.1.*",)}, "1 blocks"),
    ("vit", "full", {"sites": ("block.1.*",)}, "1 blocks"),
    ("bert", "linear_probe", {}, "features"),
    ("bert", "lora", {"sites": ("block.1.attn.q", "block.1.attn.v")}, "1 blocks"),
    ("ast", "bottleneck", {"sites": ("block.1.ffn",)}, "1 blocks"),
    ("whisper", "lora", {"sites": ("encoder.block.1.attn.q",)}, "1 blocks"),
    ("wav2vec2", "lora", {"sites": ("block.1.attn.q",)}, "1 blocks"),
    ("efficientnet", "linear_probe", {}, "features"),
    ("efficientnet", "lora", {"sites": ("stage.1.*", "neck")}, "1 blocks"),
]


@pytest.mark.parametrize(("family", "method", "options", "expected"), CASES)
def test_weights_equal_those_of_whole_passes(family: str, method: str, options: dict[str, Any], expected: str, tiny: Tiny, labelled_rows: Rows, method_of: MethodOf) -> None:
    """To 1e-5 of the greatest value of each tensor, at the method's default learning rate; texts of different lengths are among the data of bert."""
    model = tiny(family)
    before = state_of(model)
    whole, none, slow = run(model, method_of(method), labelled_rows, "off", options=options)
    cached, prefix, quick = run(model, method_of(method), labelled_rows, "cache", options=options)
    assert (none, prefix) == ("off", expected)
    assert slow >= 2 + 4 * (3 + 1) > 12 >= quick, "the lower part must not run in every step"
    for name, value in whole.slots.items():
        torch.testing.assert_close(cached.slots[name], value, rtol=0, atol=1e-5 * float(value.abs().max()))
    metrics = [artifact.provenance["metrics"]["validation"]["loss"] for artifact in (whole, cached)]
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in state_of(model).items())


def test_activations_equal_those_of_whole_passes(tiny: Tiny, labelled_rows: Rows) -> None:
    """To 1e-6 of their greatest value, row by row, whatever batch they were computed in."""
    model = tiny("bert")
    examples = Examples(labelled_rows(model, 12, 1), model, 2**20)
    part = Part("train", examples, examples.longest())
    lower, _ = upper_blocks(model, Depth(("encoder.layer.0",) if hasattr(model.backbone, "encoder") else ("bert.encoder.layer.0",)), part, torch.device("cpu"))
    with torch.no_grad():
        together = lower.compute(part, range(12))
        for row in range(12):
            batch = examples.batch([row])
            seen: list[torch.Tensor] = []
            block = model.backbone.get_submodule("bert.encoder.layer.0")
            handle = block.register_forward_hook(lambda module, args, output, seen=seen: seen.append(output[0] if isinstance(output, tuple) else output))
            model.module(**batch.inputs)
            handle.remove()
            length = int(batch.inputs["attention_mask"].sum())
            difference = (together[row, :length] - seen[0][0]).abs().max()
            assert difference <= 1e-6 * seen[0].abs().max(), row


def test_activations_on_disk_are_read_back_and_not_computed_again(tmp_path: Path, tiny: Tiny, labelled_rows: Rows, method_of: MethodOf) -> None:
    model, lora = tiny("vit"), method_of("lora")
    options = {"sites": ("block.1.*",)}
    in_memory, _, _ = run(model, lora, labelled_rows, "cache", options=options)
    # So little memory that rows are read from the file at every step, and images are processed at every use.
    on_disk, _, calls = run(model, lora, labelled_rows, "cache", tmp_path, options, memory_bytes=1000)
    again, _, fewer = run(model, lora, labelled_rows, "cache", tmp_path, options)
    assert fewer < calls
    files = sorted(path.name.partition("-")[0] for path in (tmp_path / "prefix").iterdir())
    assert files == ["train", "validation"]
    for name, value in in_memory.slots.items():
        assert torch.equal(on_disk.slots[name], value) and torch.equal(again.slots[name], value)


def test_other_data_or_another_depth_is_computed_anew(tmp_path: Path, tiny: Tiny, labelled_rows: Rows, method_of: MethodOf) -> None:
    model, lora = tiny("vit"), method_of("lora")
    run(model, lora, labelled_rows, "cache", tmp_path, {"sites": ("block.1.*",)})
    run(model, method_of("linear_probe"), labelled_rows, "cache", tmp_path)
    assert len(list((tmp_path / "prefix").iterdir())) == 4
    run(model, method_of("linear_probe"), labelled_rows, "cache", tmp_path, seed=7)
    assert len(list((tmp_path / "prefix").iterdir())) == 5, "other training data, the same validation data"


def test_another_front_is_computed_anew(tmp_path: Path, tiny: Tiny, labelled_rows: Rows, method_of: MethodOf) -> None:
    """What a picture is brought to before the first block is no weight, and its activations depend on it."""
    found = {}
    for mean in (0.0, 3.0):
        for place, directory in (("shared", tmp_path), ("own", tmp_path / str(mean))):
            model = tiny("vit")
            model.module.front = ImageNormalize((mean,) * 3, (1.0,) * 3)
            artifact, _, _ = run(model, method_of("linear_probe"), labelled_rows, "cache", directory)
            found[mean, place] = torch.cat([value.flatten() for value in artifact.slots.values()])
    assert torch.equal(found[0.0, "shared"], found[0.0, "own"])
    assert torch.equal(found[3.0, "shared"], found[3.0, "own"]) and not torch.equal(found[3.0, "own"], found[0.0, "own"])


def test_no_room_is_said(tiny: Tiny, labelled_rows: Rows, method_of: MethodOf) -> None:
    model, lora = tiny("vit"), method_of("lora")
    with pytest.raises(UserError, match="memory_bytes"):
        run(model, lora, labelled_rows, "cache", options={"sites": ("block.1.*",)}, memory_bytes=1000)
    _, prefix, _ = run(model, lora, labelled_rows, "auto", options={"sites": ("block.1.*",)}, memory_bytes=1000)
    assert prefix == "off"


def test_what_trains_below_everything_is_not_cached(tiny: Tiny, labelled_rows: Rows, method_of: MethodOf) -> None:
    model, lora = tiny("vit"), method_of("lora")
    _, prefix, _ = run(model, lora, labelled_rows, "auto", options={"sites": ("block.0.*",)})
    assert prefix == "off"
    with pytest.raises(UserError, match="the lowest block, or what is below it, trains"):
        run(model, lora, labelled_rows, "cache", options={"sites": ("block.0.*",)})


def test_one_epoch_is_not_cached(tiny: Tiny, labelled_rows: Rows, method_of: MethodOf) -> None:
    _, prefix, _ = run(tiny("vit"), method_of("lora"), labelled_rows, "auto", options={"sites": ("block.1.*",)}, epochs=1)
    assert prefix == "off"


def test_dropout_on_texts_of_different_lengths_is_not_cached(tiny: Tiny, labelled_rows: Rows, method_of: MethodOf) -> None:
    """Its draws depend on the padded length, so the results would differ."""
    options = {"sites": ("block.1.attn.q",), "dropout": 0.1}
    _, prefix, _ = run(tiny("bert"), method_of("lora"), labelled_rows, "auto", options=options)
    assert prefix == "off"
    whole, _, _ = run(tiny("vit"), method_of("lora"), labelled_rows, "off", options=options)
    cached, prefix, _ = run(tiny("vit"), method_of("lora"), labelled_rows, "auto", options=options)
    assert prefix == "1 blocks"
    for name, value in whole.slots.items():
        torch.testing.assert_close(cached.slots[name], value, rtol=0, atol=1e-5)


class LooksBack(nn.Module):
    """A block that takes something from below the first one: the picture itself, or what the stem makes of it."""

    def __init__(self, root: nn.Module, block: nn.Module, look: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.block, self.look = block, look
        self.images: list[torch.Tensor] = []
        root.register_forward_pre_hook(lambda module, args, inputs: self.images.append(inputs["image"]), with_kwargs=True)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.block(hidden * (1 + self.look(self.images[-1]).abs().mean()))
        return result


def test_a_net_that_looks_back_at_its_stem_is_not_cached(tiny: Tiny, labelled_rows: Rows) -> None:
    model = tiny("vit")
    backbone: Any = model.backbone
    examples = Examples(labelled_rows(model, 4, 1), model, 2**20)
    lower, _ = upper_blocks(model, Depth(("blocks.0",)), Part("train", examples), torch.device("cpu"))
    assert lower.kept == () and set(lower.dropped) == {"image"}
    backbone.blocks[1] = LooksBack(model.module, backbone.blocks[1], lambda image: backbone.patch_embed(image))
    with pytest.raises(UnfitError, match="looks at more"):
        upper_blocks(model, Depth(("blocks.0",)), Part("train", examples), torch.device("cpu"))


def test_a_net_that_looks_back_at_its_input_is_given_it(tiny: Tiny, labelled_rows: Rows) -> None:
    model = tiny("vit")
    backbone: Any = model.backbone
    backbone.blocks[1] = LooksBack(model.module, backbone.blocks[1], lambda image: image)
    part = Part("train", Examples(labelled_rows(model, 4, 1), model, 2**20))
    lower, answers = upper_blocks(model, Depth(("blocks.0",)), part, torch.device("cpu"))
    assert lower.kept == ("image",)
    inputs = part.batch([1, 2]).inputs
    with torch.no_grad():
        activations, expected = lower.compute(part, [1, 2]), model.module(**inputs)["logits"]
        assert torch.equal(activations, backbone.blocks[0](tokens_of(backbone, inputs["image"])))
        with replaced(model.module, answers):
            torch.testing.assert_close(lower.finish(inputs, activations)["logits"], expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


def tokens_of(backbone: Any, image: torch.Tensor) -> torch.Tensor:
    """What enters block 0 of a timm ViT."""
    return backbone.norm_pre(backbone.patch_drop(backbone._pos_embed(backbone.patch_embed(image))))


def test_depth_is_the_lowest_touched_block(tiny: Tiny, labelled_rows: Rows, method_of: MethodOf) -> None:
    model, lora = tiny("bert"), method_of("lora")
    inputs = Examples(labelled_rows(model, 2, 1), model, 2**20).batch([0, 1]).inputs
    for sites, blocks in ((("block.1.ffn.up",), 1), (("block.0.attn.o", "block.1.ffn.up"), 0), (("embed",), 0)):
        form = lora.form(model, lora.card.options(sites=sites), torch.Generator())
        attachments = attachments_of(model.module, model.ports, model.backbone)
        attachments.add("a", form)
        depth = find_depth(model, attachments, inputs)
        attachments.remove_all()
        assert len(depth.blocks) == blocks and bool(depth.reason) == (blocks == 0)


def test_a_directory_that_is_not_shared_is_said(tmp_path: Path, tiny: Tiny, labelled_rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("vit")
    part = Part("train", Examples(labelled_rows(model, 4, 1), model, 1 << 20))
    lower = Lower(lambda part, rows: torch.zeros(len(rows), 2), lambda inputs, activations: {}, (), {}, {})
    monkeypatch.setattr(Processes, "wait", lambda self: None)
    second = Cache(4, 1 << 20, tmp_path, "no", Processes(torch.device("cpu"), rank=1, count=2))
    with pytest.raises(UserError, match="was written by the first process, and process 1 does not see it; give the run a directory that all machines share"):
        second.feeds(lower, [part])
    first = Cache(4, 1 << 20, tmp_path, "no", Processes(torch.device("cpu"), rank=0, count=2))
    assert len(first.feeds(lower, [part])) == len(second.feeds(lower, [part])) == 1


def test_rows_on_disk_are_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    values = torch.arange(24, dtype=torch.bfloat16).reshape(6, 2, 2)
    write_rows(tmp_path / "a.safetensors", [values[:4], values[4:]], 6, (2, 2), torch.bfloat16)
    assert torch.equal(load_file(tmp_path / "a.safetensors")["activations"], values)
    assert torch.equal(RowsOnDisk(tmp_path / "a.safetensors").take([5, 0]), values[[5, 0]])
    whole = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(whole[:-1])
    with pytest.raises(UserError, match="cut off"):
        RowsOnDisk(tmp_path / "a.safetensors")


def test_a_resumed_run_over_a_prefix_gives_the_same_bits(tmp_path: Path, tiny: Tiny, labelled_rows: Rows, method_of: MethodOf) -> None:
    """Interrupted by an exception in the listener's own code, between two steps; dropout draws go on where they stopped."""
    model, lora = tiny("vit"), method_of("lora")
    options = lora.card.options(sites=("block.1.*",), dropout=0.2)
    data = TrainingData(labelled_rows(model, 20, 1), labelled_rows(model, 5, 2))
    settings = TrainSettings(epochs=4, batch_size=8, log_every_steps=1, frozen_prefix="cache")
    unbroken = fit(model, lora, options, data, settings)

    def interrupt(event: Any) -> None:
        if (event.kind, event.get("step")) == ("step", 5):
            raise KeyboardInterrupt

    with pytest.raises(TrainingInterrupted, match="after step 5"):
        fit(model, lora, options, data, settings, interrupt, tmp_path)
    resumed = fit(model, lora, options, data, settings, directory=tmp_path, resume=True)
    assert resumed.provenance["metrics"] == unbroken.provenance["metrics"]
    assert all(torch.equal(value, unbroken.slots[name]) for name, value in resumed.slots.items())

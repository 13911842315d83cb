"""The norm that a family names for a span is the one whose output the span reads, in every family that names one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from polyadapt.edits import attachments_of
from polyadapt.errors import UserError
from polyadapt.families.ast.card import CARD as AST
from polyadapt.families.base import Family
from polyadapt.families.bert.card import CARD as BERT
from polyadapt.families.vit.card import CARD as VIT
from polyadapt.families.wav2vec2.card import CARD as WAV2VEC2
from polyadapt.families.wav2vec2_torchaudio.card import CARD as TORCHAUDIO
from polyadapt.families.whisper.card import CARD as WHISPER
from polyadapt.methods.base import load_method
from polyadapt.methods.bottleneck.card import CARD as BOTTLENECK
from polyadapt.methods.norms import NormForm
from polyadapt.model import Model, build_model
from polyadapt.signature import Task
from polyadapt.testing.conformance import example_of, load_family, tiny_model


def check(model: Model) -> None:
    """Watch what every norm gives and what every span is given."""
    given: dict[int, str] = {}
    read: dict[str, str] = {}
    kept: list[torch.Tensor] = []  # so that no identity is used twice
    handles = []
    for site, op in model.ports.ops.items():
        if op.kind == "norm":
            handles.append(op.module.register_forward_hook(lambda module, args, output, site=site: (given.update({id(output): site}), kept.append(output))[1]))
    for site, span in model.ports.spans.items():
        handles.append(span.start.module.register_forward_pre_hook(lambda module, args, site=site: read.update({site: given.get(id(args[0]), "nothing")})))
    try:
        with torch.no_grad():
            model.module(**example_of(model))
    finally:
        for handle in handles:
            handle.remove()
    assert len(read) == len(model.ports.spans)
    for site, norm in read.items():
        assert model.family.feeding_norm(model.backbone, site) == norm, site


@pytest.mark.parametrize(
    ("card", "task"), [(AST, "features"), (VIT, "features"), (WHISPER, "transcription"), (WAV2VEC2, "ctc"), (TORCHAUDIO, "ctc")], ids=lambda value: getattr(value, "id", value)
)
def test_in_every_family_that_names_one(card: Any, task: str) -> None:
    check(tiny_model(card, task))


def test_where_the_norms_of_wav2vec2_stand_first() -> None:
    from transformers import Wav2Vec2Model

    tiny: Any = load_family(WAV2VEC2).tiny(Task("features"))
    config = tiny.config
    config.do_stable_layer_norm, config.feat_extract_norm = True, "layer"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = Wav2Vec2Model(config)
    check(build_model(load_family(WAV2VEC2), backbone, Task("features"), None, reference="stable"))  # type: ignore[arg-type]


def test_a_family_that_names_none_is_refused() -> None:
    assert type(load_family(BERT)).feeding_norm is Family.feeding_norm
    with pytest.raises(UserError, match="names no norm that feeds block.0.ffn; leave train_norm out"):
        load_method(BOTTLENECK).plan(tiny_model(BERT, "features"), BOTTLENECK.options(train_norm=True))


def test_a_trained_norm_is_any_norm_with_a_weight_and_a_bias() -> None:
    """1 + g and b reach every affine norm, here one with other values than the base's own."""
    model = tiny_model(VIT, "features")
    port = model.ports.ops["block.0.norm2"]
    module: Any = port.module
    weight, bias = torch.randn(32, generator=torch.Generator().manual_seed(0)), torch.randn(32, generator=torch.Generator().manual_seed(1))
    x = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(2))
    form = NormForm([port])
    with torch.no_grad():
        expected = torch.nn.functional.layer_norm(x, (32,), weight, bias, module.eps)
        ratio = weight / module.weight
        form.g["block/0/norm2"].copy_(ratio - 1)
        form.b["block/0/norm2"].copy_(bias - module.bias * ratio)
        attachments = attachments_of(model.module, model.ports, model.backbone)
        attachments.add("test", form)
        found = module(x)
        attachments.remove_all()
    assert torch.allclose(found, expected, atol=1e-4)

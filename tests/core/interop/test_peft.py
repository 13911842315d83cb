"""PEFT as an oracle: the same tensors give the same outputs, in both directions."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from polyadapt.artifact import Artifact
from polyadapt.edits import attachments_of
from polyadapt.errors import UserError
from polyadapt.interop.peft import read_peft, write_peft
from polyadapt.methods.base import load_method
from polyadapt.methods.dora.card import CARD as DORA
from polyadapt.methods.ia3.card import CARD as IA3
from polyadapt.methods.lora.card import CARD as LORA
from polyadapt.model import Model
from polyadapt.testing.conformance import non_degenerate, tiny_model

peft = pytest.importorskip("peft", reason="peft is the oracle of these tests; it is in the test extra")

TOLERANCE = 1e-6  # relative to the largest output


def family_card(name: str):
    from importlib import import_module

    return import_module(f"polyadapt.families.{name}.card").CARD


def inputs_of(model: Model) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, 60, (2, 7), generator=torch.Generator().manual_seed(3))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def outputs(model: Model) -> torch.Tensor:
    with torch.no_grad():
        return next(iter(model.module(**inputs_of(model)).values()))


def peft_outputs(model: Model, wrapped) -> torch.Tensor:
    """The family's forward over PEFT's wrapped copy of the backbone."""
    with torch.no_grad():
        return next(iter(model.family.forward(wrapped.get_base_model(), model.task, inputs_of(model)).values()))


def randomise(wrapped) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name or "ia3_" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)


CONFIGS = {
    "llama-lora": ("llama", lambda: peft.LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj", "v_proj", "down_proj"])),
    "llama-patterns": (
        "llama",
        lambda: peft.LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj"], rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 9}, use_rslora=True),
    ),
    "llama-dora": ("llama", lambda: peft.LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "o_proj"], use_dora=True)),
    "bert-dora": ("bert", lambda: peft.LoraConfig(r=3, lora_alpha=6, target_modules=["query", "value"], use_dora=True)),
    "gpt2-fused": ("gpt2", lambda: peft.LoraConfig(r=4, lora_alpha=8, target_modules=["c_attn"], fan_in_fan_out=True)),
    "bert-lora": ("bert", lambda: peft.LoraConfig(r=4, lora_alpha=8, target_modules=["query", "value"])),
    "llama-ia3": ("llama", lambda: peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"])),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_checkpoint_of_peft_gives_its_outputs(case: str, tmp_path: Path) -> None:
    family, config = CONFIGS[case]
    model = tiny_model(family_card(family))
    before = outputs(model)
    wrapped = peft.get_peft_model(copy.deepcopy(model.backbone), config())
    randomise(wrapped)
    wrapped.eval()
    wrapped.save_pretrained(tmp_path)
    expected = peft_outputs(model, wrapped)
    assert (expected - before).abs().max() > 1e-3
    artifact = read_peft(tmp_path, model)
    artifact.attach(model)
    assert (outputs(model) - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize(("family", "card", "options"), [("llama", LORA, {"rank": 3}), ("gpt2", LORA, {"rank": 3}), ("llama", DORA, {"rank": 3}), ("llama", IA3, {})])
def test_peft_loads_what_we_write(family: str, card, options: dict, tmp_path: Path) -> None:
    model = tiny_model(family_card(family))
    method = load_method(card)
    form = method.build(model, card.options(**options), torch.Generator().manual_seed(1))
    non_degenerate(form)
    artifact = Artifact(card.id, model.base_id, model.family.card.id, model.task.kind, tuple(form.lower()))
    pristine = copy.deepcopy(model.backbone)
    write_peft(artifact, model, tmp_path / "peft")
    artifact.attach(model)
    expected = outputs(model)
    attachments_of(model.module).remove_all()
    wrapped = peft.PeftModel.from_pretrained(pristine, str(tmp_path / "peft")).eval()
    found = peft_outputs(model, wrapped)
    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()
    again = read_peft(tmp_path / "peft", model)
    again.attach(model)
    assert (outputs(model) - expected).abs().max() <= TOLERANCE * expected.abs().max()


def test_other_adapters_of_peft_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LOHA"}')
    with pytest.raises(UserError, match="PEFT type 'LOHA'"):
        read_peft(tmp_path, tiny_model(family_card("llama")))

"""PEFT as an oracle: the same tensors give the same outputs, in both directions."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from polyadapt.artifact import Artifact
from polyadapt.edits import Edit, attachments_of
from polyadapt.errors import UserError
from polyadapt.interop.peft import ports_at, read_peft, write_peft
from polyadapt.methods.base import load_method
from polyadapt.methods.dora.card import CARD as DORA
from polyadapt.methods.ia3.card import CARD as IA3
from polyadapt.methods.lora.card import CARD as LORA
from polyadapt.model import Model
from polyadapt.sources.load import open_reference
from polyadapt.tensors import save_tensors
from polyadapt.testing.conformance import example_of, non_degenerate, tiny_model

peft = pytest.importorskip("peft", reason="peft is the oracle of these tests; it is in the test extra")

TOLERANCE = 1e-6  # relative to the largest output


def family_card(name: str):
    from importlib import import_module

    return import_module(f"polyadapt.families.{name}.card").CARD


def headless(family: str) -> Model:
    """PEFT knows no class heads of ours: an image model gives its features."""
    card = family_card(family)
    return tiny_model(card, "features" if "image" in card.media else "")


def inputs_of(model: Model) -> dict[str, torch.Tensor]:
    if "image" in model.family.card.media:
        return example_of(model)
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
    "bert-ia3-pattern": ("bert", lambda: peft.IA3Config(target_modules=r"encoder.*\.(key|dense)", feedforward_modules=r".*output\.dense")),
    "resnet-ia3": ("resnet", lambda: peft.IA3Config(target_modules=["layer1.0.conv1", "layer1.0.conv2"], feedforward_modules=["layer1.0.conv2"])),
    "llama-ia3": ("llama", lambda: peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"])),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_checkpoint_of_peft_gives_its_outputs(case: str, tmp_path: Path) -> None:
    family, config = CONFIGS[case]
    model = headless(family)
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


WRITTEN = [
    ("llama", LORA, {"rank": 3}),
    ("gpt2", LORA, {"rank": 3}),
    ("resnet", LORA, {"rank": 3}),
    ("llama", DORA, {"rank": 3}),
    ("llama", IA3, {}),
    ("resnet", IA3, {"sites": ("stage.1.block.0.conv.*",), "input_sites": ("embed", "stage.2.block.0.conv.1")}),  # `conv1` is the end of other names
]


@pytest.mark.parametrize(("family", "card", "options"), WRITTEN)
def test_peft_loads_what_we_write(family: str, card, options: dict, tmp_path: Path) -> None:
    model = headless(family)
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


def written_by_peft(folder: Path, config: str, tensors: dict[str, torch.Tensor]) -> Path:
    (folder / "adapter_config.json").write_text(config)
    save_tensors(folder / "adapter_model.safetensors", {f"base_model.model.{name}": value for name, value in tensors.items()})
    return folder


LORA_CONFIG = '{"peft_type": "LORA", "lora_alpha": 2}'


def factors(path: str, size: int = 32) -> dict[str, torch.Tensor]:
    return {f"{path}.lora_A.weight": torch.ones(2, size), f"{path}.lora_B.weight": torch.ones(size, 2)}


def test_a_decoder_s_factors_do_not_land_in_the_encoder(tmp_path: Path) -> None:
    """Loaded for `ctc`, Whisper is its encoder, whose modules have the same names as the decoder's but for what stands in front."""
    model = open_reference("polyadapt:tiny-whisper", given={"task": "ctc"})
    path = "layers.0.self_attn.q_proj"
    assert read_peft(written_by_peft(tmp_path, LORA_CONFIG, factors(f"model.encoder.{path}")), model).sites == ("encoder.block.0.attn.q",)
    for extra in ({}, factors(f"model.encoder.{path}")):
        with pytest.raises(UserError, match=r"no site for PEFT's module 'model\.decoder\.layers\.0\.self_attn\.q_proj' in this model"):
            read_peft(written_by_peft(tmp_path, LORA_CONFIG, {**factors(f"model.decoder.{path}"), **extra}), model)


def test_two_modules_of_peft_at_one_site_are_refused(tmp_path: Path) -> None:
    model = tiny_model(family_card("llama"))
    tensors = {**factors("left.layers.0.self_attn.q_proj"), **factors("right.layers.0.self_attn.q_proj")}
    with pytest.raises(UserError, match="no site for PEFT's module 'left"):
        read_peft(written_by_peft(tmp_path, LORA_CONFIG, tensors), model)
    tensors = {**factors("left.model.layers.0.self_attn.q_proj"), **factors("right.model.layers.0.self_attn.q_proj")}
    with pytest.raises(UserError, match=r"'left.*' and 'right.*' both fit block\.0\.attn\.q; load the whole model"):
        read_peft(written_by_peft(tmp_path, LORA_CONFIG, tensors), model)


def test_the_whole_path_goes_before_its_end() -> None:
    """`conv1` is ResNet's stem, and the end of a convolution's name in every block."""
    model = tiny_model(family_card("resnet"))
    assert [port.site for port in ports_at(model, "conv1")] == ["embed"]
    assert [port.site for port in ports_at(model, "layer1.0.conv1")] == ["stage.1.block.0.conv.0"]
    with pytest.raises(UserError, match=r"'conv2' fits several modules: layer1\.0\.conv2, layer"):
        ports_at(model, "conv2")


def test_an_artifact_without_edits_is_not_written(tmp_path: Path) -> None:
    model = tiny_model(family_card("llama"))
    with pytest.raises(UserError, match="this lora artifact holds no edits, so there is nothing for PEFT to load"):
        write_peft(Artifact("lora", model.base_id, "llama", model.task.kind, ()), model, tmp_path / "peft")
    assert not (tmp_path / "peft").exists()


def test_scales_of_both_ends_of_one_module_are_not_written(tmp_path: Path) -> None:
    model = tiny_model(family_card("llama"))
    edits = tuple(Edit("block.0.ffn.down", "scale", {"g": torch.full((size,), 2.0)}, variant) for variant, size in (("", 32), ("input", 64)))
    with pytest.raises(UserError, match=r"scales the input or the output of model\.layers\.0\.mlp\.down_proj, and this artifact scales both"):
        write_peft(Artifact("ia3", model.base_id, "llama", model.task.kind, edits), model, tmp_path / "peft")
    assert not (tmp_path / "peft").exists()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("[]", "holds a list, expected an object of settings"),
        ('{"peft_type": "LORA"}', "lora_alpha is None, expected a number"),
        ('{"peft_type": "LORA", "lora_alpha": 2, "alpha_pattern": {"q_proj": "x"}}', "alpha_pattern is {'q_proj': 'x'}, expected numbers by module"),
        ('{"peft_type": "IA3", "feedforward_modules": [1]}', r"feedforward_modules is \[1\], expected names"),
        ('{"peft_type": "LORA", "lora_alpha": 2, "init_lora_weights": "pissa_niter_4"}', "these factors go with a base whose weights PEFT changed as well; save the adapter"),
        ('{"peft_type": "LORA", "lora_alpha": 2, "alora_invocation_tokens": [7]}', "alora_invocation_tokens is set, which no edit of ours stands for"),
    ],
)
def test_a_broken_config_is_the_user_s_error(config: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        read_peft(written_by_peft(tmp_path, config, factors("model.layers.0.self_attn.q_proj")), tiny_model(family_card("llama")))


def test_dora_of_an_embedding_is_refused(tmp_path: Path) -> None:
    tensors = {"wte.lora_embedding_A": torch.ones(2, 60), "wte.lora_embedding_B": torch.ones(32, 2), "wte.lora_magnitude_vector.weight": torch.ones(32)}
    with pytest.raises(UserError, match=r"DoRA on the embedding 'wte' cannot be read"):
        read_peft(written_by_peft(tmp_path, LORA_CONFIG, tensors), tiny_model(family_card("gpt2")))

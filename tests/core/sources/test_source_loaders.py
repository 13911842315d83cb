"""Loaders: folders written here by the libraries themselves come back with the same numbers; everything else is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import polyadapt as pa
from polyadapt.errors import UserError
from polyadapt.model import Model
from polyadapt.signature import Task
from polyadapt.sources.families import core_families, family_by_id
from polyadapt.sources.hf_inputs import _whisper_prefix
from polyadapt.sources.load import open_reference
from polyadapt.training.texts import transcript_tokens

SIZES = {"batch": 2, "tokens": 6, "samples": 4000, "frames": 60, "source": 5, "target": 4, "texts": 2, "height": 16, "width": 16, "past": 0}


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYADAPT_CACHE", str(tmp_path / "cache"))


def run(model: Model, inputs: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        outputs: dict[str, torch.Tensor] = model.module(**(inputs or model.example(SIZES, torch.Generator().manual_seed(0))))
    return outputs


def tiny_backbone(family: str, kind: str, seed: int = 0) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return family_by_id(family).tiny(Task(kind))


HF = [
    ("bert", "features", "BertModel"),
    ("bert", "classification", "BertForSequenceClassification"),
    ("gpt2", "causal-lm", "GPT2LMHeadModel"),
    ("llama", "causal-lm", "LlamaForCausalLM"),
    ("t5", "seq2seq-lm", "T5ForConditionalGeneration"),
    ("whisper", "transcription", "WhisperForConditionalGeneration"),
    ("wav2vec2", "ctc", "Wav2Vec2ForCTC"),
    ("ast", "classification", "ASTForAudioClassification"),
    ("clip", "image-text", "CLIPModel"),
    ("vits", "synthesis", "VitsModel"),
]


@pytest.mark.parametrize(("family", "kind", "name"), HF)
def test_a_folder_of_transformers_comes_back(tmp_path: Path, family: str, kind: str, name: str) -> None:
    backbone = tiny_backbone(family, kind)
    backbone.save_pretrained(tmp_path / "model")
    model = open_reference(f"hf:{tmp_path / 'model'}")
    assert (type(model.backbone).__name__, model.task.kind, model.family.card.id) == (name, kind, family)
    for key, value in backbone.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[key], value), key
    assert run(model)


@pytest.mark.parametrize(("family", "saved", "asked", "name"), [("llama", "causal-lm", "classification", "LlamaModel"), ("whisper", "transcription", "features", "WhisperEncoder")])
def test_another_task_takes_another_class(tmp_path: Path, family: str, saved: str, asked: str, name: str) -> None:
    backbone = tiny_backbone(family, saved)
    backbone.save_pretrained(tmp_path / "model")
    model = open_reference(f"hf:{tmp_path / 'model'}?task={asked}")
    assert type(model.backbone).__name__ == name and run(model)["features"].shape[0] == 2


def test_weights_without_a_pooler_load_without_one_and_keep_their_identity(tmp_path: Path) -> None:
    backbone = tiny_backbone("bert", "features")
    backbone.config.save_pretrained(tmp_path)
    save_file({key: value for key, value in backbone.state_dict().items() if not key.startswith("pooler.")}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    first, second = (open_reference(f"hf:{tmp_path}") for _ in range(2))
    assert first.base_id == second.base_id and first.backbone.pooler is None


def test_weights_that_lack_tensors_are_refused(tmp_path: Path) -> None:
    tiny_backbone("bert", "features").save_pretrained(tmp_path / "a")
    state = tiny_backbone("bert", "features").state_dict()
    save_file({key: value for key, value in state.items() if "layer.1.output" not in key}, tmp_path / "a" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"the weights lack \d+ tensors of BertModel"):
        open_reference(f"hf:{tmp_path / 'a'}")


def test_bin_files_are_read_as_tensors_only(tmp_path: Path) -> None:
    backbone = tiny_backbone("bert", "features")
    backbone.config.save_pretrained(tmp_path)
    torch.save(backbone.state_dict(), tmp_path / "pytorch_model.bin")
    wanted = open_reference(f"hf:{tmp_path}").base_id
    save_file(dict(tiny_backbone("bert", "features", seed=1).state_dict()), tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert open_reference(f"hf:{tmp_path}").base_id != wanted, "safetensors come first"


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


@pytest.mark.parametrize("scheme", ["hf", "timm", "timm-weights", "torchaudio"])
def test_pickled_code_is_never_run(tmp_path: Path, scheme: str) -> None:
    folder, flag = tmp_path / "model", tmp_path / "was-run"
    folder.mkdir()
    if scheme == "hf":
        tiny_backbone("bert", "features").config.save_pretrained(folder)
    else:
        (folder / "config.json").write_text(json.dumps({"architecture": "resnet10t", "num_classes": 2}))
    torch.save({"weight": Payload(flag)}, folder / "pytorch_model.bin")
    reference = {"timm-weights": f"timm:resnet10t?weights={folder}/pytorch_model.bin", "torchaudio": f"torchaudio:wav2vec2_base?weights={folder}/pytorch_model.bin"}
    with pytest.raises(UserError):
        open_reference(reference.get(scheme, f"{scheme}:{folder}"))
    assert not flag.exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert flag.exists(), "the file would have done harm"


def test_class_names_come_from_the_config(tmp_path: Path) -> None:
    backbone = tiny_backbone("bert", "classification")
    backbone.config.id2label = {0: "bad", 1: "fair", 2: "good"}
    backbone.save_pretrained(tmp_path)
    assert open_reference(f"hf:{tmp_path}").task.labels == ("bad", "fair", "good")
    assert open_reference(f"hf:{tmp_path}?labels=x,y,z").task.labels == ("x", "y", "z")
    with pytest.raises(UserError, match="2 labels were given, the head has 3"):
        open_reference(f"hf:{tmp_path}?labels=x,y")


def test_a_class_head_that_nobody_reads_is_not_dropped_in_silence(tmp_path: Path) -> None:
    import transformers

    config = tiny_backbone("wav2vec2", "features").config
    config.num_labels, config.classifier_proj_size = 2, 8
    transformers.Wav2Vec2ForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"saved as Wav2Vec2ForSequenceClassification, whose class head family wav2vec2 does not read; \?task=features"):
        open_reference(f"hf:{tmp_path}")
    assert open_reference(f"hf:{tmp_path}?task=features").task.kind == "features"


def test_networks_that_pad_otherwise_are_other_bases() -> None:
    """The same weights in TensorFlow's padding answer otherwise, so nobody's artifact fits both."""
    import timm

    plain, padded = (timm.create_model(name, num_classes=0).eval() for name in ("efficientnet_lite0", "tf_efficientnet_lite0"))
    padded.load_state_dict(plain.state_dict())
    family = family_by_id("efficientnet")
    assert family.config(plain) != family.config(padded)


def test_random_weights_are_seeded(tmp_path: Path) -> None:
    tiny_backbone("bert", "features").save_pretrained(tmp_path)
    loads = [open_reference(f"hf:{tmp_path}?pretrained=false&seed={seed}&task=classification&num_classes=7") for seed in (1, 1, 2)]
    assert loads[0].base_id == loads[1].base_id != loads[2].base_id
    assert run(loads[0])["logits"].shape == (2, 7)
    with pytest.raises(UserError, match="num_classes needs pretrained=false"):
        open_reference(f"hf:{tmp_path}?num_classes=7")


def test_preprocessing_is_read_from_the_folder(tmp_path: Path) -> None:
    tiny_backbone("clip", "image-text").save_pretrained(tmp_path)
    settings = {"do_center_crop": True, "size": {"shortest_edge": 40}, "resample": 2, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    model = open_reference(f"hf:{tmp_path}")
    image = model.processor.spec["parts"]["image"]
    assert (image["resize"], image["crop_fraction"], image["interpolation"], image["size_px"]) == ("crop", 0.8, "bilinear", [32, 32])
    front: Any = model.module.front
    torch.testing.assert_close(front.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    torch.testing.assert_close(front.deviation.flatten(), torch.tensor([0.4, 0.5, 0.6]))


def test_whisper_prefix_comes_from_the_folder(tmp_path: Path) -> None:
    tiny_backbone("whisper", "transcription").save_pretrained(tmp_path)
    saved = {"lang_to_id": {"<|en|>": 5, "<|fr|>": 6}, "task_to_id": {"transcribe": 7}, "no_timestamps_token_id": 8, "eos_token_id": 2, "decoder_start_token_id": 4}
    (tmp_path / "generation_config.json").write_text(json.dumps(saved))
    assert open_reference(f"hf:{tmp_path}?language=fr").generation["start_ids"] == [4, 6, 7, 8]
    assert open_reference(f"hf:{tmp_path}").generation["start_ids"] == [4, 5, 7, 8]
    with pytest.raises(UserError, match="no language 'xx'"):
        open_reference(f"hf:{tmp_path}?language=xx")
    for own in ({"language": "french"}, {"language": "<|fr|>"}, {"forced_decoder_ids": [[1, 6], [2, 7]]}):  # one that was tuned to French
        (tmp_path / "generation_config.json").write_text(json.dumps({**saved, **own}))
        model = open_reference(f"hf:{tmp_path}")
        assert model.generation["start_ids"] == [4, 6, 7, 8] and model.task.details == {"language": "fr"}
        assert open_reference(f"hf:{tmp_path}?language=en").generation["start_ids"] == [4, 5, 7, 8]
    (tmp_path / "generation_config.json").write_text(json.dumps({**saved, "task_to_id": {}}))
    with pytest.raises(UserError, match="understands several languages, and its generation_config.json has no task_to_id; copy that file"):
        open_reference(f"hf:{tmp_path}")


def test_a_multilingual_whisper_says_how_it_is_told_a_language() -> None:
    assert _whisper_prefix({"no_timestamps_token_id": 8}, "en", 51864, "hf:w") == [8]
    with pytest.raises(UserError, match="hf:w understands several languages, and its generation_config.json has no lang_to_id"):
        _whisper_prefix({"no_timestamps_token_id": 8}, "en", 51865, "hf:w")


def test_the_rate_that_a_checkpoint_hears_is_kept(tmp_path: Path) -> None:
    for family, rate in (("wav2vec2", 8000), ("ast", 22050), ("whisper", 8000)):
        folder = tmp_path / family
        tiny_backbone(family, "transcription" if family == "whisper" else "features").save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps({"sampling_rate": rate}))
        if family == "wav2vec2":
            assert open_reference(f"hf:{folder}").processor.spec["sample_rate_hz"] == rate
        else:
            with pytest.raises(UserError, match=f"hears spectrograms of {rate} Hz, and ours are of 16000 Hz"):
                open_reference(f"hf:{folder}")
    (tmp_path / "ast" / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False, "mean": -4.0, "std": 2.0}))
    front: Any = open_reference(f"hf:{tmp_path / 'ast'}").module.front
    assert (front.mean, front.deviation) == (0.0, 0.5)


def test_a_base_that_trains_hears_what_a_frozen_one_does(tmp_path: Path) -> None:
    """Checkpoints of wav2vec 2.0 ask for masks and for dropped layers, which methods that leave the base alone never meet."""
    backbone = tiny_backbone("wav2vec2", "features")
    backbone.config.update({"apply_spec_augment": True, "layerdrop": 0.9, "mask_time_prob": 0.9})
    backbone.save_pretrained(tmp_path)
    model = open_reference(f"hf:{tmp_path}")
    inputs = model.example(SIZES, torch.Generator().manual_seed(0))
    still = run(model, inputs)["features"]
    model.module.train()
    assert all(torch.equal(run(model, inputs)["features"], still) for _ in range(3))


@pytest.mark.parametrize("form", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_of_timm_comes_back(tmp_path: Path, form: str) -> None:
    import timm

    backbone = timm.create_model("resnet10t", num_classes=3).eval()
    timm.models.save_for_hf(backbone, tmp_path, model_config={"label_names": ["a", "b", "c"]}, safe_serialization=form.endswith("safetensors"))
    assert (tmp_path / form).is_file()
    model = open_reference(f"timm:{tmp_path}")
    assert model.task.labels == ("a", "b", "c")
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    mean, deviation = (torch.tensor(backbone.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        wanted = backbone((picture - mean) / deviation)
    torch.testing.assert_close(run(model, {"image": picture})["logits"], wanted, rtol=1e-5, atol=1e-5)
    (tmp_path / form).unlink()
    with pytest.raises(UserError, match=r"no weights in .* expected one of model\.safetensors"):
        open_reference(f"timm:{tmp_path}")


def test_timm_options() -> None:
    model = open_reference("timm:vit_tiny_patch16_224?pretrained=false&image_size_px=64&num_classes=0")
    assert model.processor.spec["size_px"] == [64, 64] and model.signature.inputs[0].shape == ("batch", 3, 64, 64)
    assert run(model)["logits"].shape == (2, 192), "a base without classes answers with its features"
    model = open_reference("timm:tf_efficientnet_lite0?pretrained=false&image_size_px=96&num_classes=10&seed=4")
    assert model.processor.spec["size_px"] == [96, 96] and model.task.labels == () and run(model)["logits"].shape == (2, 10)


def test_imagenet_has_a_thousand_different_names() -> None:
    from polyadapt.sources.timm import imagenet_labels

    names = imagenet_labels()
    assert len(set(names)) == len(names) == 1000 and names[0].startswith("tench") and names[985] == "daisy"


@pytest.mark.parametrize("folder", ["pipe", "pipe/unet"])
def test_a_unet_comes_back_alone_or_from_its_pipeline(tmp_path: Path, folder: str) -> None:
    backbone = tiny_backbone("unet", "denoising")
    backbone.save_pretrained(tmp_path / "pipe" / "unet")
    model = open_reference(f"diffusers:{tmp_path / folder}")
    for key, value in backbone.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[key], value), key
    assert model.task.kind == "denoising" and run(model)


def test_unets_are_read_from_safetensors_only(tmp_path: Path) -> None:
    backbone = tiny_backbone("unet", "denoising")
    backbone.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(UserError, match="no weights in"):
        open_reference(f"diffusers:{tmp_path}")
    assert open_reference(f"diffusers:{tmp_path}?pretrained=false&seed=2").base_id == open_reference(f"diffusers:{tmp_path}?pretrained=false&seed=2").base_id


@pytest.mark.parametrize(("family", "head"), [("wav2vec2", "lm_head"), ("wav2vec2-torchaudio", "aux")])
def test_a_checkpoints_own_symbols_can_be_left_for_its_frames(family: str, head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left are the frames that its own head would score."""
    backbone = tiny_backbone(family, "ctc")
    if family == "wav2vec2":
        backbone.save_pretrained(tmp_path / "model")
        reference, join = f"hf:{tmp_path}/model", "?"
    else:
        import torchaudio

        monkeypatch.setattr(torchaudio.models, "wav2vec2_base", lambda aux_num_out=None: family_by_id(family).tiny(Task("ctc")))
        save_file(dict(backbone.state_dict()), tmp_path / "weights.safetensors")
        reference, join = f"torchaudio:wav2vec2_base?weights={tmp_path}/weights.safetensors", "&"
    own, frames = open_reference(reference), open_reference(f"{reference}{join}own_head=false")
    assert own.ports.head is None and frames.ports.head is not None and frames.task.kind == own.task.kind == "ctc"
    inputs = own.example(SIZES, torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(getattr(own.backbone, head)(run(frames, inputs)["features"]), run(own, inputs)["logits"])
    assert open_reference(f"polyadapt:tiny-{family}?task=ctc").ports.head is None
    assert open_reference(f"polyadapt:tiny-{family}?task=ctc&own_head=false").ports.head is not None


def test_torchaudio_factories_bundles_and_local_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchaudio

    monkeypatch.setattr(torchaudio.models, "wav2vec2_base", lambda aux_num_out=None: family_by_id("wav2vec2-torchaudio").tiny(Task("ctc")))
    backbone = tiny_backbone("wav2vec2-torchaudio", "ctc", seed=5)
    save_file(dict(backbone.state_dict()), tmp_path / "weights.safetensors")
    model = open_reference(f"torchaudio:wav2vec2_base?weights={tmp_path}/weights.safetensors")
    assert model.task.kind == "ctc"
    for key, value in backbone.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[key], value), key
    with pytest.raises(UserError, match="names an architecture without weights"):
        open_reference("torchaudio:wav2vec2_base")
    with pytest.raises(UserError, match="no weights at .*wav2vec2_fairseq_base_ls960.pth"):
        open_reference("torchaudio:WAV2VEC2_BASE")
    with pytest.raises(UserError, match="did you mean 'WAV2VEC2_BASE'"):
        open_reference("torchaudio:WAV2VEC2_BAS")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """A hub that holds nothing; it notes for every question whether the network was allowed."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked: list[bool] = []

    def absent(*_: Any, local_files_only: bool = False, **__: Any) -> str:
        asked.append(not local_files_only)
        raise LocalEntryNotFoundError("nothing here")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", absent)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", absent)
    return asked


@pytest.mark.parametrize("reference", ["timm:vit_tiny_patch16_224", "hf:somebody/some-model", "diffusers:somebody/some-model"])
def test_nothing_is_downloaded_unless_allowed(reference: str, hub: list[bool]) -> None:
    with pytest.raises(UserError, match="not on this machine; add .allow_download=true"):
        open_reference(reference)
    assert hub == [False]
    with pytest.raises(UserError, match="could not be downloaded"):
        open_reference(f"{reference}?allow_download=true")
    assert hub == [False, True]


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("timm:vit_tiny_patch16_22", "did you mean 'vit_tiny_patch16_224'"),
        ("timm:swin_tiny_patch4_window7_224?pretrained=false", "no family knows timm's SwinTransformer"),
        ("timm:./absent", "no folder ./absent"),
        ("timm:deit_tiny_distilled_patch16_224?pretrained=false&pooling=tokens", "answers by its class tokens, so it has no pooling of tokens"),
        ("timm:resnet10t?weights=absent.safetensors", "no file absent.safetensors"),
        ("hf:/absent", "no folder /absent"),
        ("diffusers:~/absent", "no folder ~/absent"),
    ],
)
def test_mistakes_are_said_in_one_line(reference: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        open_reference(reference)
    assert "\n" not in str(caught.value)


def test_folders_that_hold_something_else(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        open_reference(f"hf:{tmp_path}")
    with pytest.raises(UserError, match=r"config\.json"):
        open_reference(f"timm:{tmp_path}")
    with pytest.raises(UserError, match=r"no config\.json of a U-Net"):
        open_reference(f"diffusers:{tmp_path}")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(UserError, match="no family knows models of type 'mamba'"):
        open_reference(f"hf:{tmp_path}")
    with pytest.raises(UserError, match="names no architecture"):
        open_reference(f"timm:{tmp_path}")
    with pytest.raises(UserError, match="of class 'unknown'; known are UNet2DConditionModel"):
        open_reference(f"diffusers:{tmp_path}")
    (tmp_path / "config.json").write_text("{")
    for scheme in ("hf", "timm", "diffusers"):
        with pytest.raises(UserError):
            open_reference(f"{scheme}:{tmp_path}")


def test_plugins_may_bring_the_family() -> None:
    """A backbone is recognised among the families that were handed in, not only among core's."""
    with pytest.raises(UserError, match="no family knows timm's ResNet"):
        open_reference("timm:resnet10t?pretrained=false", families=[core_families()["vit"]])


def test_state_dicts_are_matched_by_order_only_where_shapes_agree(tmp_path: Path) -> None:
    from polyadapt.sources.packaged import in_order

    theirs = {"x": torch.zeros(2, 3), "y": torch.ones(4)}
    ours = {"a.weight": torch.empty(2, 3), "a.bias": torch.empty(4)}
    assert in_order(theirs, ours, tmp_path)["a.bias"] is theirs["y"]
    with pytest.raises(UserError, match=r"tensor y has shape \(4,\), a.bias of the model has \(5,\)"):
        in_order(theirs, {**ours, "a.bias": torch.empty(5)}, tmp_path)
    with pytest.raises(UserError, match="holds 2 tensors, the model has 1"):
        in_order(theirs, {"a.weight": torch.empty(2, 3)}, tmp_path)


def test_state_files_hold_tensors_and_nothing_else(tmp_path: Path) -> None:
    from polyadapt.sources.common import read_state

    torch.save({"state_dict": {"a": torch.ones(2)}}, tmp_path / "nested.pth")
    assert torch.equal(read_state(tmp_path / "nested.pth", "test")["a"], torch.ones(2))
    torch.save({"a": torch.ones(2), "epoch": 3}, tmp_path / "mixed.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "nested.pth").read_bytes()[:200])
    for name, said in [("mixed.pth", "no state dict of tensors"), ("cut.pth", "no plain file of tensors"), ("absent.pth", "no file"), ("absent.safetensors", "no file")]:
        with pytest.raises(UserError, match=said):
            read_state(tmp_path / name, "test")


def ctc_folder(tmp_path: Path, alphabets: Any) -> Path:
    """As fine-tuning leaves one: the blank is the last symbol, and words end in a bar."""
    backbone = tiny_backbone("wav2vec2", "ctc")
    backbone.config.pad_token_id = backbone.config.vocab_size - 1
    backbone.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "vocab.json").write_text(json.dumps(alphabets))
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps({"word_delimiter_token": "|"}))
    return tmp_path / "model"


def test_a_recogniser_of_transformers_reads_and_writes_its_own_symbols(tmp_path: Path) -> None:
    size, letters = 12, [*"|abcdefghij"]
    folder = ctc_folder(tmp_path, {letter: number for number, letter in enumerate(letters)} | {"[PAD]": size - 1})
    model = open_reference(f"hf:{folder}")
    assert model.task.details == {"blank_id": size - 1, "separator": "|", "vocabulary": [*letters, "[PAD]"]}
    assert transcript_tokens(model, "a Bad").tolist() == [1, 0, 2, 1, 4]
    for symbol, said in ((size - 1, ""), (2, "b")):  # whatever it hears
        with torch.no_grad():
            model.backbone.lm_head.weight.zero_()
            model.backbone.lm_head.bias.copy_(torch.eye(size)[symbol])
        assert pa.infer(model, (np.ones(16000, np.float32), 16000))["text"] == said
    renamed = open_reference(f"hf:{folder}?labels={','.join(f's{number}' for number in range(size))}")
    assert renamed.task.details["vocabulary"] == [f"s{number}" for number in range(size)]
    with pytest.raises(UserError, match=f"1 labels were given, the head has {size} classes"):
        open_reference(f"hf:{folder}?labels=a")
    with pytest.raises(UserError, match="1 labels were given, the head has 0 classes"):
        open_reference(f"hf:{folder}?task=features&labels=a")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("vocab.json", ["a", "b"], "vocab.json holds a list, expected a table"),
        ("vocab.json", {"a": "one"}, "vocab.json gives 'a' the id 'one'"),
        ("tokenizer_config.json", 3, "tokenizer_config.json holds a int"),
    ],
)
def test_broken_symbols_are_refused_in_a_line(tmp_path: Path, name: str, content: Any, said: str) -> None:
    folder = ctc_folder(tmp_path, {"a": 1})
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"hf:.*: {said}.*copy the file from the checkpoint anew"):
        open_reference(f"hf:{folder}")


def test_a_separator_with_settings_is_its_content(tmp_path: Path) -> None:
    folder = ctc_folder(tmp_path, {"a": 1})
    (folder / "tokenizer_config.json").write_text(json.dumps({"word_delimiter_token": {"content": "_", "lstrip": False}}))
    assert open_reference(f"hf:{folder}").task.details["separator"] == "_"


def test_a_recogniser_of_several_alphabets_is_told_the_language(tmp_path: Path) -> None:
    folder = ctc_folder(tmp_path, {"fra": {"|": 0, "é": 1}, "ron": {"|": 0, "ă": 1}})
    assert open_reference(f"hf:{folder}?language=ron").task.details["vocabulary"][:2] == ["|", "ă"]
    with pytest.raises(UserError, match=r"writes 2 languages, each in symbols of its own, and 'none' was asked for.*add \?language="):
        open_reference(f"hf:{folder}")

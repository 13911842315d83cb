"""`import polyadapt as pa`: load, attach, adapt, evaluate, infer and export without a command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import polyadapt as pa
from polyadapt import api
from polyadapt.data.dataset import Dataset, Example
from polyadapt.errors import UserError
from polyadapt.host.inference import adapted
from polyadapt_runtime import Bundle
from polyadapt_runtime.errors import InputError

MODEL = "polyadapt:tiny-mlp-policy"
SITES = ["ffn.*"]


@pytest.fixture(scope="module")
def rows() -> Dataset:
    generator = np.random.default_rng(1)
    x = generator.normal(size=(30, 39)).astype(np.float32)
    return Dataset("rows", [Example(str(index), row, extra={"target": np.tanh(row[:4])}) for index, row in enumerate(x)], "array")


def state(model: pa.Model) -> dict[str, torch.Tensor]:  # type: ignore[name-defined]
    return {name: value.clone() for name, value in model.module.state_dict().items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        _ = pa.lod  # type: ignore[attr-defined]
    assert set(pa.__all__) <= set(dir(pa))
    assert all(getattr(pa, name) is not None for name in pa.__all__)


def test_adapt_infer_and_export_in_a_few_lines(rows: Dataset, tmp_path: Path) -> None:
    model = pa.load(MODEL)
    before = state(model)
    heard: list[str] = []
    artifact = pa.adapt(model, "lora", rows, train={"epochs": 8, "learning_rate": 0.01}, sites=SITES, emit=lambda event: heard.append(event["kind"]))
    assert same(state(model), before)
    assert heard[0] == "started" and heard[-1] == "finished"
    assert pa.evaluate(model, rows, artifact).value < pa.evaluate(model, rows).value
    answer = pa.infer(model, rows[0].raw, artifact)
    assert answer["action"].shape == (4,) and same(state(model), before)
    artifact.save(tmp_path / "artifact")
    made = pa.export(model, pa.Artifact.load(tmp_path / "artifact"), tmp_path / "policy.bundle")
    exported = pa.infer(tmp_path / "policy.bundle", [rows[0].raw, rows[1].raw], "adapter")
    np.testing.assert_allclose(exported[0]["action"], answer["action"], rtol=0, atol=1e-5)
    assert len(exported) == 2
    np.testing.assert_allclose(pa.infer(made, rows[0].raw, "adapter", device="cpu")["action"], answer["action"], rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="unknown option of a call to a bundle 'batchsize'; did you mean 'batch_size'"):
        pa.infer(tmp_path / "policy.bundle", rows[0].raw, "adapter", batchsize=2)
    with pytest.raises(UserError, match="unknown option of a call to a bundle 'device'"):
        pa.infer(Bundle(tmp_path / "policy.bundle"), rows[0].raw, device="cpu")


def test_a_loop_of_one_s_own_on_a_library_s_module(rows: Dataset) -> None:
    module = pa.load(MODEL).backbone
    before = {name: value.clone() for name, value in module.state_dict().items()}
    x = torch.from_numpy(np.stack([row.raw for row in rows]))
    y = torch.from_numpy(np.stack([row.target for row in rows]))
    with torch.no_grad():
        start = module(x)
    attached = pa.attach(module, "lora", sites=SITES, rank=2)
    assert type(module).__name__ in attached.model.family.card.classes[0]
    with torch.no_grad():
        assert torch.equal(module(x), start)
    optimiser = torch.optim.Adam(attached.parameters(), lr=0.01)
    assert sum(value.numel() for value in module.parameters() if value.requires_grad) == sum(value.numel() for value in attached.parameters())
    losses = []
    for _ in range(20):
        loss = (module(x) - y).pow(2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    with torch.no_grad():
        trained = module(x)
    artifact = attached.artifact(seed=0)
    attached.detach()
    with torch.no_grad():
        assert torch.equal(module(x), start)
    assert module.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    model = attached.model
    assert model.reference == f"module:{model.base_id}" and artifact.base_id == model.base_id == pa.load(MODEL).base_id
    with adapted(pa.load(MODEL), artifact) as active, torch.no_grad():
        torch.testing.assert_close(active.module(observation=x)["action"], trained, rtol=0, atol=1e-6)


def test_what_no_family_knows_is_refused() -> None:
    with pytest.raises(UserError, match="no family knows torch's Linear"):
        pa.attach(torch.nn.Linear(2, 2), "lora")
    with pytest.raises(UserError, match="module that was passed"):
        pa.load("module:0123")


def test_inference_attaches_only_for_the_call_and_keeps_what_was_active(rows: Dataset) -> None:
    model = pa.load(MODEL)
    attached = pa.attach(model, "ia3", sites=["ffn.up"])
    other = pa.attach(model, "lora", sites=SITES, name="other")
    with torch.no_grad():
        for parameter in (*attached.form.parameters(), *other.form.parameters()):
            parameter.add_(0.5)
    from polyadapt.edits import attachments_of

    attachments = attachments_of(model.module)
    attachments.activate("adapter")
    expected = pa.infer(model, rows[0].raw)
    answer = pa.infer(model, rows[0].raw, other.artifact())
    assert attachments.active == ("adapter",) and attachments.names == ("adapter", "other")
    assert not np.allclose(answer["action"], expected["action"])
    np.testing.assert_array_equal(pa.infer(model, rows[0].raw)["action"], expected["action"])


def test_what_can_be_asked(rows: Dataset) -> None:
    with pytest.raises(UserError, match="'infer'|infer has no option 'botch'"):
        pa.infer(pa.load(MODEL), rows[0].raw, botch=3)
    with pytest.raises(UserError, match="infer takes a loaded model, a bundle's directory, .* or what export returned; found Linear"):
        pa.infer(torch.nn.Linear(2, 2), rows[0].raw)


def test_an_artifact_may_be_named_by_its_folder(rows: Dataset, tmp_path: Path) -> None:
    model = pa.load(MODEL)
    artifact = pa.adapt(model, "lora", rows, train={"max_steps": 3, "learning_rate": 0.1}, sites=SITES)
    folder, x = artifact.save(tmp_path / "art"), rows[0].raw
    expected = pa.infer(model, x, artifact)["action"]
    for given in (folder, str(folder)):
        np.testing.assert_array_equal(pa.infer(model, x, given)["action"], expected)
        assert pa.evaluate(model, rows, given).value == pa.evaluate(model, rows, artifact).value
    made = pa.export(model, str(folder), tmp_path / "policy.bundle")
    api.add_artifacts(model, {"again": folder}, made.directory)
    assert set(Bundle(made.directory).artifacts()) == {"adapter", "again"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("birds", "artifact 'birds' is no folder here; give a folder that Artifact.save wrote .only a bundle knows artifacts by name"),
        (Path(__file__).parent, "is not an artifact: it has no artifact.json"),
        (["birds"], "an artifact is a polyadapt.Artifact or the folder of one; found list"),
    ],
)
def test_what_is_no_artifact_is_refused(rows: Dataset, tmp_path: Path, given: Any, words: str) -> None:
    model = pa.load(MODEL)
    calls = (
        lambda: pa.infer(model, rows[0].raw, given),
        lambda: pa.evaluate(model, rows, given),
        lambda: pa.export(model, given, tmp_path / "x.bundle"),
        lambda: pa.export(model, {"birds": given}, tmp_path / "x.bundle"),
        lambda: api.add_artifacts(model, {"birds": given}, tmp_path / "x.bundle"),
    )
    for call in calls:
        with pytest.raises(UserError, match=words):
            call()


def test_a_folder_is_lent_to_a_bundle_as_often_as_it_is_asked_for(rows: Dataset, tmp_path: Path) -> None:
    model = pa.load(MODEL)
    artifact = pa.adapt(model, "lora", rows, train={"max_steps": 3, "learning_rate": 0.1}, sites=SITES)
    folder, opened = str(artifact.save(tmp_path / "art")), Bundle(pa.export(model, artifact, tmp_path / "policy.bundle").directory)
    x = rows[0].raw
    first, expected = pa.infer(opened, x, folder)["action"], pa.infer(model, x, artifact)["action"]
    np.testing.assert_allclose(first, expected, rtol=0, atol=1e-5)
    for same in (folder, Path(folder)):
        np.testing.assert_array_equal(pa.infer(opened, x, same)["action"], first)
    pa.adapt(model, "lora", rows, train={"max_steps": 6, "learning_rate": 0.1}, sites=SITES).save(folder)
    assert not np.allclose(pa.infer(opened, x, folder)["action"], first)
    with pytest.raises(UserError, match="no artifact 'birds'"):
        pa.infer(opened, x, "birds")
    with pytest.raises(UserError, match="39"):
        pa.infer(opened, np.zeros(3, np.float32))


@pytest.mark.parametrize(
    ("reference", "raw", "options", "words"),
    [
        (MODEL, np.zeros(39, np.float32), {"top": 7}, "task 'control' has no use for option 'top'; leave it out"),
        ("polyadapt:tiny-vit", np.zeros((8, 8, 3), np.uint8), {"temperature": 3.0}, "task 'classification' has no use for option 'temperature'"),
        ("polyadapt:tiny-gpt2", "hello", {"beams": 4}, "task 'causal-lm' has no use for option 'beams'; a bundle of it searches"),
    ],
)
def test_what_a_task_has_no_use_for_is_refused_and_not_dropped(reference: str, raw: object, options: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        pa.infer(pa.load(reference), raw, **options)


def test_a_data_set_that_was_read_takes_no_options(rows: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'rows' is read already, so its reader has no use for trim_db"):
        pa.open_dataset(rows, trim_db=35)
    with pytest.raises(UserError, match="data is a URI such as 'folder:photos'.*found PosixPath"):
        pa.open_dataset(tmp_path)  # type: ignore[arg-type]


def test_a_text_ends_where_the_positions_of_the_model_do(tmp_path: Path) -> None:
    """Learned positions end; a prompt that leaves no room is refused, in torch and in a bundle alike."""
    pytest.importorskip("transformers", reason="the host alone brings no library of texts")
    model = pa.load("polyadapt:tiny-gpt2")
    soft = pa.attach(model, "prompt")
    with torch.no_grad():
        for parameter in soft.parameters():
            parameter.add_(0.1)
    artifact = soft.artifact()
    soft.detach()
    opened = Bundle(pa.export(model, {"soft": artifact}, tmp_path / "text.bundle").directory)
    assert opened.manifest.generation["maximum_tokens"] == 64
    learned = next(len(edit.tensors["tokens"]) for edit in artifact.edits)
    for name, places in ((None, 0), ("soft", learned)):
        assert len(list(opened.stream([5, 6, 7], 200, artifact=name, stop_ids=()))) == 61 - places
    baked = Bundle(pa.export(model, artifact, tmp_path / "baked.bundle", form="merged").directory)
    assert baked.manifest.generation["maximum_tokens"] == 64 - learned
    with pytest.raises(InputError, match="the prompt takes 64 tokens, and the model holds 64"):
        opened.generate([5] * 64)
    model.generation["eos_ids"] = []
    for given in (None, artifact):
        text = pa.infer(model, "ab", given, maximum_new_tokens=200)["text"]
        assert text.startswith(pa.infer(model, "ab", given, maximum_new_tokens=30)["text"]) and len(text) > 30
    with pytest.raises(UserError, match=r"the prompt takes \d+ tokens, and polyadapt:tiny-gpt2 holds 64 with what it writes"):
        pa.infer(model, "a b " * 16)


def test_texts_are_generated_token_by_token() -> None:
    pytest.importorskip("transformers", reason="the host alone brings no library of texts")
    model = pa.load("polyadapt:tiny-gpt2")
    first = pa.infer(model, "hello", maximum_new_tokens=4)["text"]
    longer = pa.infer(model, "hello", maximum_new_tokens=8)["text"]
    assert longer.startswith(first) and len(longer) >= len(first) > 0
    drawn = {pa.infer(model, "hello", maximum_new_tokens=8, temperature=5.0, seed=seed)["text"] for seed in range(4)}
    assert len(drawn) > 1


def test_transcripts_are_measured_to_their_end(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a recording says may be longer than a text usually is, in a measurement as in an answer; where the limit is met, it is told."""
    monkeypatch.setattr("polyadapt.host.inference.TEXT_TOKENS", 2)
    pytest.importorskip("transformers", reason="the host alone brings no library of texts")
    model = pa.load("polyadapt:tiny-whisper?task=transcription")
    model.generation["eos_ids"] = []
    sound = (np.zeros(16000, np.float32), 16000)
    text = pa.infer(model, sound)["text"]
    room = min(224, (model.family.positions(model.backbone) or 224) - len(model.generation.get("start_ids") or [0]))
    assert f"the text was ended after {room} tokens" in caplog.text
    assert text == pa.infer(model, sound, maximum_new_tokens=room)["text"] != pa.infer(model, sound, maximum_new_tokens=2)["text"]
    found = pa.evaluate(model, Dataset("d", [Example("0", sound, text="one")], "audio"), metrics="wer")
    assert found.predictions[0].answer == text and found.metric == "wer"
    with pytest.raises(UserError, match="task 'transcription' has no use for beams in an evaluation"):
        pa.evaluate(model, Dataset("d", [Example("0", sound, text="one")], "audio"), beams=2)


def test_decoders_are_scored_on_the_tokens_that_training_learns() -> None:
    pytest.importorskip("transformers", reason="the host alone brings no library of texts")
    model = pa.load("polyadapt:tiny-t5")
    texts = Dataset("texts", [Example("a", "one", text="two"), Example("b", "three", text="four five")], "text")
    found = pa.evaluate(model, texts)
    tokens = [prediction.numbers["tokens"] for prediction in found.predictions]
    nll = [prediction.numbers["nll"] for prediction in found.predictions]
    end = list(model.generation.get("eos_ids", []))[:1]
    assert found.metric == "perplexity" and tokens == [len("two") + len(end), len("four five") + len(end)]  # a token a character
    assert found.value == pytest.approx(np.exp(sum(nll) / sum(tokens)), rel=1e-9)
    with torch.no_grad():  # the same by hand for the first text
        ids = torch.tensor([model.processor.text.encode("two")[0] + end])
        source = torch.tensor([model.processor.text.encode("one")[0]])
        start = torch.tensor([(model.generation.get("start_ids") or [0])])
        decoder = torch.cat([start, ids[:, :-1]], dim=1)
        logits = model.module(input_ids=source, attention_mask=torch.ones_like(source), decoder_input_ids=decoder)["logits"]
    assert nll[0] == pytest.approx(float(torch.nn.functional.cross_entropy(logits[0].double(), ids[0], reduction="sum")), rel=1e-5)


def test_an_attached_artifact_answers_with_its_own_classes() -> None:
    pytest.importorskip("timm", reason="the host alone brings no pictures")
    model = pa.load("polyadapt:tiny-vit", task="classification").with_labels(("cat", "dog", "owl"))
    other = model.with_labels(("one", "two", "three"))
    probe = pa.attach(other, "linear-probe")
    with torch.no_grad():
        for parameter in probe.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    artifact = probe.artifact()
    probe.detach()
    picture = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    expected = pa.infer(model, picture, artifact)["label"]
    assert expected in ("one", "two", "three")
    artifact.attach(model)
    assert pa.infer(model, picture)["label"] == expected


def test_a_second_method_on_a_module_sees_the_bare_base() -> None:
    """The first one's tensors, and weights that it moved, are no part of the base that the second's artifact names."""
    plain = pa.load(MODEL)
    module = pa.load(MODEL).backbone
    before = {name: value.clone() for name, value in module.state_dict().items()}
    first = pa.attach(module, "full")
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(0.1)
    second = pa.attach(module, "lora", sites=SITES, name="second")
    third = pa.attach(module, "full", name="third")
    assert first.model.base_id == second.model.base_id == third.model.base_id == plain.base_id
    assert module.polyadapt.names == ("adapter", "second", "third") and next(iter(module.polyadapt.parameters())) is next(iter(second.form.parameters()))
    with torch.no_grad():
        for parameter in second.form.parameters():
            parameter.add_(0.1)
    for attached in (first, second):
        artifact = attached.artifact()
        module.polyadapt.activate(attached.name)
        with torch.no_grad():
            expected = module(torch.ones(2, 39))
        with adapted(plain, artifact) as active, torch.no_grad():
            torch.testing.assert_close(active.module(observation=torch.ones(2, 39))["action"], expected, rtol=0, atol=1e-6)
    for attached in (first, second, third):
        attached.detach()
    after = module.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], value) for name, value in before.items())


def test_detaching_puts_training_modes_back() -> None:
    """A base that was in training mode rests while something is attached, and is in training mode again afterwards."""
    for was_training in (True, False):
        module = pa.load(MODEL).backbone.train(was_training)
        next(iter(module.children())).train(not was_training)
        modes = {name: inner.training for name, inner in module.named_modules()}
        attached = pa.attach(module, "lora", sites=SITES)
        assert not any(inner.training for name, inner in module.named_modules() if not name.startswith("polyadapt")) and module.polyadapt.training
        attached.detach()
        assert {name: inner.training for name, inner in module.named_modules()} == modes
    with pytest.raises(UserError, match="no site matches"):
        pa.attach(module.train(), "lora", sites=["nowhere"])
    assert module.training and not hasattr(module, "polyadapt")


def test_full_fine_tuning_in_a_loop_of_one_s_own(rows: Dataset) -> None:
    """Its parameters are the base's; what they became is in the artifact, also after detaching."""
    module = pa.load(MODEL).backbone
    before = {name: value.clone() for name, value in module.state_dict().items()}
    x = torch.from_numpy(np.stack([row.raw for row in rows]))
    y = torch.from_numpy(np.stack([row.target for row in rows]))
    attached = pa.attach(module, "full")
    assert {id(value) for value in attached.parameters()} == {id(value) for value in module.parameters()}
    optimiser = torch.optim.Adam(attached.parameters(), lr=0.01)
    for _ in range(3):
        optimiser.zero_grad()
        (module(x) - y).pow(2).mean().backward()
        optimiser.step()
    trained = {name: value.clone() for name, value in module.state_dict().items()}
    attached.detach()
    assert all(torch.equal(module.state_dict()[name], value) for name, value in before.items())
    artifact = attached.artifact()
    assert all(bool(value.any()) for edit in artifact.edits for value in edit.tensors.values())
    artifact.attach(attached.model)
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, trained[name], rtol=0, atol=1e-7)
    assert any(not torch.equal(value, before[name]) for name, value in trained.items())


def test_a_head_that_knows_the_classes_is_gone_on_with(tmp_path: Path) -> None:
    """New pictures of the classes that a checkpoint was tuned to: what it knows is where training starts, and not zero."""
    transformers = pytest.importorskip("transformers", reason="the host alone brings no library of texts")
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, id2label={0: "good", 1: "bad"}, label2id={"good": 0, "bad": 1}
    )
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "tuned")
    model = pa.load(f"hf:{tmp_path / 'tuned'}")
    inputs = model.example({"batch": 3, "tokens": 5}, torch.Generator().manual_seed(0))

    def logits() -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = model.module(**inputs)["logits"]
        return found

    base = logits()
    for given, is_same in ((model, True), (model.with_labels(("bad", "good")), False), (model.with_labels(("a", "b", "c")), False)):
        attached = pa.attach(given, "lora")
        assert torch.allclose(logits(), base, atol=1e-7) if is_same else not logits().any()
        attached.detach()
    attached = pa.attach(model, "linear-probe", head="cosine")
    assert not torch.equal(logits(), base)
    attached.detach()

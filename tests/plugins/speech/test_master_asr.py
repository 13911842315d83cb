"""Master-ASR: the invariants of its paper on a tiny encoder, and languages that are learned, added, saved and exported."""

from __future__ import annotations

import json
import wave
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import polyadapt as pa
from polyadapt.artifact import Artifact
from polyadapt.cli.app import main
from polyadapt.data.dataset import Dataset, Example
from polyadapt.edits import attachments_of
from polyadapt.errors import UserError
from polyadapt.methods.base import load_method
from polyadapt.methods.head import HeadForm
from polyadapt.methods.linear_probe.card import CARD as PROBE
from polyadapt.model import Model
from polyadapt.sites import module_name
from polyadapt.testing.conformance import check_method, example_of, tiny_model
from polyadapt.training import TrainingData, TrainSettings, fit
from polyadapt.training.batches import Examples, PlainFeed
from polyadapt_onnx import export
from polyadapt_runtime import Bundle
from polyadapt_speech.master_asr.assembly import choice
from polyadapt_speech.master_asr.card import CARD, MasterAsrOptions
from polyadapt_speech.master_asr.forms import RowsForm, SharedForm
from polyadapt_speech.master_asr.languages import LanguageFeed
from polyadapt_speech.master_asr.method import adapted_ports
from polyadapt_speech.master_asr.shared import MERGED, language_artifact, languages_of_shared, overlap, with_language
from polyadapt_speech.master_asr.specialists import make_specialists

LETTERS = {"x": "abcd", "y": "abce", "z": "efgh", "new": "abde"}
PITCHES_HZ = {letter: 200.0 * 1.45**place for place, letter in enumerate("abcdefgh")}
SHORT = MasterAsrOptions(turn_steps=10, row_every_steps=2, head_rate=10.0)


def encoder() -> Model:
    return pa.load("polyadapt:tiny-whisper", task="ctc")


def clip(text: str, seed: int) -> np.ndarray:
    """A tone of 60 ms and a gap of 40 ms for each letter, float32 at 16 kHz."""
    time = np.arange(960) / 16000
    sound = np.concatenate([part for letter in text for part in (np.sin(2 * np.pi * PITCHES_HZ[letter] * time), np.zeros(640))])
    return np.asarray(0.3 * sound + np.random.default_rng(seed).normal(size=len(sound), scale=0.01), np.float32)


def spoken(language: str, count: int, seed: int) -> Dataset:
    generator = np.random.default_rng([seed, len(language), ord(language[0])])
    words = ["".join(generator.choice(list(LETTERS[language]), size=4)) for _ in range(count)]
    rows = [Example(f"{language}-{seed}-{row}", (clip(word, seed + row), 16000), text=word, extra={"language": language}) for row, word in enumerate(words)]
    return Dataset(language, rows, "audio")


def joined(*parts: Dataset) -> Dataset:
    return Dataset("languages", [example for part in parts for example in part], "audio")


def learned(model: Model, data: TrainingData, options: MasterAsrOptions, **settings: Any) -> Artifact:
    return fit(model, load_method(CARD), options, data, TrainSettings(**{"epochs": 2, "batch_size": 8, "learning_rate": 3e-3, **settings}))


@pytest.fixture(scope="module")
def first() -> Artifact:
    """Two epochs of a first stage on three languages: enough to move everything."""
    return learned(encoder(), TrainingData(joined(*(spoken(language, 16, 1) for language in "xyz")), joined(*(spoken(language, 4, 50) for language in "xyz"))), SHORT)


@pytest.fixture(scope="module")
def added(first: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A second stage on one more language."""
    folder = first.save(tmp_path_factory.mktemp("first") / "shared")
    data = TrainingData(spoken("new", 16, 1), spoken("new", 4, 50))
    return learned(first.merge(encoder()), data, MasterAsrOptions(shared=str(folder)))


def outputs(model: Model, artifact: Artifact | None = None) -> torch.Tensor:
    """Scores of seeded sounds, with an artifact attached for this once."""
    attachments = None if artifact is None else artifact.attach(model)
    with torch.no_grad():
        found: torch.Tensor = model.module(**example_of(model, sizes={"batch": 2, "frames": 50}))["logits"]
    if attachments is not None:
        attachments.remove_all()
    return found


# One language


def test_masks_under_bf16_are_those_that_are_saved() -> None:
    form = rows_on(encoder(), MasterAsrOptions())
    with torch.autocast("cpu", torch.bfloat16):
        trained = form.edits()
    assert all(torch.equal(edit.tensors["keep"], saved.tensors["keep"]) for edit, saved in zip(trained, form.lower(), strict=True))


@pytest.mark.parametrize("specialist", ["mask", "lora"])
def test_it_conforms(specialist: str, tmp_path: Path) -> None:
    card = replace(CARD, options=type("Options", (MasterAsrOptions,), {"__annotations__": {"specialist": str}, "specialist": specialist}))
    check_method(load_method(card), tiny_model(import_module("polyadapt.families.whisper.card").CARD, "ctc"), tmp_path)


def rows_on(model: Model, options: MasterAsrOptions, languages: int = 1, seed: int = 0) -> RowsForm:
    generator = torch.Generator().manual_seed(seed)
    ports = adapted_ports(model, options)
    return RowsForm(ports, make_specialists(ports, options, generator), languages, options, generator)


def test_without_sparsity_the_backbone_answers_bit_for_bit() -> None:
    model = encoder()
    plain = outputs(model)
    attachments = attachments_of(model.module, model.ports, model.backbone)
    attachments.add("rows", rows_on(model, MasterAsrOptions(sparsity=0.0)))
    found = outputs(model)
    attachments.remove_all()
    assert torch.equal(found, plain)


def test_languages_with_equal_rows_answer_alike_and_others_do_not() -> None:
    model = encoder()
    form = rows_on(model, MasterAsrOptions(), languages=3)
    for language, sign in ((0, 1.0), (1, 1.0), (2, -1.0)):
        form.language = language
        for site in form.sites:
            form.set_row(site, sign * torch.tensor([1.0, -1.0, 2.0, -1.0]))
    attachments = attachments_of(model.module, model.ports, model.backbone)
    attachments.add("rows", form)
    found = []
    for form.language in range(3):
        found.append(outputs(model))
    attachments.remove_all()
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_the_second_stage_trains_rows_and_a_head_alone(first: Artifact, added: Artifact) -> None:
    """4 projections x layers x K, and d V + V."""
    base = first.merge(encoder())
    layers, width, symbols = 2, base.family.feature_size(base.backbone), len(LETTERS["new"]) + 1
    assert added.provenance["parameters"] == 4 * layers * 4 + width * symbols + symbols
    assert base.base_id == first.provenance[MERGED] == added.base_id != first.base_id
    assert added.labels == ("<blank>", *sorted(LETTERS["new"])) and set(added.options["alphabets"]) == {"new"}
    assert added.options["shared"] == ""  # no path is saved


def test_folded_masks_answer_as_attached_ones(added: Artifact, first: Artifact) -> None:
    base = first.merge(encoder())
    expected = outputs(base, added)
    merged = added.merge(first.merge(encoder()))
    assert float((outputs(merged) - expected).abs().max() / expected.abs().max()) < 1e-6
    kept_share = [float(edit.tensors["keep"].mean()) for edit in added.edits if edit.kind == "mask"]
    assert len(kept_share) == 8 and all(abs(share - 0.7) <= 1 / 1024 for share in kept_share)


def test_an_alphabet_that_is_given_for_one_language_is_used() -> None:
    """A letter that only validation has is no letter outside then, and without a column the alphabet names the language."""
    letters = ("<blank>", *"abdez")
    held = Dataset("held", [replace(spoken("new", 1, 9)[0], text="zz")], "audio")
    unnamed = Dataset("unnamed", [replace(example, extra={}) for example in spoken("new", 8, 1)], "audio")
    for train, language in ((spoken("new", 8, 1), "new"), (unnamed, "be")):
        artifact = learned(encoder(), TrainingData(train, held), MasterAsrOptions(alphabets={language: letters}), epochs=1)
        assert artifact.labels == letters and artifact.options["alphabets"] == {language: list(letters)}
    with pytest.raises(UserError, match="alphabets are given for x, and the data hold new"):
        learned(encoder(), TrainingData(spoken("new", 8, 1)), MasterAsrOptions(alphabets={"x": letters}))
    with pytest.raises(UserError, match="has no head over frames for it"):
        learned(pa.load("polyadapt:tiny-wav2vec2", task="ctc"), TrainingData(unnamed), MasterAsrOptions(alphabets={"be": letters}))


def test_a_second_stage_records_the_options_in_force(first: Artifact, tmp_path: Path) -> None:
    """What its specialists are is the first stage's word; rates of its rows are its own."""
    given = MasterAsrOptions(shared=str(first.save(tmp_path / "shared")), turn_steps=10, row_rate=3.0)
    saved = learned(first.merge(encoder()), TrainingData(spoken("new", 8, 1)), given, epochs=1).options
    assert saved == {**first.options, "row_rate": 3.0, "alphabets": {"new": ["<blank>", *sorted(LETTERS["new"])]}}


# Several languages


def test_batches_of_one_language_are_not_drawn_by_length() -> None:
    data = TrainingData(joined(spoken("x", 4, 1), spoken("z", 4, 1)))
    with pytest.raises(UserError, match="master-asr draws its batches by a rule of its own, so train.group_by_length"):
        learned(encoder(), data, SHORT, group_by_length=True)


def test_a_feed_puts_the_language_of_its_rows_in_force_and_counts_in_its_alphabet() -> None:
    """Validation batches hold several languages: each is answered by its own row and head, with targets in its own symbols."""
    alphabets = {language: ("<blank>", *sorted(LETTERS[language])) for language in "xz"}
    union = tuple(dict.fromkeys(symbol for alphabet in alphabets.values() for symbol in alphabet))
    model, data = encoder().with_labels(union), joined(spoken("x", 3, 1), spoken("z", 3, 1))
    assert model.ports.head is not None
    generator = torch.Generator().manual_seed(0)
    heads = {language: HeadForm(model.ports.head.in_features, len(alphabet), "cosine", generator) for language, alphabet in alphabets.items()}
    form = SharedForm(rows_on(model, MasterAsrOptions(), languages=2), heads, None, MasterAsrOptions())
    feed = LanguageFeed(PlainFeed(Examples(data, model, 10**8), model.module, torch.device("cpu")), form, union, alphabets)
    attachments = attachments_of(model.module, model.ports, model.backbone)
    attachments.add("shared", form)
    groups = feed.groups([0, 3, 1, 5])
    assert [list(group) for group in groups] == [[0, 1], [3, 5]]
    for group, language in zip(groups, "xz", strict=True):
        batch = feed.batch(group)
        said = ["".join(alphabets[language][place] for place in row) for row in batch.targets["tokens"].tolist()]
        assert said == [data[row].text for row in group]
        form.speak("z" if language == "x" else "x")
        found = feed.forward(batch)["logits"].detach()
        form.speak(language)
        assert torch.equal(found, model.module(**batch.inputs)["logits"].detach()) and form.languages[form.rows.language] == language
    attachments.remove_all()


def test_the_first_stage_takes_turns() -> None:
    """Weights rest while scores move and the other way round; rows move in every second step, and only those of the language that speaks."""
    data = TrainingData(joined(spoken("x", 8, 1), spoken("z", 8, 1)))
    options = replace_options(SHORT, turn_steps=2, head="cosine")  # a head that starts at zero passes no gradient in the first step

    def after(steps: int) -> Artifact:
        return learned(encoder(), data, options, epochs=2, max_steps=steps, schedule="constant", warmup=0.0)

    one, two, three, four = (after(steps) for steps in (1, 2, 3, 4))

    def moved(left: Artifact, right: Artifact, part: str) -> set[int]:
        names = [name for name in left.own if name.startswith(part)]
        return {row for name in names for row in range(left.own[name].shape[0]) if not torch.equal(left.own[name][row], right.own[name][row])}

    def weights(artifact: Artifact) -> torch.Tensor:
        return torch.cat([value.flatten() for edit in artifact.edits for value in edit.tensors.values()])

    assert not moved(one, two, "specialists/") and moved(two, three, "specialists/") and moved(three, four, "specialists/")
    assert not torch.equal(weights(one), weights(two)) and torch.equal(weights(two), weights(three)) and torch.equal(weights(three), weights(four))
    assert len(moved(one, two, "rows/")) == 1 and not moved(two, three, "rows/") and len(moved(three, four, "rows/")) == 1


def test_a_first_stage_that_ends_before_the_specialists_turn_says_so(caplog: pytest.LogCaptureFixture) -> None:
    data = TrainingData(joined(spoken("x", 8, 1), spoken("z", 8, 1)))

    def said(**values: Any) -> list[str]:
        caplog.clear()
        learned(encoder(), data, replace_options(SHORT, **values))
        return [record.getMessage() for record in caplog.records if record.name.startswith("polyadapt_speech") and "row of" not in record.getMessage()]

    assert said(turn_steps=4) == ["weights move for turn_steps = 4 steps before any specialist learns, and this run ends at 4; give -o turn_steps=1"]
    assert not said(turn_steps=3) and not said(turn_steps=4, weights=False)


def replace_options(options: MasterAsrOptions, **values: Any) -> MasterAsrOptions:
    return options.model_copy(update=values)


def test_old_languages_are_the_same_bits_after_a_new_one(first: Artifact, added: Artifact, tmp_path: Path) -> None:
    base = first.merge(encoder())
    before = {language: outputs(base, language_artifact(first, base, language)) for language in "xyz"}
    assert len({float(value.sum()) for value in before.values()}) == 3
    more = Artifact.load(with_language(first, added).save(tmp_path / "more"))
    assert languages_of_shared(more) == ("x", "y", "z", "new")
    for language, expected in before.items():
        assert torch.equal(outputs(base, language_artifact(more, base, language)), expected), language
    assert torch.equal(outputs(base, language_artifact(more, base, "new")), outputs(base, added))
    assert 0.0 <= overlap(more, "x", "new") <= 1.0 == overlap(more, "x", "x")
    with pytest.raises(UserError, match="'new' is in this model already"):
        with_language(more, added)


def test_rows_over_other_specialists_are_not_taken(first: Artifact, added: Artifact) -> None:
    """Learned on the same base, by specialists of its own: its rows would choose among scores that they never saw."""
    base = first.merge(encoder())
    for options in (MasterAsrOptions(), MasterAsrOptions(specialists=2)):
        alone = learned(base, TrainingData(spoken("new", 8, 1)), options, epochs=1)
        with pytest.raises(UserError, match="'new' chose among other specialists than x, y, z"):
            with_language(first, alone)
    taken_out = language_artifact(with_language(first, added), base, "new")
    assert languages_of_shared(with_language(first, taken_out)) == ("x", "y", "z", "new")


def test_a_language_artifact_has_its_own_alphabet_and_reads_with_it(first: Artifact) -> None:
    base = first.merge(encoder())
    artifact = language_artifact(first, base, "z")
    assert artifact.labels == ("<blank>", *"efgh")
    said = pa.infer(base, [(clip("efgh", 3), 16000)], loud(artifact))[0]["text"]
    assert said and set(said) <= set("efgh")


def test_low_rank_specialists_have_two_stages_as_well(tmp_path: Path) -> None:
    options = replace_options(SHORT, specialist="lora", rank=2, turn_steps=2)
    shared = learned(encoder(), TrainingData(joined(spoken("x", 8, 1), spoken("z", 8, 1))), options)
    base = shared.merge(encoder())
    artifact = learned(base, TrainingData(spoken("new", 8, 1)), MasterAsrOptions(shared=str(shared.save(tmp_path / "shared"))))
    assert {edit.kind for edit in artifact.edits} == {"lowrank", "prototypes"}
    for edit in (edit for edit in artifact.edits if edit.kind == "lowrank"):
        a, b = (shared.own[f"specialists/{name}.{module_name(edit.site)}"] for name in "ab")  # (K, in, r), (K, r, out)
        weights = choice(artifact.own[f"row/{edit.site}"][0], "identity")
        assert b.any() and torch.equal(edit.tensors["a"], torch.cat([*a], dim=1))
        assert torch.equal(edit.tensors["b"], torch.cat([part * (weight / weights.sum()) for part, weight in zip(b, weights, strict=True)]))
    without = artifact.with_edits(edit for edit in artifact.edits if edit.kind != "lowrank")
    assert not torch.equal(outputs(base, artifact), outputs(base, without))


def test_an_interrupted_first_stage_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    data = TrainingData(joined(spoken("x", 8, 1), spoken("z", 8, 1)))
    options = replace_options(SHORT, turn_steps=2)
    whole = learned(encoder(), data, options, epochs=3)

    class Stop(Exception):
        pass

    def stop(event: Any) -> None:
        if event["kind"] == "epoch" and event["epoch"] == 2:
            raise Stop

    method, settings = load_method(CARD), TrainSettings(epochs=3, batch_size=8, learning_rate=3e-3)
    with pytest.raises(Stop):
        fit(encoder(), method, options, data, settings, stop, tmp_path)
    again = fit(encoder(), method, options, data, settings, directory=tmp_path, resume=True)
    assert all(torch.equal(value, again.own[name]) for name, value in whole.own.items())
    assert all(torch.equal(value, again.slots[name]) for name, value in whole.slots.items())


@pytest.mark.parametrize("family", ["wav2vec2", "wav2vec2-torchaudio"])
def test_wav2vec2_has_both_stages_without_its_own_symbols(family: str, tmp_path: Path) -> None:
    def frames() -> Model:
        return pa.load(f"polyadapt:tiny-{family}", task="ctc", own_head=False)

    data = TrainingData(joined(spoken("x", 8, 1), spoken("z", 8, 1)))
    shared = learned(frames(), data, SHORT, epochs=1)
    base = shared.merge(frames())
    new = learned(base, TrainingData(spoken("new", 8, 1)), MasterAsrOptions(shared=str(shared.save(tmp_path / "shared"))), epochs=1)
    more = with_language(shared, new)
    for language in ("x", "z", "new"):
        said = pa.infer(base, [(clip(LETTERS[language], 3), 16000)], loud(language_artifact(more, base, language)))[0]["text"]
        assert said and set(said) <= set(LETTERS[language])
    own = pa.load(f"polyadapt:tiny-{family}", task="ctc")
    for card, options in ((CARD, SHORT), (PROBE, PROBE.options())):
        with pytest.raises(UserError, match="load it with own_head = false"):
            fit(own, load_method(card), options, data)


# As a user types it


def manifest(folder: Path, *parts: Dataset) -> str:
    """Clips as WAV files and a table of path, text and language; the reader's URI."""
    rows = []
    for example in (example for part in parts for example in part):
        with wave.open(str(folder / f"{example.id}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16000)
            file.writeframes((example.raw[0] * 32767).astype("<i2").tobytes())
        rows.append(json.dumps({"path": f"{example.id}.wav", "text": example.text, "language": example.extra["language"]}))
    path = folder / f"{'-'.join(part.name for part in parts)}.jsonl"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return f"jsonl:{path}"


def test_both_stages_on_the_command_line(tmp_path: Path) -> None:
    def polyadapt(*words: str) -> None:
        assert main(list(words)) == 0

    shared, learned_folder = tmp_path / "shared", tmp_path / "new"
    few = ("-t", "epochs=1", "-t", "batch_size=8")
    polyadapt("adapt", "polyadapt:tiny-whisper", "master-asr", manifest(tmp_path, spoken("x", 12, 1), spoken("z", 12, 1)), "-m", "task=ctc", *few, "--out", str(shared))
    base = ("-m", "base=polyadapt:tiny-whisper?task=ctc")
    polyadapt("adapt", f"merged:{shared}", "master-asr", manifest(tmp_path, spoken("new", 12, 1)), *base, "-o", f"shared={shared}", *few, "--out", str(learned_folder))
    first, new = Artifact.load(shared), Artifact.load(learned_folder)
    assert languages_of_shared(with_language(first, new)) == ("x", "z", "new")
    assert str(tmp_path) not in (learned_folder / "artifact.json").read_text() + (shared / "artifact.json").read_text()
    polyadapt("evaluate", f"merged:{shared}", manifest(tmp_path, spoken("new", 4, 9)), *base, "--artifact", str(learned_folder), "--metric", "cer")


# Export


@pytest.mark.wide
def test_every_form_of_export(first: Artifact, added: Artifact, tmp_path: Path) -> None:
    """Slots, a bank with the language of each row, and a folded one say what torch says; a torch-free process would read the same."""
    base = first.merge(encoder())
    languages = {language: language_artifact(first, base, language) for language in "xz"} | {"new": added}
    for name, artifact in languages.items():
        languages[name] = loud(artifact)
    slots = Bundle(export(base, languages, tmp_path / "slots.bundle", "slots", {"variants": ("float16", "int8")}).directory)
    bank = Bundle(export(base, languages, tmp_path / "bank.bundle", "bank").directory)
    assert slots.selftest().ok and bank.selftest().ok
    assert all(Bundle(slots.path, variant=variant).selftest().ok for variant in ("float16", "int8"))
    sounds = [(clip(word, seed), 16000) for seed, word in enumerate(("abef", "efef", "dabe"), 1)]
    texts = [pa.infer(base, [sound], languages[name])[0]["text"] for sound, name in zip(sounds, languages, strict=True)]
    assert [slots(sound, artifact=name) for sound, name in zip(sounds, languages, strict=True)] == texts
    assert bank(sounds, artifact=list(languages)) == texts
    assert slots(sounds[0], artifact="new", beams=4) == pa.infer(base, [sounds[0]], languages["new"], beams=4)[0]["text"]
    merged = Bundle(export(base, {"new": languages["new"]}, tmp_path / "merged.bundle", "merged").directory)
    assert merged.selftest().ok and merged(sounds[2]) == texts[2]
    before = Bundle(export(base, {name: languages[name] for name in "xz"}, tmp_path / "before.bundle", "slots").directory)
    feeds = {"audio": np.stack([sound[0] for sound in sounds])}
    assert all(np.array_equal(before.run(feeds, name)["logits"], slots.run(feeds, name)["logits"]) for name in "xz"), "old languages are the same bits"


def test_a_first_stage_is_measured_and_asked_in_each_language(first: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It writes nothing itself: a row's column says by which of its languages it is read, and a call says so by an option."""
    first = with_loud_heads(first)
    model, told = encoder(), state_of(encoder())
    data = joined(spoken("x", 3, 9), spoken("z", 2, 9))
    found = pa.evaluate(model, data, first, metrics="cer")
    base = first.merge(encoder())
    alone = {language: pa.evaluate(base, spoken(language, count, 9), language_artifact(first, base, language), metrics="cer") for language, count in (("x", 3), ("z", 2))}
    assert [row.answer for row in found.predictions] == [row.answer for part in alone.values() for row in part.predictions]
    assert [row.id for row in found.predictions] == [example.id for example in data] and found.n == 5
    assert [set(str(row.answer)) <= set(LETTERS[row.id[0]]) and bool(row.answer) for row in found.predictions] == [True] * 5
    assert all(torch.equal(value, told[name]) for name, value in state_of(model).items())  # the model is as it was
    sound = (clip("abcd", 3), 16000)
    assert pa.infer(model, sound, first, language="z") == pa.infer(base, sound, language_artifact(first, base, "z"))
    with pytest.raises(UserError, match="this artifact holds x, y, z; say which by language = one of them"):
        pa.infer(model, sound, first)
    with pytest.raises(UserError, match="language 'q' is none of those that the artifact holds"):
        pa.evaluate(model, Dataset("q", [replace(spoken("x", 1, 9)[0], extra={"language": "q"})], "audio"), first)
    folder = first.save(tmp_path / "shared")
    with wave.open(str(tmp_path / "a.wav"), "wb") as stream:
        stream.setparams((1, 2, 16000, 0, "NONE", ""))
        stream.writeframes(np.rint(32767 * sound[0]).astype("<i2").tobytes())
    capsys.readouterr()
    assert main(["infer", "polyadapt:tiny-whisper?task=ctc", str(tmp_path / "a.wav"), "--artifact", str(folder), "-o", "language=x", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["answer"]["text"] == pa.infer(model, tmp_path / "a.wav", first, language="x")["text"]
    with pytest.raises(UserError, match="holds several .x, y, z. on a base of their own; export it alone"):
        pa.export(model, {"all": first, "again": first}, tmp_path / "both.bundle")


@pytest.mark.wide
def test_a_first_stage_is_exported_as_its_languages(first: Artifact, tmp_path: Path) -> None:
    first = with_loud_heads(first)
    made = pa.export(encoder(), first, tmp_path / "all.bundle")
    bundle = Bundle(made.directory)
    assert set(bundle.artifacts()) == {"x", "y", "z"} and bundle.selftest().ok
    sound = (clip("abcd", 3), 16000)
    texts = {language: pa.infer(encoder(), sound, first, language=language)["text"] for language in "xyz"}
    assert len(set(texts.values())) == 3 and all(bundle(sound, artifact=language) == text for language, text in texts.items())


@pytest.mark.wide
def test_a_first_stage_runs_from_a_recipe_to_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = []
    for example in joined(spoken("x", 12, 1), spoken("z", 6, 1)):
        with wave.open(f"{example.id}.wav", "wb") as stream:
            stream.setparams((1, 2, 16000, 0, "NONE", ""))
            stream.writeframes(np.rint(32767 * np.asarray(example.raw[0])).astype("<i2").tobytes())
        rows.append(json.dumps({"path": f"{example.id}.wav", "text": example.text, **example.extra}))
    Path("two.jsonl").write_text("\n".join(rows))
    Path("first.toml").write_text(
        """
        format = 1
        model = { reference = "polyadapt:tiny-whisper", task = "ctc" }
        data = { uri = "jsonl:two.jsonl", split = { by = "within:language" } }
        train = { epochs = 2, batch_size = 4, learning_rate = 0.003 }
        export = { form = "slots", directory = "asr.bundle", options = { variants = ["float16"] } }

        [[arm]]
        name = "first"
        method = "master-asr"
        options = { turn_steps = 1 }
        """
    )
    assert main(["run", "first.toml", "--out", "out"]) == 0
    report = json.loads(Path("out/report.json").read_text())
    assert report["bundle"]["parity"]["ok"] and report["bundle"]["variants"]["float16"]["metrics"] == {}
    assert set(Bundle("out/asr.bundle", variant="float16").artifacts()) == {"x", "z"}


def state_of(model: Model) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.module.state_dict().items()}


def with_loud_heads(shared: Artifact) -> Artifact:
    """A first stage whose heads are seeded, as those of `loud`."""
    generator = torch.Generator().manual_seed(4)
    heads = {name: value for name, value in shared.own.items() if name.startswith("head/")}
    seeded = {name: torch.randn(value.shape, generator=generator) if name.endswith("/weight") else 0 * value for name, value in heads.items()}
    return replace(shared, own={**shared.own, **seeded})


def loud(artifact: Artifact) -> Artifact:
    """With a seeded head: two epochs leave one that says nothing but blanks."""
    generator = torch.Generator().manual_seed(4)
    edits = [
        replace(edit, tensors={**edit.tensors, "weight": torch.randn(edit.tensors["weight"].shape, generator=generator), "bias": 0 * edit.tensors["bias"]})
        if edit.kind == "prototypes"
        else edit
        for edit in artifact.edits
    ]
    return artifact.with_edits(edits)


def test_classes_are_the_same_in_every_language() -> None:
    """A column that names languages is one like any other where classes are learned."""
    model = pa.load("polyadapt:tiny-ast", task="classification")
    rows = [replace(example, label="ab"[row % 2], text=None) for row, example in enumerate(joined(spoken("x", 4, 1), spoken("z", 4, 1)))]
    artifact = learned(model, TrainingData(Dataset("digits", rows, "audio")), MasterAsrOptions(), epochs=1)
    assert artifact.labels == ("a", "b") and MERGED not in artifact.provenance


def test_rows_that_cannot_leave_their_start_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    few = TrainingData(joined(spoken("x", 32, 1), spoken("z", 4, 1)))
    learned(encoder(), few, replace_options(SHORT, row_every_steps=1), epochs=4, learning_rate=1e-2)
    assert "the row of" not in caplog.text
    learned(encoder(), few, replace_options(SHORT, row_every_steps=2), epochs=4, learning_rate=2e-3)
    assert "the row of z moves in 2 steps, by 0.04 in all at most" in caplog.text and "the row of x" not in caplog.text


# Refusals


def test_what_does_not_fit_is_said(first: Artifact, added: Artifact, tmp_path: Path) -> None:
    folder = str(first.save(tmp_path / "shared"))
    plain, base = encoder(), first.merge(encoder())
    new = TrainingData(spoken("new", 8, 1))
    with pytest.raises(UserError, match="unknown language of this model 'zz'"):
        language_artifact(first, base, "zz")
    with pytest.raises(UserError, match=r"use what shared\.merge\(model\) returns"):
        learned(plain, new, MasterAsrOptions(shared=folder))
    with pytest.raises(UserError, match="a second stage learns one language"):
        learned(base, TrainingData(joined(spoken("new", 8, 1), spoken("x", 8, 1))), MasterAsrOptions(shared=folder))
    with pytest.raises(UserError, match="'x' is in this model already"):
        learned(base, TrainingData(spoken("x", 8, 1)), MasterAsrOptions(shared=folder))
    with pytest.raises(UserError, match=r"sparsity = 0\.1 is asked for, and the first stage has decided sparsity = 0\.3; leave it out"):
        learned(base, new, MasterAsrOptions(shared=folder, sparsity=0.1))
    with pytest.raises(UserError, match="none of master-asr's first stage"):
        language_artifact(added, base, "new")
    with pytest.raises(UserError, match="adapt_layers is 3"):
        learned(plain, new, MasterAsrOptions(adapt_layers=3))
    both = joined(spoken("x", 8, 1), spoken("z", 8, 1))
    with pytest.raises(UserError, match=r"all 3 rows of language 'y' are validated on and none is trained on; split by = \"within:language\""):
        learned(plain, TrainingData(both, joined(spoken("x", 4, 9), spoken("y", 3, 9))), SHORT)
    with pytest.raises(UserError, match=r"languages, z, .*: transcripts hold 1 letters that are not in the alphabet of z \(efg\): 'h' \(\d+\)"):
        learned(plain, TrainingData(both, both), replace_options(SHORT, alphabets={"z": ("<blank>", *"efg")}))
    rare = TrainingData(both, joined(spoken("x", 4, 9), Dataset("odd", [replace(spoken("z", 1, 9)[0], text="qq")], "audio")))
    with pytest.raises(UserError, match=r"languages, z, .*: transcripts hold 1 letters that are not in the alphabet of z \(efgh\): 'q' \(2\)"):
        learned(plain, rare, SHORT)
    wider = {"x": ("<blank>", *"abcd"), "z": ("<blank>", *"efghq")}
    assert set(learned(plain, rare, replace_options(SHORT, alphabets=wider), epochs=1).options["alphabets"]["z"]) == {"<blank>", *"efghq"}
    for symbols, words in ((tuple("abdez"), "begins with 'a', a letter of its texts; CTC's blank stands first"), (("<blank>", *"abdea"), "has 'a' twice")):
        with pytest.raises(UserError, match=words):
            learned(plain, new, MasterAsrOptions(alphabets={"new": symbols}))
    with pytest.raises(UserError, match="is measured on while new is learned, and holds x; leave new alone in it"):
        learned(base, TrainingData(spoken("new", 8, 1), joined(spoken("new", 4, 2), spoken("x", 4, 2))), MasterAsrOptions(shared=folder))
    with pytest.raises(UserError, match="unknown language of this model 'q'"):
        overlap(first, "x", "q")
    for stranger in (first, replace(added, method="linear-probe", options={})):
        with pytest.raises(UserError, match="an artifact of method .* with one language is added, and this is none"):
            with_language(first, stranger)
    half = Dataset("half", [*spoken("x", 4, 1), *(replace(example, extra={}) for example in spoken("z", 4, 1))], "audio")
    with pytest.raises(UserError, match="no language in column 'language'"):
        learned(plain, TrainingData(half), SHORT)


# What it is for


@pytest.mark.slow
def test_masks_and_a_head_learn_a_related_language_better_than_a_head_alone(tmp_path: Path) -> None:
    """Three made-up languages first, then a fourth of their sounds from 40 words.

    The head alone stands on weights that were trained under masks and has none. A row of its own is one way to get masks, and the
    row of an old language, related or not, is another: that is the control, which a row of its own does not beat here.
    """
    data = TrainingData(joined(*(spoken(language, 40, 1) for language in "xyz")), joined(*(spoken(language, 10, 900) for language in "xyz")))
    shared = learned(encoder(), data, MasterAsrOptions(turn_steps=50, row_every_steps=2, head_rate=10.0), epochs=45)
    folder, test = shared.save(tmp_path / "shared"), spoken("new", 40, 7000)
    new = TrainingData(spoken("new", 40, 1), spoken("new", 20, 900))
    settings = TrainSettings(epochs=60, batch_size=8, learning_rate=1e-2, schedule="constant", early_stopping=20)
    options, errors = MasterAsrOptions(shared=str(folder)), {}
    for name, card, chosen in (("rows", CARD, options), ("head", PROBE, PROBE.options()), *((f"head on {old}", PROBE, PROBE.options()) for old in "xyz")):
        base = shared.merge(encoder())
        if old := name.partition(" on ")[2]:
            spoken_before = language_artifact(shared, base, old)
            base = replace(spoken_before, edits=tuple(edit for edit in spoken_before.edits if edit.kind == "mask"), labels=()).merge(base)
        artifact = fit(base, load_method(card), chosen, new, settings)
        errors[name] = pa.evaluate(base, test, artifact, metrics=["cer"]).value
        if name == "rows":
            start: Any = load_method(CARD).form(base, options, torch.Generator().manual_seed(settings.seed))
            decided = [not torch.equal(choice(start.row(site), "identity"), choice(artifact.own[f"row/{site}"][0], "identity")) for site in start.sites]
            assert any(decided), "the rows chose nothing that they did not begin with"
    assert all(error < 0.75 * errors["head"] for name, error in errors.items() if name != "head"), errors

"""A voice learns from recordings of one who reads: by the common loop, with adapters or whole, and what is refused before."""

from __future__ import annotations

import copy
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import polyadapt as pa
from polyadapt import builtin
from polyadapt.artifact import Artifact
from polyadapt.data.dataset import Dataset, Example
from polyadapt.edits import attachments_of
from polyadapt.errors import UserError
from polyadapt.host import Host
from polyadapt.methods.base import Method, load_method
from polyadapt.methods.full.card import CARD as FULL
from polyadapt.model import Model
from polyadapt.options import read_options
from polyadapt.testing.conformance import non_degenerate
from polyadapt.training import TrainSettings
from polyadapt.training.batches import Examples, TrainingData
from polyadapt.training.estimation import estimate
from polyadapt.training.fitting import fit
from polyadapt.training.interrupt import TrainingInterrupted
from polyadapt.training.reading import hear, read, read_by_one, text_inputs
from polyadapt_speech import entry
from polyadapt_speech.usat.card import CARD as USAT
from polyadapt_speech.usat.family import learning
from polyadapt_speech.usat.family.learning import row_losses
from polyadapt_speech.usat.family.model import TINY, tiny_voice
from polyadapt_speech.usat.losses import prior_divergence, row_divergence
from polyadapt_speech.usat.network.loudness import levelled
from polyadapt_speech.usat.network.voice import Voice, extended
from polyadapt_speech.usat.voices.folder import save_voice

RATE_HZ = 500  # a second is 62 frames of the tiny voice
SYMBOLS = {symbol: [number] for number, symbol in enumerate("_^$ abcdefghijklmnopqrstuvwxyz,.?!ˈˌːəɪɛæɑɔʊʌθðŋʃʒɹɡɚɜɐ")}
SETTINGS = {"audio": {"sample_rate": RATE_HZ}, "espeak": {"voice": "en-us"}, "phoneme_id_map": SYMBOLS}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A tiny voice that listens; of its parts none is silent."""
    folder = tmp_path_factory.mktemp("voice")
    (folder / "start.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        voice = extended(tiny_voice(replace(TINY, sample_rate_hz=RATE_HZ)), speaker_size=6, memory_slots=4, listens=True)
        for name, parameter in voice.named_parameters():
            if "speaker." in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    save_voice(voice, folder / "voice", folder / "start.json", {})
    return loaded(folder / "voice")


def loaded(folder: Path) -> Model:
    return Host(plugins=[("core", builtin), ("speech", entry)], discover=False, environment={}).load(f"usat:{folder}")


def readings(count: int = 5, seconds: float = 1.2, **extra: Any) -> Dataset:
    """Noise that stands for speech, with ids."""
    rows = []
    for number in range(count):
        draws = np.random.default_rng(number)
        ids = " ".join(map(str, draws.integers(0, TINY.vocab_size, 9)))
        samples = (0.1 * draws.standard_normal(round((seconds + 0.1 * number) * RATE_HZ))).astype(np.float32)
        rows.append(Example(f"clip {number}", (samples, RATE_HZ), None, None, {"ids": ids, **extra}, f"a.jsonl:{number + 1}"))
    return Dataset("readings", rows, "audio")


def adapt(model: Model, card: Any = USAT, data: Dataset | None = None, train: dict[str, Any] | None = None, **given: Any) -> Artifact:
    method: Method = load_method(card)
    options = read_options(card.options, {"sites": ["encoder.*", "flow.*", "decoder.*"]} if card is FULL else {}, "test")
    settings = TrainSettings(**{"epochs": 4, "batch_size": 3, "check_readings": False, "learning_rate": 3e-3, "device": "cpu", **(train or {})})
    return fit(model, method, options, TrainingData(data or readings(), readings(2)), settings, **given)


def test_rows_of_a_batch_are_what_they_are_alone(model: Model) -> None:
    """At no noise: padding of frames and tokens is not heard."""
    data = readings(3)
    heard_model, _, _ = read_by_one(model, TrainingData(data), is_checked=False)
    examples = Examples(data, heard_model, 2**20)
    voice: Any = model.backbone

    def divergences(rows: list[int]) -> torch.Tensor:
        batch = examples.batch(rows)
        quiet = {**batch.inputs, "posterior": torch.cat([batch.inputs["posterior"][..., : TINY.latent], torch.full_like(batch.inputs["posterior"][..., TINY.latent :], -40.0)], -1)}
        with torch.no_grad():
            return row_losses(voice, quiet)["divergence"]

    together = divergences([0, 1, 2])
    assert torch.allclose(together, torch.cat([divergences([row]) for row in range(3)]), rtol=1e-4)


def test_the_row_loss_is_the_papers_on_one_row() -> None:
    draws = torch.randn(4, 1, 3, 7, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, 1, 7)
    assert torch.allclose(row_divergence(*draws, mask)[0], prior_divergence(*draws, mask))


@pytest.mark.parametrize("loss", ["divergence", "durations"])
def test_each_loss_reaches_its_own_adapters(model: Model, loss: str) -> None:
    """L_dur trains the adapters of the duration predictor alone, L_kl all others and the speaker vector."""
    data = readings(3)
    heard_model, _, _ = read_by_one(model, TrainingData(data), is_checked=False)
    inputs = Examples(data, heard_model, 2**20).batch([0, 1, 2]).inputs
    form, voice = load_method(USAT).build(model, USAT.options(phoneme_rank=4), torch.Generator().manual_seed(0)), model.backbone
    assert isinstance(voice, Voice)
    non_degenerate(form)
    attachments = attachments_of(model.module, model.ports, voice)
    attachments.add("test", form)
    try:
        row_losses(voice, inputs)[loss].sum().backward()  # type: ignore[no-untyped-call]
    finally:
        attachments.remove_all()
    reached = {name for name, parameter in form.named_parameters() if parameter.grad is not None and bool(parameter.grad.abs().max() > 0)}
    of_durations = {name for name, _ in form.named_parameters() if "durations/" in name}
    assert of_durations and reached == (of_durations if loss == "durations" else {name for name, _ in form.named_parameters()} - of_durations)


def test_texts_are_laid_along_by_what_the_voice_says_without_its_adapters(model: Model) -> None:
    """Also where a row is prepared while they learn."""
    text, voice = text_inputs(model, readings(1)[0]), model.backbone
    assert isinstance(voice, Voice)
    ids = torch.from_numpy(text["input_ids"])[None]

    def durations_now() -> np.ndarray:
        assert isinstance(voice, Voice)
        with torch.no_grad():
            return np.asarray(voice(ids, torch.ones_like(ids))[2][0].numpy())

    alone = durations_now()
    form = load_method(USAT).build(model, USAT.options(phoneme_rank=4), torch.Generator().manual_seed(0))
    non_degenerate(form)
    attachments = attachments_of(model.module, model.ports, voice)
    attachments.add("test", form)
    try:
        found = read(model, text)["usual"]
        # Whole frames, as tokens are spoken.
        assert np.array_equal(found, np.ceil(alone)) and not np.array_equal(found, np.ceil(durations_now()))
    finally:
        attachments.remove_all()


def test_texts_are_laid_along_by_the_voice_as_it_came(model: Model) -> None:
    """Where weights move, what is asked late, as after a resume, would be another alignment."""
    voice = copy.deepcopy(model)
    heard = replace(voice, conditions=read_by_one(voice, TrainingData(readings(3)), is_checked=False)[0].conditions)
    examples = Examples(readings(3), heard, 0)
    before = examples.arrays(0)[0]["beside.usual"]
    with torch.no_grad():
        for value in heard.backbone.durations.parameters():
            value.add_(0.3 * torch.randn(value.shape, generator=torch.Generator().manual_seed(0)))
    assert not np.array_equal(read(heard, text_inputs(heard, readings(3)[0]))["usual"], before)
    assert np.array_equal(examples.arrays(0)[0]["beside.usual"], before)


def test_what_is_said_of_a_text_decides_where_sound_says_nothing(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The densities of a random voice are far apart, so here all are 0."""
    monkeypatch.setattr(learning, "log_likelihood", lambda z, mean, log_deviation: torch.zeros(len(z), mean.shape[2], z.shape[2]))
    data, voice = readings(1), model.backbone
    assert isinstance(voice, Voice)
    heard_model, _, _ = read_by_one(model, TrainingData(data), is_checked=False)
    inputs = Examples(data, heard_model, 2**20).batch([0]).inputs

    def durations(usual: torch.Tensor) -> float:
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            return float(row_losses(voice, {**inputs, "usual": usual})["durations"])

    uneven = torch.linspace(1.0, 4.0, inputs["usual"].shape[1])
    assert durations(inputs["usual"]) == durations(inputs["usual"] * 3) != durations(inputs["usual"] * uneven)


@pytest.mark.parametrize("card", [USAT, FULL], ids=["usat", "full"])
def test_adapting_lowers_the_loss_and_leaves_the_voice_alone(model: Model, card: Any) -> None:
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    losses: list[float] = []

    def note(event: Any) -> None:
        if event.kind == "epoch":
            losses.append(event["loss"])

    made = adapt(model, card, train={"epochs": 12}, emit=note)
    assert losses[-1] < losses[0] - 0.5 and made.edits
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())
    assert {"loss", "divergence", "durations"} <= made.provenance["metrics"]["validation"].keys()


@pytest.mark.parametrize("card", [USAT, FULL], ids=["usat", "full"])
def test_half_precision_learns_nearly_the_same(model: Model, card: Any) -> None:
    """Recordings are heard in the voice's own precision, alignments are found in float32, and what is kept is float32."""
    losses: dict[str, list[float]] = {"no": [], "bf16": []}
    for precision, seen in losses.items():
        made = adapt(model, card, train={"epochs": 2, "precision": precision}, emit=lambda event, seen=seen: seen.append(event["loss"]) if event.kind == "epoch" else None)
        assert {tensor.dtype for edit in made.edits for tensor in edit.tensors.values()} == {torch.float32}
    assert losses["bf16"] != losses["no"] and losses["bf16"] == pytest.approx(losses["no"], rel=0.01)


def test_the_mean_vector_of_the_recordings_is_fed_and_kept(model: Model, tmp_path: Path) -> None:
    """A clip of less than a second gives no vector, and is learned from all the same."""
    data = Dataset("mixed", [*readings(3), Example("short", (np.ones(300, np.float32), RATE_HZ), None, None, {"ids": "3 4 5"})], "audio")
    made = adapt(model, data=data, train={"epochs": 1})
    made.save(tmp_path / "kept")
    voice = model.backbone
    assert isinstance(voice, Voice)
    vectors = [voice.speaker_vector(torch.from_numpy(example.raw[0])[None], torch.tensor([len(example.raw[0])])) for example in readings(3)]  # type: ignore[arg-type,index]
    assert torch.allclose(Artifact.load(tmp_path / "kept").own["condition.speaker"], torch.cat(vectors).mean(0), atol=1e-5)
    inputs = {**text_inputs(model, data[3]), **hear(model, data[3])}
    assert "speaker" not in inputs and inputs["posterior"].shape == (37, 2 * TINY.latent)


def test_divergence_is_measured_as_whose_voice_the_artifact_says(model: Model) -> None:
    """The loss of training, at seeded noise: the same each time, lower where it was trained, and of another speaker another."""
    data, made = readings(3), adapt(model, train={"epochs": 12})

    def measured(artifact: Artifact | None) -> float:
        return pa.evaluate(model, data, artifact).value

    assert measured(made) == measured(made) < measured(None) - 0.5
    other = replace(made, own={"condition.speaker": -made.own["condition.speaker"]})
    assert measured(other) != measured(made)


def test_an_interrupted_adaptation_goes_on_as_if_nothing_had_happened(model: Model, tmp_path: Path) -> None:
    whole = adapt(model)

    def stop(event: Any) -> None:
        if event.kind == "step" and event["step"] == 3:
            raise KeyboardInterrupt

    settings = {"log_every_steps": 1}
    with pytest.raises(TrainingInterrupted):
        adapt(model, train=settings, directory=tmp_path, emit=stop)
    broken = adapt(model, train=settings, directory=tmp_path, resume=True)
    for left, right in zip(whole.edits, broken.edits, strict=True):
        assert all(torch.equal(value, right.tensors[name]) for name, value in left.tensors.items()), left.key


@pytest.mark.program("espeak-ng")
def test_texts_are_spoken_in_their_language(model: Model) -> None:
    said = {language: text_inputs(model, Example("x", np.zeros(1), None, "ten", {"language": language}))["input_ids"].tolist() for language in ("en-us", "de", "")}
    assert said["en-us"] == said[""] != said["de"]


@pytest.mark.program("espeak-ng")
def test_letters_outside_the_voice_are_listed_with_counts(model: Model) -> None:
    rows = [Example(f"row {number}", example.raw, None, "рис", {"language": "ru"}, f"a.jsonl:{number + 1}") for number, example in enumerate(readings(3))]
    with pytest.raises(UserError, match=r"a\.jsonl:1: 3 of 3 texts cannot be spoken: .*'ʲ' \(1 times\).* \(3 rows\)") as caught:
        adapt(model, data=Dataset("readings", rows, "audio"))
    assert "\n" not in str(caught.value)
    unknown = [Example(f"row {number}", example.raw, None, "rice", {"language": "xx-none"}, "") for number, example in enumerate(readings(2))]
    with pytest.raises(UserError, match=r"2 of 2 texts cannot be spoken: .*'xx-none'.* \(2 rows\)"):
        adapt(model, data=Dataset("readings", unknown, "audio"))


def test_an_alignment_score_is_the_density_of_the_best_way_to_lay_a_text(model: Model) -> None:
    """Against torch's own normal density over all ways there are: 4 tokens in 6 and 7 frames, one row a token shorter."""
    generator = torch.Generator().manual_seed(0)
    ids, mask = torch.randint(3, TINY.vocab_size, (2, 4), generator=generator), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    posterior, frames = torch.randn(2, 7, 2 * TINY.latent, generator=generator), torch.tensor([7, 6])
    inputs = {"input_ids": ids, "attention_mask": mask, "posterior": posterior, "frames": frames, "speaker": torch.randn(2, 6, generator=generator)}
    voice: Any = model.backbone
    found = model.family.alignment(voice, inputs)
    for row in range(2):
        tokens, count = int(mask[row].sum()), int(frames[row])
        with torch.no_grad():
            _, mean, log_deviation = voice.text_encoder(ids[row : row + 1, :tokens], torch.ones(1, tokens))
            z = posterior[row : row + 1, :count, : TINY.latent].transpose(1, 2)
            moved = voice.flow(z, torch.ones(1, 1, count), inputs["speaker"][row][None, :, None])
        density = torch.distributions.Normal(mean[0, :, :, None], log_deviation[0, :, :, None].exp()).log_prob(moved[0, :, None, :]).mean(0)  # (tokens, frames)
        ways = [torch.tensor([sum(frame >= cut for cut in cuts) for frame in range(count)]) for cuts in itertools.combinations(range(1, count), tokens - 1)]
        best = max(float(density[way, torch.arange(count)].mean()) for way in ways)
        assert float(found[row]) == pytest.approx(best, rel=1e-4)


def test_a_text_fits_its_own_sound_better_than_another_text(model: Model) -> None:
    """A latent that the voice itself would speak from, taken back through the flow."""
    voice: Any = model.backbone
    generator = torch.Generator().manual_seed(1)
    texts = torch.randint(3, TINY.vocab_size, (5, 6), generator=generator)
    speaker, mask = torch.randn(1, 6, generator=generator), torch.ones(1, 1, 18)
    for own in range(5):
        with torch.no_grad():
            _, mean, _ = voice.text_encoder(texts[own : own + 1], torch.ones(1, 6))
            z = voice.flow.inverse(mean.repeat_interleave(3, 2), mask, speaker[..., None])
        posterior = torch.cat([z, torch.zeros_like(z)], 1).transpose(1, 2)
        shared = {"attention_mask": torch.ones(5, 6, dtype=torch.int64), "posterior": posterior.expand(5, -1, -1), "frames": torch.full((5,), 18), "speaker": speaker.expand(5, -1)}
        assert int(model.family.alignment(voice, {"input_ids": texts, **shared}).argmax()) == own


def fitted(model: Model, monkeypatch: pytest.MonkeyPatch) -> Model:
    """The voice with an ear that hears the first id, 60 below the frames: a random voice's alignments say nothing of texts."""

    def alignment(backbone: Any, inputs: Any) -> torch.Tensor:
        return -(inputs["input_ids"][:, 0] + 60 - inputs["frames"]).abs().float()

    monkeypatch.setattr(model.family, "alignment", alignment)
    return model


def numbered(frames: list[int]) -> Dataset:
    """Clips of 70, 75, 80 … frames, whose ids begin with those of so many frames."""
    rows = []
    for number, told in enumerate(frames):
        samples = np.random.default_rng(number).standard_normal((70 + 5 * number) * 8).astype(np.float32)
        rows.append(Example(f"clip {number}", (0.1 * samples, RATE_HZ), None, None, {"ids": f"{told - 60} 1 2"}))
    return Dataset("numbered", rows, "audio")


def test_a_recording_with_a_foreign_text_is_named_and_left_out(model: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    judged = fitted(model, monkeypatch)
    _, same, facts = read_by_one(judged, TrainingData(numbered([70, 75, 80, 85])))
    assert len(same.train) == 4 and facts == {}
    voice, kept, facts = read_by_one(judged, TrainingData(numbered([70, 75, 80, 71])))
    assert [example.id for example in kept.train] == ["clip 0", "clip 1", "clip 2"] and facts == {"left_out": {"clip 3": -9.0}}
    assert "clip 3 (-9.0)" in caplog.text
    others = read_by_one(judged, TrainingData(numbered([70, 75, 80])))[0]  # whose voice it is, they say alone
    assert voice.conditions and all(np.array_equal(value, others.conditions[name]) for name, value in voice.conditions.items())
    with pytest.raises(UserError, match=r"4 of 4 recordings fit other texts better than their own \(alignment scores: clip 0 \(-15\.0\)"):
        read_by_one(judged, TrainingData(numbered([85, 80, 75, 70])))


def test_a_text_with_more_tokens_than_frames_fits_nothing(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    rows = Dataset("x", [*readings(1), Example("long", readings(1)[0].raw, None, None, {"ids": " ".join(["3"] * 200)})], "audio")
    _, kept, facts = read_by_one(model, TrainingData(rows))
    assert list(facts["left_out"]) == ["long"] and [example.id for example in kept.train] == ["clip 0"]
    assert "long (too short for its text)" in caplog.text
    with pytest.raises(UserError, match="long: 200 tokens do not fit into 75 frames"):
        adapt(model, data=rows)


def test_another_recording_of_the_same_text_speaks_against_none(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    _, same, facts = read_by_one(fitted(model, monkeypatch), TrainingData(numbered([72, 72, 72])))
    assert len(same.train) == 3 and facts == {}


def test_validation_is_checked_before_anything_trains(model: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    _, kept, facts = read_by_one(fitted(model, monkeypatch), TrainingData(numbered([70, 75]), numbered([70, 75, 80, 71])))
    assert [example.id for example in kept.validation] == ["clip 0", "clip 1", "clip 2"] and facts == {"left_out": {"clip 3": -9.0}}
    assert "left out 1 recordings" in caplog.text


def test_a_recording_of_which_a_part_would_be_heard_is_refused(model: Model) -> None:
    with pytest.raises(UserError, match=r"a\.jsonl:1: the recording lasts more than 30 s; cut it and its text into sentences"):
        adapt(model, data=readings(1, seconds=30.5))


def test_clips_of_any_lengths_train_where_a_part_could_be_computed_once(model: Model) -> None:
    """Below the flow's adapters stands what is computed once; that it is noisy shows, and is not stumbled over."""
    settings = TrainSettings(epochs=3, batch_size=2, check_readings=False, device="cpu")
    artifact = fit(model, load_method(USAT), USAT.options(phoneme_rank=0, durations=False), TrainingData(readings(6)), settings)
    assert artifact.provenance["metrics"]["train"]["loss"] > 0


def test_loudness_does_not_decide_who_is_heard(model: Model) -> None:
    """Nor does silence around a recording make it louder."""
    [example] = readings(1, seconds=2.0)
    samples, _ = example.raw
    same = hear(model, example)["speaker"]
    for factor in (0.01, 5.0):
        other = hear(model, replace(example, raw=(factor * samples, RATE_HZ)))["speaker"]
        assert np.abs(other - same).max() < 1e-5
    quiet = np.concatenate([np.zeros(800, np.float32), samples, np.zeros(1600, np.float32)])
    lengths = torch.tensor([len(samples), len(quiet)])
    both = levelled(torch.nn.utils.rnn.pad_sequence([torch.from_numpy(samples), torch.from_numpy(quiet)], batch_first=True), lengths, 8)
    assert torch.allclose(both[0, : len(samples)], both[1, 800 : 800 + len(samples)], rtol=1e-5)


def test_a_voice_that_does_not_listen_says_what_to_do() -> None:
    with torch.random.fork_rng():
        plain = Host(plugins=[("core", builtin), ("speech", entry)], discover=False, environment={}).load("polyadapt:tiny-voice")
    with pytest.raises(UserError, match="usat:FOLDER"):
        adapt(plain)


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ("5 x 7", "column ids holds whole numbers, one for each phoneme, found"),
        ("  ", "column ids holds whole numbers"),
        ([7.9, 8.2], "column ids holds whole numbers"),
        ("5 9999", "column ids has 9999, and usat:.* has ids from 0 to 63"),
        ([5, -3], "column ids has -3"),
    ],
)
def test_ids_that_are_none_are_named_with_their_row(model: Model, ids: object, words: str) -> None:
    rows = [*readings(2), Example("odd", readings()[0].raw, None, None, {"ids": ids}, "a.jsonl:3")]
    with pytest.raises(UserError, match=rf"a\.jsonl:3: {words}"):
        adapt(model, data=Dataset("x", rows, "audio"))


def test_a_recording_that_cannot_be_heard_is_named_with_its_row(model: Model) -> None:
    rows = [*readings(2), Example("odd", (np.full(9000, np.nan, np.float32), RATE_HZ), None, None, {"ids": "1 2 3"}, "a.jsonl:3")]
    with pytest.raises(UserError, match=r"a\.jsonl:3: .*not finite numbers"):
        adapt(model, data=Dataset("x", rows, "audio"))


def test_an_estimate_is_of_the_voice_that_would_train(model: Model) -> None:
    """A clip that is too short to compute a speaker from is fed the others' mean, as it is in training."""
    rows = Dataset("rows", [*readings(3), replace(readings(1, seconds=0.4)[0], id="short")], "audio")
    found = estimate(model, load_method(USAT), USAT.options(), TrainingData(rows), TrainSettings(epochs=3, batch_size=2, check_readings=False))
    assert found.steps == 6 and found.parameters > 0 and not model.conditions


def test_silence_has_no_part_in_the_mean_vector(model: Model) -> None:
    silence = Example("silence", (np.zeros(2 * RATE_HZ, np.float32), RATE_HZ), None, None, {"ids": "1 2 3"}, "a.jsonl:9")
    with_it, without = (read_by_one(model, TrainingData(data), is_checked=False)[0] for data in (Dataset("x", [*readings(2), silence], "audio"), readings(2)))
    np.testing.assert_array_equal(with_it.conditions["speaker"], without.conditions["speaker"])


def test_a_voice_in_half_precision_is_refused_in_a_line(model: Model) -> None:
    other = copy.deepcopy(model)
    other.backbone.to(torch.bfloat16)
    with pytest.raises(UserError, match="a voice in bfloat16 does not learn from recordings; leave it in float32 and set train.precision"):
        adapt(other)


def test_recordings_without_a_text_or_a_second_are_refused(model: Model) -> None:
    with pytest.raises(UserError, match=r"a\.jsonl:1: no text goes with this recording"):
        adapt(model, data=Dataset("x", [Example("bare", readings()[0].raw, None, None, {}, "a.jsonl:1")], "audio"))
    with pytest.raises(UserError, match="no recording is long enough to compute .speaker. from it"):
        adapt(model, data=readings(3, seconds=0.5))

"""Training of a voice that listens, in seconds: the corpus, windows, each stage, and going on where a run was cut off."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyadapt import builtin
from polyadapt.data.dataset import Dataset, Example
from polyadapt.errors import UserError
from polyadapt.host import Host
from polyadapt.model import Model
from polyadapt.training.interrupt import TrainingInterrupted
from polyadapt.training.optimisation import make_optimiser
from polyadapt_runtime.errors import MissingLibraryError
from polyadapt_speech import entry
from polyadapt_speech.usat.family.model import TINY, tiny_voice
from polyadapt_speech.usat.network.loudness import LOUDNESS
from polyadapt_speech.usat.network.voice import Voice
from polyadapt_speech.usat.network.wave_discriminators import WaveDiscriminators
from polyadapt_speech.usat.spectrogram import Spectrogram
from polyadapt_speech.usat.training import train
from polyadapt_speech.usat.training.commands import _minutes
from polyadapt_speech.usat.training.corpus import Corpus, Speaker, Spoken, evenly, read_corpus, write_corpus, write_sound
from polyadapt_speech.usat.training.prepare import prepare, rate_of, usual_texts
from polyadapt_speech.usat.training.segments import Segments, drawn, parts
from polyadapt_speech.usat.training.sentences import SENTENCES
from polyadapt_speech.usat.training.sources import Collection, Source, at_one_loudness, speakers_of
from polyadapt_speech.usat.training.stage import Limits, balanced, batches_of
from polyadapt_speech.usat.training.timbre import TimbreFlow
from polyadapt_speech.usat.training.train import Request, Trainer
from polyadapt_speech.usat.training.utterances import LENGTHS_STEP, Utterances
from polyadapt_speech.usat.training.wave_losses import MelDistance, adversarial_losses, spectral_distance
from polyadapt_speech.usat.voices.folder import is_half, read_voice, save_voice

RATE_HZ = 22050
SYMBOLS = {symbol: [number] for number, symbol in enumerate("_^$ abcdefghijklmnopqrstuvwxyz,.?!ˈˌːəɪɛæɑɔʊʌθðŋʃʒɹɡɚɜɐ")}
SETTINGS = {"audio": {"sample_rate": RATE_HZ}, "espeak": {"voice": "en-us"}, "phoneme_id_map": SYMBOLS}


def tone(pitch_hz: float, seconds: float, seed: int) -> np.ndarray:
    """A voice of a sort: harmonics of a pitch that moves, in a little noise."""
    draws = np.random.default_rng(seed)
    time = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    phase = 2 * np.pi * pitch_hz * (time + 0.05 * np.sin(2 * np.pi * 3 * time + draws.uniform(0, 6)))
    sound = sum(np.sin(number * phase) / number for number in (1, 2, 3, 5)) + 0.01 * draws.standard_normal(len(time))
    return at_one_loudness((0.2 * sound).astype(np.float32), RATE_HZ)


def clips_of(name: str, pitch_hz: float, count: int) -> list[Spoken]:
    ids = [tuple(np.random.default_rng([number, count]).integers(0, TINY.vocab_size, 12).tolist()) for number in range(count)]
    return [Spoken(f"{name}/{number}", name, f"text {number}", tone(pitch_hz, 0.1, number), ids[number]) for number in range(count)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("corpus"), [*clips_of("low", 110, 4), *clips_of("high", 260, 4)])


def written(folder: Path, clips: list[Spoken]) -> Path:
    speakers = [Speaker(name, "en-us", "made here", "none") for name in ("low", "high")]
    sentences = [np.random.default_rng(number).integers(0, TINY.vocab_size, 30).tolist() for number in range(6)]
    write_corpus(folder, RATE_HZ, speakers, clips, sentences)
    return folder


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A plain voice to start from."""
    folder = tmp_path_factory.mktemp("start")
    (folder / "start.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_voice(tiny_voice(), folder / "voice", folder / "start.json", {"licences": {"tiny": "none"}})
    return Host(plugins=[("core", builtin), ("speech", entry)], discover=False, environment={}).load(f"usat:{folder / 'voice'}")


def request(folder: Path, steps: int = 2, **more: Any) -> Request:
    limits, sizes = {letter: Limits(steps) for letter in "ABC"}, dict.fromkeys("ABC", 3)
    return Request(folder, limits=limits, batch_size=sizes, speaker_size=6, memory_slots=4, device="cpu", **more)


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    return read_voice(folder)[0].state_dict()


def test_a_corpus_is_read_as_it_was_written(corpus: Path) -> None:
    found = read_corpus(corpus)
    assert [speaker.name for speaker in found.speakers] == ["low", "high"] and found.speaker.tolist() == [0] * 4 + [1] * 4
    clip = clips_of("high", 260, 4)[1]
    assert np.abs(found.clip(5).numpy() - clip.samples).max() <= 1 / 32767  # 16 bits
    assert tuple(found.ids[5].tolist()) == clip.ids and len(found.sentences) == 6 and found.licences == {"made here": "none"}


@pytest.mark.parametrize("name", ["corpus.json", "index.safetensors", "samples.flac"])
def test_a_damaged_corpus_is_one_line(corpus: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(corpus, tmp_path / "copy")
    content = (tmp_path / "copy" / name).read_bytes()
    (tmp_path / "copy" / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=name) as caught:
        read_corpus(tmp_path / "copy")
    assert "\n" not in str(caught.value)


def test_clips_are_brought_to_one_loudness() -> None:
    for factor in (0.01, 3.0):
        heard = at_one_loudness(factor * tone(150, 0.2, 0), RATE_HZ)[:4400]  # whole hundredths of a second
        assert np.sqrt(np.square(heard).mean()) == pytest.approx(LOUDNESS, rel=1e-5)
    assert not at_one_loudness(np.zeros(900, np.float32), RATE_HZ).any()


def test_letters_are_joined_with_what_is_said(tmp_path: Path) -> None:
    """Not in capitals, which would be spelled; a text that is missing leaves the whole clip without one."""
    examples = []
    for number, (seconds, text, language) in enumerate([(0.4, "A", "pt_BR"), (0.5, "CASA", "pt_BR"), (0.9, "A hen", "da"), (0.4, "B", "fr"), (0.4, None, "fr")]):
        path = tmp_path / f"{number}.flac"
        write_sound(path, tone(150, seconds, number), RATE_HZ)
        examples.append(Example(str(number), path, text=text, extra={"language": language}))
    data = Dataset("data:letters", examples, "audio", licence="none")
    sources = [*speakers_of(Collection("letters", "data:letters", {}, 60.0), data, RATE_HZ)]
    assert [source.speaker.language for source in sources] == ["pt-br", "da", "fr"]
    clips = {source.speaker.name: [*source.clips] for source in sources}
    assert {name: [clip.text for clip in of] for name, of in clips.items()} == {"letters-pt_BR": ["a, casa"], "letters-da": ["A hen"], "letters-fr": [""]}
    assert len(clips["letters-pt_BR"][0].samples) == pytest.approx(0.9 * RATE_HZ, rel=0.05)


def collected(folder: Path, contents: dict[str, bytes]) -> Dataset:
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return Dataset("data:x", [Example(name, folder / name, text="a hen", extra={"language": name[:2]}) for name in contents], "audio", licence="none")


def test_what_cannot_be_read_is_named_and_a_speaker_without_clips_left_out(start: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Training would stumble over a speaker of whom there is nothing to draw."""
    write_sound(tmp_path / "sound.flac", tone(150, 1.0, 0), RATE_HZ)
    data = collected(tmp_path, {"en-1.flac": (tmp_path / "sound.flac").read_bytes(), "fr-1.flac": b"no sound"})
    sources = [*speakers_of(Collection("x", "data:x", {}, 5.0, texts=False), data, RATE_HZ)]
    made = prepare(tmp_path / "corpus", start, sources, [], ())
    assert made.seconds == {"x-en": pytest.approx(1.0, abs=0.1), "x-fr": 0.0} and "fr-1.flac: left out, " in caplog.text
    assert [speaker.name for speaker in read_corpus(tmp_path / "corpus").speakers] == ["x-en"]
    with pytest.raises(UserError, match="speaker 'x-fr' has no recording with a text that .* can say"):
        prepare(tmp_path / "none", start, [*speakers_of(Collection("x", "data:x", {}, 5.0), data, RATE_HZ)], [], ("x-fr",))
    assert not (tmp_path / "none").exists()
    with pytest.raises(UserError, match="no speaker has a recording that can be read"):
        prepare(tmp_path / "none", start, [*speakers_of(Collection("x", "data:x", {}, 5.0), data.subset([1]), RATE_HZ)], [], ())


def test_a_library_that_is_missing_is_no_broken_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    [source] = speakers_of(Collection("x", "data:x", {}, 5.0), collected(tmp_path, {"en-1.g722": b"\x00" * 400}), RATE_HZ)
    with pytest.raises((UserError, MissingLibraryError), match="codecs"):
        next(source.clips)


def test_a_start_that_is_no_piper_voice_is_one_line() -> None:
    with torch.random.fork_rng():
        plain = Host(plugins=[("core", builtin), ("speech", entry)], discover=False, environment={}).load("polyadapt:tiny-voice")
    with pytest.raises(UserError, match="polyadapt:tiny-voice is no voice that tells its sampling rate; start from a Piper voice"):
        rate_of(plain)


@pytest.mark.program("espeak-ng")
def test_held_out_speakers_are_kept_apart(start: Model, tmp_path: Path) -> None:
    """Texts of one speaker with a letter that the voice lacks have no ids, and are counted."""

    def said(name: str, texts: list[str]) -> Iterator[Spoken]:
        for number, text in enumerate(texts):
            yield Spoken(f"{name}/{number}", name, text, tone(150, 4.0, number))

    texts = [
        f"a red fish and {word}"
        for word in ("bread", "a ship", "the bell", "a lamp", "one", "two", "three", "ten", "six", "milk", "a dog", "a cat", "an egg", "a fan", "rain", "a hen", "red wax")
    ]
    speakers = {name: Speaker(name, language, "made here", "none") for name, language in (("kept", "en-us"), ("apart", "en-us"), ("strange", "ru"))}
    sources = [
        Source(speakers["kept"], 8.0, said("kept", texts)),
        Source(speakers["apart"], 8.0, said("apart", texts)),
        Source(speakers["strange"], 8.0, said("strange", ["рис"] * 5)),
    ]
    made = prepare(tmp_path / "corpus", start, sources, ["a green hill"], ("apart",))
    found = read_corpus(tmp_path / "corpus")
    assert [speaker.name for speaker in found.speakers] == ["kept", "strange"] and len(found.names) == 4
    assert [len(ids) > 0 for ids in found.ids] == [True, True, False, False] and len(found.sentences) == 1
    assert made.seconds == {"kept": 8.0, "strange": 8.0} and made.held_out == {"apart": 60.0} and sum(made.strange["ru"].values()) >= 2
    rows = {part: [json.loads(line) for line in (tmp_path / "corpus/held-out/apart" / f"{part}.jsonl").read_text().splitlines()] for part in ("adapt", "test")}
    assert len(rows["adapt"]) == 15 and len(rows["test"]) == 2
    assert not {row["text"] for row in rows["adapt"]} & {row["text"] for row in rows["test"]}
    assert all((tmp_path / "corpus/held-out/apart" / row["path"]).is_file() and row["ids"] for part in rows.values() for row in part)


def test_a_speaker_to_hold_out_must_be_there(start: Model, tmp_path: Path) -> None:
    source = Source(Speaker("kept", "en-us", "here", "none"), 1.0, iter([Spoken("a", "kept", "", tone(150, 2.0, 0))]))
    with pytest.raises(UserError, match="no speaker 'gone'"):
        prepare(tmp_path / "corpus", start, [source], [], ("gone",))
    assert not (tmp_path / "corpus").exists()


def test_a_window_sees_what_the_whole_clip_sees() -> None:
    """Its spectrogram is a part of the clip's, and its sound a part of the clip's samples."""
    spectrogram = Spectrogram(8)
    clips = [torch.randn(900, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    segments = Segments(clips, spectrogram, torch.device("cpu"))
    torch.manual_seed(0)
    windows = segments.windows(torch.tensor([1, 0]), 30)
    begin = drawn(windows.mask, 10)
    sound = segments.sound(windows, begin, 10)
    for row, clip in enumerate((1, 0)):
        first = int(windows.first[row]) - clip * (900 // 8)
        whole = spectrogram(clips[clip][None, : 900 // 8 * 8])
        assert torch.allclose(spectrogram.of_surrounded(windows.samples)[row], whole[0, :, first : first + 30], atol=1e-5)
        place = 8 * (first + int(begin[row]))
        assert torch.equal(sound[row], clips[clip][place : place + 80])
    values = torch.arange(60.0).reshape(2, 1, 30)
    assert parts(values, begin, 10)[1, 0].tolist() == values[1, 0, int(begin[1]) : int(begin[1]) + 10].tolist()


def test_a_short_clip_is_masked() -> None:
    segments = Segments([torch.ones(80), torch.ones(800)], Spectrogram(8), torch.device("cpu"))
    windows = segments.windows(torch.tensor([0, 1]), 25)
    assert windows.mask.sum((1, 2)).tolist() == [10, 25]


def test_every_speaker_is_as_likely() -> None:
    rows = [row for batch in balanced([[0], list(range(1, 100))], 8)(3, 0) for row in batch]
    assert 0.45 < rows.count(0) / len(rows) < 0.55 and len(set(rows)) > 90
    assert balanced([[0], [1]], 8)(3, 1) == balanced([[0], [1]], 8)(3, 1) != balanced([[0], [1]], 8)(3, 2)


def utterances_of(frames: list[int], speakers: int = 2) -> Utterances:
    """Clips of so many frames, of some speakers in turn."""
    voice = tiny_voice(replace(TINY, speaker_size=6, memory_slots=4, listens=True))
    assert voice.spectrogram is not None
    hop = voice.config.decoder.hop
    clips = Segments([torch.randn(count * hop, generator=torch.Generator().manual_seed(row)) for row, count in enumerate(frames)], voice.spectrogram, torch.device("cpu"))
    return Utterances(voice, [(clips, row, torch.arange(4), row % speakers) for row in range(len(frames))])


def test_batches_come_in_few_lengths() -> None:
    """Whatever is filled up is masked."""
    utterances = utterances_of([20, 50, 90, 400])
    for rows, frames in (([0], 32), ([0, 1], 64), ([1, 2], 96), ([2, 3], 416)):
        batch = utterances.batch(rows)
        assert batch.mean.shape[2] == batch.mask.shape[2] == frames and batch.prior_mean.shape[2] == batch.token_mask.shape[2] == LENGTHS_STEP
        assert batch.mask.sum((1, 2)).tolist() == [len(utterances.posterior[row]) for row in rows] and batch.token_mask.sum((1, 2)).tolist() == [4.0] * len(rows)
        assert not (batch.mean * (1 - batch.mask)).any() and not (batch.prior_mean * (1 - batch.token_mask)).any()


def test_two_cuts_of_a_clip_overlap_and_are_not_the_same() -> None:
    """Else D_p would learn what is identical and not what shares its words; short clips are most of those of real people."""
    torch.manual_seed(0)
    frames = [20, 50, 90, 400]
    utterances = utterances_of(frames)
    for _ in range(20):
        (first, one), (second, other) = utterances.cuts([0, 1, 2, 3], 60, 2)
        assert torch.equal(one, other) and one.sum((1, 2)).tolist() == [13, 33, 60, 60]
        for row, size in enumerate([13, 33, 60, 60]):
            whole = utterances.posterior[row][:, : utterances.latent].T  # (C, F)
            places = [next(at for at in range(frames[row]) if torch.equal(whole[:, at : at + size], cut[row, :, :size])) for cut in (first, second)]
            assert 0 < abs(places[0] - places[1]) <= size / 2
    [(alone, mask)] = utterances.cuts([0, 3], 60)
    assert mask.sum((1, 2)).tolist() == [20, 60] and torch.equal(alone[0, :, :20], utterances.posterior[0][:, : utterances.latent].T)


def test_sentences_are_taken_from_the_whole_of_a_list() -> None:
    assert evenly(range(10), 4) == [0, 2, 5, 7] and evenly(range(3), 9) == [0, 1, 2] and evenly([], 3) == []
    captions = [f"{letter} is for a letter" for letter in "abcdefghijklmnopqrstuvwxyz"]
    data = Dataset("captions", [Example(text, text, text=text, extra={"caption": text}) for text in captions], "text")
    texts = usual_texts(lambda uri, options: data, len(SENTENCES) + 5)
    assert texts[: len(SENTENCES)] == list(SENTENCES) and [text[0] for text in texts[len(SENTENCES) :]] == ["a", "f", "k", "p", "u"]
    assert usual_texts(lambda uri, options: data, 4)[-1] in SENTENCES[-len(SENTENCES) // 4 :]


def test_the_flow_hears_clips_of_like_length() -> None:
    """Speakers stay as likely as before: the rows of an epoch are the same."""
    utterances = utterances_of([20 + 13 * (row % 7) for row in range(14)])
    stage = TimbreFlow(tiny_voice(replace(TINY, speaker_size=6, memory_slots=4, listens=True)), utterances, [str(row) for row in range(14)], 4, 1)
    found, plain = batches_of(stage)(0, 0), balanced(stage.groups, 4)(0, 0)
    assert sorted(row for batch in found for row in batch) == sorted(row for batch in plain for row in batch)

    def filled(batches: Any) -> float:
        """The share of a batch up to its longest clip."""
        assert stage.lengths is not None
        lengths = np.array([[stage.lengths[row] for row in batch] for batch in batches[:32]])
        return float(1 - (lengths.mean(1) / lengths.max(1)).mean())

    assert filled(found) < 0.05 < 0.2 < filled(plain)


def test_a_quarter_of_what_the_flow_hears_is_the_start_voice() -> None:
    """Which is one speaker among many, and the one whose words are sure; the others stay as likely as each other."""
    utterances = utterances_of([20] * 24, speakers=12)
    stage = TimbreFlow(tiny_voice(replace(TINY, speaker_size=6, memory_slots=4, listens=True)), utterances, [str(row) for row in range(24)], 8, 5)
    drawn = [utterances.speakers[row] for batch in batches_of(stage)(0, 0) for row in batch]
    shares = np.bincount(drawn, minlength=12) / len(drawn)
    assert 0.23 < shares[5] < 0.30 and np.delete(shares, 5).max() < 1.4 * np.delete(shares, 5).min()


def test_adversarial_losses_train_one_side_each() -> None:
    torch.manual_seed(0)
    discriminators, made, true = WaveDiscriminators(2), torch.randn(2, 600, requires_grad=True), torch.randn(2, 600)
    losses = adversarial_losses(discriminators, made, true)
    for name, moves_sound in (("discriminator", False), ("generator", True), ("features", True)):
        made.grad = None
        discriminators.zero_grad(set_to_none=True)
        losses[name].backward(retain_graph=True)
        assert (made.grad is not None) is moves_sound
        assert any(parameter.grad is not None for parameter in discriminators.parameters()) is not moves_sound


def test_distances_are_nothing_between_equal_sounds() -> None:
    sound = torch.from_numpy(np.stack([tone(150, 0.2, 0), tone(200, 0.2, 1)]))
    mel = MelDistance(256, RATE_HZ)
    assert mel(sound, sound) == 0 and spectral_distance(sound, sound) == 0
    assert mel(sound, sound.flip(0)) > 0.1 and spectral_distance(sound, sound.flip(0)) > 0.1


def test_betas_reach_the_optimiser() -> None:
    assert make_optimiser([torch.nn.Parameter(torch.ones(1))], 1e-3, 0.0, (0.8, 0.99)).param_groups[0]["betas"] == (0.8, 0.99)


MOVED = {
    "posterior": ("posterior.",),
    "autoencoder": ("posterior.", "memory.", "decoder."),
    "adversarial": ("posterior.", "memory.", "decoder."),
    "timbre": ("flow.", "duration_posterior.", "speaker_encoder."),
}


def test_stages_move_their_own_parts_and_are_kept(start: Model, corpus: Path, tmp_path: Path) -> None:
    """Each stage is a voice of its own; the last one is the folder's; nothing is done twice."""
    folder, said = tmp_path / "voice", []
    assert Trainer(start, read_corpus(corpus), request(folder), say=said.append).run() == folder
    states = {name: state_of(folder / f"stage-{name}") for name in MOVED}
    before = {**states["posterior"], **start.backbone.state_dict()}  # parts that hear are fresh
    for name, prefixes in MOVED.items():
        changed = {key for key, value in states[name].items() if not torch.equal(value, before[key])}
        assert all(key.startswith(prefixes) for key in changed) and (changed or name == "posterior"), name
        assert {prefix for prefix in prefixes if any(key.startswith(prefix) for key in changed)} == ({*prefixes} if name != "posterior" else set())
        before = states[name]
    final, provenance = read_voice(folder)
    assert all(torch.equal(value, states["timbre"][key]) for key, value in final.state_dict().items())
    assert provenance["licences"] == {"tiny": "none", "made here": "none"} and "discriminators of all kinds" in provenance["fresh"]
    assert set(provenance["stages"]) == set(MOVED) and provenance["stages"]["timbre"]["steps"] == 2
    assert len(provenance["stages"]["timbre"]["average_speaker"]) == 6
    assert not list(folder.glob("work-*"))
    said.clear()
    Trainer(start, read_corpus(corpus), request(folder, steps=5), say=said.append).run()
    assert sum("there already" in line for line in said) == 4
    with pytest.raises(UserError, match="said = 300, now it is 200"):
        Trainer(start, read_corpus(corpus), request(folder, said=200)).run()
    shutil.rmtree(folder / "stage-adversarial")
    with pytest.raises(UserError, match="stage-timbre goes on from another stage before it than the one that is there now; remove it, and it is done anew"):
        Trainer(start, read_corpus(corpus), request(folder, steps=5)).run()
    assert all(torch.equal(value, states["timbre"][key]) for key, value in state_of(folder).items())  # what was published stays


def test_stages_in_half_precision_find_nearly_the_same(start: Model, corpus: Path, tmp_path: Path) -> None:
    """Weights stay in float32; of one draw, losses are those of float32 within bfloat16's rounding."""
    losses = {}
    for precision in ("no", "bf16"):
        Trainer(start, read_corpus(corpus), request(tmp_path / precision, precision=precision)).run()
        voice, provenance = read_voice(tmp_path / precision)
        assert {value.dtype for value in voice.state_dict().values() if value.is_floating_point()} == {torch.float32}
        assert all(facts["precision"] == precision for facts in provenance["stages"].values())
        losses[precision] = [provenance["stages"][name]["losses"] for name in MOVED]
    assert losses["bf16"] != losses["no"]
    for exact, rounded in zip(losses["no"], losses["bf16"], strict=True):
        assert rounded == pytest.approx(exact, rel=0.02, abs=0.02)


def test_other_texts_leave_what_hears_recordings_alone(start: Model, corpus: Path, tmp_path: Path) -> None:
    """Stages A and B are those of the recordings, stage C is of the texts too."""
    folder, said = tmp_path / "voice", list[str]()
    Trainer(start, read_corpus(corpus), request(folder)).run()
    (tmp_path / "texts").mkdir()
    (tmp_path / "sounds").mkdir()
    clips = [*clips_of("low", 110, 4), *clips_of("high", 260, 4)]
    texts = read_corpus(written(tmp_path / "texts", [replace(clip, ids=clip.ids[::-1]) for clip in clips]))
    with pytest.raises(UserError, match="stage-timbre was made with corpus"):
        Trainer(start, texts, request(folder), say=said.append).run()
    assert sum("there already" in line for line in said) == 3
    sounds = read_corpus(written(tmp_path / "sounds", [replace(clip, samples=clip.samples[::-1]) for clip in clips]))
    with pytest.raises(UserError, match="stage-posterior was made with recordings"):
        Trainer(start, sounds, request(folder)).run()


def stopping(cut_at: int) -> Any:
    """A listener that presses Ctrl-C after a step."""

    def stop(event: Any) -> None:
        if event.kind == "step" and event["step"] == cut_at:
            raise KeyboardInterrupt

    return stop


def trained_posterior(start: Model, corpus: Corpus, folder: Path, steps: int, cut_at: int = 0) -> dict[str, torch.Tensor]:
    """Stage A, stopped by Ctrl-C at a step and resumed where that is asked for."""
    wanted = request(folder, steps, stages=("A",), report_steps=1)
    if cut_at:
        with pytest.raises(TrainingInterrupted):
            Trainer(start, corpus, wanted, emit=stopping(cut_at)).run()
    Trainer(start, corpus, replace(wanted, resume=True)).run()
    return state_of(folder / "stage-posterior")


def test_an_interrupted_stage_goes_on_as_if_nothing_had_happened(start: Model, corpus: Path, tmp_path: Path) -> None:
    read = read_corpus(corpus)
    whole = trained_posterior(start, read, tmp_path / "whole", 6)
    broken = trained_posterior(start, read, tmp_path / "broken", 6, cut_at=3)
    shorter = trained_posterior(start, read, tmp_path / "shorter", 3)
    assert all(torch.equal(value, broken[name]) for name, value in whole.items())
    assert not all(torch.equal(value, shorter[name]) for name, value in whole.items())


def test_an_interrupted_timbre_stage_comes_to_the_same_voice(start: Model, corpus: Path, tmp_path: Path) -> None:
    """And to the same facts, whatever was drawn elsewhere before."""
    read, facts = read_corpus(corpus), []
    Trainer(start, read, request(tmp_path / "ground", stages=("A", "B"))).run()
    for name, cut_at in (("whole", 0), ("broken", 3)):
        shutil.copytree(tmp_path / "ground", tmp_path / name)
        wanted = request(tmp_path / name, 6, stages=("C",), report_steps=1)
        if cut_at:
            with pytest.raises(TrainingInterrupted):
                Trainer(start, read, wanted, emit=stopping(cut_at)).run()
            torch.rand(7)
        Trainer(start, read, replace(wanted, resume=True)).run()
        facts.append(read_voice(tmp_path / name)[1]["stages"]["timbre"])
    assert facts[0]["average_speaker"] == facts[1]["average_speaker"]
    assert set(facts[0]["discriminators_right"]) == {"leakage", "timbre"} and all(0 <= value <= 1 for value in facts[0]["discriminators_right"].values())
    whole, broken = state_of(tmp_path / "whole"), state_of(tmp_path / "broken")
    assert all(torch.equal(value, broken[name]) for name, value in whole.items())


def test_the_flow_hears_the_same_of_the_start_voice_in_one_run_and_in_several(start: Model, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It hears fewer sentences than stage A: which, does not depend on whether A ran in the same process."""
    monkeypatch.setattr(train, "OWN_CLIPS", 3)
    read = read_corpus(corpus)
    Trainer(start, read, request(tmp_path / "at once")).run()
    for letter in "ABC":
        Trainer(start, read, request(tmp_path / "one by one", stages=(letter,))).run()
    once, single = state_of(tmp_path / "at once"), state_of(tmp_path / "one by one")
    assert all(torch.equal(value, single[name]) for name, value in once.items())


@pytest.mark.slow
def test_other_limits_on_resume_are_refused_and_half_is_taken_later(start: Model, corpus: Path, tmp_path: Path) -> None:
    read, place = read_corpus(corpus), tmp_path / "voice"
    wanted = request(place, 6, stages=("A",), report_steps=1)
    with pytest.raises(TrainingInterrupted):
        Trainer(start, read, wanted, emit=stopping(2)).run()
    with pytest.raises(UserError, match=r"stage posterior was begun with at most 6 steps and 0 minutes \(0: any\), now it is 4 and 0; ask as before"):
        Trainer(start, read, replace(request(place, 4, stages=("A",)), resume=True)).run()
    Trainer(start, read, replace(request(place, 6), resume=True)).run()
    whole = state_of(place)
    Trainer(start, read, request(place, 6, half=True)).run()
    assert is_half(place) and all(torch.equal(value.half().float(), state_of(place)[name]) for name, value in whole.items() if value.is_floating_point())


def test_a_batch_of_one_clip_hears_the_corpus(start: Model, corpus: Path, tmp_path: Path) -> None:
    voices = []
    for name, clips in (("one", [*clips_of("low", 110, 4), *clips_of("high", 260, 4)]), ("other", [*clips_of("low", 170, 4), *clips_of("high", 330, 4)])):
        wanted = replace(request(tmp_path / name, 3, stages=("A", "B")), batch_size=dict.fromkeys("ABC", 1))
        folder = tmp_path / f"corpus {name}"
        folder.mkdir()
        Trainer(start, read_corpus(written(folder, clips)), wanted).run()
        voices.append(state_of(tmp_path / name / "stage-adversarial"))
    assert any(not torch.equal(value, voices[1][name]) for name, value in voices[0].items() if name.startswith("decoder."))


def test_sentences_that_are_all_too_short_are_refused(start: Model, tmp_path: Path) -> None:
    speakers = [Speaker("low", "en-us", "made here", "none")]
    write_corpus(tmp_path, RATE_HZ, speakers, clips_of("low", 110, 4), [[1, 2, 3]])
    with pytest.raises(UserError, match=r"none of the corpus' 1 sentences takes the voice 40 frames"):
        Trainer(start, read_corpus(tmp_path), request(tmp_path / "voice")).run()


def test_the_posterior_comes_to_hear_what_was_said(start: Model, corpus: Path, tmp_path: Path) -> None:
    losses: list[float] = []

    def note(event: Any) -> None:
        if event.kind == "step":
            losses.append(event["loss"])

    Trainer(start, read_corpus(corpus), request(tmp_path / "voice", 60, stages=("A",), report_steps=5), emit=note).run()
    assert len(losses) > 3 and losses[-1] < 0.9 * losses[0]


def test_minutes_limit_the_steps(start: Model, corpus: Path, tmp_path: Path) -> None:
    wanted = replace(request(tmp_path / "voice", 10**6, stages=("A",)), limits={"A": Limits(10**6, 0.01)})
    Trainer(start, read_corpus(corpus), wanted).run()
    assert 1 <= read_voice(tmp_path / "voice" / "stage-posterior")[1]["stages"]["posterior"]["steps"] < 1000


def test_a_stage_needs_those_before_it(start: Model, corpus: Path, tmp_path: Path) -> None:
    read, said = read_corpus(corpus), list[str]()
    with pytest.raises(UserError, match="stage B goes on from stage A"):
        Trainer(start, read, request(tmp_path / "voice", stages=("B",))).run()
    Trainer(start, read, request(tmp_path / "voice", stages=("A",))).run()
    assert Trainer(start, read, request(tmp_path / "voice", stages=("B",)), say=said.append).run() == tmp_path / "voice" / "stage-adversarial"
    assert any(line.startswith("stage posterior: there already") for line in said)


@pytest.mark.parametrize("written", ["10", "1,2", "a,b,c", "1,0,1", "1,2,inf"])
def test_minutes_are_three_numbers(written: str) -> None:
    with pytest.raises(UserError, match="stages A, B and C"):
        _minutes(written)
    assert _minutes("1,4,1.5") == {"A": 1.0, "B": 4.0, "C": 1.5}


def test_a_voice_that_listens_is_no_start(start: Model, corpus: Path, tmp_path: Path) -> None:
    assert isinstance(start.backbone, Voice)
    read = read_corpus(corpus)
    with pytest.raises(UserError, match="the corpus is at 8000 Hz"):
        Trainer(start, replace(read, sample_rate_hz=8000), request(tmp_path / "voice"))
    Trainer(start, read, request(tmp_path / "voice", stages=("A",))).run()
    listening = Host(plugins=[("core", builtin), ("speech", entry)], discover=False, environment={}).load(f"usat:{tmp_path / 'voice' / 'stage-posterior'}")
    with pytest.raises(UserError, match="is no voice of one speaker"):
        Trainer(listening, read, request(tmp_path / "other"))

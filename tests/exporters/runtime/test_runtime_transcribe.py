"""Times in transcripts: the rules against transformers' own, segments, and windows that go on where the words did."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from polyadapt_runtime import Beams, Bundle, InputError, Segment, Token, text_of, transcribe
from polyadapt_runtime.sampling import Rules, Sampling
from polyadapt_runtime.sound import Sound
from polyadapt_runtime.timestamps import Said, TimedRules, Times, parts, start_ids

# A vocabulary in Whisper's order: words, end, start, two languages, the task, 'no times', then 101 times up to 2 s.
WORDS, END, START, FR, EN, TASK, OFF, FIRST = 20, 20, 21, 22, 23, 24, 25, 26
VOCABULARY = FIRST + 101
SETTINGS: dict[str, Any] = {
    "start_ids": [START, FR, TASK, OFF],
    "eos_ids": [END],
    "languages": {"fr": FR, "en": EN},
    "timestamps": {"first_id": FIRST, "off_id": OFF, "step_s": 0.02},
}
TIMES = Times.of(SETTINGS)


def at(seconds: float) -> int:
    return FIRST + round(seconds / 0.02)


def test_scores_are_ruled_as_transformers_does() -> None:
    torch = pytest.importorskip("torch", reason="an oracle that the runtime alone does without")
    whisper = pytest.importorskip("transformers", reason="an oracle that the runtime alone does without")
    from transformers.generation.logits_process import WhisperTimeStampLogitsProcessor

    config = whisper.GenerationConfig(eos_token_id=END, no_timestamps_token_id=OFF, max_initial_timestamp_index=50, bos_token_id=START, forced_decoder_ids=None)
    prompt = [START, FR, TASK]
    peer = WhisperTimeStampLogitsProcessor(config, begin_index=len(prompt))
    rules = TimedRules(Rules.of({}, Sampling()), TIMES, len(prompt), frozenset([END]))
    generator = np.random.default_rng(0)
    texts = ([], [at(0)], [at(0.5)], [at(0), 3], [at(0), 3, 4], [at(0), 3, at(1)], [at(0), 3, at(1), at(1)], [at(0), 3, at(1), at(1.2), 5], [at(0), 3, at(1), at(1), 5, at(1.8)])
    for text in texts:
        for strength in (0.0, 3.0, -6.0):
            scores = generator.standard_normal(VOCABULARY).astype(np.float32)
            scores[FIRST:] += strength
            seen = prompt + text
            expected = peer(torch.tensor([seen]), torch.from_numpy(scores)[None].clone())[0].numpy()
            found = rules.apply(scores, seen, not text)
            allowed = np.isfinite(expected)
            if text and text[-1] >= FIRST and len(text) > 1 and text[-2] < FIRST:
                allowed[END + 1 : FIRST] = False  # special tokens, which a checkpoint's own suppress_ids keep out
            assert np.array_equal(np.isfinite(found), allowed), (text, strength)
            assert np.array_equal(found[allowed], scores[allowed])


def test_what_stands_before_a_transcript() -> None:
    assert start_ids(SETTINGS, None, False) == [START, FR, TASK, OFF]
    assert start_ids(SETTINGS, "en", False) == [START, EN, TASK, OFF]
    assert start_ids(SETTINGS, "en", True) == [START, EN, TASK]
    with pytest.raises(InputError, match="knows no language 'de'; known: en, fr"):
        start_ids(SETTINGS, "de", False)
    with pytest.raises(InputError, match="no choice of languages"):
        start_ids({"start_ids": [1]}, "fr", False)
    with pytest.raises(InputError, match="writes no times"):
        start_ids({"start_ids": [1]}, None, True)


def test_tokens_between_times() -> None:
    ids = [at(0), 1, 2, at(0.5), at(0.6), 3, at(1.5)]
    assert parts(ids, TIMES) == [Said(0.0, 0.5, (1, 2)), Said(pytest.approx(0.6), 1.5, (3,))]  # type: ignore[arg-type]
    assert parts([*ids, at(1.5), 4], TIMES)[-1] == Said(1.5, None, (4,))
    assert parts([*ids, at(1.5)], TIMES) == [*parts(ids, TIMES), Said(1.5, None, ())], "more begins here"
    assert parts([1, 2], TIMES) == [Said(0.0, None, (1, 2))]
    assert parts([at(0)], TIMES) == [Said(0.0, None, ())] and parts([], TIMES) == []


def tokenizer(path: Path) -> Path:
    made = Tokenizer(models.WordLevel({f"w{index}": index for index in range(WORDS)}, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.decoder = decoders.Fuse()
    made.save(str(path))
    return path


@dataclass
class Ears:
    """Stands in for a bundle: it 'hears' a word for each distinct value of a window's tenths of seconds, and writes down what it was asked."""

    path: Path
    task: str = "transcription"
    answers: dict[int, list[int]] = field(default_factory=dict)
    windows: list[tuple[float, float]] = field(default_factory=list)
    options: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    @property
    def processor(self) -> Any:
        return SimpleNamespace(kind="audio", spec={"maximum_seconds": 2.0, "seconds": None}, assets={"tokenizer": self.path})

    @property
    def manifest(self) -> Any:
        return SimpleNamespace(task=self.task, generation=SETTINGS)

    def _hear(self, clip: tuple[np.ndarray, int], options: dict[str, Any]) -> int:
        samples, rate = clip
        self.windows.append((round(float(samples[0]) * 100, 3), len(samples) / rate))
        self.options.append(options)
        return len(self.windows) - 1

    def generate(self, clip: tuple[np.ndarray, int], max_tokens: int, artifact: Any, scale: float, **options: Any) -> str:
        self.tokens.append(max_tokens)
        return f" window{self._hear(clip, options)}"

    def stream(self, clip: tuple[np.ndarray, int], max_tokens: int, artifact: Any, scale: float, **options: Any) -> Iterator[Token]:
        return iter(Token(token, "") for token in self.answers[self._hear(clip, options)])

    def __call__(self, clip: tuple[np.ndarray, int], artifact: Any, scale: float, *, beams: int = 1) -> str:
        return f"window {self._hear(clip, {'beams': beams})}"


def ramp(seconds: float, rate: int = 1000) -> tuple[np.ndarray, int]:
    """A sound whose samples say when they were: the value of second t is t / 100."""
    return ((np.arange(1, round(seconds * rate) + 1) / rate / 100).astype(np.float32), rate)


def run(ears: Ears, sound: Any, **options: Any) -> list[Segment]:
    return list(transcribe(ears, sound, **options))  # type: ignore[arg-type]


def test_long_sounds_are_read_in_consecutive_windows(tmp_path: Path) -> None:
    ears = Ears(tmp_path)
    found = run(ears, ramp(5.0), language="en", timestamps=False)
    assert [(round(segment.start_s, 3), round(segment.end_s, 3)) for segment in found] == [(0.0, 2.0), (2.0, 4.0), (4.0, 5.0)]
    assert [start for start, _ in ears.windows] == [0.001, 2.001, 4.001] and ears.options == [{"language": "en", "timestamps": False}] * 3
    assert text_of(found) == "window0 window1 window2"
    assert [window for _, window in ears.windows] == [2.0, 2.0, 1.0]
    ctc = Ears(tmp_path, task="ctc")
    assert text_of(run(ctc, ramp(3.0))) == "window 0 window 1"
    assert ctc.options == [{"beams": 1}] * 2
    assert len(run(ctc, ramp(1.0), beams=8)) == len(run(ctc, ramp(1.0), beams=Beams(4))) == 1
    assert ctc.options[2:] == [{"beams": 8}, {"beams": 4}]
    with pytest.raises(InputError, match="has no option 'language'"):
        run(ctc, ramp(3.0), language="fr")


def test_a_short_window_has_room_for_few_tokens(tmp_path: Path) -> None:
    """A model that repeats itself ends sooner; `max_tokens` overrules."""
    ears = Ears(tmp_path)
    run(ears, ramp(1.0))
    run(ears, ramp(1.0), max_tokens=7)
    assert ears.tokens == [24 + 50, 7]


def test_a_rest_too_short_to_hear_is_left_out_unless_it_is_all(tmp_path: Path) -> None:
    assert len(run(Ears(tmp_path), ramp(2.05), timestamps=False)) == 1 and len(run(Ears(tmp_path), ramp(0.05))) == 1


@pytest.mark.parametrize("blocks", [1, 5, 50])
def test_with_times_a_window_begins_where_the_last_segment_ended(tmp_path: Path, blocks: int) -> None:
    """The second half sentence of the first window is heard again, whole, in the second."""
    samples, rate = ramp(3.5)
    ears = Ears(tokenizer(tmp_path / "tokenizer.json"))
    ears.answers = {0: [at(0.1), 1, 2, at(1.3), at(1.3), 3], 1: [at(0.0), 3, 4, at(1.0), at(1.2), 5, at(1.9), at(2.0)], 2: [at(0.1), 6]}
    sound = Sound(rate, (part[:, None] for part in np.array_split(samples, blocks)))
    found = run(ears, sound)  # longer than a window, so the model is asked for times
    assert ears.options == [{"timestamps": True}] * 3
    assert [start for start, _ in ears.windows] == [0.001, 1.301, 3.201]
    assert [(round(segment.start_s, 3), round(segment.end_s, 3), segment.text) for segment in found] == [
        (0.1, 1.3, "w1w2"),
        (1.3, 2.3, "w3w4"),
        (2.5, 3.2, "w5"),
        (3.3, 3.5, "w6"),
    ]


def test_a_window_that_closes_nothing_still_moves_on(tmp_path: Path) -> None:
    ears = Ears(tokenizer(tmp_path / "tokenizer.json"))
    ears.answers = {0: [at(0.0), 1], 1: [at(0.0), 2, at(0.5)]}
    found = run(ears, ramp(3.0), timestamps=True)
    assert [(segment.start_s, segment.end_s, segment.text) for segment in found] == [(0.0, 2.0, "w1"), (2.0, 2.5, "w2")]


def test_silence_is_not_transcribed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert run(Ears(tmp_path), (np.zeros(3000, np.float32), 1000)) == []
    assert "the sound is silent; nothing was transcribed" in caplog.text
    samples = np.concatenate([np.zeros(2000), np.full(500, 0.3)]).astype(np.float32)
    (segment,) = run(Ears(tmp_path), (samples, 1000), timestamps=False)
    assert segment.start_s == 2.0
    with pytest.raises(InputError, match="empty"):
        run(Ears(tmp_path), (np.zeros(0, np.float32), 1000))


def test_other_bundles_are_refused(bundle_path: Path) -> None:
    with pytest.raises(InputError, match="needs a model of sound for transcription or ctc; the bundle takes array"):
        next(transcribe(Bundle(bundle_path), ramp(1.0)))


def test_rules_hold_in_a_beam_and_in_a_draw_alike() -> None:
    """Whatever is drawn under the rules, times never run back and come in pairs."""
    rules = TimedRules(Rules.of({}, Sampling()), TIMES, 1, frozenset([END]))
    generator = np.random.default_rng(7)
    for _ in range(40):
        seen: Sequence[int] = [START]
        for step in range(30):
            token = Sampling(temperature=1.5).pick(rules.apply(generator.standard_normal(VOCABULARY).astype(np.float32), seen, step == 0), generator)
            if token == END:
                break
            seen = [*seen, token]
        times = [token for token in seen[1:] if token >= FIRST]
        assert times == sorted(times) and seen[1] >= FIRST and at(0) <= seen[1] <= at(1.0)
        assert OFF not in seen

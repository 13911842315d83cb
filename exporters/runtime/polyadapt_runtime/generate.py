"""Text generation: a prompt goes in, tokens and text come out one by one.

Causal models have one graph, `model`. Encoder-decoders have two: `encoder` runs once, and its outputs go by their names
into `decoder` at every step, beside the tokens and the cache.

`generation` of a manifest: `eos_ids` end a text, `suppress_ids` are never taken, `begin_suppress_ids` not as the first token,
`start_ids` begin a decoder's text, `maximum_tokens` is what the model can hold of one, `languages` and `timestamps` say which of them can be chosen (`timestamps.py`), and
`past` {layers, heads, head_size} is the shape of the cache.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from polyadapt_runtime.beam import Beams, search
from polyadapt_runtime.decoding import TARGET, Decoding
from polyadapt_runtime.errors import InputError, ManifestError, nearest
from polyadapt_runtime.graphs import Graphs
from polyadapt_runtime.manifest import Manifest
from polyadapt_runtime.preprocess import Processor
from polyadapt_runtime.sampling import Rules, Sampling, ScoreRules
from polyadapt_runtime.text import TextReader
from polyadapt_runtime.timestamps import TimedRules, Times, start_ids
from polyadapt_runtime.writing import Token, with_text

TASKS = ("causal-lm", "seq2seq-lm", "transcription")
TEXT_TOKENS = 64  # ours: of a text whose end nobody asked for
WINDOW_TOKENS = 224  # of a window of sound: half of what Whisper's decoder has positions for

_log = logging.getLogger(__name__)


class GenerationOptions(TypedDict, total=False):
    """How a text is chosen and where it ends.

    Attributes:
        sampling: how tokens are drawn; greedy by default.
        beams: search for the most likely text instead, with so many beams or by the settings of `Beams`; its tokens come when the search is over.
        stop: texts that end the text; neither they nor what follows is given out.
        stop_ids: ids that end the text, in place of the manifest's.
        language: of a recording, where the model has a choice of them.
        timestamps: write times as tokens around what is said, where the model does; `transcribe` makes segments of them.
    """

    sampling: Sampling | None
    beams: Beams | int | None
    stop: Sequence[str]
    stop_ids: Sequence[int] | None
    language: str | None
    timestamps: bool


class Writer:
    """The loop around a graph that scores next tokens.

    Args:
        manifest: of the bundle.
        graphs: of the bundle.
        processor: reads raw input.
    """

    def __init__(self, manifest: Manifest, graphs: Graphs, processor: Processor | None) -> None:
        self._manifest, self._graphs, self._processor = manifest, graphs, processor
        self._settings = manifest.generation
        self._decoder, self._has_encoder = graphs.last, graphs.first is not graphs.last
        reader = processor.text if processor is not None else None
        if reader is None and processor is not None and "tokenizer" in processor.assets:
            reader = TextReader({"inputs": {}}, processor.assets["tokenizer"])  # a model for sounds writes text as well
        self.reader = reader

    def stream(self, raw: Any, slots: Mapping[str, Any], max_tokens: int | None, options: GenerationOptions) -> Iterator[Token]:
        """Tokens one by one, without what ends the text; see `Bundle.stream`.

        Raises:
            InputError: an empty prompt, no text where text is needed, or options that exclude each other.
            ManifestError: the bundle does not generate text.
        """
        if unknown := sorted(set(options) - set(GenerationOptions.__annotations__)):
            raise InputError(f"no option {unknown[0]!r}{nearest(unknown[0], GenerationOptions.__annotations__)}")
        sampling, beams = options.get("sampling") or Sampling(), options.get("beams")
        beams = Beams(int(beams)) if isinstance(beams, int | np.integer) else beams
        if beams is not None and sampling.temperature:
            raise InputError("a beam search draws nothing; leave temperature at 0, or leave out beams")
        stop, stop_ids = _stops(options)
        reader = self.reader if self.reader is not None and self.reader.has_tokenizer else None
        if stop and reader is None:
            raise InputError("this bundle has no tokenizer to find stop texts with; use stop_ids")
        stops = set((self._settings.get("eos_ids") or ()) if stop_ids is None else stop_ids)
        rules: ScoreRules = Rules.of(self._settings, sampling)
        begin = self._chosen_start(options)
        if options.get("timestamps"):
            rules = TimedRules(rules, Times.of(self._settings), len(begin), frozenset(stops))
        prompt, decoding = self._begin(raw, slots)
        prompt = begin or prompt
        limit = self._limit(max_tokens, len(prompt), decoding.prompted)
        if beams is not None:
            ids = iter(search(decoding, prompt, beams, rules, stops, limit))
        else:
            ids = sampled(decoding, prompt, sampling, rules, stops, limit)
        # Whoever gives a limit for a text knows of it; a transcript has an end, and the rest of what was said is lost.
        is_told = max_tokens is None or limit < max_tokens or self._hears
        return with_text(told_of_limit(ids, limit) if is_told else ids, reader, stop)

    @property
    def _hears(self) -> bool:
        return self._processor is not None and self._processor.kind == "audio"

    def _limit(self, asked: int | None, prompt: int, prompted: int) -> int:
        """The most tokens behind a prompt of some, and a learned one of some: what was asked for, or usual, within what the model can hold."""
        usual = WINDOW_TOKENS if self._hears else TEXT_TOKENS
        limit, held = usual if asked is None else asked, self._settings.get("maximum_tokens")
        if held is None:
            return limit
        room = int(held) - prompted - prompt
        if room < 1:
            learned = f" beside {prompted} learned ones" if prompted else ""
            raise InputError(f"the prompt takes {prompt} tokens, and the model holds {held}{learned} with what it writes; shorten it")
        return min(limit, room)

    def _chosen_start(self, options: GenerationOptions) -> list[int]:
        """The ids that stand before a transcript of the language and with the times that were asked for; none where nothing was."""
        language, timestamps = options.get("language"), bool(options.get("timestamps"))
        if language is None and not timestamps:
            return []
        if not self._has_encoder:
            raise InputError("language and timestamps are for models that transcribe sound; leave them out")
        return start_ids(self._settings, language, timestamps)

    def _begin(self, raw: Any, slots: Mapping[str, Any]) -> tuple[list[int], Decoding]:
        """The ids that stand before the text, and the state in which it begins."""
        memory: dict[str, Any] = {}
        past = self._empty_past()
        if self._has_encoder:
            encoder, fed = self._graphs.first, self._graphs.runners["encoder"].feeds(self._read(raw), slots)
            found = encoder.run({name: encoder.value(value) if isinstance(value, np.ndarray) else value for name, value in fed.items()})
            memory = {name: value for name, value in found.items() if name in self._decoder.inputs}
            prompt = [int(token) for token in self._settings.get("start_ids") or [0]]
        else:
            prompt = self._prompt(raw)
        if not prompt:
            raise InputError("the prompt is empty; give at least one token")
        memory |= {name: value for name, value in slots.items() if name in self._decoder.inputs}  # a bank's artifact_id: one a row, too
        reaching = {name: value for name, value in slots.items() if name in self._decoder.overridable}
        prompts = {name: value for name, value in reaching.items() if self._manifest.slots[name].kind == "prepend"}
        every = {name: value for name, value in reaching.items() if name not in prompts}
        return prompt, Decoding(self._decoder, every, prompts, memory, past)

    def _prompt(self, raw: Any) -> list[int]:
        if not isinstance(raw, str):
            return _token_ids(raw)
        if self.reader is None:
            raise InputError("this bundle does not read text; give token ids")
        return self.reader.encode(raw, cut=False)[0]

    def _read(self, raw: Any) -> Mapping[str, Any]:
        if isinstance(raw, Mapping):
            return raw
        if self._processor is None:
            raise InputError("this bundle describes no pre-processing; give a table of ready tensors")
        return self._processor.collate([self._processor(raw)])

    def _empty_past(self) -> dict[str, Any]:
        shape = self._settings.get("past")
        if not isinstance(shape, dict) or not all(isinstance(shape.get(key), int) for key in ("layers", "heads", "head_size")):
            raise ManifestError(f"this bundle does not generate text: its manifest has no generation.past (task {self._manifest.task!r})")
        known = self._decoder.inputs
        names = [f"past.{layer}.{part}" for layer in range(shape["layers"]) for part in ("key", "value")]
        tokens = (TARGET,) if self._has_encoder else ("input_ids", "attention_mask")
        if lacking := [name for name in (*names, *tokens) if name not in known]:
            raise ManifestError(f"the graph has no input {', '.join(lacking[:3])}, which generation.past promises")
        return {name: self._decoder.value(np.zeros((1, shape["heads"], 0, shape["head_size"]), known[name])) for name in names}


def _stops(options: GenerationOptions) -> tuple[tuple[str, ...], set[int] | None]:
    """Texts and ids that end a text; None for ids where the manifest's hold.

    Raises:
        InputError: they are something else.
    """
    texts: Any = options.get("stop", ())
    ids: Any = options.get("stop_ids")
    if isinstance(texts, str) or not isinstance(texts, Collection) or not all(isinstance(text, str) and text for text in texts):
        raise InputError(f"stop is a list of texts that are not empty, found {texts!r}")
    if ids is None:
        return tuple(texts), None
    ids = ids.tolist() if isinstance(ids, np.ndarray) else ids
    if isinstance(ids, str) or not isinstance(ids, Collection) or not all(isinstance(token, int | np.integer) for token in ids):
        raise InputError(f"stop_ids is a list of token ids, found {ids!r}")
    return tuple(texts), {int(token) for token in ids}


def _token_ids(raw: Any) -> list[int]:
    """A prompt of ids: whole numbers in a row.

    Raises:
        InputError: it is something else.
    """
    try:
        ids = np.asarray(raw) if isinstance(raw, list | tuple | np.ndarray) else np.zeros(0)
    except ValueError:  # rows of different lengths
        ids = np.zeros(0)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise InputError(f"a prompt is a text, or token ids in a row; found {type(raw).__name__} {str(raw)[:40]!r}")
    if (ids < 0).any():  # a graph would count them from the end of the vocabulary
        raise InputError(f"token ids are 0 or above, found {int(ids.min())}")
    return [int(token) for token in ids]


def sampled(decoding: Decoding, prompt: Sequence[int], sampling: Sampling, rules: ScoreRules, stops: set[int], max_tokens: int) -> Iterator[int]:
    """Tokens as they are drawn, or the likeliest ones, until one of `stops`."""
    generator = np.random.default_rng(sampling.seed)
    seen, new = list(prompt), np.array([prompt], np.int64)  # (1, tokens)
    for step in range(max_tokens):
        row = decoding.scores(new)[0]  # (vocabulary,)
        token = sampling.pick(rules.apply(row, seen, step == 0), generator)
        if token in stops:
            return
        yield token
        seen.append(token)
        new = np.array([[token]], np.int64)


def told_of_limit(ids: Iterator[int], limit: int) -> Iterator[int]:
    """The same tokens, and a warning where there are as many as there may be."""
    count = 0
    for token in ids:
        count += 1
        yield token
    if count and count == limit:
        warn_of_limit(limit)


def warn_of_limit(limit: int) -> None:
    """Say that a text has as many tokens as it may have, so that its end may be missing."""
    hint = "give max_tokens (infer: -o maximum_new_tokens), or shorter input where the model holds no more"
    _log.warning("the text was ended after %d tokens, the most that were allowed; %s", limit, hint)

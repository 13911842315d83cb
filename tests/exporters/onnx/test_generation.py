"""Text from bundles against transformers and against torch without caches: greedy, beams, penalties, artifacts, padding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from polyadapt.artifact import Artifact, detach
from polyadapt.families.llama.card import CARD as LLAMA
from polyadapt.families.t5.card import CARD as T5
from polyadapt.families.whisper.card import CARD as WHISPER
from polyadapt.host import Host
from polyadapt.methods.base import load_method
from polyadapt.testing.conformance import tiny_model
from polyadapt.testing.exporting import adapted_artifact
from polyadapt_onnx.exporter import export
from polyadapt_onnx.slots import example_edits, extra_groups
from polyadapt_runtime import Beams, Bundle, Sampling
from polyadapt_runtime.sampling import Rules

METHODS = {claim.card.id: claim.card for claim in Host().registry.methods.claims()}
TASKS = {"llama": "causal-lm", "t5": "seq2seq-lm", "whisper": "transcription"}
START = {"t5": [0], "whisper": [1]}
EOS = 5  # some token that tiny networks do say


class Writing:
    """A tiny model with weights, a prefix and a prompt as artifacts, its bundle, and its library."""

    def __init__(self, card: Any, folder: Path) -> None:
        self.family = card.id
        self.model = tiny_model(card, TASKS[card.id])
        self.model.generation.update({"eos_ids": [EOS]} | ({"start_ids": START[card.id]} if card.id in START else {}))
        self.artifacts = {name: adapted_artifact(load_method(METHODS[name]), self.model) for name in ("lora", "prefix", "prompt")}
        if self.family != "llama":
            self.artifacts["cross"] = self.cross()
        self.folder = export(self.model, self.artifacts, folder / "text.bundle").directory
        self.bundle = Bundle(self.folder, device="cpu", threads=1)

    def cross(self) -> Artifact:
        """Edits at the decoder's cross attention: those of keys and values act in the encoder's graph, the others in the decoder's."""
        groups = extra_groups(self.model.ports, ("decoder.*.cross.[kvq]:lowrank", "decoder.*.cross.v:scale", "decoder.*.cross:keys"))
        edits = example_edits(self.model.ports, groups, (3, 2), torch.Generator().manual_seed(4))
        return Artifact("cross", self.model.base_id, self.family, self.model.task.kind, tuple(edits))

    def raw(self, seed: int) -> Any:
        """Token ids, or a table of an encoder's tensors."""
        generator = torch.Generator().manual_seed(seed)
        if self.family == "llama":
            return torch.randint(6, 128, (5,), generator=generator).tolist()
        if self.family == "t5":
            return {"input_ids": torch.randint(6, 128, (1, 7), generator=generator).numpy(), "attention_mask": np.ones((1, 7), np.int64)}
        return {"mel": torch.randn(1, 16, 60, generator=generator).numpy()}

    def scores(self, raw: Any, said: list[int]) -> torch.Tensor:
        """Scores of the next token by a full pass of torch over everything, without a cache."""
        ids = torch.tensor([[*(raw if self.family == "llama" else START[self.family]), *said]])
        with torch.no_grad():
            if self.family == "llama":
                logits = self.model.module(input_ids=ids, attention_mask=torch.ones_like(ids))["logits"]
            else:
                logits = self.model.module(**tensors(raw), decoder_input_ids=ids)["logits"]
        return logits[0, -1]

    def generate(self, raw: Any, **options: Any) -> list[int]:
        """What transformers writes."""
        backbone: Any = self.model.backbone
        settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": EOS, "pad_token_id": 0, **options}
        with torch.no_grad():
            if self.family == "llama":
                ids = torch.tensor([raw])
                found = type(backbone).generate(backbone, ids, attention_mask=torch.ones_like(ids), **settings)[0, len(raw) :]
            elif self.family == "t5":
                found = backbone.generate(**tensors(raw), decoder_start_token_id=0, **settings)[0, 1:]
            else:
                # Whisper's own `generate` is about timestamps and 30 s windows: the library's plain one is asked, with the encoder's states given.
                from transformers import GenerationMixin
                from transformers.modeling_outputs import BaseModelOutput

                from polyadapt.families.whisper.model import encode

                states = BaseModelOutput(last_hidden_state=encode(backbone.model.encoder, torch.from_numpy(raw["mel"])))
                start = torch.tensor([START["whisper"]])
                found = GenerationMixin.generate(backbone, encoder_outputs=states, decoder_input_ids=start, **settings)[0, 1:]
        ids = found.tolist()
        return ids[: ids.index(EOS)] if EOS in ids else ids

    def scores_of_bundle(self, raw: Any, said: list[int], artifact: str | None, scale: float = 1.0) -> np.ndarray:
        """The same by the bundle's cached steps, behind the prompt and behind every token: [tokens + 1, vocabulary]."""
        prompt, decoding = self.bundle._writer._begin(raw, self.bundle._store.values(artifact, scale))
        return np.stack([decoding.scores(np.array([ids]))[0] for ids in (prompt, *([token] for token in said))])

    def write(self, raw: Any, count: int = 12, **options: Any) -> list[int]:
        """What the bundle writes."""
        return [token.id for token in self.bundle.stream(raw, count, **options)]


def tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in arrays.items()}


@pytest.fixture(scope="module", params=[LLAMA, *(pytest.param(card, marks=pytest.mark.wide) for card in (T5, WHISPER))], ids=lambda card: card.id)
def writing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Writing:
    return Writing(request.param, tmp_path_factory.mktemp("writing"))


@pytest.mark.parametrize("penalty", [1.0, 1.7])
def test_greedy_text_is_that_of_transformers(writing: Writing, penalty: float) -> None:
    said = []
    for seed in range(6):
        raw = writing.raw(seed)
        said.append(tuple(writing.write(raw, sampling=Sampling(repetition_penalty=penalty))))
        assert list(said[-1]) == writing.generate(raw, repetition_penalty=penalty), seed
    if penalty > 1:
        assert len(set(said)) > 2  # tiny networks without a penalty say one token over and over


@pytest.mark.parametrize(
    ("count", "length_penalty", "early_stopping", "penalty"),
    [(2, 1.0, False, 1.0), (4, 1.0, True, 1.0), (3, 0.0, False, 1.0), (3, 2.0, False, 1.5), (5, -1.0, False, 1.0)],
)
def test_beam_search_finds_what_transformers_finds(writing: Writing, count: int, length_penalty: float, early_stopping: bool, penalty: float) -> None:
    for seed in range(6):
        raw, beams = writing.raw(seed), Beams(count, length_penalty, early_stopping)
        expected = writing.generate(raw, num_beams=count, length_penalty=length_penalty, early_stopping=early_stopping, repetition_penalty=penalty)
        assert writing.write(raw, beams=beams, sampling=Sampling(repetition_penalty=penalty)) == expected, seed


@pytest.mark.parametrize("settings", [(0.7, None, 1.0, 1.0), (1.3, 5, 1.0, 1.0), (1.0, None, 0.6, 1.0), (0.8, 20, 0.9, 1.4), (2.0, 1000, 1e-6, 1.0)])
def test_the_distribution_of_draws_is_that_of_transformers(settings: tuple[float, int | None, float, float]) -> None:
    temperature, top_k, top_p, penalty = settings
    generator, seen = np.random.default_rng(0), [3, 17, 3, 90]
    steps: list[Any] = [RepetitionPenaltyLogitsProcessor(penalty)] if penalty != 1.0 else []
    steps += [TemperatureLogitsWarper(temperature)] + ([TopKLogitsWarper(top_k)] if top_k else []) + ([TopPLogitsWarper(top_p)] if top_p < 1 else [])
    for _ in range(20):
        scores = (3 * generator.standard_normal(128)).astype(np.float32)
        expected = LogitsProcessorList(steps)(torch.tensor([seen]), torch.from_numpy(scores)[None])[0].double().softmax(-1).numpy()
        sampling = Sampling(temperature, top_k, top_p, repetition_penalty=penalty)
        found = sampling.chances(Rules.of({}, sampling).apply(scores, seen, is_first=True))
        assert np.abs(found - expected).max() <= 1e-6 and ((found > 0) == (expected > 0)).all()


@pytest.mark.parametrize("artifact", [None, "lora", "prefix", "prompt", "cross"])
def test_cached_steps_equal_a_full_pass_of_torch(writing: Writing, artifact: str | None) -> None:
    """Scores at every step, not only what is said: prompts are fed once, prefixes always, encoders' slots to the encoder."""
    if artifact == "cross" and writing.family == "llama":
        pytest.skip("no cross attention")
    raw, said = writing.raw(3), [7, 40, 9, 22, 31] if writing.family != "whisper" else [7, 30, 9, 22, 31]
    steps = writing.scores_of_bundle(raw, said, artifact)
    plain = [writing.scores(raw, said[:count]).numpy() for count in range(len(said) + 1)]
    if artifact is not None:
        writing.artifacts[artifact].attach(writing.model)
    full = [writing.scores(raw, said[:count]).numpy() for count in range(len(said) + 1)]
    if artifact is not None:
        detach(writing.model)
        assert min(np.abs(one - other).max() for one, other in zip(full, plain, strict=True)) > 1e-2
    for found, expected in zip(steps, full, strict=True):
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_half_an_artifact_is_half_the_effect_while_writing(writing: Writing) -> None:
    """By scores at every step: what a tiny network says may be the same token over and over."""
    raw, said = writing.raw(1), [7, 30, 9, 22]
    model, artifact = writing.model, writing.artifacts["lora"]
    half = replace(artifact, edits=tuple(replace(edit, tensors={"a": edit.tensors["a"], "b": 0.5 * edit.tensors["b"]}) for edit in artifact.edits))
    assert {edit.kind for edit in half.edits} == {"lowrank"}
    expected = []
    for each in (None, half, artifact):
        if each is not None:
            each.attach(model)
        expected.append(np.stack([writing.scores(raw, said[:count]).numpy() for count in range(len(said) + 1)]))
        if each is not None:
            detach(model)
    asked = ((None, 1.0), ("lora", 0.5), ("lora", 1.0))
    found = [writing.scores_of_bundle(raw, said, name, scale) for name, scale in asked]
    largest = np.abs(expected).max()
    assert min(np.abs(expected[one] - expected[other]).max() for one, other in ((0, 1), (1, 2), (0, 2))) > 1e-2 * largest
    assert np.abs(np.stack(found) - np.stack(expected)).max() <= 1e-5 * largest
    texts = {tuple(writing.write(raw, 8, artifact=name, scale=scale, stop_ids=(), sampling=Sampling(repetition_penalty=1.7))) for name, scale in asked}
    assert len(texts) == 3


@pytest.mark.parametrize("artifact", [None, "prompt"])
def test_beams_keep_their_artifact(writing: Writing, artifact: str | None) -> None:
    """The score of the text that a beam search finds is at least that of the greedy one, by torch."""
    raw = writing.raw(2)
    texts = [writing.write(raw, 6, artifact=artifact, stop_ids=(), beams=beams) for beams in (None, Beams(4))]
    if artifact is not None:
        writing.artifacts[artifact].attach(writing.model)
    totals = [sum(float(writing.scores(raw, text[:place]).log_softmax(-1)[token]) for place, token in enumerate(text)) for text in texts]
    if artifact is not None:
        detach(writing.model)
    assert totals[1] >= totals[0] - 1e-5


def test_the_graphs_of_an_encoder_decoder(writing: Writing) -> None:
    """Each slot stands in the graph that runs its site; keys and values for cross attention come from the encoder."""
    names = {"llama": ["model"], "t5": ["encoder", "decoder"], "whisper": ["encoder", "decoder"]}[writing.family]
    manifest, sessions = writing.bundle.manifest, writing.bundle._graphs.sessions
    assert list(manifest.graphs) == list(sessions) == names and writing.bundle.selftest().ok
    held = [set(session.overridable) for session in sessions.values()]
    assert set.union(*held) == set(manifest.slots) and sum(map(len, held)) == len(manifest.slots)
    if len(names) == 2:
        assert [manifest.graphs[name].file for name in names] == ["onnx/encoder_model.onnx", "onnx/decoder_model_merged.onnx"]
        assert all(name.startswith("encoder") or ".cross.v" in name or ".cross.k" in name for name in held[0])
        assert any(".cross.v:" in name for name in held[0]) and any(".cross:keys" in name for name in held[1])
        assert {port.name for port in manifest.graphs["decoder"].inputs} >= {"decoder_input_ids", "cross.0.key", "past.1.value"}


def test_padding_of_a_source_changes_nothing(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest, writing: Writing) -> None:
    if writing.family != "t5":
        pytest.skip("the only family whose encoder takes a mask")
    raw = writing.raw(4)
    padded = {"input_ids": np.pad(raw["input_ids"], ((0, 0), (0, 3))), "attention_mask": np.pad(raw["attention_mask"], ((0, 0), (0, 3)))}
    for artifact in (None, "lora", "prefix", "prompt"):
        assert writing.write(padded, artifact=artifact) == writing.write(raw, artifact=artifact)
    said, slots = [7, 40], writing.bundle._store.values("prompt", 1.0)
    found = []
    for given in (raw, padded):
        prompt, decoding = writing.bundle._writer._begin(given, slots)
        found.append([decoding.scores(np.array([ids]))[0] for ids in (prompt, said[:1], said[1:])])
    assert np.abs(np.subtract(*found)).max() <= 1e-5 * np.abs(found[0]).max()

"""Prompts in the stream: the sequence is longer inside and nowhere else, padded texts answer as alone, deep ones overwrite."""

from __future__ import annotations

import copy

import pytest
import torch

from polyadapt.edits import Edit, Lowered, attachments_of
from polyadapt.errors import UserError
from polyadapt.families.ast.card import CARD as AST
from polyadapt.families.bert.card import CARD as BERT
from polyadapt.families.clip.card import CARD as CLIP
from polyadapt.families.gpt2.card import CARD as GPT2
from polyadapt.families.llama.card import CARD as LLAMA
from polyadapt.families.t5.card import CARD as T5
from polyadapt.families.vit.card import CARD as VIT
from polyadapt.families.wav2vec2.card import CARD as WAV2VEC2
from polyadapt.families.wav2vec2_torchaudio.card import CARD as TORCHAUDIO
from polyadapt.families.whisper.card import CARD as WHISPER
from polyadapt.model import Model
from polyadapt.testing.conformance import example_of, tiny_model

LENGTH = 3


def tokens(model: Model, site: str, seed: int = 5, length: int = LENGTH) -> torch.Tensor:
    return torch.randn(length, model.ports.streams[site].width, generator=torch.Generator().manual_seed(seed))


def prompted(model: Model, *sites: str, length: int = LENGTH) -> None:
    edits = [Edit(site, "prepend", {"tokens": tokens(model, site, seed, length)}) for seed, site in enumerate(sites)]
    attachments_of(model.module, model.ports, model.backbone).add("prompt", Lowered(edits))


def run(model: Model, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        outputs: dict[str, torch.Tensor] = model.module(**inputs)
    return outputs


CASES = [
    *((VIT, task) for task in ("features", "classification")),
    *((AST, task) for task in ("features", "classification")),
    (BERT, "features"),
    (CLIP, "image-text"),
    *((card, task) for card in (GPT2, LLAMA) for task in ("causal-lm", "classification")),
    (T5, "seq2seq-lm"),
    *((card, task) for card in (WAV2VEC2, TORCHAUDIO) for task in ("ctc", "features")),
    *((WHISPER, task) for task in ("transcription", "features")),
]


@pytest.mark.parametrize(("card", "task"), CASES, ids=[f"{card.id}-{task}" for card, task in CASES])
def test_outputs_keep_their_lengths_and_change(card: object, task: str) -> None:
    model = tiny_model(card, task)  # type: ignore[arg-type]
    inputs = example_of(model)
    before = run(model, **inputs)
    for site in [site for site, port in model.ports.streams.items() if port.index == 0]:
        prompted(model, site)
        after = run(model, **inputs)
        attachments_of(model.module).remove_all()
        assert {name: value.shape for name, value in after.items()} == {name: value.shape for name, value in before.items()}
        assert any(float((after[name] - before[name]).abs().max()) > 1e-3 for name in before), site
    assert all(torch.equal(value, before[name]) for name, value in run(model, **inputs).items())


TEXTS = torch.randint(1, 60, (3, 8), generator=torch.Generator().manual_seed(5))
LENGTHS = (8, 6, 3)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("card", "task"), [(GPT2, "causal-lm"), (LLAMA, "causal-lm"), (GPT2, "classification"), (LLAMA, "classification")], ids=lambda value: getattr(value, "id", value)
)
def test_padded_texts_answer_as_alone_behind_a_prompt(card: object, task: str, side: str) -> None:
    model = tiny_model(card, task)  # type: ignore[arg-type]
    prompted(model, "tokens")
    places = torch.arange(8)
    real = torch.tensor(LENGTHS)[:, None]
    mask = (places < real if side == "right" else places >= 8 - real).to(torch.int64)
    together = run(model, input_ids=TEXTS, attention_mask=mask)
    for row, length in enumerate(LENGTHS):
        kept = slice(0, length) if side == "right" else slice(8 - length, 8)
        alone = run(model, input_ids=TEXTS[row : row + 1, kept], attention_mask=torch.ones(1, length, dtype=torch.int64))
        for name, value in alone.items():
            found = together[name][row, kept] if name == "logits" and task == "causal-lm" else together[name][row]
            assert float((found - value[0]).abs().max()) < 3e-6 * float(value.abs().max()), (name, length)


def test_padded_texts_answer_as_alone_in_an_encoder() -> None:
    model = tiny_model(BERT)
    prompted(model, "tokens")
    mask = (torch.arange(8) < torch.tensor(LENGTHS)[:, None]).to(torch.int64)
    together = run(model, input_ids=TEXTS, attention_mask=mask)["features"]
    for row, length in enumerate(LENGTHS):
        alone = run(model, input_ids=TEXTS[row : row + 1, :length], attention_mask=torch.ones(1, length, dtype=torch.int64))["features"]
        assert float((together[row] - alone[0]).abs().max()) < 3e-6 * float(alone.abs().max())


def test_padded_texts_answer_as_alone_in_a_causal_encoder() -> None:
    """CLIP's text tower is given a mask only where something is padded."""
    model = tiny_model(CLIP)
    site = next(site for site, port in model.ports.streams.items() if port.index == 0 and site.startswith("text"))
    prompted(model, site)
    pixels = example_of(model)["image"][:1]
    text = torch.tensor([[5, 6, 7, 39]])
    alone = run(model, image=pixels, input_ids=text, attention_mask=torch.ones_like(text))
    padded = torch.nn.functional.pad(text, (0, 2), value=39)
    together = run(model, image=pixels, input_ids=padded, attention_mask=(torch.arange(6) < 4).long()[None])
    for name, value in alone.items():
        assert float((together[name] - value).abs().max()) < 3e-6 * float(value.abs().max()), name


def test_real_tokens_start_behind_the_prompt_as_in_peft() -> None:
    """A prompt made of word embeddings is the same as those words in front of the text: positions count on."""
    model = tiny_model(LLAMA, "causal-lm")
    words = torch.tensor([7, 11, 13])
    ids = TEXTS[:, :5]
    longer = torch.cat([words.expand(3, -1), ids], dim=1)
    expected = run(model, input_ids=longer, attention_mask=torch.ones_like(longer))["logits"][:, 3:]
    rows = model.backbone.get_input_embeddings().weight.detach()[words]
    attachments_of(model.module, model.ports, model.backbone).add("prompt", Lowered([Edit("tokens", "prepend", {"tokens": rows})]))
    found = run(model, input_ids=ids, attention_mask=torch.ones_like(ids))["logits"]
    assert float((found - expected).abs().max()) < 3e-6 * float(expected.abs().max())


def test_prompts_of_a_vit_by_hand() -> None:
    """[class, P, patches] through the blocks, P overwritten before block 1, cut off behind the last (VPT-deep)."""
    model = tiny_model(VIT, "features")
    vit = model.backbone
    image = example_of(model)["image"]
    first, second = tokens(model, "tokens", 0), tokens(model, "block.1.tokens", 1)
    with torch.no_grad():
        x = vit.norm_pre(vit._pos_embed(vit.patch_embed(image)))  # (B, 1 + N, D)
        x = torch.cat([x[:, :1], first.expand(len(x), -1, -1), x[:, 1:]], dim=1)  # (B, 1 + P + N, D)
        shallow = deep = vit.blocks[0](x)
        deep = torch.cat([deep[:, :1], second.expand(len(x), -1, -1), deep[:, 1 + LENGTH :]], dim=1)
        expected = {}
        for name, hidden in (("shallow", shallow), ("deep", deep)):
            hidden = vit.blocks[1](hidden)
            expected[name] = vit.forward_head(vit.norm(torch.cat([hidden[:, :1], hidden[:, 1 + LENGTH :]], dim=1)), pre_logits=True)
    prompted(model, "tokens")
    assert torch.allclose(run(model, image=image)["features"], expected["shallow"], rtol=0, atol=1e-6)
    attachments_of(model.module).remove_all()
    prompted(model, "tokens", "block.1.tokens")
    assert torch.allclose(run(model, image=image)["features"], expected["deep"], rtol=0, atol=1e-6)
    assert float((expected["deep"] - expected["shallow"]).abs().max()) > 1e-3


@pytest.mark.parametrize(("card", "task"), [(WAV2VEC2, "features"), (WHISPER, "features"), (AST, "features")], ids=lambda value: getattr(value, "id", value))
def test_deep_prompts_overwrite_in_every_family(card: object, task: str) -> None:
    """What the prompt of block 0 became is lost at block 1: only through other tokens does it still act."""
    model = tiny_model(card, task)  # type: ignore[arg-type]
    port = next(port for port in model.ports.streams.values() if port.index == 1)
    seen: list[torch.Tensor] = []
    handle = port.blocks[1].register_forward_pre_hook(lambda module, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True)
    first = next(site for site, other in model.ports.streams.items() if other.index == 0)
    prompted(model, first, port.site)
    inputs = example_of(model)
    run(model, **inputs)
    handle.remove()
    handle = port.blocks[1].register_forward_pre_hook(lambda module, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True)
    run(model, **inputs)  # this hook stands behind the engine's
    handle.remove()
    before, after = seen
    place = slice(port.offset, port.offset + LENGTH)
    assert before.shape == after.shape
    assert torch.equal(after[:, place], tokens(model, port.site, 1).expand(len(after), -1, -1))
    assert not torch.equal(before[:, place], after[:, place])
    outside = [index for index in range(after.shape[1]) if not place.start <= index < place.stop]
    assert torch.equal(before[:, outside], after[:, outside])
    attachments_of(model.module).remove_all()


def test_blocks_see_the_longer_stream_and_pooling_does_not() -> None:
    model = tiny_model(WAV2VEC2, "ctc")
    port = model.ports.streams["tokens"]
    lengths: dict[str, list[int]] = {"plain": [], "prompted": []}
    audio = example_of(model)["audio"]
    for name in lengths:
        if name == "prompted":
            prompted(model, "tokens", length=4)
        handles = [
            block.register_forward_hook(lambda module, args, output, name=name: lengths[name].append((output[0] if isinstance(output, tuple) else output).shape[1]))
            for block in port.blocks
        ]
        logits = run(model, audio=audio)["logits"]
        for handle in handles:
            handle.remove()
        assert logits.shape[1] == 12  # 4000 samples are 12 frames, whatever stands in front
    # The engine's cut stands before this test's hook at the last block.
    assert lengths["plain"] == [12, 12] and lengths["prompted"] == [16, 12]
    attachments_of(model.module).remove_all()


def test_padding_stays_hidden_behind_a_prompt() -> None:
    """Masks that blocks receive are widened: what stands in the padding of a clip changes nothing of the clip."""
    model = tiny_model(WAV2VEC2, "features")
    encoder = model.backbone.encoder
    frames = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(9) < torch.tensor([[9], [5]])).to(torch.int64)
    other = frames.clone()
    other[1, 5:] = 100.0
    prompted(model, "tokens")
    with torch.no_grad():
        one, two = (encoder(given.clone(), attention_mask=mask).last_hidden_state for given in (frames, other))
        unmasked = encoder(other.clone()).last_hidden_state
    assert one.shape == frames.shape
    assert torch.equal(one[1, :5], two[1, :5]) and torch.equal(one[0], two[0])
    assert not torch.allclose(unmasked[1, :5], two[1, :5])
    attachments_of(model.module).remove_all()


def test_several_prompts_stand_one_behind_the_other() -> None:
    model = tiny_model(BERT)
    inputs = example_of(model)
    both = torch.cat([tokens(model, "tokens", 2), tokens(model, "tokens", 1)])
    attachments = attachments_of(model.module, model.ports, model.backbone)
    attachments.add("first", Lowered([Edit("tokens", "prepend", {"tokens": tokens(model, "tokens", 1)})]))
    attachments.add("second", Lowered([Edit("tokens", "prepend", {"tokens": tokens(model, "tokens", 2)})]), activate=False)
    attachments.add("both", Lowered([Edit("tokens", "prepend", {"tokens": both})]), activate=False)
    attachments.activate("first", "second")
    found = run(model, **inputs)["features"]
    attachments.activate("both")
    assert torch.equal(found, run(model, **inputs)["features"])
    attachments.remove_all()


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize(
    ("card", "task", "sites"),
    [
        (GPT2, "causal-lm", ("tokens",)),
        (LLAMA, "causal-lm", ("tokens",)),
        (T5, "seq2seq-lm", ("encoder.tokens", "decoder.tokens")),
        (WHISPER, "transcription", ("decoder.tokens",)),
    ],
    ids=lambda value: getattr(value, "id", None),
)
def test_a_cache_keeps_the_prompt_that_went_into_it(card: object, task: str, sites: tuple[str, ...], beams: int) -> None:
    """transformers' own generation: with a cache every step gets one token, without it the whole text; both say the same."""
    model = tiny_model(card, task)  # type: ignore[arg-type]
    from transformers import GenerationMixin

    prompted(model, *sites)
    if task == "transcription":
        config = model.backbone.config
        inputs = {"input_features": torch.randn(2, config.num_mel_bins, 2 * config.max_source_positions, generator=torch.Generator().manual_seed(3))}
    else:
        inputs = {"input_ids": TEXTS[:2], "attention_mask": (torch.arange(8) >= torch.tensor([[0], [2]])).to(torch.int64)}  # padded on the left
    settings = {"max_new_tokens": 6, "do_sample": False, "num_beams": beams, "output_scores": True, "return_dict_in_generate": True, "eos_token_id": None, "pad_token_id": 0}
    with torch.no_grad():
        whole, cached = (GenerationMixin.generate(model.backbone, **inputs, **settings, use_cache=use_cache) for use_cache in (False, True))
    assert torch.equal(cached.sequences, whole.sequences)
    for found, expected in zip(cached.scores, whole.scores, strict=True):
        assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_a_copy_of_a_cache_goes_on_and_another_prompt_is_refused() -> None:
    model = tiny_model(LLAMA, "causal-lm")
    ids = TEXTS[:, :6]
    prompted(model, "tokens")
    with torch.no_grad():
        expected = model.backbone(input_ids=ids).logits[:, 4:]
        cache = model.backbone(input_ids=ids[:, :4], use_cache=True).past_key_values
        found = model.backbone(input_ids=ids[:, 4:], past_key_values=copy.deepcopy(cache)).logits
        again = model.backbone(input_ids=ids[:, 4:], past_key_values=copy.deepcopy(cache), attention_mask=torch.ones_like(ids)).logits
    assert cache.get_seq_length() == 4 + LENGTH
    for value in (found, again):
        assert float((value - expected).abs().max()) < 3e-6 * float(expected.abs().max())
    attachments_of(model.module).remove_all()
    prompted(model, "tokens", length=LENGTH + 2)
    with pytest.raises(UserError, match="the cache holds a prompt of 3 tokens, and the active one has 5; begin with an empty cache"):
        model.backbone(input_ids=ids[:, 4:], past_key_values=cache)


def test_a_cache_of_fixed_size_has_no_room_for_a_prompt() -> None:
    model = tiny_model(LLAMA, "causal-lm")
    prompted(model, "tokens")
    with pytest.raises(UserError, match="a StaticCache of fixed size has no room for a prompt; generate with a cache that grows"), torch.no_grad():
        model.backbone.generate(input_ids=TEXTS[:2], max_new_tokens=3, do_sample=False, cache_implementation="static")

"""Generation with a cache against a numpy model without one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from polyadapt_runtime import Beams, Bundle, InputError, ManifestError, Sampling, Token
from polyadapt_runtime.seal import sealed

VOCABULARY, WIDTH = 11, 8
SEED = 1  # with it the three kinds of artifacts say four different texts
PROMPT, PREFIX, QUERY = "tokens:prepend", "block.0.attn:keys", "block.0.attn.q:lowrank"
SLOTS: dict[str, tuple[list[int | str], list[int]]] = {
    f"{PROMPT}.tokens": (["p", WIDTH], [0, WIDTH]),
    f"{PREFIX}.k": ([1, "p", WIDTH], [1, 0, WIDTH]),
    f"{PREFIX}.v": ([1, "p", WIDTH], [1, 0, WIDTH]),
    f"{QUERY}.a": ([WIDTH, "r"], [WIDTH, 0]),
    f"{QUERY}.b": (["r", WIDTH], [0, WIDTH]),
}
# One attention layer with one head; a learned prompt enters before it, a prefix inside it. The scores are not-a-number
# unless the mask covers exactly what is cached and what is new, without the prompt that enters now.
GRAPH = f"""
agraph (int64[batch, tokens] input_ids, int64[batch, total] attention_mask, float[batch, 1, past, {WIDTH}] past.0.key, float[batch, 1, past, {WIDTH}] past.0.value)
    => (float[batch, tokens, {VOCABULARY}] logits, float[batch, 1, all, {WIDTH}] present.0.key, float[batch, 1, all, {WIDTH}] present.0.value)
{{
    words = Gather(E, input_ids)
    prompt = Unsqueeze("{PROMPT}.tokens", axis0)
    x = Concat <axis = 1> (prompt, words)
    q0 = MatMul(x, Wq)
    low = MatMul(x, "{QUERY}.a")
    delta = MatMul(low, "{QUERY}.b")
    q1 = Add(q0, delta)
    k1 = MatMul(x, Wk)
    v1 = MatMul(x, Wv)
    q = Unsqueeze(q1, axis1)
    k = Unsqueeze(k1, axis1)
    v = Unsqueeze(v1, axis1)
    present.0.key = Concat <axis = 2> (past.0.key, k)
    present.0.value = Concat <axis = 2> (past.0.value, v)
    prefix_k = Unsqueeze("{PREFIX}.k", axis0)
    prefix_v = Unsqueeze("{PREFIX}.v", axis0)
    keys = Concat <axis = 2> (prefix_k, present.0.key)
    values = Concat <axis = 2> (prefix_v, present.0.value)
    keys_t = Transpose <perm = [0, 1, 3, 2]> (keys)
    scores = MatMul(q, keys_t)
    query_shape = Shape <start = 1, end = 2> (x)
    key_shape = Shape <start = 2, end = 3> (keys)
    square = Concat <axis = 0> (query_shape, key_shape)
    low_value = ConstantOfShape <value = float[1] {{-10000}}> (square)
    before = Sub(key_shape, query_shape)
    first_hidden = Add(before, unit)
    hidden_scalar = Squeeze(first_hidden, axis0)
    hidden = Trilu <upper = 1> (low_value, hidden_scalar)
    seen = Add(scores, hidden)
    chances = Softmax(seen)
    mixed = MatMul(chances, values)
    h1 = Squeeze(mixed, axis1)
    prompt_length = Shape <start = 0, end = 1> ("{PROMPT}.tokens")
    h = Slice(h1, prompt_length, far, unit)
    read = MatMul(h, Wo)
    mask_length = Shape <start = 1, end = 2> (attention_mask)
    present_length = Shape <start = 2, end = 3> (present.0.key)
    lacking = Sub(present_length, mask_length)
    wrong = Sub(lacking, prompt_length)
    wrong_float = Cast <to = 1> (wrong)
    square_wrong = Mul(wrong_float, wrong_float)
    negative = Neg(square_wrong)
    poison = Sqrt(negative)
    logits = Add(read, poison)
}}
"""


def constants() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(SEED)
    weights = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in (("E", (VOCABULARY, WIDTH)), ("Wo", (WIDTH, VOCABULARY)))}
    weights |= {name: (generator.standard_normal((WIDTH, WIDTH)) / 5).astype(np.float32) for name in ("Wq", "Wk", "Wv")}
    return weights | {"axis0": np.array([0], np.int64), "axis1": np.array([1], np.int64), "unit": np.array([1], np.int64), "far": np.array([1 << 40], np.int64)}


def reference(ids: list[int], slots: dict[str, np.ndarray]) -> np.ndarray:
    """Scores of the next token by one pass over everything, in float64."""
    w = {name: value.astype(np.float64) for name, value in constants().items()}
    s = {name: slots.get(name, np.zeros(default)).astype(np.float64) for name, (_, default) in SLOTS.items()}
    x = np.concatenate([s[f"{PROMPT}.tokens"], w["E"][ids]])
    q = x @ w["Wq"] + x @ s[f"{QUERY}.a"] @ s[f"{QUERY}.b"]
    k, v = (np.concatenate([s[f"{PREFIX}.{part}"][0], x @ w[f"W{part}"]]) for part in ("k", "v"))
    scores = np.exp(q[-1] @ k.T)  # the last token sees everything
    out: np.ndarray = (scores / scores.sum()) @ v @ w["Wo"]
    return out


def adapter(seed: int = 3) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    shapes = {f"{PROMPT}.tokens": (2, WIDTH), f"{PREFIX}.k": (1, 3, WIDTH), f"{PREFIX}.v": (1, 3, WIDTH), f"{QUERY}.a": (WIDTH, 2), f"{QUERY}.b": (2, WIDTH)}
    return {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def tokenizer_file() -> bytes:
    words = {chr(ord("a") + index): index for index in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.Fuse()
    return str(tokenizer.to_str()).encode()


def dotted_graph(kit: Any, text: str, *rest: Any) -> Any:
    """A graph whose inputs and outputs have dots in their names, which onnx's text form does not take."""
    dotted = [name for name in ("past.0.key", "past.0.value", "present.0.key", "present.0.value", "cross.heard") if name in text]
    for name in dotted:
        text = text.replace(name, name.replace(".", "_"))
    codes = {name.replace(".", "_"): name for name in dotted}
    model = kit.graph(text, *rest)
    for port in (*model.graph.input, *model.graph.output):
        port.name = codes.get(port.name, port.name)
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = codes.get(name, name)
    return model


@pytest.fixture(scope="module")
def bundle(kit: Any, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    made = kit.classifier()
    defaults = {name: np.zeros(default, np.float32) for name, (_, default) in SLOTS.items()}
    made.model = dotted_graph(kit, GRAPH, constants(), defaults, {name: shape for name, (shape, _) in SLOTS.items()})
    made.slots = SLOTS
    ids = [{"name": name, "dtype": "int64", "shape": ["batch", size]} for name, size in (("input_ids", "tokens"), ("attention_mask", "past+tokens"))]
    cache = [{"name": f"past.0.{part}", "dtype": "float32", "shape": ["batch", 1, "past", WIDTH]} for part in ("key", "value")]
    made.manifest.update(
        task={"kind": "causal-lm", "labels": [], "metric": "", "details": {}},
        inputs=ids + cache,
        outputs=[],
        preprocess={"kind": "text", "tokenizer": "tokenizer", "maximum_tokens": 3, "pad_id": 0, "inputs": {"ids": "input_ids", "mask": "attention_mask"}},
        postprocess={"kind": "causal-lm"},
        generation={"eos_ids": [], "past": {"layers": 1, "heads": 1, "head_size": WIDTH}},
    )
    made.assets = {"tokenizer.json": tokenizer_file()}
    full = adapter()
    made.artifacts = {"all": full, "prompt": {name: value for name, value in full.items() if name.startswith(PROMPT)}}
    made.artifacts["prefix"] = {name: value for name, value in full.items() if name.startswith(PREFIX)}
    return Bundle(kit.write(tmp_path_factory.mktemp("lm") / "lm.bundle", made), device="cpu", threads=1)


@pytest.mark.parametrize("artifact", [None, "prompt", "prefix", "all"])
def test_cached_steps_equal_a_full_pass(bundle: Bundle, artifact: str | None) -> None:
    groups = {None: (), "all": (PROMPT, PREFIX, QUERY), "prompt": (PROMPT,), "prefix": (PREFIX,)}[artifact]
    slots = {name: value for name, value in adapter().items() if name.startswith(groups)}
    ids = [3, 1, 4, 1, 5]
    expected = list(ids)
    for _ in range(12):
        expected.append(int(reference(expected, slots).argmax()))
    assert [token.id for token in bundle.stream(ids, 12, artifact)] == expected[5:]


@pytest.mark.parametrize("artifact", [None, "prompt", "prefix", "all"])
def test_bound_outputs_give_the_same_text(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, artifact: str | None) -> None:
    """What runs on a GPU, run on the CPU: slots go in and caches come out by binding, and stay where they are."""
    expected, session = list(bundle.stream([3, 1, 4, 1, 5], 12, artifact)), bundle._session
    bound: list[int] = []

    def run(values: dict[str, Any]) -> dict[str, Any]:
        bound.append(len(values))
        return dict(zip(session.outputs, session.run_bound(session.outputs, values, "cpu"), strict=True))

    monkeypatch.setattr(session, "run", run)
    assert list(bundle.stream([3, 1, 4, 1, 5], 12, artifact)) == expected and len(bound) == 12


def test_artifacts_change_what_is_said(bundle: Bundle) -> None:
    said = {name: tuple(token.id for token in bundle.stream([3, 1, 4], 12, name)) for name in (None, "prompt", "prefix", "all")}
    assert len(set(said.values())) == 4


def test_text_goes_in_and_comes_out_whole(bundle: Bundle) -> None:
    # Longer than maximum_tokens = 3: a prompt is never cut.
    ids = [3, 1, 4, 1, 5]
    tokens = list(bundle.stream("d b e b f", 6))
    assert tokens == list(bundle.stream(ids, 6)) and all(isinstance(token, Token) for token in tokens)
    assert "".join(token.text for token in tokens) == bundle.generate("d b e b f", 6) == "".join(chr(ord("a") + token.id) for token in tokens)
    assert bundle("d b e b f", "all") == bundle.generate("d b e b f", 64, "all")


def test_a_stop_id_ends_the_text(bundle: Bundle) -> None:
    ids = [token.id for token in bundle.stream([3, 1, 4], 10)]
    stop = ids[4]
    for given in ([stop], {stop}, np.array([stop])):
        assert [token.id for token in bundle.stream([3, 1, 4], 10, stop_ids=given)] == ids[: ids.index(stop)]  # type: ignore[arg-type]


def test_sampling_follows_its_seed_and_its_limits(bundle: Bundle) -> None:
    def draw(**settings: Any) -> list[int]:
        return [token.id for token in bundle.stream([3, 1, 4], 10, sampling=Sampling(**settings))]

    greedy = [token.id for token in bundle.stream([3, 1, 4], 10)]
    assert draw(temperature=2.0, seed=1) == draw(temperature=2.0, seed=1) != draw(temperature=2.0, seed=2)
    assert draw(temperature=2.0, top_k=1, seed=1) == greedy
    assert draw(temperature=2.0, top_p=1e-9, seed=1) == greedy


def test_draws_have_the_chances_they_should(bundle: Bundle) -> None:
    scores = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))[[2, 0, 3, 1]]
    generator = np.random.default_rng(0)
    for sampling, chances in (
        (Sampling(1.0), [0.15, 0.5, 0.05, 0.3]),
        (Sampling(1.0, top_k=2), [0, 0.625, 0, 0.375]),
        (Sampling(1.0, top_p=0.79), [0, 0.625, 0, 0.375]),
        (Sampling(1.0, top_p=0.81), [0.15 / 0.95, 0.5 / 0.95, 0, 0.3 / 0.95]),
        (Sampling(0.5), np.array([0.15, 0.5, 0.05, 0.3]) ** 2 / 0.365),
    ):
        counts = np.bincount([sampling.pick(scores, generator) for _ in range(4000)], minlength=4)
        # Four standard deviations of a binomial count of 4000.
        assert (np.abs(counts / 4000 - chances) <= 4 * np.sqrt(np.asarray(chances) * (1 - np.asarray(chances)) / 4000)).all()


def best_of_all(ids: list[int], length: int, length_penalty: float, stop: int) -> list[int]:
    """The text with the best score among all texts of at most `length` tokens."""

    def grow(text: list[int], score: float) -> list[tuple[float, list[int]]]:
        if text and (text[-1] == stop or len(text) == length):
            return [(score / len(text) ** length_penalty, text)]
        scores = reference(ids + text, {})
        logs = scores - scores.max() - np.log(np.exp(scores - scores.max()).sum())
        return [found for token in range(VOCABULARY) for found in grow([*text, token], score + logs[token])]

    best = max(grow([], 0.0))[1]
    return best[:-1] if best[-1] == stop else best


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
def test_a_wide_enough_beam_finds_the_best_of_all_texts(bundle: Bundle, length_penalty: float) -> None:
    for stop in (2, 9):
        beams = Beams(VOCABULARY**2, length_penalty)  # of three tokens: no text is ever dropped
        found = [token.id for token in bundle.stream([3, 1, 4], 3, beams=beams, stop_ids=[stop])]
        assert found == best_of_all([3, 1, 4], 3, length_penalty, stop)


def test_one_beam_is_greedy_and_prompts_stay_with_every_beam(bundle: Bundle) -> None:
    for name in (None, "prompt", "all"):
        greedy = [token.id for token in bundle.stream([3, 1, 4], 10, name, stop_ids=())]
        assert [token.id for token in bundle.stream([3, 1, 4], 10, name, beams=Beams(1), stop_ids=())] == greedy
    assert list(bundle.stream([3, 1, 4], 6, beams=3)) == list(bundle.stream([3, 1, 4], 6, beams=Beams(3)))
    with pytest.raises(InputError, match="draws nothing"):
        bundle.stream([3, 1, 4], beams=Beams(2), sampling=Sampling(1.0))


def test_a_stop_text_is_not_given_out(bundle: Bundle) -> None:
    whole = bundle.generate("d b e", 10)
    for size in (1, 2, 3):
        stop = whole[4 : 4 + size]
        assert bundle.generate("d b e", 10, stop=[stop]) == whole[: whole.index(stop)]
        assert bundle.generate("d b e", 10, stop=[stop], beams=Beams(1)) == whole[: whole.index(stop)]
    assert bundle.generate("d b e", 10, stop=["never"]) == whole
    with pytest.raises(InputError, match="stop is a list of texts"):
        bundle.generate("d b e", stop="abc")


def test_wrong_calls_say_so(bundle: Bundle, bundle_path: Path) -> None:
    with pytest.raises(InputError, match="empty"):
        bundle.generate("")
    with pytest.raises(InputError, match="no option 'stops'; did you mean 'stop'"):
        bundle.generate("d b e", stops=["x"])  # type: ignore[call-arg]
    for settings, match in (({"repetition_penalty": 0.0}, "repetition_penalty is above 0"), ({"count": 0}, "at least 1 text")):
        with pytest.raises(InputError, match=match):
            (Beams if "count" in settings else Sampling)(**settings)
    for settings in ({"temperature": -1.0}, {"top_p": 0.0}, {"top_k": 0}):
        with pytest.raises(InputError, match="temperature is 0 or above"):
            Sampling(**settings)
    for seed in (-1, 1.5, True):
        with pytest.raises(InputError, match="seed is a whole number, 0 or above"):
            Sampling(seed=seed)  # type: ignore[arg-type]
    for prompt in (5, None, ("a", "b"), np.array([1.7, 2.2]), [[1], [2, 3]]):
        with pytest.raises(InputError, match="a prompt is a text, or token ids in a row; found"):
            bundle.generate(prompt)
    for stop in ([1], 2):
        with pytest.raises(InputError, match=f"stop is a list of texts that are not empty, found {re.escape(repr(stop))}"):
            bundle.generate("d b e", stop=stop)  # type: ignore[arg-type]
    for stop_ids in (2, np.array(2), "a", ["a"], [1.5]):
        with pytest.raises(InputError, match="stop_ids is a list of token ids, found "):
            bundle.generate("d b e", stop_ids=stop_ids)  # type: ignore[arg-type]
    assert bundle.generate("d b e", beams=np.int64(2)) == bundle.generate("d b e", beams=2)  # type: ignore[arg-type]
    for write in (Bundle(bundle_path, device="cpu").generate, lambda prompt: list(Bundle(bundle_path, device="cpu").stream(prompt))):
        with pytest.raises(ManifestError, match="does not generate text"):
            write([1, 2])


EAR = """
agraph (float[batch, samples] audio) => (float[batch, 1] encoder_hidden_states, float[batch, 1] cross.heard)
{
    encoder_hidden_states = ReduceMean(audio, axis1)
    cross.heard = Mul(encoder_hidden_states, "head:scale.g")
}
"""
# The sum of the embeddings of all tokens, the cached ones included, and of what was heard.
MOUTH = f"""
agraph (int64[batch, tokens] decoder_input_ids, float[batch, 1] cross.heard, float[batch, 1, past, {WIDTH}] past.0.key, float[batch, 1, past, {WIDTH}] past.0.value)
    => (float[batch, tokens, {VOCABULARY}] logits, float[batch, 1, all, {WIDTH}] present.0.key, float[batch, 1, all, {WIDTH}] present.0.value)
{{
    words = Gather(E, decoder_input_ids)
    wide = Unsqueeze(words, axis1)
    present.0.key = Concat <axis = 2> (past.0.key, wide)
    present.0.value = Concat <axis = 2> (past.0.value, wide)
    before4 = ReduceSum(past.0.key, axis2)
    before = Squeeze(before4, axis1)
    new = CumSum(words, position_axis)
    said = Add(new, before)
    heard_wide = Unsqueeze(cross.heard, axis1)
    both = Add(said, heard_wide)
    scaled = Mul(both, "tail:scale.g")
    logits = MatMul(scaled, Wo)
}}
"""


@pytest.fixture(scope="module")
def listener(kit: Any, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """An encoder-decoder of two graphs; the artifact `loud` doubles what the encoder hears and turns the decoder's scores around."""
    places = {"axis2": np.array([2], np.int64), "position_axis": np.array(1, np.int64)}
    made = kit.classifier()
    made.model = dotted_graph(kit, MOUTH, constants() | places, {"tail:scale.g": np.ones(1, np.float32)}, {"tail:scale.g": [1]})
    made.slots = {"head:scale.g": ([1], [1]), "tail:scale.g": ([1], [1])}
    made.artifacts = {"loud": {"head:scale.g": np.array([2.0], np.float32), "tail:scale.g": np.array([-1.0], np.float32)}}
    audio_case, decoder_case = np.full((2, 9), 0.5, np.float32), {"decoder_input_ids": np.array([[4]]), "cross.heard": np.ones((1, 1), np.float32)}
    decoder_case |= {f"past.0.{part}": np.zeros((1, 1, 0, WIDTH), np.float32) for part in ("key", "value")}
    made.cases = [{"name": "encoder/loud/0", "artifact": "loud", "graph": "encoder"}, {"name": "decoder/loud/0", "artifact": "loud", "graph": "decoder"}]
    made.recorded = {"encoder/loud/0/in/audio": audio_case, "encoder/loud/0/out/cross.heard": np.ones((2, 1), np.float32)}
    made.recorded |= {f"decoder/loud/0/in/{name}": value for name, value in decoder_case.items()}
    made.recorded["decoder/loud/0/out/logits"] = -(constants()["E"][[[4]]] + 1) @ constants()["Wo"]
    audio = {"name": "audio", "dtype": "float32", "shape": ["batch", "samples"]}
    ids, memory = {"name": "decoder_input_ids", "dtype": "int64", "shape": ["batch", "tokens"]}, {"name": "cross.heard", "dtype": "float32", "shape": ["batch", 1]}
    cache = [{"name": f"past.0.{part}", "dtype": "float32", "shape": ["batch", 1, "past", WIDTH]} for part in ("key", "value")]
    made.manifest.update(
        task={"kind": "transcription", "labels": [], "metric": "", "details": {}},
        inputs=[ids, memory, *cache],
        outputs=[],
        preprocess={"kind": "audio", "input": "audio", "sample_rate_hz": 16000},
        postprocess={"kind": "transcription"},
        generation={
            "eos_ids": [1],
            "start_ids": [2, 3],
            "suppress_ids": [7],
            "languages": {"x": 3, "y": 5},
            "begin_suppress_ids": [1],
            "past": {"layers": 1, "heads": 1, "head_size": WIDTH},
        },
    )
    made.assets = {"tokenizer.json": tokenizer_file()}
    root = kit.write(tmp_path_factory.mktemp("listener") / "ear.bundle", made)
    ear = dotted_graph(kit, EAR, {"axis1": np.array([1], np.int64)}, {"head:scale.g": np.ones(1, np.float32)}, {"head:scale.g": [1]})
    onnx.save(ear, root / "onnx" / "encoder_model.onnx")
    (root / "onnx" / "model.onnx").rename(root / "onnx" / "decoder_model_merged.onnx")
    table = json.loads((root / "manifest.json").read_text())
    decoder = {**table["graphs"].pop("model"), "file": "onnx/decoder_model_merged.onnx"}
    table["graphs"] = {"encoder": {**decoder, "file": "onnx/encoder_model.onnx", "inputs": [audio], "outputs": [memory]}, "decoder": decoder}
    (root / "manifest.json").write_text(sealed(table))
    kit.seal(root)
    return Bundle(root, device="cpu", threads=1)


def heard(audio: np.ndarray, count: int, never: tuple[int, ...] = (7,), first: tuple[int, ...] = (1,), factor: float = 1.0, start: tuple[int, ...] = (2, 3)) -> list[int]:
    w = {name: value.astype(np.float64) for name, value in constants().items()}
    ids = list(start)
    for step in range(count):
        scores = factor * (w["E"][ids].sum(axis=0) + audio.mean()) @ w["Wo"]
        scores[list(never + (first if step == 0 else ()))] = -np.inf
        ids.append(int(scores.argmax()))
    return ids[2:]


def test_a_language_takes_the_place_of_the_one_the_text_would_begin_with(listener: Bundle) -> None:
    audio = np.full(100, 0.4, np.float32)
    said = {name: [token.id for token in listener.stream((audio, 16000), 6, language=name, stop_ids=())] for name in (None, "x", "y")}
    assert said[None] == said["x"] == heard(audio, 6) and said["y"] == heard(audio, 6, start=(2, 5)) != said["x"]
    with pytest.raises(InputError, match="knows no language 'z'; known: x, y"):
        listener.stream((audio, 16000), 6, language="z")
    with pytest.raises(InputError, match="writes no times"):
        listener.stream((audio, 16000), 6, timestamps=True)


def test_an_encoder_decoder_writes_what_it_hears(listener: Bundle) -> None:
    texts = set()
    for level in np.linspace(-3, 3, 13):
        audio = np.full(100, level, np.float32)
        expected = heard(audio, 8)
        expected = expected[: expected.index(1)] if 1 in expected else expected
        assert [token.id for token in listener.stream((audio, 16000), 8)] == expected
        assert listener((audio, 16000))[: len(expected)] == "".join(chr(ord("a") + token) for token in expected)
        texts.add(tuple(expected))
    assert len(texts) > 3


def test_slots_go_into_the_graph_that_has_them(listener: Bundle) -> None:
    audio = np.full(100, 0.6, np.float32)
    said = [token.id for token in listener.stream((audio, 16000), 8, "loud", stop_ids=())]
    assert said == heard(2 * audio, 8, factor=-1.0) and said not in (heard(2 * audio, 8), heard(audio, 8, factor=-1.0))
    assert np.allclose(listener.run({"audio": audio[None]}, "loud")["cross.heard"], 1.2)
    result = listener.selftest()
    assert result.ok and [case.case for case in result.cases] == ["encoder/loud/0", "decoder/loud/0"]


def test_each_graph_can_be_run_by_its_name(listener: Bundle) -> None:
    past = {f"past.0.{part}": np.zeros((1, 1, 0, WIDTH), np.float32) for part in ("key", "value")}
    found = listener.run({"decoder_input_ids": np.array([[2, 3]]), "cross.heard": np.zeros((1, 1), np.float32), **past}, graph="decoder")
    w = constants()
    assert np.allclose(found["logits"][0, -1], (w["E"][2] + w["E"][3]) @ w["Wo"], atol=1e-5)
    with pytest.raises(InputError, match="no graph 'model'; it has: encoder, decoder"):
        listener.run({}, graph="model")


def test_suppressed_tokens_are_never_said(listener: Bundle) -> None:
    free = {heard(np.full(100, level, np.float32), 1, (), ())[0] for level in np.linspace(-9, 9, 99)}
    said = {next(iter(listener.stream((np.full(100, level, np.float32), 16000), 1))).id for level in np.linspace(-9, 9, 99)}
    assert free >= {1, 7} and not said & {1, 7}  # without the settings, both would begin a text


def test_a_transcript_is_not_cut_where_nobody_gave_a_limit(listener: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A model that says much in one window: more than the tokens of a text, as far as a window can hold, and a limit that ends it is said."""
    clip = (next(audio for level in np.linspace(-3, 3, 13) if 1 not in heard(audio := np.full(100, level, np.float32), 300)), 16000)
    assert len(listener(clip)) == len(listener([clip])[0]) == len(listener.generate(clip)) == 224
    assert caplog.text.count("the text was ended after 224 tokens") == 3
    caplog.clear()
    assert len(listener.generate(clip, 300)) == 300 and "ended after 300 tokens" in caplog.text
    monkeypatch.setitem(listener.manifest.generation, "maximum_tokens", 40)  # the model's own length, start ids among them
    caplog.clear()
    assert len(listener(clip)) == len(listener.generate(clip, 300)) == 38 and caplog.text.count("ended after 38 tokens") == 2


def test_a_text_that_ends_by_itself_or_where_it_was_told_to_gives_no_warning(bundle: Bundle, listener: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    clip = (next(audio for level in np.linspace(-3, 3, 13) if 1 in heard(audio := np.full(100, level, np.float32), 30)), 16000)
    assert len(listener(clip)) < 31 and len(bundle.generate("d b e", 5)) and "was ended" not in caplog.text
    bundle("d b e")
    assert caplog.text.count("the text was ended after 64 tokens") == 1


def test_a_call_searches_with_the_beams_that_it_is_given(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    texts = ["d b e b f", "a c", "f f b", "e d c b"]
    found = bundle(texts, beams=4)
    assert found == [bundle.generate(text, beams=4) for text in texts] != bundle(texts)


def test_what_a_text_has_no_use_for_is_refused(bundle: Bundle) -> None:
    with pytest.raises(InputError, match="condition is for models that take an input of another medium, and task 'causal-lm' writes text"):
        bundle("a", condition={"speaker": np.zeros(3)})
    with pytest.raises(InputError, match="beams=0|at least 1 text"):
        bundle("a", beams=0)

"""Answers of a model for raw inputs: the same processor, module and reading of outputs as in an exported bundle."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import Field

from polyadapt.edits.attach import HOLDER
from polyadapt.edits.streams import prompted
from polyadapt.errors import UserError
from polyadapt.options import DrawingOptions, read_options
from polyadapt.training.texts import vocabulary_of
from polyadapt_runtime.generate import TEXT_TOKENS, WINDOW_TOKENS, warn_of_limit
from polyadapt_runtime.postprocess import interpret
from polyadapt_runtime.sampling import Rules

if TYPE_CHECKING:
    from polyadapt.artifact import Artifact
    from polyadapt.model import Model

NAME = "inference"
WRITTEN = ("causal-lm", "seq2seq-lm", "transcription")


class InferOptions(DrawingOptions):
    """Options of a call."""

    batch_size: int = Field(32, ge=1, description="inputs that run at once")
    top: int = Field(5, ge=1, description="classes that are named")
    beams: int = Field(1, ge=1, description="texts that a search over the frames of a ctc model follows; 1 takes the best path")
    maximum_new_tokens: int | None = Field(None, ge=1, description="most tokens of a generated text; by default 224 of a recording's and 64 of any other")


@contextlib.contextmanager
def adapted(model: Model, artifact: Artifact | None) -> Iterator[Model]:
    """The model with an artifact attached and its classes for the time of the block, in evaluation mode.

    Raises:
        UserError: the artifact belongs to another base, or does not fit.
    """
    modes = {module: module.training for module in model.module.modules()}
    model.module.eval()
    try:
        if artifact is None:
            yield _named(model)
            return
        before = getattr(model.module, "polyadapt", None)
        active = before.active if before is not None else ()
        attachments = artifact.attach(model, NAME, activate=False)
        try:
            attachments.activate(NAME)
            attachments.eval()
            yield model.with_labels(artifact.labels) if artifact.labels else model
        finally:
            attachments.remove(NAME)
            if active:
                attachments.activate(*active)
    finally:
        for module, was_training in modes.items():
            module.training = was_training


def _named(model: Model) -> Model:
    """The model with the classes of an artifact whose head is attached and active, where there is one: its scores are of those."""
    attachments = getattr(model.module, HOLDER, None)
    forms = [] if attachments is None else [attachments.forms[name] for name in attachments.active]
    labels = next((form.labels for form in reversed(forms) if form.labels and any(edit.kind == "prototypes" for edit in form.edits())), ())
    return model.with_labels(labels) if labels and model.task.kind == "classification" else model


def answer(model: Model, inputs: list[Any], artifact: Artifact | None, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One answer for each input.

    `classification`: `label`, `score` (probability) and `top`. Texts: `text`. Everything else: outputs by name, as
    arrays without a batch axis; names, meanings and units are those of `model.signature`.

    Raises:
        UserError: an option, the artifact or an input does not fit.
    """
    chosen = read_options(InferOptions, options, "infer")
    _refuse_unused(chosen, model.task.kind)
    with adapted(model, artifact) as active, torch.inference_mode():
        if active.task.kind in WRITTEN:
            return [{"text": _generate(active, raw, chosen)} for raw in inputs]
        answers: list[dict[str, Any]] = []
        # Sounds carry no mask: a clip beside a longer one would be filled up with silence and answered otherwise.
        size = chosen.batch_size if active.processor.kind in ("image", "array") or active.processor.pads_exactly else 1
        for start in range(0, len(inputs), size):
            for row in _forward(active, inputs[start : start + size]):
                answers.append(_read(active, row, chosen))
        return answers


def _refuse_unused(options: InferOptions, kind: str) -> None:
    """Refuse what a task of this kind has no use for.

    Raises:
        UserError: naming the option.
    """
    own = {"classification": ("top",), "ctc": ("beams",), **dict.fromkeys(WRITTEN, (*DrawingOptions.model_fields, "maximum_new_tokens"))}
    used = ("batch_size", *own.get(kind, ()))
    for name, field in InferOptions.model_fields.items():
        if name not in used and getattr(options, name) != field.default:
            further = "; a bundle of it searches (bundle.generate)" if name == "beams" and kind in WRITTEN else "; leave it out"
            raise UserError(f"task {kind!r} has no use for option {name!r}{further}")


def _forward(model: Model, raws: list[Any]) -> list[dict[str, np.ndarray]]:
    """Outputs of one batch as rows without a batch axis."""
    arrays = model.processor.collate([model.processor(raw) for raw in raws])
    outputs = model.module(**_tensors(model, arrays))
    found = {name: value.float().cpu().numpy() if value.is_floating_point() else value.cpu().numpy() for name, value in outputs.items()}
    return [{name: value[index] for name, value in found.items()} for index in range(len(raws))]


def _read(model: Model, row: Mapping[str, np.ndarray], options: InferOptions) -> dict[str, Any]:
    kind = model.task.kind
    if kind == "classification":
        best = interpret(row, {"kind": kind}, model.task.labels, options.top)
        return {"label": best.label, "score": best.score, "top": [list(pair) for pair in best.top]}
    if kind == "ctc":
        details: Mapping[str, Any] = model.task.details
        spec = {"kind": "ctc", "blank_id": details.get("blank_id", 0), "separator": model.task.separator}
        return {"text": interpret(row, spec, vocabulary_of(model), options.top, options.beams)}
    return dict(row)


def _generate(model: Model, raw: Any, options: InferOptions) -> str | list[int]:
    """Token by token without a cache: slow and simple; an exported bundle is the fast way.

    Returns:
        The new text, or the new token ids where the model came without a tokenizer.
    """
    is_causal = model.task.kind == "causal-lm"
    if is_causal and isinstance(raw, str) and model.processor.text is not None:
        # A text goes on behind its end, so a prompt is not cut, as it is not in a bundle.
        ids = np.array(model.processor.text.encode(raw, cut=False)[:1], dtype=np.int64)  # (1, tokens)
        given = {"ids": ids, "mask": np.ones_like(ids)}
        inputs = _tensors(model, {place: given[role] for role, place in model.processor.spec["inputs"].items() if place and role in given})
    else:
        inputs = _tensors(model, model.processor.collate([model.processor(raw)]))
    name = "input_ids" if is_causal else "decoder_input_ids"
    settings = model.generation
    if not is_causal:
        inputs[name] = torch.tensor([_start(model)], dtype=torch.int64, device=model.device)  # (1, start)
    ends = set(settings.get("eos_ids", ()))
    generator = np.random.default_rng(options.seed)
    sampling = options.sampling()
    rules = Rules.of(settings, sampling)
    made: list[int] = []
    usual = WINDOW_TOKENS if model.task.kind == "transcription" else TEXT_TOKENS
    limit = _room(model, inputs[name].shape[1], options.maximum_new_tokens or usual)
    for step in range(limit):
        scores = model.module(**inputs)["logits"][0, -1].float().cpu().numpy()  # (vocabulary,)
        token = sampling.pick(rules.apply(scores, inputs[name][0].tolist(), step == 0), generator)
        if token in ends:
            break
        made.append(token)
        inputs[name] = torch.cat([inputs[name], inputs[name].new_tensor([[token]])], dim=1)  # (1, tokens + 1)
        if is_causal and "attention_mask" in inputs:
            inputs["attention_mask"] = torch.ones_like(inputs[name])
    else:
        if options.maximum_new_tokens is None or limit < options.maximum_new_tokens or not is_causal:
            warn_of_limit(limit)
    reader = _reader(model)
    return reader.decode(made) if reader is not None and reader.has_tokenizer else made


def _room(model: Model, prompt: int, wanted: int) -> int:
    """Tokens that may follow a prompt: as many as are wanted, or as the model's positions number.

    Raises:
        UserError: there is room for none.
    """
    held = model.family.positions(model.backbone)
    if held is None:
        return wanted
    attachments = getattr(model.module, HOLDER, None)
    learned = 0 if attachments is None else prompted(edit for name in attachments.active for edit in attachments.forms[name].edits() if not model.family.encodes(edit.site))
    if held - learned - prompt < 1:
        beside = f" beside {learned} learned ones" if learned else ""
        raise UserError(f"the prompt takes {prompt} tokens, and {model.reference} holds {held}{beside} with what it writes; shorten it")
    return min(wanted, held - learned - prompt)


def _reader(model: Model) -> Any:
    """What turns ids into text: the processor's own, or one for the tokenizer that a model for sounds brings."""
    from polyadapt_runtime.text import TextReader

    if model.processor.text is not None:
        return model.processor.text
    path = model.processor.assets.get("tokenizer")
    return TextReader({"inputs": {"ids": "input_ids"}}, path) if path is not None else None


def _start(model: Model) -> list[int]:
    """Token ids with which a decoder begins, the same that training puts before a text."""
    for key in ("start_ids", "decoder_start_ids"):
        if model.generation.get(key):
            return [int(token) for token in model.generation[key]]
    return [int(model.generation.get("decoder_start_id", 0))]


def _tensors(model: Model, arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(value)).to(model.device) for name, value in arrays.items()}

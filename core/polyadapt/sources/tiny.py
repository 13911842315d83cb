"""`polyadapt:tiny-FAMILY`: small random models of every family, built offline in a moment, for tests and trials."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from polyadapt.errors import MissingExtraError, UserError
from polyadapt.sources.card import ModelCard
from polyadapt.sources.common import check_labels, make_task, seeded
from polyadapt.sources.families import family_by_id
from polyadapt.sources.fetch import cache_directory
from polyadapt.sources.options import TinyOptions, within_positions
from polyadapt.sources.processors import LONGEST_S, array_spec, audio_spec, image_spec, make_processor, parts_spec, text_spec, tiny_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from polyadapt.families.card import FamilyCard
    from polyadapt.model import Model
    from polyadapt.signature import Signature


def load(card: ModelCard, name: str, options: TinyOptions, families: Iterable[FamilyCard] | None = None) -> Model:
    """Build a tiny random model.

    Args:
        card: of the reference; its `family` says what is built.
        name: `tiny-FAMILY`.
        options: see `TinyOptions`.
        families: cards to find the family in; core's own by default.

    Raises:
        UserError: the family is unknown or does not do the task, labels and num_classes contradict each other, or its library is not installed.
    """
    from polyadapt.model import build_model

    reference = f"polyadapt:{name}"
    family = family_by_id(card.family, families)
    labels = options.labels
    if options.num_classes is not None:
        labels = check_labels(labels, options.num_classes, reference) or tuple(f"class {index}" for index in range(options.num_classes))
    task = make_task(family, options.task, labels=check_labels(labels, len(labels), reference))
    with seeded(options.seed):
        try:
            backbone = family.tiny(replace(task, kind="features") if task.kind == "ctc" and not options.own_head else task)
        except ModuleNotFoundError as error:
            if not family.card.extra:
                raise
            raise MissingExtraError(str(error.name), family.card.extra, reference) from error
    front = _front(family.signature(backbone, task))
    inputs = family.signature(backbone, task) if front is None else front.signature(family.signature(backbone, task))  # type: ignore[operator]
    spec, assets = _preprocessing(inputs, backbone, within_positions(options, family.positions(backbone)), getattr(front, "frames", None), family.longest_s(backbone))
    return build_model(family, backbone, task, make_processor(spec, assets), reference=reference, front=front, licences={"weights": "none, they are random"})


def _front(signature: Signature) -> nn.Module | None:
    """Log-mel for models that take a spectrogram, so that a tiny model is fed with recordings like a real one."""
    for spec in signature.inputs:
        if spec.name == "mel":
            from polyadapt.sources.logmel import LogMel

            return LogMel(int(spec.shape[1]), output="mel")
        if spec.name == "input_values" and len(spec.shape) == 3:
            from polyadapt.sources.fbank import KaldiFbank

            return KaldiFbank(int(spec.shape[2]), int(spec.shape[1]), mean=-4.2677393, deviation=4.5689974)
    return None


def _preprocessing(signature: Signature, backbone: nn.Module, options: TinyOptions, frames: int | None, longest_s: float | None) -> tuple[dict[str, Any], dict[str, Path]]:
    """A processor's spec that fits the inputs (the frames of a spectrogram, where their number is fixed, and the longest sound), and the files that it names."""
    shapes = {spec.name: spec.shape for spec in signature.inputs}
    specs: dict[str, dict[str, Any]] = {}
    assets: dict[str, Path] = {}
    if "image" in shapes:
        specs["image"] = image_spec(_picture(shapes["image"], options), channels=int(shapes["image"][1]))
    if "audio" in shapes:
        specs["audio"] = audio_spec(maximum_seconds=LONGEST_S if longest_s is None else longest_s) if frames is None else _heard(frames)
    if "input_ids" in shapes:
        specs["text"] = text_spec(pad_id=0, maximum_tokens=options.maximum_tokens, types="token_type_ids" if "token_type_ids" in shapes else None)
    if "input_ids" in shapes or "decoder_input_ids" in shapes:
        size, end_id = _vocabulary(backbone)
        name = f"tokenizer-{size}.json" if end_id is None else f"tokenizer-{size}-{end_id}.json"
        assets["tokenizer"] = tiny_tokenizer(cache_directory() / "tiny" / name, size, end_id)
    if len(specs) > 1:
        return parts_spec(**specs), assets
    if specs:
        return next(iter(specs.values())), assets
    return (array_spec(signature) if len(shapes) == 1 else {"kind": "tensors"}), assets


def _heard(frames: int) -> dict[str, Any]:
    from polyadapt.sources.fbank import heard_spec

    return heard_spec(frames)


def _picture(shape: tuple[int | str, ...], options: TinyOptions) -> tuple[int, int]:
    fixed = tuple(size for size in shape[2:] if isinstance(size, int))
    if options.image_size_px is not None:
        if fixed and fixed != (options.image_size_px, options.image_size_px):
            raise UserError(f"this tiny model takes pictures of {fixed[0]} x {fixed[1]} px only; leave image_size_px out")
        return options.image_size_px, options.image_size_px
    return (fixed[0], fixed[1]) if len(fixed) == 2 else (32, 32)


def _vocabulary(backbone: Any) -> tuple[int, int | None]:
    """Number of ids, and the end token that every text needs (CLIP reads a text's feature there)."""
    config = backbone.config
    text = getattr(config, "text_config", None)
    return (int(config.vocab_size), None) if text is None else (int(text.vocab_size), int(text.eos_token_id))

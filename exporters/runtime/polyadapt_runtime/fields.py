"""Values of a manifest that code computes with: numbers, ids and names, each checked before anything is made of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from polyadapt_runtime.errors import ManifestError

LONGEST_SIDE_PX = 8192  # ours: of a picture that a model takes
LONGEST_S = 3600.0  # ours: to which a sound is filled up
LOWEST_HZ = 100  # ours: a lower rate would need filters as long as whole recordings
MOST_SAMPLES = 1 << 28  # ours: of a sound that is filled up, a gigabyte
LARGEST = 1 << 31  # of ids and sizes
MOST_HEADS = 1 << 16  # ours: heads of a layer, numbers of a head, layers
OWN_CASES = ("base", "random")  # of a bundle's proof: an artifact of that name would take their place, and nothing would prove the base

Check = Callable[[Any], bool]


def whole(least: int = 0) -> Check:
    """A whole number from `least` on."""
    return lambda value: type(value) is int and least <= value < LARGEST


def _text_or_none(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _texts_or_none(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(item, str) for item in value))


def number(above: float = 0.0, most: float = math.inf) -> Check:
    """A finite number above one and up to another."""
    return lambda value: isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and above < value <= most


def none_or(check: Check) -> Check:
    """Nothing, or what another check takes."""
    return lambda value: value is None or check(value)


def ids(value: Any) -> bool:
    """A list of ids."""
    return isinstance(value, list) and all(map(whole(), value))


def _names(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str | None) for name in value.values())


def _sides(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(whole(1)(side) and side <= LONGEST_SIDE_PX for side in value)


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(size, str) or whole()(size) for size in value)


def _dtype(value: Any) -> bool:
    try:
        return isinstance(value, str) and np.dtype(value).kind in "biuf"
    except TypeError:
        return False


_TEXT: dict[str, tuple[Check, str]] = {
    "inputs": (_names, "a table of names of inputs"),
    "maximum_tokens": (none_or(whole(1)), "a whole number from 1 on, or null"),
    "pad_id": (whole(), "an id"),
    "pad_side": (lambda value: value in ("left", "right"), "left or right"),
}
_SPECS: dict[str, dict[str, tuple[Check, str]]] = {
    "image": {
        "size_px": (_sides, f"[height, width], whole numbers from 1 to {LONGEST_SIDE_PX}"),
        "crop_fraction": (number(), "a number above 0"),
        "channels": (lambda value: type(value) is int and value in (1, 3), "1 or 3"),
    },
    "audio": {
        "sample_rate_hz": (lambda value: number(most=1e6)(value) and value >= LOWEST_HZ, f"a rate from {LOWEST_HZ} Hz on"),
        "seconds": (none_or(number(most=LONGEST_S)), f"a number above 0 and up to {LONGEST_S:g}, or null"),
        "minimum_seconds": (none_or(number(-1e-9)), "a number, or null"),
        "maximum_seconds": (none_or(number()), "a number above 0, or null"),
    },
    "text": _TEXT,
    "phonemes": _TEXT,
    "array": {"shape": (_sizes, "a list of sizes and names of axes"), "dtype": (_dtype, "a dtype of numbers")},
}
_GENERATION: dict[str, tuple[Check, str]] = {
    **{key: (none_or(ids), "a list of ids") for key in ("eos_ids", "start_ids", "suppress_ids", "begin_suppress_ids")},
    "maximum_tokens": (none_or(whole(1)), "a whole number from 1 on, or null"),
    "languages": (none_or(lambda value: isinstance(value, dict) and all(map(whole(), value.values()))), "a table of ids by language"),
    "timestamps": (none_or(lambda value: isinstance(value, dict)), "a table"),
    "past": (none_or(lambda value: isinstance(value, dict)), "a table"),
}
_TIMESTAMPS = {"first_id": (whole(), "an id"), "off_id": (whole(), "an id"), "step_s": (number(), "a number above 0")}
_PAST = {key: (lambda value: whole(1)(value) and value <= MOST_HEADS, f"a whole number from 1 to {MOST_HEADS}") for key in ("layers", "heads", "head_size")}
_POSTPROCESS: dict[str, tuple[Check, str]] = {
    "blank_id": (none_or(whole()), "an id, or null"),
    "separator": (_text_or_none, "a text, or null"),
    "vocabulary": (_texts_or_none, "a list of texts, or null"),
}


def check_fields(table: Mapping[str, Any], known: Mapping[str, tuple[Check, str]], where: str) -> None:
    """Check those fields of a table that are there.

    Raises:
        ManifestError: naming the first field that is wrong.
    """
    for key, (check, words) in known.items():
        if key in table and not check(table[key]):
            raise ManifestError(f"{where}: {key} must be {words}, found {str(table[key])[:60]}; export it again")


def check_spec(spec: Mapping[str, Any], where: str) -> None:
    """Check the pre-processing of one raw input.

    Raises:
        ManifestError: naming the field.
    """
    check_fields(spec, _SPECS.get(str(spec.get("kind")), {}), where)
    if spec.get("kind") == "audio" and (spec.get("seconds") or 0.0) * spec.get("sample_rate_hz", 0) > MOST_SAMPLES:
        raise ManifestError(f"{where}: seconds {spec['seconds']:g} at {spec['sample_rate_hz']:g} Hz are more than {MOST_SAMPLES} samples; export it again")
    fraction = spec.get("crop_fraction", 1.0)
    if spec.get("kind") == "image" and not 1 <= max(spec["size_px"]) / fraction <= LONGEST_SIDE_PX:
        raise ManifestError(f"{where}: crop_fraction {fraction} of {spec['size_px']} asks for pictures that are no picture or larger than {LONGEST_SIDE_PX} px; export it again")


def check_postprocess(table: Mapping[str, Any], where: str) -> None:
    """Check how outputs become an answer.

    Raises:
        ManifestError: naming the field.
    """
    check_fields(table, _POSTPROCESS, where)


def check_generation(table: Mapping[str, Any], inputs: int, vocabulary: int | str, where: str) -> None:
    """Check how text is written.

    Args:
        table: the manifest's `generation`.
        inputs: how many the graph takes that writes; a cache has two for each layer.
        vocabulary: how many scores it gives, or the name of that axis.
        where: for messages.

    Raises:
        ManifestError: naming the field.
    """
    check_fields(table, _GENERATION, where)
    check_fields(table.get("timestamps") or {}, _TIMESTAMPS, f"{where}.timestamps")
    past: Mapping[str, Any] = table.get("past") or {}
    check_fields(past, _PAST, f"{where}.past")
    if 2 * past.get("layers", 0) > inputs:
        raise ManifestError(f"{where}.past: layers must be at most half of the {inputs} inputs of the graph, found {past['layers']}; export it again")
    if isinstance(vocabulary, int):
        times = table.get("timestamps") or {}
        named = [(f"{where}: {key}", table.get(key) or ()) for key in ("eos_ids", "start_ids", "suppress_ids", "begin_suppress_ids")]
        named += [(f"{where}.timestamps: {key}", [times[key]]) for key in ("first_id", "off_id") if key in times]
        for key, tokens in named:
            if beyond := [token for token in tokens if token >= vocabulary]:
                raise ManifestError(f"{key} must be ids below {vocabulary}, as many as the graph scores, found {beyond[0]}; export it again")


def filled_inputs(spec: Mapping[str, Any]) -> set[str]:
    """Inputs of a model that its pre-processing makes of raw input."""
    inputs, parts = spec.get("inputs"), spec.get("parts")
    names = [spec.get("input"), spec.get("lengths"), *(inputs.values() if isinstance(inputs, dict) else ())]
    inner = [part for part in (parts.values() if isinstance(parts, dict) else ()) if isinstance(part, dict)]
    return {name for name in names if isinstance(name, str)}.union(*map(filled_inputs, inner))


def strange_condition(names: Sequence[str], taken: Sequence[str], spec: Mapping[str, Any], computed: Sequence[str]) -> str:
    """What is wrong with inputs that an artifact brings; empty where it brings what nothing else fills.

    Args:
        names: of its inputs.
        taken: inputs of the model.
        spec: its pre-processing.
        computed: inputs that conditioners compute.
    """
    for name in names:
        if name not in taken:
            return f"brings a value for {name!r}, which is no input of this model; it takes {', '.join(taken)}"
        if name in filled_inputs(spec) and name not in computed:
            return f"brings a value for {name!r}, which is made of the raw input that a call gives; no artifact may replace that"
    return ""

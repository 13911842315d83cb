"""What a model does to raw inputs before its weights see them: two models of one base that differ in it answer otherwise."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from polyadapt.model import Model

FEW = 16  # values of a buffer that is a setting, such as the mean of every channel; ours


def preprocessing(model: Model) -> dict[str, Any]:
    """The processor's spec, the settings of the front, and the tokens that stand before a text that is written.

    Tables that a front computes from its settings (the waves and filters of a spectrogram) are left out.
    """
    front = model.module.front
    settings: dict[str, Any] = {}
    if front is not None:
        settings = {name: value for name, value in vars(front).items() if isinstance(value, (int, float, str)) and name != "training" and not name.startswith("_")}
        settings |= {name: buffer.flatten().tolist() for name, buffer in front.named_buffers() if buffer.numel() <= FEW}
        settings["kind"] = type(front).__name__
    spec = {} if model.processor is None else model.processor.spec  # of a module that a program brought
    return {"processor": spec, "front": settings, "start_ids": list(model.generation.get("start_ids") or [])}


def differing(then: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two of them, such as `processor.seconds was 30.0, now it is None`; what only one of them knows is passed over."""
    found: list[str] = []
    for key in then.keys() & now.keys():
        if isinstance(then[key], Mapping) and isinstance(now[key], Mapping):
            found += differing(then[key], now[key], f"{prefix}{key}.")
        elif json.dumps(then[key]) != json.dumps(now[key]):
            found.append(f"{prefix}{key} was {then[key]!r}, now it is {now[key]!r}")
    return sorted(found)

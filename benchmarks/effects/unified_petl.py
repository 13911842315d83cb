"""Prefix, adapters, LoRA and MAM at one budget (unified-petl, arXiv 2110.04366).

Every arm has 8192 to 8352 values a block beside the class head, which all of them train: prefix l = 32 (2 l d),
sequential and parallel bottlenecks r = 32 at the FFN (2 r d + r + d), LoRA r = 16 on q and v (4 r d), MAM l = 16 and r = 16.
To be shown: every one of them beats the linear probe, and MAM is at most one point below the best of the others.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping
from typing import Any

from digits import FLOOR, Arm, claim, experiment

from polyadapt.methods.bottleneck.card import CARD as BOTTLENECK
from polyadapt.methods.lora.card import CARD as LORA
from polyadapt.methods.mam.card import CARD as MAM
from polyadapt.methods.prefix.card import CARD as PREFIX

ARMS = (
    Arm("prefix", PREFIX, {"length": 32}, (3e-3, 1e-2, 3e-2)),
    Arm("sequential", BOTTLENECK, {"insertion": "sequential", "rank": 32}),
    Arm("parallel", BOTTLENECK, {"insertion": "parallel", "rank": 32}),
    Arm("lora", LORA, {"rank": 16, "alpha": 32.0}),
    Arm("mam", MAM, {"length": 16, "rank": 16}),
)


def checks(tests: Mapping[str, list[float]]) -> dict[str, Any]:
    """What the card asks for."""
    found: dict[str, Any] = {}
    for name in ("prefix", "sequential", "parallel", "lora", "mam"):
        found[f"{name} > {FLOOR}"] = claim(tests[name], tests[FLOOR])
    best = max(("prefix", "sequential", "parallel", "lora"), key=lambda name: statistics.fmean(tests[name]))
    found[f"mam > {best} (the best single one) - 1 point"] = claim(tests["mam"], tests[best], at_least=-1.0)
    return found


if __name__ == "__main__":
    sys.exit(experiment("unified_petl", ARMS, checks, train_per_class=10, validation_per_class=10, epochs=20, batch_size=25))

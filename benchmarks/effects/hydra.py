"""Hydra's two branches against each of them alone, five pictures a class (arXiv 2309.06922).

Rank 4 in total everywhere, at attn.o and ffn.down: parallel only 4 + 0, sequential only 0 + 4, Hydra 2 + 2, all with the
same start and biases. To be shown: Hydra's mean is at least that of either branch alone, and above the linear probe.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from digits import FLOOR, Arm, claim, experiment

from polyadapt.methods.hydra.card import CARD as HYDRA

ARMS = (
    Arm("parallel only", HYDRA, {"parallel_rank": 4, "sequential_rank": 0}),
    Arm("sequential only", HYDRA, {"parallel_rank": 0, "sequential_rank": 4}),
    Arm("hydra", HYDRA, {"parallel_rank": 2, "sequential_rank": 2}),
)


def checks(tests: Mapping[str, list[float]]) -> dict[str, Any]:
    """What the card asks for."""
    return {f"hydra > {other}": claim(tests["hydra"], tests[other]) for other in ("parallel only", "sequential only", FLOOR)}


if __name__ == "__main__":
    sys.exit(experiment("hydra", ARMS, checks, train_per_class=5, validation_per_class=10, epochs=40, batch_size=25))

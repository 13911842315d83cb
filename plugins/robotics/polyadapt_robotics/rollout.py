"""Policies in the table world: episodes until the task is done, or time is up. Needs numpy only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from polyadapt_robotics.expert import expert_actions
from polyadapt_robotics.world import HORIZON_STEPS, Array, Shift, TableWorld

Policy = Callable[[Array], npt.ArrayLike]
"""Observations [episodes, OBSERVATION_SIZE] to actions [episodes, 3]."""


@dataclass(frozen=True)
class Rollout:
    """What came of some episodes.

    Attributes:
        success: bool [episodes].
        steps: int [episodes]: until the task was done, or the horizon.
    """

    success: npt.NDArray[np.bool_]
    steps: npt.NDArray[np.int64]

    @property
    def rate(self) -> float:
        """Share of episodes in which the task was done."""
        return float(self.success.mean())

    def interval(self, z: float = 1.96) -> tuple[float, float]:
        """95 % interval of the rate over episodes (Wilson 1927: it stays within 0 and 1)."""
        n, rate = len(self.success), self.rate
        middle = (rate + z * z / (2 * n)) / (1 + z * z / n)
        half = z * np.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def roll_out(policy: Policy | None, task: str, episodes: int, seed: int, shift: Shift | None = None) -> Rollout:
    """Let a policy act.

    Args:
        policy: what acts; None for the scripted expert.
        task: `reach`, `push` or `carry`.
        episodes: how many; they run beside each other.
        seed: of where everything starts.
        shift: how the world differs from the usual one.

    Raises:
        UserError: an unknown task.
    """
    world = TableWorld(task, episodes, np.random.default_rng([seed, 0]), shift)
    observations = world.observe()
    done = world.reached()
    steps = np.where(done, 0, HORIZON_STEPS)
    for step in range(1, HORIZON_STEPS + 1):
        actions = expert_actions(world) if policy is None else np.asarray(policy(observations), dtype=np.float32)
        observations = world.step(actions)
        newly = world.reached() & ~done
        steps[newly] = step
        done |= newly
        if done.all():
            break
    return Rollout(done, steps.astype(np.int64))

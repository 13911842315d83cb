"""Demonstrations of the scripted expert, as arrays and as the data set `table-world:`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import numpy.typing as npt

from polyadapt.data.dataset import Dataset, Example
from polyadapt.errors import UserError
from polyadapt.options import read_options
from polyadapt_robotics.cards import TableWorldOptions
from polyadapt_robotics.expert import expert_actions
from polyadapt_robotics.world import HORIZON_STEPS, Array, Shift, TableWorld


@dataclass(frozen=True)
class Demonstrations:
    """Steps of all episodes, one behind another.

    Shape:
        observations [steps, OBSERVATION_SIZE], actions [steps, 3], episode and step int [steps].
    """

    observations: Array
    actions: Array
    episode: npt.NDArray[np.int64]
    step: npt.NDArray[np.int64]


def demonstrate(task: str, episodes: int, seed: int, shift: Shift | None = None, disturbance: float = 0.0) -> Demonstrations:
    """Watch the expert until each task is done.

    What is carried out is the expert's command plus noise; what is recorded is the command alone. So the data
    show how to come back from where a policy's own mistakes lead (Laskey et al., arXiv 1703.09327).

    Args:
        task: `reach`, `push` or `carry`.
        episodes: how many.
        seed: of starting positions and noise.
        shift: how the world differs from the usual one; the expert knows.
        disturbance: deviation of the noise, as a share of full speed.

    Raises:
        UserError: an unknown task.
    """
    world = TableWorld(task, episodes, np.random.default_rng([seed, 0]), shift)
    noise = np.random.default_rng([seed, 1])
    is_open = ~world.reached()
    rows: list[tuple[Array, Array, npt.NDArray[np.int64], int]] = []
    for step in range(HORIZON_STEPS):
        observations, actions = world.observe(), expert_actions(world)
        which = np.flatnonzero(is_open)
        rows.append((observations[which], actions[which], which, step))
        disturbed = actions.copy()
        disturbed[:, :2] += disturbance * noise.standard_normal((episodes, 2)).astype(np.float32)
        world.step(disturbed)
        is_open &= ~world.reached()
        if not is_open.any():
            break
    order = np.argsort(np.concatenate([row[2] for row in rows]), kind="stable")  # by episode, steps in order
    steps = np.concatenate([np.full(len(row[2]), row[3], dtype=np.int64) for row in rows])
    observations, actions, episode = (np.concatenate([row[part] for row in rows])[order] for part in range(3))
    return Demonstrations(observations, actions, episode, steps[order])


def read(rest: str, options: TableWorldOptions) -> Dataset:
    """The data set `table-world:TASK?episodes=N&seed=S`: one example a step.

    Raises:
        UserError: an unknown task or option, or an option given twice.
    """
    task, chosen = parse_world(rest, options)
    found = demonstrate(task, chosen.episodes, chosen.seed, shift_of(chosen), chosen.disturbance)
    examples = [
        Example(f"{task}/{episode}/{step}", observation, None, None, {"target": action, "episode": int(episode)}, f"table-world:{task}:{episode}")
        for observation, action, episode, step in zip(found.observations, found.actions, found.episode.tolist(), found.step.tolist(), strict=True)
    ]
    return Dataset(f"table-world:{task}", examples, "array", licence="made here")


def parse_world(rest: str, options: TableWorldOptions | None = None) -> tuple[str, TableWorldOptions]:
    """Task and options of `TASK?key=value&…`.

    Args:
        rest: what stands behind `table-world:`.
        options: given beside the URI; the same option in both places is refused.

    Raises:
        UserError: an unknown option, or one that is given twice.
    """
    task, _, query = rest.partition("?")
    given: dict[str, Any] = options.model_dump(include=options.model_fields_set) if options is not None else {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key in given:
            raise UserError(f"table-world:{rest}: option {key!r} is given twice; keep one")
        given[key] = value
    return task, read_options(TableWorldOptions, given, f"table-world:{task}")


def shift_of(options: TableWorldOptions) -> Shift:
    """How the world of these options differs from the usual one."""
    return Shift(options.rotation_deg, (options.goal_shift_x_m, options.goal_shift_y_m))

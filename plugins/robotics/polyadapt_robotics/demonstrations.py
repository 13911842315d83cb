"""Demonstrations of the scripted expert, as arrays and as the data set `table-world:`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from polyadapt.data.dataset import Dataset, Example
from polyadapt.options import options_behind, read_options, split_uri
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


def read(task: str, options: TableWorldOptions) -> Dataset:
    """The data set `table-world:TASK?episodes=N&seed=S`: one example a step.

    Args:
        task: what stands between the scheme and the `?`.
        options: those behind the `?`, and those beside the URI, which go before.

    Raises:
        UserError: an unknown task.
    """
    found = demonstrate(task, options.episodes, options.seed, shift_of(options), options.disturbance)
    examples = [
        Example(f"{task}/{episode}/{step}", observation, None, None, {"target": action, "episode": int(episode)}, f"table-world:{task}:{episode}")
        for observation, action, episode, step in zip(found.observations, found.actions, found.episode.tolist(), found.step.tolist(), strict=True)
    ]
    return Dataset(f"table-world:{task}", examples, "array", licence="made here")


def parse_world(rest: str) -> tuple[str, TableWorldOptions]:
    """Task and options of `TASK?key=value&…`, for a world in which nothing is demonstrated.

    Args:
        rest: what stands behind `table-world:`.

    Raises:
        UserError: an unknown option, or one that is given twice.
    """
    task, query = split_uri(rest)
    given = options_behind(query, f"table-world:{rest}") if query else {}
    return task, read_options(TableWorldOptions, given, f"table-world:{task}")


def shift_of(options: TableWorldOptions) -> Shift:
    """How the world of these options differs from the usual one."""
    return Shift(options.rotation_deg, (options.goal_shift_x_m, options.goal_shift_y_m))

"""The table world: a point gripper, a few round objects and a goal on a table, many episodes at once.

Ours; numpy only, so that it runs wherever an exported policy runs. A table of 1 m by 1 m with its middle at (0, 0).

observation  gripper x, y (m); 1 while something is held, else 0; x, y of every object (m); x, y of the goal's marker (m)
action       command x, y (1 = full speed, longer ones are cut to it); grip (above 0 closes, else opens)

Tasks: `reach` brings the gripper to the goal, `push` the first object without the grip, `carry` the first object by
picking it up and letting go. A world may differ from the one a policy knows: actuators turned against the table,
a goal that lies beside its marker.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from polyadapt.errors import unknown

Array = npt.NDArray[np.float32]

TASKS = ("reach", "push", "carry")
OBJECTS = 3
OBSERVATION_SIZE = 2 + 1 + 2 * OBJECTS + 2
ACTION_SIZE = 3
STEP_M = 0.05  # way of the gripper in one step at full speed
PIECES = 2  # in which a step is carried out, so that no piece is longer than a touch: nothing jumps over an object
HALF_TABLE_M = 0.5
CONTACT_M = 0.04  # an open gripper pushes what is nearer than this
GRASP_M = 0.06  # a closing gripper takes the first object from here
SUCCESS_M = 0.04
HORIZON_STEPS = 80
START_M = 0.4  # things start, and goals lie, within this of the middle


@dataclass(frozen=True)
class Shift:
    """How a world differs from the usual one."""

    rotation_deg: float = 0.0
    goal_shift_m: tuple[float, float] = (0.0, 0.0)


class TableWorld:
    """A batch of episodes that run beside each other.

    Args:
        task: `reach`, `push` or `carry`.
        episodes: how many.
        generator: draws where everything starts.
        shift: how this world differs from the usual one.

    Attributes:
        gripper: [episodes, 2] in metres.
        held: bool [episodes], whether the first object is held.
        objects: [episodes, objects, 2] in metres.
        goal: [episodes, 2], where the goal really is, in metres; `marker` is where it is seen.

    Raises:
        UserError: an unknown task.
    """

    def __init__(self, task: str, episodes: int, generator: np.random.Generator, shift: Shift | None = None) -> None:
        if task not in TASKS:
            raise unknown("task of the table world", task, TASKS)
        self.task, self.shift = task, shift or Shift()
        places = _apart(generator, episodes, OBJECTS + 2)  # (E, objects + 2, 2)
        self.gripper = places[:, 0].copy()
        self.objects = places[:, 1 : 1 + OBJECTS].copy()
        self.marker = places[:, -1].copy()
        self.goal = self.marker + np.asarray(self.shift.goal_shift_m, dtype=np.float32)
        self.held = np.zeros(episodes, dtype=bool)
        angle = math.radians(self.shift.rotation_deg)
        self._turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]], dtype=np.float32)  # row vectors: v @ turn

    def observe(self) -> Array:
        """Observations [episodes, OBSERVATION_SIZE] float32."""
        held = self.held[:, None].astype(np.float32)
        return np.concatenate([self.gripper, held, self.objects.reshape(len(held), -1), self.marker], axis=1)

    def step(self, actions: npt.ArrayLike) -> Array:
        """Carry out one command in every episode and observe.

        Args:
            actions: [episodes, 3].

        Returns:
            Observations [episodes, OBSERVATION_SIZE].
        """
        command = np.asarray(actions, dtype=np.float32)
        speed = command[:, :2] @ self._turn  # (E, 2)
        length = np.sqrt((speed * speed).sum(1, keepdims=True))  # (E, 1)
        way = speed * (STEP_M / PIECES / np.maximum(length, 1.0))  # (E, 2)
        self._grip(command[:, 2] > 0)
        for _ in range(PIECES):
            before = self.gripper
            self.gripper = np.clip(before + way, -HALF_TABLE_M, HALF_TABLE_M)
            self.objects[:, 0] += np.where(self.held[:, None], self.gripper - before, np.float32(0))
            self._push()
        return self.observe()

    def reached(self) -> npt.NDArray[np.bool_]:
        """Whether each episode's task is done at this moment: bool [episodes]."""
        what = self.gripper if self.task == "reach" else self.objects[:, 0]
        is_there: npt.NDArray[np.bool_] = np.square(what - self.goal).sum(1) < SUCCESS_M**2
        return is_there & ~self.held if self.task == "carry" else is_there

    def turned_back(self, way: Array) -> Array:
        """The command [episodes, 2] that moves the gripper along `way` in this world."""
        return way @ self._turn.T

    def _grip(self, closes: npt.NDArray[np.bool_]) -> None:
        near = np.square(self.objects[:, 0] - self.gripper).sum(1) < GRASP_M**2
        self.held = closes & (self.held | near) & (self.task == "carry")

    def _push(self) -> None:
        """Move what an open gripper touches out of its way; what is held stays in it."""
        gap = self.objects - self.gripper[:, None]  # (E, objects, 2)
        distance = np.sqrt(np.square(gap).sum(2, keepdims=True))  # (E, objects, 1)
        touched = distance < CONTACT_M
        touched[:, 0] &= ~self.held[:, None]
        if self.task == "carry":
            touched[:, 1:] = False  # the gripper is above the table: only what it reaches for is touched
        pushed = self.gripper[:, None] + gap * (CONTACT_M / np.maximum(distance, 1e-6))
        self.objects = np.clip(np.where(touched, pushed, self.objects), -HALF_TABLE_M, HALF_TABLE_M)


def _apart(generator: np.random.Generator, episodes: int, count: int) -> Array:
    """Places [episodes, count, 2] that keep away from each other as far as some tries allow."""
    best = generator.uniform(-START_M, START_M, (episodes, count, 2)).astype(np.float32)
    for _ in range(7):
        other = generator.uniform(-START_M, START_M, best.shape).astype(np.float32)
        better = _narrowest(other) > _narrowest(best)
        best = np.where(better[:, None, None], other, best)
    return best


def _narrowest(places: Array) -> Array:
    """The smallest distance [episodes] between any two places."""
    gaps = np.sqrt(np.square(places[:, :, None] - places[:, None]).sum(3))  # (E, count, count)
    first, second = np.triu_indices(places.shape[1], 1)
    smallest: Array = gaps[:, first, second].min(1)
    return smallest

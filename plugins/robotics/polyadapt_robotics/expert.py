"""The scripted expert of the table world: it sees everything and knows how the world is turned."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from polyadapt_robotics.world import CONTACT_M, GRASP_M, STEP_M, SUCCESS_M, Array, TableWorld

APPROACH_M = CONTACT_M + 0.03  # where a push begins, behind the object
DETOUR_M = CONTACT_M + 0.05  # how far a way around the object leads away from it


def expert_actions(world: TableWorld) -> Array:
    """What the expert does now: commands [episodes, 3] that a policy may learn from."""
    if world.task == "reach":
        way, closes = world.goal - world.gripper, np.zeros(len(world.gripper), dtype=bool)
    elif world.task == "carry":
        way, closes = _carry(world)
    else:
        way, closes = _push(world), np.zeros(len(world.gripper), dtype=bool)
    command = world.turned_back(_cut(way / STEP_M))  # (E, 2)
    grip = np.where(closes, np.float32(1), np.float32(-1))[:, None]
    return np.concatenate([command, grip], axis=1)


def _carry(world: TableWorld) -> tuple[Array, npt.NDArray[np.bool_]]:
    """To the object with an open grip, close, to the goal, open; and away from what lies there."""
    gap = world.objects[:, 0] - world.gripper  # (E, 2)
    left = world.goal - world.objects[:, 0]  # (E, 2)
    is_there = _length(left) < 0.5 * SUCCESS_M
    way = np.where(world.held[:, None], left, gap)
    closes = (world.held | (_length(gap) < 0.9 * GRASP_M)) & ~is_there
    return np.where(is_there[:, None], np.float32(0), way), closes


def _push(world: TableWorld) -> Array:
    """Behind the object, seen from the goal, around it where it is in the way; then straight through it."""
    thing = world.objects[:, 0]
    left = world.goal - thing  # (E, 2)
    along = left / np.maximum(_length(left), 1e-6)[:, None]
    across = np.stack([-along[:, 1], along[:, 0]], axis=1)
    place = world.gripper - thing
    behind, aside = (place * along).sum(1), (place * across).sum(1)  # (E,)
    side = np.where(aside >= 0, np.float32(1), np.float32(-1))[:, None]
    is_lined_up = (np.abs(aside) < 0.6 * CONTACT_M) & (behind < -0.8 * CONTACT_M)
    is_in_front = behind > -0.7 * CONTACT_M
    around = thing + across * side * DETOUR_M - along * APPROACH_M
    # Beside the object first, so that the way behind it does not lead through it.
    beside = thing + across * side * DETOUR_M + along * np.clip(behind, -DETOUR_M, DETOUR_M)[:, None]
    needs_room = is_in_front & (np.abs(aside) < 0.9 * DETOUR_M)
    start = thing - along * APPROACH_M
    way = np.where(is_in_front[:, None], around, start) - world.gripper
    way = np.where(needs_room[:, None], beside - world.gripper, way)
    push = along * STEP_M - across * aside[:, None]
    # The last step is only as long as it has to be.
    push = np.where((_length(left) < STEP_M)[:, None], left - across * aside[:, None], push)
    return np.where(is_lined_up[:, None], push, way)


def _cut(way: Array) -> Array:
    """Vectors [episodes, 2] no longer than 1."""
    return (way / np.maximum(_length(way), 1.0)[:, None]).astype(np.float32)


def _length(vectors: Array) -> Array:
    lengths: Array = np.sqrt(np.square(vectors).sum(1))
    return lengths

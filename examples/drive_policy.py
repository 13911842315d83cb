"""Drive the table world from an exported bundle: numpy and onnxruntime, no torch.

    polyadapt run examples/robotics-shift.toml
    python examples/drive_policy.py runs/robotics-shift/bundle --artifact lora

Prints one episode as it looks from above (G gripper, * while it holds something, o the object to carry, x the goal,
. other objects), then how often the bare base and the adapted policy do the task.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from polyadapt.errors import UserError
from polyadapt_robotics.rollout import roll_out
from polyadapt_robotics.world import HALF_TABLE_M, HORIZON_STEPS, Shift, TableWorld
from polyadapt_runtime import Bundle, BundleError

COLUMNS, ROWS = 41, 17


def picture(world: TableWorld) -> str:
    """The first episode's table, seen from above."""
    cells = [[" "] * COLUMNS for _ in range(ROWS)]
    marks = [(place, ".") for place in world.objects[0, 1:]]
    marks += [(world.marker[0], "x"), (world.objects[0, 0], "o"), (world.gripper[0], "*" if world.held[0] else "G")]
    for (x, y), mark in marks:
        column = round((float(x) + HALF_TABLE_M) / (2 * HALF_TABLE_M) * (COLUMNS - 1))
        row = round((HALF_TABLE_M - float(y)) / (2 * HALF_TABLE_M) * (ROWS - 1))
        cells[min(max(row, 0), ROWS - 1)][min(max(column, 0), COLUMNS - 1)] = mark
    edge = "+" + "-" * COLUMNS + "+"
    return "\n".join([edge, *("|" + "".join(line) + "|" for line in cells), edge])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--artifact", default="lora")
    parser.add_argument("--task", default="carry")
    parser.add_argument("--rotation-deg", type=float, default=75.0)
    parser.add_argument("--episodes", type=int, default=200)
    given = parser.parse_args()
    bundle, shift = Bundle(given.bundle, device="cpu"), Shift(given.rotation_deg)

    world = TableWorld(given.task, 1, np.random.default_rng(7), shift)
    for step in range(HORIZON_STEPS):
        if step % 6 == 0:
            print(f"step {step}\n{picture(world)}")
        action = bundle.run({"observation": world.observe()}, given.artifact)["action"]
        world.step(action)
        if world.reached()[0]:
            print(f"done in {step + 1} steps\n{picture(world)}")
            break

    for name in (None, given.artifact):
        found = roll_out(lambda observations, name=name: bundle.run({"observation": observations}, name)["action"], given.task, given.episodes, seed=1000, shift=shift)
        low, high = found.interval()
        print(f"{name or 'base'}: {found.rate:.1%} of {given.episodes} episodes ({low:.1%} to {high:.1%})")
    print("torch was imported" if "torch" in sys.modules else "without torch")


if __name__ == "__main__":
    try:
        main()
    except (BundleError, UserError) as error:
        sys.exit(f"error: {error}")

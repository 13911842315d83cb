"""The table world: its mechanics, the expert, demonstrations as data, speed."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest

from polyadapt.data.dataset import Dataset, open_data
from polyadapt.data.split import split_data
from polyadapt.errors import UserError
from polyadapt.host import Host
from polyadapt_robotics import entry
from polyadapt_robotics.cards import TABLE_WORLD, TableWorldOptions
from polyadapt_robotics.demonstrations import demonstrate, parse_world
from polyadapt_robotics.expert import expert_actions
from polyadapt_robotics.rollout import Rollout, roll_out
from polyadapt_robotics.world import ACTION_SIZE, CONTACT_M, HALF_TABLE_M, OBSERVATION_SIZE, STEP_M, SUCCESS_M, TASKS, Shift, TableWorld


def world_of(task: str, shift: Shift | None = None, seed: int = 0, episodes: int = 4) -> TableWorld:
    return TableWorld(task, episodes, np.random.default_rng(seed), shift)


def opened(rest: str, **options: float) -> Dataset:
    return open_data(f"table-world:{rest}", {TABLE_WORLD.scheme: TABLE_WORLD}, options)


def placed(task: str, gripper: tuple[float, float], thing: tuple[float, float], goal: tuple[float, float] = (0.3, 0.3)) -> TableWorld:
    world = world_of(task, episodes=1)
    world.gripper[:], world.goal[:], world.marker[:] = gripper, goal, goal
    world.objects[:] = (-0.45, -0.45)
    world.objects[:, 0] = thing
    return world


def test_the_plugin_keeps_the_contract() -> None:
    host = Host(plugins=[("robotics", entry)], discover=False, environment={})
    assert host.registry.readers.ids() == ["table-world"] and host.registry.models.ids() == ["table-policy:"]


def test_a_command_moves_the_gripper_and_no_faster_than_full_speed() -> None:
    world = placed("reach", (0, 0), (0.4, 0.4))
    world.step([[0.5, 0, -1]])
    assert world.gripper[0] == pytest.approx((0.5 * STEP_M, 0), abs=1e-7)
    world.step([[30, -40, -1]])
    assert world.gripper[0] == pytest.approx((0.5 * STEP_M + 0.6 * STEP_M, -0.8 * STEP_M), abs=1e-6)
    for _ in range(40):
        world.step([[1, 0, -1]])
    assert world.gripper[0, 0] == HALF_TABLE_M


def test_turned_actuators_turn_the_way() -> None:
    world = world_of("reach", Shift(90), episodes=1)
    before = world.gripper.copy()
    world.step([[1, 0, -1]])
    assert (world.gripper - before)[0] == pytest.approx((0, STEP_M), abs=1e-6)
    assert world.turned_back(np.array([[0, 1]], np.float32))[0] == pytest.approx((1, 0), abs=1e-6)


def test_a_shifted_goal_lies_beside_its_marker() -> None:
    world = world_of("reach", Shift(goal_shift_m=(0.1, -0.05)))
    assert world.goal - world.marker == pytest.approx(np.tile([0.1, -0.05], (4, 1)), abs=1e-6)
    assert world.observe()[:, -2:] == pytest.approx(world.marker)


def test_an_open_gripper_pushes_and_never_jumps_over() -> None:
    world = placed("push", (-0.05, 0), (0, 0))
    for _ in range(3):
        world.step([[1, 0, -1]])
        gap = world.objects[0, 0] - world.gripper[0]
        assert gap[0] > 0 and np.linalg.norm(gap) >= CONTACT_M - 1e-6
    assert world.objects[0, 0, 0] == pytest.approx(world.gripper[0, 0] + CONTACT_M, abs=1e-5)


def test_what_is_held_moves_along_until_the_grip_opens() -> None:
    world = placed("carry", (0, 0), (0.03, 0), goal=(0.03 + STEP_M, 0))
    world.step([[1, 0, 1]])
    assert world.held[0] and world.objects[0, 0] == pytest.approx((0.03 + STEP_M, 0), abs=1e-6)
    assert not world.reached()[0]  # on the goal, but not let go
    world.step([[0, 0, -1]])
    assert not world.held[0] and world.reached()[0]


def test_a_grip_that_closes_too_far_away_holds_nothing() -> None:
    world = placed("carry", (0, 0), (0.2, 0))
    world.step([[0, 0, 1]])
    assert not world.held[0]


def test_the_observation_is_what_the_docs_say() -> None:
    world = world_of("carry")
    seen = world.observe()
    assert seen.shape == (4, OBSERVATION_SIZE) and seen.dtype == np.float32
    assert np.array_equal(seen[:, :2], world.gripper) and np.array_equal(seen[:, 3:5], world.objects[:, 0]) and not seen[:, 2].any()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("shift", [None, Shift(75), Shift(goal_shift_m=(0.08, 0.05))])
def test_the_expert_does_every_task_in_every_world(task: str, shift: Shift | None) -> None:
    assert roll_out(None, task, 200, 3, shift).rate >= 0.98


def test_doing_nothing_does_nothing() -> None:
    still = roll_out(lambda observations: np.zeros((len(observations), ACTION_SIZE)), "carry", 100, 3)
    assert still.rate <= 0.02 and still.steps[~still.success].min() == 80


def test_demonstrations_hold_the_experts_commands_and_are_seeded() -> None:
    found = demonstrate("carry", 5, 7, Shift(30), disturbance=0.3)
    assert found.observations.shape == (len(found.actions), OBSERVATION_SIZE) and found.actions.shape[1] == ACTION_SIZE
    again = demonstrate("carry", 5, 7, Shift(30), disturbance=0.3)
    assert np.array_equal(found.actions, again.actions) and np.array_equal(found.observations, again.observations)
    assert not np.array_equal(found.observations[:5], demonstrate("carry", 5, 8, Shift(30)).observations[:5])
    # The first command of each episode is what the expert says where it starts.
    world = TableWorld("carry", 5, np.random.default_rng([7, 0]), Shift(30))
    first = found.step == 0
    assert np.array_equal(found.actions[first], expert_actions(world)) and np.array_equal(found.observations[first], world.observe())
    for episode in range(5):
        assert found.step[found.episode == episode].tolist() == list(range((found.episode == episode).sum()))


def test_disturbed_demonstrations_show_other_places() -> None:
    calm, rough = (demonstrate("reach", 30, 0, disturbance=share) for share in (0.0, 0.6))
    assert len(rough.actions) > len(calm.actions)


def test_the_reader_gives_one_example_a_step_and_splits_by_episode() -> None:
    dataset = opened("reach?episodes=12&seed=3&rotation_deg=20")
    assert dataset[0].id == "reach/0/0" and dataset.media == "array"
    assert dataset[0].target.shape == (ACTION_SIZE,) and dataset[0].raw.shape == (OBSERVATION_SIZE,)
    parts = split_data(dataset, {"by": "group:episode", "fractions": {"train": 0.5, "test": 0.5}})
    episodes = [{example.extra["episode"] for example in part} for part in (parts.train, parts.test)]
    assert not episodes[0] & episodes[1] and len(episodes[0] | episodes[1]) == 12


@pytest.mark.parametrize(
    ("rest", "options", "words"),
    [
        ("cary", {}, "did you mean 'carry'"),
        ("carry?episode=3", {}, "did you mean 'episodes'"),
        ("carry?episodes=3&episodes=4", {}, "gives option 'episodes' twice; keep one"),
        ("carry?episodes=0", {}, "episodes"),
        ("carry?rotation_deg=200", {}, "rotation_deg"),
    ],
)
def test_a_wrong_uri_is_said_in_one_line(rest: str, options: dict[str, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        opened(rest, **options)


def test_options_beside_the_uri_go_before_those_behind_it() -> None:
    found = opened("push?seed=4&episodes=5", episodes=3, rotation_deg=10)
    expected = demonstrate("push", 3, 4, Shift(10), TableWorldOptions().disturbance)
    assert np.array_equal(np.stack([example.raw for example in found]), expected.observations)
    assert np.array_equal(np.stack([example.target for example in found]), expected.actions)


def test_the_world_of_a_rollout_is_read_like_a_uri() -> None:
    task, options = parse_world("push?seed=4&rotation_deg=10")
    assert (task, options.seed, options.rotation_deg, options.episodes) == ("push", 4, 10, 40)
    with pytest.raises(UserError, match="gives option 'seed' twice"):
        parse_world("push?seed=4&seed=5")


def test_the_interval_of_a_rate_is_wilsons() -> None:
    """Against the formula's roots: p such that |rate - p| = 1.96 sqrt(p (1 - p) / n)."""
    found = Rollout(np.array([True] * 18 + [False] * 2), np.zeros(20, np.int64))
    for bound in found.interval():
        assert abs(found.rate - bound) == pytest.approx(1.96 * np.sqrt(bound * (1 - bound) / 20), abs=1e-9)


def test_it_takes_more_than_fifty_thousand_steps_a_second() -> None:
    world = world_of("carry", episodes=256)
    actions = np.random.default_rng(1).normal(size=(256, ACTION_SIZE)).astype(np.float32)
    world.step(actions)
    began = time.process_time()  # of this process alone, so that a busy machine does not count
    for _ in range(100):
        world.step(actions)
    assert 100 * 256 / (time.process_time() - began) > 50_000


def test_the_world_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None\nimport polyadapt_robotics.rollout as r; print(r.roll_out(None, 'carry', 5, 0).rate)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and float(done.stdout) == 1.0, done.stderr


def test_success_is_a_distance() -> None:
    world = placed("reach", (0, 0), (0.4, 0.4), goal=(SUCCESS_M * 0.99, 0))
    assert world.reached()[0]
    world.goal[:] = (SUCCESS_M * 1.01, 0)
    assert not world.reached()[0]

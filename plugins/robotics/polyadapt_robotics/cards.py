"""Cards of the robotics plugin: the table world as data, and policies that were trained in it."""

from __future__ import annotations

from pydantic import Field

from polyadapt.data.card import ReaderCard
from polyadapt.options import Options
from polyadapt.sources.card import ModelCard
from polyadapt.sources.options import LoadOptions


class TableWorldOptions(Options):
    """Options of `table-world:`, given beside the URI or behind its `?`."""

    episodes: int = Field(40, ge=1, description="demonstrations")
    seed: int = Field(0, ge=0, lt=2**63, description="of starting positions and disturbances")
    rotation_deg: float = Field(0.0, ge=-180, le=180, description="how far the actuators are turned against the table: a command moves the gripper in another direction")
    goal_shift_x_m: float = Field(0.0, ge=-0.2, le=0.2, description="where the goal lies, seen from its marker: a camera that is not calibrated")
    goal_shift_y_m: float = Field(0.0, ge=-0.2, le=0.2, description="as goal_shift_x_m")
    disturbance: float = Field(0.3, ge=0, le=1, description="noise on what is carried out, as a share of full speed; recorded is what the expert meant (DART, arXiv 1703.09327)")


class TablePolicyOptions(LoadOptions):
    """Options of `table-policy:`."""

    seed: int = Field(0, ge=0, lt=2**63, description="of the demonstrations and of training")


TABLE_WORLD = ReaderCard(
    scheme="table-world",
    title="demonstrations of a scripted expert on a simulated table: reach, push or carry",
    tasks=("control",),
    options=TableWorldOptions,
    implementation="polyadapt_robotics.demonstrations:read",
    notes="table-world:carry?episodes=40&seed=1. One example a step: raw is the observation, target the expert's action, column episode its number.",
)

POLICY = ModelCard(
    reference="table-policy:",
    title="Behaviour-cloned policies for the table world: table-policy:reach, push or carry",
    task="control",
    family="mlp-policy",
    options=TablePolicyOptions,
    implementation="polyadapt_robotics.policy:load",
    parameters=134531,
    licence="Apache-2.0 (trained here)",
    offline=True,
    notes="Trained on the scripted expert when it is first loaded, which takes seconds, and kept in the cache.",
)

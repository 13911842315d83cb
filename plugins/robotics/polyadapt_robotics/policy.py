"""`table-policy:TASK`: behaviour-cloned policies for the table world, trained at first use and kept in the cache.

Paper: ALVINN, Pomerleau 1988 (behaviour cloning); disturbed demonstrations: DART, Laskey et al., arXiv 1703.09327.
Normalisation is part of the network (`polyadapt.families.mlp_policy`). Training is seeded, so the weights and their
base_id are the same wherever torch computes the same sums; another processor may round otherwise.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from polyadapt.errors import UserError, unknown
from polyadapt.families.mlp_policy.network import MlpPolicy
from polyadapt.model import Model, build_model
from polyadapt.sources.card import ModelCard
from polyadapt.sources.common import make_task, seeded
from polyadapt.sources.families import family_by_id
from polyadapt.sources.fetch import cache_directory
from polyadapt.sources.processors import array_spec, make_processor
from polyadapt.tensors import load_tensors, save_tensors
from polyadapt_robotics.cards import TablePolicyOptions
from polyadapt_robotics.demonstrations import demonstrate
from polyadapt_robotics.world import ACTION_SIZE, OBSERVATION_SIZE, TASKS

if TYPE_CHECKING:
    from polyadapt.families.card import FamilyCard

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cloning:
    """How a policy is trained; ours, found by trying: every task is done in more than 95 of 100 new episodes.

    Part of the name of the cached file: a change trains anew.
    """

    episodes: int = 500
    disturbance: float = 0.3
    width: int = 128
    blocks: int = 2
    steps: int = 1000
    batch_size: int = 256
    learning_rate: float = 2e-3
    version: int = 1


def load(card: ModelCard, name: str, options: TablePolicyOptions, families: Iterable[FamilyCard] | None = None) -> Model:
    """The policy for one task.

    Raises:
        UserError: an unknown task of the table world.
    """
    if name not in TASKS:
        raise unknown("policy", f"table-policy:{name}", [f"table-policy:{task}" for task in TASKS])
    family = family_by_id(card.family, families)
    task = make_task(family, options.task, details={"world": f"table-world:{name}"})
    backbone = cached_policy(name, options.seed)
    processor = make_processor(array_spec(family.signature(backbone, task)))
    return build_model(family, backbone, task, processor, reference=f"table-policy:{name}", licences={card.title: card.licence})


def cached_policy(task: str, seed: int, how: Cloning | None = None) -> MlpPolicy:
    """The trained policy from the cache, trained now where it is not there or damaged."""
    chosen = how or Cloning()
    path = policy_path(task, seed, chosen)
    policy = _empty(seed, chosen)
    if path.is_file():
        try:
            policy.load_state_dict(load_tensors(path, f"table-policy:{task}"))
            return policy.eval()
        except (UserError, RuntimeError) as error:
            logger.warning("the kept policy cannot be used and is trained anew: %s", error)
    train_policy(policy, task, seed, chosen)
    try:
        save_tensors(path, policy.state_dict())
    except UserError as error:
        logger.warning("the policy is not kept and has to be trained again next time: %s", error)
    return policy.eval()


def policy_path(task: str, seed: int, how: Cloning) -> Path:
    """Where a trained policy is kept."""
    digest = hashlib.sha256(json.dumps([task, seed, asdict(how)]).encode()).hexdigest()[:16]
    return cache_directory() / "policies" / f"table-{task}-{digest}.safetensors"


def train_policy(policy: MlpPolicy, task: str, seed: int, how: Cloning) -> None:
    """Clone the expert: AdamW on the squared error in units of each action's deviation, in place."""
    logger.info("training table-policy:%s on %d demonstrations", task, how.episodes)
    found = demonstrate(task, how.episodes, seed, None, how.disturbance)
    observations, actions = torch.from_numpy(found.observations), torch.from_numpy(found.actions)
    policy.fit_statistics(observations, actions)
    policy.train()
    optimiser = torch.optim.AdamW(policy.parameters(), lr=how.learning_rate, weight_decay=1e-4)
    generator = torch.Generator().manual_seed(seed)
    for step in range(how.steps):
        for group in optimiser.param_groups:
            group["lr"] = how.learning_rate * 0.5 * (1 + math.cos(math.pi * step / how.steps))
        rows = torch.randint(len(observations), (how.batch_size,), generator=generator)
        error = (policy(observations[rows]) - actions[rows]) / policy.action_deviation  # (batch, action)
        optimiser.zero_grad(set_to_none=True)
        error.square().mean().backward()
        optimiser.step()


def _empty(seed: int, how: Cloning) -> MlpPolicy:
    with seeded(seed):
        return MlpPolicy(OBSERVATION_SIZE, ACTION_SIZE, width=how.width, blocks=how.blocks)

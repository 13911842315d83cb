"""`polyadapt robotics rollout`: how often a policy does its task, counted in whole episodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from polyadapt.errors import UserError, nearest

if TYPE_CHECKING:
    from polyadapt_robotics.rollout import Policy

SCHEME = "table-world:"
ARTIFACT_ID = "artifact_id"  # by which a bank is told, which the bundle feeds itself


@click.command()
@click.argument("policy", metavar="BUNDLE|REF|expert")
@click.argument("world", metavar="WORLD")
@click.option(
    "--artifact", "artifacts", multiple=True, metavar="NAME", help="Name in a bundle, or folder of an artifact of REF. May be repeated; a bundle's are all taken otherwise."
)
@click.option("--episodes", default=200, show_default=True, type=click.IntRange(1, 100_000), help="How many; they run beside each other.")
@click.option("--seed", default=1000, show_default=True, type=click.IntRange(0), help="Of the episodes; another one than that of the demonstrations.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def rollout(policy: str, world: str, artifacts: tuple[str, ...], episodes: int, seed: int, as_json: bool) -> None:
    """Let a policy act in WORLD, such as 'table-world:carry?rotation_deg=60', and count its successes."""
    from polyadapt.cli.context import print_json, print_table
    from polyadapt_robotics.demonstrations import parse_world, shift_of
    from polyadapt_robotics.rollout import roll_out

    if not world.startswith(SCHEME):
        raise UserError(f"world {world!r}; expected a URI such as '{SCHEME}carry?rotation_deg=60'")
    task, options = parse_world(world.removeprefix(SCHEME))
    if given := {"episodes", "seed"} & options.model_fields_set:
        raise UserError(f"{world}: {sorted(given)[0]} belongs to demonstrations; for rollouts give --{sorted(given)[0]}")
    rows = []
    for name, acts in _policies(policy, artifacts):
        found = roll_out(acts, task, episodes, seed, shift_of(options))
        low, high = found.interval()
        steps = float(found.steps[found.success].mean()) if found.success.any() else None
        rows.append({"policy": name, "success": found.rate, "low": low, "high": high, "steps": steps, "episodes": episodes})
    if as_json:
        print_json({"world": world, "seed": seed, "rollouts": rows})
        return
    shown = ((row["policy"], f"{row['success']:.1%}", f"{row['low']:.1%} to {row['high']:.1%}", "–" if row["steps"] is None else f"{row['steps']:.1f}") for row in rows)
    print_table(("policy", "success", "95 % interval", "steps where done"), shown)


def _policies(policy: str, artifacts: tuple[str, ...]) -> Iterator[tuple[str, Policy | None]]:
    """Names and what acts under them: the base first."""
    if policy == "expert":
        yield "expert", None
    elif (Path(policy) / "manifest.json").is_file():
        yield from _of_bundle(Path(policy), artifacts)
    else:
        yield from _of_reference(policy, artifacts)


def _of_bundle(path: Path, artifacts: tuple[str, ...]) -> Iterator[tuple[str, Policy]]:
    from polyadapt_runtime import Bundle

    bundle = Bundle(path, device="cpu")
    _check_inputs([(port.name, tuple(port.shape)) for port in bundle.manifest.graphs[bundle.manifest.chain[0]].inputs if port.name != ARTIFACT_ID], str(path))
    # In a merged graph the one artifact is all there is: it answers where none is named, and there is no base.
    inside = bundle.manifest.form == "merged"
    if strange := [name for name in artifacts if name not in bundle.artifacts()]:
        raise UserError(f"{path} has no artifact {strange[0]!r}{nearest(strange[0], bundle.artifacts())}; it has: {', '.join(bundle.artifacts()) or 'none'}")
    names = [*(artifacts or bundle.artifacts())] if inside else [None, *(artifacts or bundle.artifacts())]
    for name in names:

        def act(observations: Any, name: str | None = None if inside else name) -> Any:
            return bundle.run({"observation": observations}, name)["action"]

        yield name or "base", act


def _of_reference(reference: str, artifacts: tuple[str, ...]) -> Iterator[tuple[str, Policy]]:
    import numpy as np

    from polyadapt import api
    from polyadapt.artifact import Artifact

    model = api.load(reference)
    _check_inputs([(spec.name, spec.shape) for spec in model.signature.inputs], reference)
    for folder in (None, *artifacts):
        artifact = None if folder is None else Artifact.load(folder)

        def act(observations: Any, artifact: Artifact | None = artifact) -> Any:
            answers = api.infer(model, list(observations), artifact, batch_size=max(1, len(observations)))
            return np.stack([answer["action"] for answer in answers])

        yield "base" if folder is None else Path(folder).name, act


def _check_inputs(inputs: list[tuple[str, tuple[Any, ...]]], what: str) -> None:
    """Refuse what does not see the table world."""
    from polyadapt_robotics.world import OBSERVATION_SIZE

    if [name for name, _ in inputs] != ["observation"] or inputs[0][1][-1] != OBSERVATION_SIZE:
        found = ", ".join(f"{name} [{', '.join(map(str, shape))}]" for name, shape in inputs)
        raise UserError(f"{what} takes {found}; a policy for the table world takes observation [batch, {OBSERVATION_SIZE}], such as table-policy:carry")

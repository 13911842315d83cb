"""`polyadapt adapt` and `evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from polyadapt.cli.context import download_option, host_of, load_model, option_pairs, parse_pairs, print_facts, print_json, readable, title_of
from polyadapt.errors import UserError

if TYPE_CHECKING:
    from polyadapt.artifact import Artifact
    from polyadapt.data.dataset import Dataset
    from polyadapt.data.split import Parts

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
folder = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.argument("reference", metavar="REF")
@click.argument("method")
@click.argument("data", metavar="DATA")
@click.option("--out", required=True, type=folder, help="Where the artifact is written.")
@option_pairs("-o", "--option", "options")
@option_pairs("-m", "--model-option", "model_options")
@option_pairs("-d", "--data-option", "data_options")
@option_pairs("-s", "--split", "split")
@option_pairs("-t", "--train", "train")
@click.option("--resume", is_flag=True, help="Go on from the checkpoints beside --out.")
@click.option("--dry-run", is_flag=True, help="Say what would happen, with time, memory and disk.")
@download_option
@json_option
@click.pass_context
def adapt(ctx: click.Context, /, **given: Any) -> None:
    """Adapt the model REF to DATA (a URI such as folder:photos) by METHOD."""
    from polyadapt import api
    from polyadapt.cli.progress import showing
    from polyadapt.data.split import split_data
    from polyadapt.job.directory import clear
    from polyadapt.job.estimate import estimate_adaptation
    from polyadapt.training.processes import find_processes

    host = host_of(ctx)
    out: Path = given["out"]
    checkpoints = out.with_name(f".{out.name}.checkpoints")
    if out.exists() and not given["dry_run"]:
        raise UserError(f"{out} exists already; give another --out, or remove it")
    if checkpoints.exists() and not given["resume"] and not given["dry_run"]:
        raise UserError(f"an unfinished adaptation lies in {checkpoints}; --resume goes on with it, or remove it")
    host.registry.methods.get(given["method"])
    model = load_model(host, given["reference"], parse_pairs(given["model_options"], "--model-option"), given["allow_download"])
    dataset = host.open_dataset(given["data"], parse_pairs(given["data_options"], "--data-option"))
    parts = split_data(dataset, nested(parse_pairs(given["split"], "--split")), not model.task.transcribes, needed=("train",))
    options, train = parse_pairs(given["options"], "--option"), parse_pairs(given["train"], "--train")
    if given["dry_run"]:
        found = estimate_adaptation(host, model, given["method"], options, train, parts)
        print_json(found) if given["as_json"] else print_facts((title_of(key), readable(key, value)) for key, value in found.items())
        return
    with showing(given["as_json"]) as emit:
        artifact = api.adapt_parts(model, given["method"], parts, options, train, directory=checkpoints, resume=given["resume"], emit=emit, host=host)
    if not find_processes("auto", "no").is_main:
        return
    artifact.save(out)
    clear(checkpoints)
    facts = {"artifact": str(out), "method": artifact.method, "bytes": artifact.size_bytes, "sites": len(artifact.sites), "labels": list(artifact.labels)}
    print_json(facts) if given["as_json"] else print_facts(facts.items())


@click.command()
@click.argument("reference", metavar="REF")
@click.argument("data", metavar="DATA")
@click.option("--artifact", type=folder, help="Folder of an artifact to attach.")
@click.option("--metric", "metrics", multiple=True, help="May be given several times; the task's own otherwise.")
@click.option("--part", default="all", show_default=True, help="all, train, validation or test; of the split that the artifact was trained by, where that was of DATA.")
@option_pairs("-m", "--model-option", "model_options")
@option_pairs("-d", "--data-option", "data_options")
@option_pairs("-s", "--split", "split")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the resampling behind the interval.")
@download_option
@json_option
@click.pass_context
def evaluate(ctx: click.Context, /, **given: Any) -> None:
    """Measure the model REF on DATA, alone or with an artifact."""
    from polyadapt import api
    from polyadapt.artifact import Artifact

    host = host_of(ctx)
    model = load_model(host, given["reference"], parse_pairs(given["model_options"], "--model-option"), given["allow_download"])
    artifact = Artifact.load(given["artifact"]) if given["artifact"] else None
    dataset = host.open_dataset(given["data"], parse_pairs(given["data_options"], "--data-option"))
    if given["part"] != "all":
        dataset = unseen(artifact, dataset, nested(parse_pairs(given["split"], "--split")), not model.task.transcribes)[given["part"]]
    elif given["split"]:
        raise UserError("--split says how to split, and --part all takes everything; add --part test")
    if artifact is not None and given["part"] == "all" and _has_seen(artifact, dataset, not model.task.transcribes):
        click.echo("the artifact was trained on a part of these data; --part test measures what it has not seen", err=True)
    found = api.evaluate(model, dataset, artifact, metrics=given["metrics"], seed=given["seed"], host=host)
    if given["as_json"]:
        print_json(found.to_dict(predictions=False))
        return
    rows = [(found.metric, found.value, found.interval), *((name, other.value, other.interval) for name, other in found.others.items())]
    print_facts([("examples", found.n), *((name, f"{value:.4g}  ({interval.level:.0%} interval {interval.low:.4g} to {interval.high:.4g})") for name, value, interval in rows)])


def unseen(artifact: Artifact | None, dataset: Dataset, split: dict[str, Any], by_class: bool) -> Parts:
    """A split whose test part an artifact has not been trained on, as far as it says how its data were split.

    Raises:
        UserError: it was trained on these data by another split than the one that is given.
    """
    from polyadapt.data.split import split_data

    remembered = None if artifact is None else _as_trained(artifact, dataset, by_class)
    if remembered is not None and not split:
        return remembered
    parts = split_data(dataset, split, by_class, needed=("train",))
    if remembered is not None and parts.train.hash != remembered.train.hash:
        way = remembered.split
        raise UserError(f"the artifact was trained on these data by another split (by {way.by}, seed {way.seed}), so parts of this one hold what it has seen; leave --split out")
    return parts


def _as_trained(artifact: Artifact, dataset: Dataset, by_class: bool) -> Parts | None:
    """The split that an artifact remembers, where its train part is the one it was trained on; None of other data."""
    from polyadapt.data.split import split_data

    split = dict(artifact.provenance.get("split", {}))
    digest = split.pop("train", None)
    if digest is None:
        return None
    try:
        parts = split_data(dataset, split, by_class, needed=("train",))
    except UserError:  # data that cannot be split so
        return None
    return parts if parts.train.hash == digest else None


def _has_seen(artifact: Artifact, dataset: Dataset, by_class: bool) -> bool:
    """Whether an artifact was trained on these data, or on a part of them."""
    from polyadapt.data.split import split_data

    trained = artifact.provenance.get("data", {}).get("train", {}).get("hash")
    if _as_trained(artifact, dataset, by_class) is not None or trained == dataset.hash:
        return True
    try:  # one from before artifacts remembered their split, by the usual one
        return trained is not None and trained == split_data(dataset, {}, by_class)["train"].hash
    except UserError:  # they are too few to be split
        return False


def nested(pairs: dict[str, Any]) -> dict[str, Any]:
    """`fractions.train = 0.5` as a table within a table.

    Raises:
        UserError: a key that is given as a value and as a table.
    """
    result: dict[str, Any] = {key: value for key, value in pairs.items() if "." not in key}
    for key, value in pairs.items():
        outer, dot, inner = key.partition(".")
        if not dot:
            continue
        table = result.setdefault(outer, {})
        if not isinstance(table, dict):
            raise UserError(f"--split gives {outer} = {table!r} and {key} = {value!r}; {outer} is a value or a table, keep one")
        table[inner] = value
    return result

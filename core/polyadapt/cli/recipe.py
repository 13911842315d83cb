"""`polyadapt run RECIPE.toml` and `polyadapt compare RECIPE.toml`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from polyadapt.cli.context import download_option, host_of, print_facts, print_json, print_table, readable, title_of
from polyadapt.errors import UserError

if TYPE_CHECKING:
    from polyadapt.report import RunResult

path_argument = click.argument("recipe_path", metavar="RECIPE.toml", type=click.Path(path_type=Path))
out_option = click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Directory of the run (default: runs/ and the name of the recipe's file).")
resume_option = click.option("--resume", is_flag=True, help="Go on where an earlier run stopped, with the same result as an unbroken one.")
dry_option = click.option("--dry-run", is_flag=True, help="Say what would happen, with time, memory and disk.")
examples_option = click.option("--no-examples", is_flag=True, help="Keep single examples out of the report, for private data.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command()
@path_argument
@out_option
@resume_option
@dry_option
@examples_option
@download_option
@json_option
@click.pass_context
def run(ctx: click.Context, /, **given: Any) -> None:
    """Do a whole recipe: load, adapt every arm, evaluate, export, verify and report."""
    _do(ctx, given, has_export=True)


@click.command()
@path_argument
@out_option
@resume_option
@dry_option
@examples_option
@download_option
@json_option
@click.pass_context
def compare(ctx: click.Context, /, **given: Any) -> None:
    """Compare the arms and baselines of a recipe on one split, with paired intervals. Nothing is exported."""
    _do(ctx, given, has_export=False)


def _do(ctx: click.Context, given: dict[str, Any], has_export: bool) -> None:
    from polyadapt.cli.progress import showing
    from polyadapt.recipe import read_recipe

    recipe = read_recipe(given["recipe_path"])
    out: Path = given["out"] or Path("runs") / given["recipe_path"].stem
    host = host_of(ctx)
    if given["dry_run"]:
        from polyadapt.job.estimate import estimate_recipe

        _print_estimate(estimate_recipe(recipe, host, out, given["allow_download"], has_export), given["as_json"])
        return
    baselines = 1 if recipe.evaluate.baselines is None else len(recipe.evaluate.baselines)  # by default there is at least one
    if not has_export and len(recipe.arm) + baselines < 2:
        raise UserError("compare needs at least two arms, or an arm and a baseline")
    from polyadapt.job.run import run_recipe

    flags = {"resume": given["resume"], "examples": not given["no_examples"], "allow_download": given["allow_download"], "has_export": has_export}
    with showing(given["as_json"]) as emit:
        result = run_recipe(recipe, out, host, emit=emit, **flags)
    if result is None:
        return
    if given["as_json"]:
        print_json(result.to_dict(examples=False) | {"directory": str(out)})
    else:
        _print(result, out, recipe.export.directory if has_export and recipe.export else "")


def _print(result: RunResult, out: Path, bundle: str) -> None:
    found = result.to_dict(examples=False)
    metric = found["arms"][0]["evaluation"]["metric"]
    rows = []
    for arm in found["arms"]:
        value, interval = arm["evaluation"]["value"], arm["evaluation"]["interval"]
        between = f"{interval['low']:.4g} to {interval['high']:.4g}"
        rows.append([arm["name"], arm["role"], arm["method"], f"{arm['trainable_parameters']:,}", f"{value:.4g}", between, f"{arm['seconds']:.1f} s"])
    click.echo()
    print_table(("name", "role", "method", "trained", metric, "95 % interval", "time"), rows)
    if found["comparisons"]:
        click.echo()
        differences = ([f"{row['first']} − {row['second']}", f"{row['difference']:+.4g}", _interval(row), row["is_clear"]] for row in found["comparisons"])
        print_table(("difference", metric, "95 % interval", "clear"), differences)
    click.echo()
    print_facts([("report", out / "report.html"), ("bundle", out / bundle if bundle else ""), ("artifacts", out / "artifacts")])


def _interval(row: dict[str, Any]) -> str:
    return f"{row['interval']['low']:+.4g} to {row['interval']['high']:+.4g}"


def _print_estimate(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    arms = found["arms"]
    examples = ", ".join(f"{count} {part}" for part, count in found["examples"].items())
    shown = {**found, "examples": examples, "arms": ""}
    print_facts((title_of(key), readable(key, value)) for key, value in shown.items())
    click.echo()
    columns = list(arms[0])
    print_table(map(title_of, columns), ([readable(column, row[column]) for column in columns] for row in arms))

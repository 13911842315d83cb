"""`polyadapt export` and `polyadapt verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from polyadapt.cli.context import download_option, host_of, load_model, option_pairs, parse_pairs, print_facts, print_json, print_table
from polyadapt.errors import UserError


@click.command()
@click.argument("reference", metavar="REF")
@click.option("--artifact", "artifacts", multiple=True, metavar="NAME=FOLDER", help="May be given several times; NAME= may be left out.")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder of the bundle.")
@click.option("--form", default="slots", show_default=True, help="slots, merged or bank.")
@click.option("--layout", default="bundle", show_default=True, type=click.Choice(("bundle", "triton")), help="What --out becomes: a bundle, or a model repository for Triton.")
@click.option("--target", default="onnx", show_default=True, help="Name of the plugin that exports.")
@option_pairs("-o", "--option", "options")
@option_pairs("-m", "--model-option", "model_options")
@download_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def export(ctx: click.Context, /, **given: Any) -> None:
    """Write the model REF and its artifacts as a bundle, and prove it."""
    from polyadapt import api
    from polyadapt.artifact import Artifact

    host = host_of(ctx)
    out: Path = given["out"]
    if out.exists():
        raise UserError(f"{out} exists already; give another --out, or remove it")
    artifacts = {name: Artifact.load(path) for name, path in named(given["artifacts"]).items()}
    model = load_model(host, given["reference"], parse_pairs(given["model_options"], "--model-option"), given["allow_download"])
    for artifact in artifacts.values():
        artifact.check_base(model.base_id, model.reference)
    options = parse_pairs(given["options"], "--option") | ({"layout": given["layout"]} if given["layout"] != "bundle" else {})
    api.export(model, artifacts, out, given["form"], target=given["target"], host=host, **options)
    size_bytes = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    facts = {"bundle": str(out), "form": given["form"], "artifacts": list(artifacts), "bytes": size_bytes}
    print_json(facts) if given["as_json"] else print_facts(facts.items())


def named(artifacts: tuple[str, ...]) -> dict[str, Path]:
    """`birds=folder`, or a folder that gives its own name.

    Raises:
        UserError: two artifacts with one name.
    """
    found: dict[str, Path] = {}
    for text in artifacts:
        name, equals, path = text.partition("=")
        folder = Path(path if equals else name)
        name = name if equals else folder.name
        if name in found:
            raise UserError(f"two artifacts are called {name!r}; name them with --artifact NAME=FOLDER")
        found[name] = folder
    return found


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--device", default="cpu", show_default=True, help="auto, cpu or cuda.")
@click.option("--variant", default="float32", show_default=True, help="float32, or a variant of the bundle: float16 or int8.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def verify(ctx: click.Context, bundle: Path, device: str, variant: str, as_json: bool) -> None:
    """Check BUNDLE with the runtime alone: files, sizes, digests, and parity with torch's recorded outputs."""
    from polyadapt_runtime import Bundle, BundleError

    report: dict[str, Any] = {"ok": False, "files": 0, "selftest": [], "provider": "", "variant": variant, "error": ""}
    try:
        opened = Bundle(bundle, device=device, variant=variant)
        report["files"] = len(opened.manifest.files)
        proof = opened.selftest()
    except BundleError as error:
        report["error"] = str(error)
    else:
        keys = ("case", "artifact", "output", "error", "tolerance", "ok")
        report["ok"], report["provider"] = proof.ok, proof.provider
        report["selftest"] = [{key: getattr(case, key) for key in keys} for case in proof.cases]
    if as_json:
        print_json(report)
    else:
        _print(bundle, report)
    if not report["ok"]:
        ctx.exit(1)


def _print(bundle: Path, report: dict[str, Any]) -> None:
    if report["error"]:
        click.echo(f"error: {report['error']}", err=True)
        return
    print_table(
        ("case", "artifact", "output", "error", "tolerance", "ok"),
        ([row["case"], row["artifact"] or "", row["output"], f"{row['error']:.2e}", f"{row['tolerance']:.0e}", row["ok"]] for row in report["selftest"]),
    )
    verdict = "every file is as recorded and every output agrees with torch" if report["ok"] else "outputs differ from those recorded"
    click.echo(f"\n{bundle}: {verdict} ({report['files']} files, {len(report['selftest'])} outputs, {report['provider']})")

"""`polyadapt export` and `polyadapt verify`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from polyadapt.cli.context import download_option, host_of, load_model, option_pairs, parse_pairs, print_facts, print_json, print_table
from polyadapt.errors import UserError
from polyadapt.files import read_json
from polyadapt.signing import SIGNATURE


@click.command()
@click.argument("reference", metavar="[REF]", required=False)
@click.option("--artifact", "artifacts", multiple=True, metavar="NAME=FOLDER", help="May be given several times; NAME= may be left out.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder of the bundle.")
@click.option("--into", type=click.Path(path_type=Path, file_okay=False), help="Add the artifacts to this bundle of form slots. REF may be left out: the bundle names its base.")
@click.option("--form", default="slots", show_default=True, help="slots, merged or bank.")
@click.option("--layout", default="bundle", show_default=True, type=click.Choice(("bundle", "triton")), help="What --out becomes: a bundle, or a model repository for Triton.")
@click.option("--target", default="onnx", show_default=True, help="Name of the plugin that exports.")
@option_pairs("-o", "--option", "options")
@option_pairs("-m", "--model-option", "model_options")
@download_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def export(ctx: click.Context, /, **given: Any) -> None:
    """Write the model REF and its artifacts as a bundle, and prove it; or add artifacts to one that is there, and prove them."""
    from polyadapt import api
    from polyadapt.artifact import Artifact

    host, place, is_new = host_of(ctx), _place(given), given["into"] is None
    artifacts = {name: Artifact.load(path) for name, path in named(given["artifacts"]).items()}
    reference = given["reference"] or _base_of(place)
    model = load_model(host, reference, parse_pairs(given["model_options"], "--model-option"), given["allow_download"])
    for artifact in artifacts.values():
        artifact.check_base(model.base_id, model.reference)
    layout = {} if given["layout"] == "bundle" else {"layout": given["layout"]}
    options = {"target": given["target"], "host": host, **parse_pairs(given["options"], "--option"), **layout}
    was_signed = (place / SIGNATURE).exists()
    if is_new:
        api.export(model, artifacts, place, given["form"], **options)
    else:
        api.add_artifacts(model, artifacts, place, **options)
    size_bytes = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    facts = {"bundle": str(place), "form": given["form"], "artifacts" if is_new else "added": list(artifacts), "bytes": size_bytes}
    if was_signed:
        facts["signature"] = "removed, as it covered the old files; sign the bundle again"
    print_json(facts) if given["as_json"] else print_facts(facts.items())


def _place(given: Mapping[str, Any]) -> Path:
    """The folder of the new bundle, or the bundle that takes artifacts.

    Raises:
        UserError: both or neither were given, or what else was given does not go with it.
    """
    out, into = given["out"], given["into"]
    if out is not None and into is None:
        if given["reference"] is None:
            raise UserError("a new bundle needs the model REF that it is exported from")
        if out.exists():
            raise UserError(f"{out} exists already; give another --out, remove it, or add artifacts to it by --into")
        return Path(out)
    if into is None or out is not None:
        raise UserError("give either --out, for a new bundle, or --into, for one that is there")
    if not given["artifacts"] or given["form"] != "slots":
        raise UserError("--into adds artifacts to a bundle of form slots; name at least one with --artifact NAME=FOLDER, and leave --form out")
    return Path(into)


def _base_of(bundle: Path) -> str:
    """The model reference that a bundle was exported from.

    Raises:
        UserError: no bundle, or one that does not name its base.
    """
    table = read_json(bundle / "manifest.json", "bundle")
    reference = table.get("reference") if isinstance(table, dict) else None
    if not isinstance(reference, str) or not reference:
        raise UserError(f"{bundle} does not name its base; give REF, the model that it was exported from")
    return reference


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
@click.option("--key", type=click.Path(path_type=Path), metavar="PUBLIC.pem", help="Also check that the holder of this key signed these very files.")
@click.option("--variant", default="float32", show_default=True, help="float32, or a variant of the bundle: float16 or int8.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def verify(ctx: click.Context, bundle: Path, device: str, key: Path | None, variant: str, as_json: bool) -> None:
    """Check BUNDLE with the runtime alone: files, sizes, digests, and parity with torch's recorded outputs."""
    from polyadapt.signing import check_signature
    from polyadapt_runtime import Bundle, BundleError

    report: dict[str, Any] = {"ok": False, "is_signature_checked": False, "files": 0, "selftest": [], "provider": "", "variant": variant, "error": ""}
    try:
        if key is not None:
            check_signature(bundle, key)
            report["is_signature_checked"] = True
        opened = Bundle(bundle, device=device, variant=variant)
        report["files"] = len(opened.manifest.files)
        proof = opened.selftest()
    except (BundleError, UserError) as error:
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
    signed = "signed with this key, " if report["is_signature_checked"] else ""
    verdict = f"{signed}every file is as recorded and every output agrees with torch" if report["ok"] else "outputs differ from those recorded"
    click.echo(f"\n{bundle}: {verdict} ({report['files']} files, {len(report['selftest'])} outputs, {report['provider']})")

"""The task's metric of a finished bundle, float32 beside each variant: what no parity case can say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from polyadapt.evaluation.metrics import metric
from polyadapt.files import read_json, write_json
from polyadapt_onnx.manifest import seal
from polyadapt_onnx.variants.errors import VariantError

POINT = 0.01
PLAIN = "float32"

Evaluate = Callable[[Path, str], Mapping[str, Mapping[str, Any]]]
"""(a bundle's folder, a variant) to `metric`, `value` and `n` by artifact."""


def measure(bundle: Path, variants: Sequence[str], evaluate: Evaluate) -> None:
    """Measure float32 and every variant, and write what was found into the report and the manifest.

    Raises:
        VariantError: a variant loses more than one point: one per cent of a share, or one per cent of the value of other metrics.
    """
    found = {name: {artifact: dict(row) for artifact, row in evaluate(bundle, name).items()} for name in (PLAIN, *variants)}
    for name in variants:
        for artifact, row in found[name].items():
            require_metric(name, artifact, found[PLAIN][artifact], row)
    manifest, report = read_json(bundle / "manifest.json", "manifest"), read_json(bundle / "parity" / "report.json", "parity report")
    manifest["parity"]["metrics"] = report["metrics"] = found[PLAIN]
    for name in variants:
        manifest["variants"][name]["metrics"] = report["variants"][name]["metrics"] = found[name]
    write_json(bundle / "parity" / "report.json", report)
    seal(bundle, manifest)


def require_metric(variant: str, artifact: str, plain: Mapping[str, Any], row: Mapping[str, Any]) -> None:
    """Refuse a loss of more than one point, and a value that is no number.

    Raises:
        VariantError: with both values.
    """
    kind = metric(plain["metric"])
    loss = (plain["value"] - row["value"]) * (1 if kind.is_better_higher else -1)
    if not loss <= (POINT if kind.is_share else POINT * abs(plain["value"])) + 1e-12:
        raise VariantError(
            f"variant {variant} loses more than a point with artifact {artifact}: {kind.title} {row['value']:.4g}, float32 has {plain['value']:.4g}"
            f" on {plain['n']} examples; nothing was written, export without this variant"
        )

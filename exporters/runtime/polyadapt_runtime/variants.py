"""Variants of a bundle's graphs in another number format: float16 or int8 weights, the same inputs, outputs and slots."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from polyadapt_runtime.errors import ManifestError, nearest
from polyadapt_runtime.files import MANIFEST, check_external_data, safe_relative
from polyadapt_runtime.manifest import MEASURES, PLAIN, Manifest, need, onnx_file, optional, strings, tolerance_in

INTEGERS = "int8"
"""The variant whose graphs quantise what flows through them, by the largest value of a call."""


def variants_of(manifest: Manifest) -> tuple[str, ...]:
    """What a bundle can run as."""
    return (PLAIN, *optional(manifest.raw, "variants", MANIFEST))


def with_variant(root: Path, manifest: Manifest, name: str) -> Manifest:
    """The manifest as if the variant's graphs were the bundle's only ones; its files are checked like all others.

    Raises:
        ManifestError: there is no such variant, or its entry is wrong.
        IntegrityError: a graph that reads weights from files which its entry does not name.
    """
    if name == PLAIN:
        return manifest
    table = optional(manifest.raw, "variants", MANIFEST)
    if name not in table:
        raise ManifestError(f"this bundle has no variant {name!r}{nearest(name, variants_of(manifest))}; export it with the option variants={name}")
    where = f"variants.{name}"
    entry = need(table, name, dict, "variants")
    parity = need(entry, "parity", dict, where)
    need(parity, "tolerance", float, f"{where}.parity")  # the usual one is no bound for another number format
    measure, tolerance = need(parity, "measure", str, f"{where}.parity"), tolerance_in(parity, f"{where}.parity")
    widest = tolerance_in(parity, f"{where}.parity", "format_tolerance", tolerance)  # bundles of before it was recorded lack it
    if measure not in MEASURES:
        raise ManifestError(f"{where}.parity: measure {measure!r}; this version knows {', '.join(MEASURES)}")
    files = need(entry, "graphs", dict, where)
    graphs = {}
    for title in manifest.runnable:
        graph = manifest.graphs[title]
        place = need(files, title, dict, f"{where}.graphs")
        data = tuple(_listed(manifest, path) for path in strings(place, "data", where))
        # Graphs with required slots come in float32 only.
        graphs[title] = replace(graph, file=_listed(manifest, onnx_file(place, "file", where)), data=data, slots_file="", slots_defaults="")
        check_external_data(root, graphs[title].file, graphs[title].data)
    return replace(manifest, graphs={**manifest.graphs, **graphs}, variant=name, measure=measure, tolerance=tolerance, format_tolerance=widest)


def describe(manifest: Manifest) -> dict[str, Any]:
    """Which variant runs, which there are, and what was measured of this one."""
    found = optional(optional(manifest.raw, "variants", MANIFEST), manifest.variant, "variants")
    return {"variant": manifest.variant, "variants": list(variants_of(manifest)), "variant_parity": found.get("parity"), "variant_metrics": found.get("metrics")}


def _listed(manifest: Manifest, path: str) -> str:
    if str(safe_relative(path)) not in manifest.files:
        raise ManifestError(f"variants: {path!r} is used but not among the bundle's files")
    return path

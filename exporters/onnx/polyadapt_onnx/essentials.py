"""What a graph says about itself: strings in the ONNX file, for programs that read no manifest.

`session.get_modelmeta().custom_metadata_map` gives them; the manifest stays the source.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PREFIX = "polyadapt."


def essentials(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Names and strings; tables and lists are JSON."""
    groups = Counter(f"{slot['kind']}{'~' if slot['variant'] else ''}{slot['variant']}" for slot in manifest["slots"].values())
    values = {
        "format": manifest["format"],
        "name": manifest["name"],
        "base_id": manifest["base_id"],
        "family": manifest["family"],
        "form": manifest["form"],
        "task": manifest["task"]["kind"],
        "labels": manifest["task"]["labels"],
        "slots": dict(sorted(groups.items())),
        "preprocess": manifest["preprocess"],
        "postprocess": manifest["postprocess"],
        "generator": f"polyadapt {manifest['versions'].get('polyadapt', 'unknown')}",
    }
    if "conditioners" in manifest:
        values["conditioners"] = manifest["conditioners"]
    if manifest["form"] != "slots":  # artifacts of slots lie beside the graph, and may be added to a bundle later
        values["artifacts"] = {name: list(entry["labels"]) for name, entry in manifest["artifacts"].items()}
    return {PREFIX + key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True) for key, value in values.items()}


def stamp(bundle: Path, manifest: Mapping[str, Any]) -> None:
    """Write them into every graph of a bundle; weights beside the graph are not touched."""
    import onnx

    for path in sorted((bundle / "onnx").glob("*.onnx")):
        model = onnx.load(str(path), load_external_data=False)
        onnx.helper.set_model_props(model, essentials(manifest))
        path.write_bytes(model.SerializeToString())

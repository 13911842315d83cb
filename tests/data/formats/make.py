"""Writes the files that the readers of format 1 are tested with. Run once per format version, never again:

python tests/data/formats/make.py 1
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from polyadapt.families.mlp_policy.card import CARD as FAMILY
from polyadapt.methods.base import load_method
from polyadapt.methods.lora.card import CARD as LORA
from polyadapt.tensors import save_tensors
from polyadapt.testing.conformance import tiny_model
from polyadapt.testing.exporting import adapted_artifact
from polyadapt_onnx import export

HERE = Path(__file__).parent


def main(version: int) -> None:
    """Write one artifact and one bundle of a tiny seeded policy."""
    torch.set_num_threads(1)
    model = tiny_model(FAMILY)
    artifact = adapted_artifact(load_method(LORA), model)
    save_tensors(HERE / f"base-v{version}.safetensors", dict(model.backbone.state_dict()))
    artifact.save(HERE / f"artifact-v{version}")
    export(model, {"lora": artifact}, HERE / f"bundle-v{version}", options={"name": "policy"})


if __name__ == "__main__":
    main(int(sys.argv[1]))

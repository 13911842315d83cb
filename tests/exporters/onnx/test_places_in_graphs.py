"""Adapters at every place of a span, and prompts in the place of a token, in exported graphs: the gate proves parity, effects and swapping."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from polyadapt.artifact import Artifact
from polyadapt.families.ast.card import CARD as AST
from polyadapt.families.vit.card import CARD as VIT
from polyadapt.methods.base import load_method
from polyadapt.methods.bottleneck.card import CARD as BOTTLENECK
from polyadapt.methods.prompt.card import CARD as PROMPT
from polyadapt.model import Model
from polyadapt.testing.conformance import example_of, non_degenerate, tiny_model
from polyadapt.testing.exporting import answers, arrays, is_close
from polyadapt_onnx import export
from polyadapt_runtime import ArtifactError, Bundle

PLACES: dict[str, dict[str, Any]] = {
    f"{insertion}-{position}{'-residual' if residual else ''}": {"insertion": insertion, "position": position, "residual": residual}
    for insertion in ("parallel", "sequential")
    for position in ("before", "after")
    for residual in (False, True)
}


def artifact_of(model: Model, card: Any, seed: int = 2, **options: Any) -> Artifact:
    form = load_method(card).form(model, card.options(**options), torch.Generator().manual_seed(seed))
    non_degenerate(form, seed)
    return Artifact(card.id, model.base_id, model.family.card.id, model.task.kind, tuple(form.lower()))


def check_answers(model: Model, artifacts: dict[str, Artifact], bundle: Bundle) -> None:
    """What the runtime answers for inputs of its own is what torch does."""
    inputs = example_of(model, seed=9)
    for name, artifact in artifacts.items():
        assert is_close(bundle.run(arrays(inputs), name)["features"], answers(model, inputs, artifact)["features"]), name


@pytest.mark.parametrize("card", [AST, VIT], ids=lambda card: card.id)
def test_one_graph_holds_every_place(card: Any, tmp_path: Path) -> None:
    """q, k and v as three modules and as one."""
    model = tiny_model(card, "features")
    artifacts = {name: artifact_of(model, BOTTLENECK, rank=3, sites=("block.1.attn", "block.0.ffn"), **options) for name, options in PLACES.items()}
    export(model, artifacts, tmp_path / "x.bundle", "slots", {"legacy_fallback": False})
    bundle = Bundle(tmp_path / "x.bundle", device="cpu")
    assert bundle.selftest().ok
    check_answers(model, artifacts, bundle)
    with pytest.raises(ArtifactError, match="one at a time"):
        bundle.run({name: value.numpy() for name, value in example_of(model).items()}, {"sequential-after": 0.5, "parallel-after-residual": 0.5})


def test_rows_of_a_bank_have_places_of_their_own(tmp_path: Path) -> None:
    model = tiny_model(VIT, "features")
    artifacts = {name: artifact_of(model, BOTTLENECK, rank=3, **PLACES[name]) for name in ("parallel-before-residual", "sequential-before", "sequential-after")}
    export(model, artifacts, tmp_path / "b.bundle", "bank", {"legacy_fallback": False})
    assert Bundle(tmp_path / "b.bundle", device="cpu").selftest().ok


@pytest.mark.parametrize("deep", [False, True], ids=["shallow", "deep"])
def test_prompts_take_the_distillation_tokens_place_in_a_graph(deep: bool, tmp_path: Path) -> None:
    """Lengths 1 and 4 in one graph, beside a prompt that stands behind the token."""
    model = tiny_model(AST, "features")
    artifacts = {f"p{length}": artifact_of(model, PROMPT, length=length, deep=deep, place="distillation") for length in (1, 4)}
    artifacts["behind"] = artifact_of(model, PROMPT, length=3, deep=deep)
    export(model, artifacts, tmp_path / "p.bundle", "slots", {"legacy_fallback": False})
    bundle = Bundle(tmp_path / "p.bundle", device="cpu")
    assert bundle.selftest().ok
    check_answers(model, artifacts, bundle)
    with pytest.raises(ArtifactError, match="the same token"):
        bundle.run({name: value.numpy() for name, value in example_of(model).items()}, {"p1": 1.0, "p4": 1.0})

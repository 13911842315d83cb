"""Every registered method on every registered family and task: all invariants, or a refusal that is expected.

The registry decides what is tested, so other people's plugins are held to the same.
"""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from polyadapt.host import Host
from polyadapt.methods.base import Method, load_method
from polyadapt.model import Model
from polyadapt.testing.conformance import applies, check_method, has_form, tasks_of, tiny_model

REGISTRY = Host().registry
FAMILIES = {claim.card.id: claim.card for claim in REGISTRY.families.claims()}
METHODS = {claim.card.id: claim.card for claim in REGISTRY.methods.claims()}
OURS = {name for name, card in METHODS.items() if card.implementation.startswith("polyadapt.methods.")}
# Core's methods on every task; those of plugins on the first task that they fit (`make matrix` runs the others).
CELLS = [(family, task, method) for family, card in FAMILIES.items() for method in METHODS for task in (tasks_of(card) if method in OURS else ["any"])]

NO_SPANS = ("efficientnet", "resnet")
NO_ATTENTION = ("efficientnet", "mlp-policy", "resnet", "vits", "voice")
NO_STREAMS = (*NO_ATTENTION, "unet")

# Where core's methods do not apply, and the words of the refusal. A method that stops applying anywhere else fails.
REFUSALS = {
    "bottleneck": {**dict.fromkeys(NO_SPANS, "needs span ports"), "vits": "no site matches 'ffn'"},
    "prefix": dict.fromkeys(NO_ATTENTION, "needs attention ports"),
    "mam": dict.fromkeys(NO_ATTENTION, "needs attention ports"),
    "prompt": dict.fromkeys(NO_STREAMS, "needs stream ports"),
    "bitfit": dict.fromkeys(("llama", "t5"), "has a bias"),
}


@functools.lru_cache(maxsize=4)
def model_of(family: str, task: str) -> Model:
    """One model for all methods of a cell's row: `check_method` itself asserts that it leaves the model as it was."""
    return tiny_model(FAMILIES[family], task)


def expected_refusal(method: Method, model: Model) -> str:
    """Words that the refusal must hold; empty where the method must apply; `*` where another's plugin may refuse."""
    card, family = method.card, model.family.card.id
    if "any" not in card.families and family not in card.families:
        return f"does not fit family {family!r}"
    for port in card.ports:
        if not model.ports.of(port):
            return f"needs {port} ports"
    return REFUSALS.get(card.id, {}).get(family, "") if card.id in OURS else "*"


@pytest.mark.parametrize(("family", "task", "method"), CELLS, ids=["-".join(cell) for cell in CELLS])
def test_method_on_family(family: str, task: str, method: str, tmp_path: Path) -> None:
    made = load_method(METHODS[method])
    if not has_form(made):
        pytest.skip(f"{method} is of kind {made.card.kind!r}: it attaches no edits, its plugin tests it")
    for kind in tasks_of(FAMILIES[family]) if task == "any" else [task]:
        model = model_of(family, kind)
        reason, expected = applies(made, model), expected_refusal(made, model)
        if reason:
            assert expected, f"{method} no longer applies to {family}: {reason}"
            assert expected == "*" or expected in reason
            continue
        assert expected in ("", "*"), f"{method} applies to {family} although its card and the table of refusals say no: {expected}"
        try:
            check_method(made, model, tmp_path)
        except BaseException:
            model_of.cache_clear()  # the next cell gets a whole model
            raise
        return


def test_the_table_of_refusals_names_what_exists() -> None:
    for method, families in REFUSALS.items():
        assert method in METHODS and set(families) <= set(FAMILIES)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_applies_somewhere(method: str) -> None:
    made = load_method(METHODS[method])
    if not has_form(made):
        pytest.skip(f"{method} is of kind {made.card.kind!r}: it attaches no edits")
    reasons = []
    # Small and quick families first: the search ends at the first that fits.
    for family in sorted(FAMILIES, key=lambda name: (name not in made.card.families, name not in ("mlp-policy", "vit", "bert", "gpt2"), name)):
        for task in tasks_of(FAMILIES[family]):
            reason = applies(made, model_of(family, task))
            if not reason:
                return
            reasons.append(f"{family}, {task}: {reason}")
    pytest.fail(f"{method} applies to no family: " + "; ".join(reasons))

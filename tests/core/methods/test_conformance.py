"""Every registered method on every registered family and task: all invariants, or a refusal that is expected.

The registry decides what is tested, so other people's plugins are held to the same.
"""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from polyadapt.families.card import FamilyCard
from polyadapt.host import Host
from polyadapt.methods.base import Method, load_method
from polyadapt.methods.card import MethodCard
from polyadapt.model import Model
from polyadapt.testing.conformance import applies, check_method, has_form, tasks_of, tiny_model

REGISTRY = Host().registry
FAMILIES = {claim.card.id: claim.card for claim in REGISTRY.families.claims()}
# Methods that attach no edits, each with who proves it instead.
UNCHECKED: dict[str, str] = {}
METHODS = {claim.card.id: claim.card for claim in REGISTRY.methods.claims() if claim.card.id not in UNCHECKED}
OURS = {name for name, card in METHODS.items() if card.implementation.startswith("polyadapt.methods.")}
# Core's methods on every task; those of plugins on the first task that they fit (`make matrix` runs the others).
CELLS = [(family, task, method) for family, card in FAMILIES.items() for method in METHODS for task in (tasks_of(card) if method in OURS else ["any"])]

# Ports without which a family does by its card.
NEEDED = {"span": "spans", "attention": "attention", "stream": "streams"}
# A head is taken by classification, and by ctc where a family gives frames: these two score symbols of their own.
OWN_SYMBOLS = ("wav2vec2", "wav2vec2-torchaudio")

# Refusals that no card tells, with their words. A method that stops applying anywhere else fails, a plugin's too.
REFUSALS = {
    "bottleneck": {"vits": "no site matches 'ffn'"},  # its card has a span around the attention alone
    "bitfit": dict.fromkeys(("llama", "t5"), "has a bias"),
}


@functools.lru_cache(maxsize=4)
def model_of(family: str, task: str) -> Model:
    """One model for all methods of a cell's row: `check_method` itself asserts that it leaves the model as it was."""
    return tiny_model(FAMILIES[family], task)


def expected_refusal(method: MethodCard, family: FamilyCard, task: str) -> str:
    """Words that the refusal must hold by what is declared; empty where the method must apply."""
    if "any" not in method.families and family.id not in method.families:
        return f"does not fit family {family.id!r}"
    for port in method.ports:
        if port == "head" and not (task == "classification" or (task == "ctc" and family.id not in OWN_SYMBOLS)):
            return "needs head ports"
        if port in NEEDED and not getattr(family, NEEDED[port]):
            return f"needs {port} ports"
    return REFUSALS.get(method.id, {}).get(family.id, "")


def refused(method: Method, family: str, task: str) -> str:
    """Why a method does not apply, empty where it does; asserted to be what is declared."""
    reason, expected = applies(method, model_of(family, task)), expected_refusal(method.card, FAMILIES[family], task)
    if expected:
        assert reason, f"{method.card.id} applies to {family} for {task} although it is declared that it does not: {expected}"
        assert expected in reason
    assert not reason or expected, f"{method.card.id} no longer applies to {family} for {task}: {reason}"
    return reason


@pytest.mark.parametrize(("family", "task", "method"), CELLS, ids=["-".join(cell) for cell in CELLS])
def test_method_on_family(family: str, task: str, method: str, tmp_path: Path) -> None:
    made = load_method(METHODS[method])
    kind = next((kind for kind in (tasks_of(FAMILIES[family]) if task == "any" else [task]) if not refused(made, family, kind)), "")
    if not kind:
        return
    try:
        check_method(made, model_of(family, kind), tmp_path)
    except BaseException:
        model_of.cache_clear()  # the next cell gets a whole model
        raise


def test_every_method_is_checked_or_named_with_its_reason() -> None:
    assert {claim.card.id for claim in REGISTRY.methods.claims() if not has_form(load_method(claim.card))} == set(UNCHECKED)
    assert all(UNCHECKED.values())


def test_the_table_of_refusals_names_what_exists() -> None:
    for method, families in REFUSALS.items():
        assert method in METHODS and set(families) <= set(FAMILIES)


def misfit(method: Method, family: str) -> str:
    """Why a method applies to none of a family's tasks; empty where it applies to one."""
    reasons = []
    for task in tasks_of(FAMILIES[family]):
        reasons.append(applies(method, model_of(family, task)))
        if not reasons[-1]:
            return ""
    return f"{family}: {'; '.join(reasons)}"


@pytest.mark.parametrize("method", METHODS)
def test_a_method_applies_to_every_family_that_its_card_names(method: str) -> None:
    """On one of its tasks at least; where the card names none, on one family at least."""
    made = load_method(METHODS[method])
    if "any" not in made.card.families:
        assert set(made.card.families) <= set(FAMILIES)
        assert not [reason for family in made.card.families if (reason := misfit(made, family))]
        return
    # Small and quick families first: the search ends at the first that fits.
    assert any(not misfit(made, family) for family in sorted(FAMILIES, key=lambda name: (name not in ("mlp-policy", "vit", "bert", "gpt2"), name)))

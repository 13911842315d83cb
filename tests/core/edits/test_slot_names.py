"""Slot names: `{site}:{kind}[~variant].{tensor}`, there and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyadapt.edits import KINDS, Edit, edits_from_slots, parse_slot, slot_name, slots_of
from polyadapt.errors import UserError
from polyadapt.host import Host
from polyadapt.sites import module_name, site_of
from polyadapt.testing.conformance import tiny_model

word = st.from_regex(r"[a-z][a-z0-9_-]{0,8}", fullmatch=True)
site = st.lists(st.one_of(word, st.integers(0, 99).map(str)), min_size=1, max_size=5).map(".".join)
variant = st.sampled_from(sorted({variant for kind in KINDS.values() for variant in kind.variants}))


@given(site, st.sampled_from(sorted(KINDS)), variant, word)
def test_names_go_there_and_back(site: str, kind: str, variant: str, tensor: str) -> None:
    name = slot_name(site, kind, variant, tensor)
    assert parse_slot(name) == (site, kind, variant, tensor)
    assert site_of(module_name(name)) == name and "." not in module_name(name)
    assert site_of(module_name(site)) == site and "." not in module_name(site)


def test_an_example_as_the_page_writes_it() -> None:
    assert slot_name("block.3.attn.q", "lowrank", "", "a") == "block.3.attn.q:lowrank.a"
    assert slot_name("block.3.ffn", "bottleneck", "parallel-gelu", "down") == "block.3.ffn:bottleneck~parallel-gelu.down"


@pytest.mark.parametrize("name", ["", "block.0", "block.0:lowrank", ":lowrank.a", "block.0:.a", "block.0:lowrank."])
def test_what_is_no_slot_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="is not a slot name; expected site:kind.tensor"):
        parse_slot(name)


@given(st.lists(st.tuples(site, st.sampled_from(sorted(KINDS)), variant, st.lists(word, min_size=1, max_size=3, unique=True)), max_size=6, unique_by=lambda row: row[:3]))
def test_edits_go_there_and_back(rows: list[tuple[str, str, str, list[str]]]) -> None:
    edits = [Edit(site, kind, {name: torch.full((2,), float(index)) for index, name in enumerate(names)}, variant) for site, kind, variant, names in rows]
    back = edits_from_slots(slots_of(edits))
    assert [(edit.key, list(edit.tensors)) for edit in back] == [(edit.key, list(edit.tensors)) for edit in edits]
    assert all(torch.equal(one.tensors[name], value) for one, other in zip(back, edits, strict=True) for name, value in other.tensors.items())


def test_two_edits_cannot_share_a_slot() -> None:
    edit = Edit("op", "shift", {"b": torch.zeros(2)})
    with pytest.raises(UserError, match="two edits claim op:shift"):
        slots_of([edit, edit])


@pytest.mark.parametrize("family", [claim.card.id for claim in Host().registry.families.claims()])
def test_every_site_of_a_family_makes_good_names(family: str) -> None:
    card = Host().registry.families.get(family).card
    model = tiny_model(card)
    for sort in ("op", "span", "attention", "stream", "head"):
        for site in model.ports.of(sort):
            assert parse_slot(slot_name(site, "shift", "", "b"))[0] == site_of(module_name(site)) == site

"""Which family a backbone belongs to, found by its class among the cards."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

import polyadapt.families
from polyadapt.errors import PluginError, UserError, nearest, unknown
from polyadapt.families.base import Family
from polyadapt.families.card import FamilyCard

if TYPE_CHECKING:
    from torch import nn


@cache
def core_families() -> Mapping[str, FamilyCard]:
    """Cards of the families that core brings, by id. Only cards are imported."""
    found: dict[str, FamilyCard] = {}
    for folder in pkgutil.iter_modules(polyadapt.families.__path__):
        if folder.ispkg and find_spec(f"polyadapt.families.{folder.name}.card") is not None:
            card: FamilyCard = import_module(f"polyadapt.families.{folder.name}.card").CARD
            found[card.id] = card
    return found


def open_family(card: FamilyCard) -> Family:
    """Import a family's implementation and make its one instance.

    Raises:
        PluginError: the card names something that is no `Family`.
    """
    module, _, name = card.implementation.partition(":")
    made = getattr(import_module(module), name)(card)
    if not isinstance(made, Family):
        raise PluginError(f"family {card.id!r}: {card.implementation} is no polyadapt.families.base.Family")
    return made


def family_by_id(name: str, cards: Iterable[FamilyCard] | None = None) -> Family:
    """The family with an id, among `cards` or core's own.

    Raises:
        UserError: there is none.
    """
    known = {card.id: card for card in (core_families().values() if cards is None else cards)}
    if name not in known:
        raise unknown("family", name, known)
    return open_family(known[name])


def class_names(card: FamilyCard, library: str) -> tuple[str, ...]:
    """Names of a card's classes that come from a library; cards write `library.Class`, or `Class` where they have one library."""
    split = [name.rpartition(".") for name in card.classes]
    return tuple(name for home, _, name in split if (home.partition(".")[0] == library if home else library in card.libraries))


def family_of(backbone: nn.Module, library: str, cards: Iterable[FamilyCard] | None = None) -> Family:
    """The family whose card names the backbone's class.

    Args:
        backbone: a library's module.
        library: distribution it comes from, `timm` for instance.
        cards: families to look through; core's own by default.

    Raises:
        UserError: no family knows the class; the classes of that library that are known are named.
    """
    kind = type(backbone).__name__
    known = {}
    for card in core_families().values() if cards is None else cards:
        known.update(dict.fromkeys(class_names(card, library), card))
    if kind not in known:
        raise UserError(f"no family knows {library}'s {kind}{nearest(kind, known)}")
    return open_family(known[kind])

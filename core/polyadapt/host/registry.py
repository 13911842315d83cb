"""The dispatch table: which plugin owns which id. An id that two plugins claim belongs to nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, get_type_hints

from polyadapt.data.card import ReaderCard, scheme_of
from polyadapt.errors import PluginError, UserError, nearest, unknown
from polyadapt.families.card import FamilyCard
from polyadapt.host.fields import check_fields
from polyadapt.host.plugin import Plugin
from polyadapt.methods.card import MethodCard
from polyadapt.sources.card import ModelCard
from polyadapt.sources.reference import parse_reference

CardT = TypeVar("CardT")


@dataclass(frozen=True)
class Claim(Generic[CardT]):
    """A card and the plugin that registered it."""

    card: CardT
    plugin: Plugin


class Table(Generic[CardT]):
    """Ids of one sort.

    Args:
        sort: what the ids name, for messages: `method`, `family`, …
        card_type: what may be registered.
        key: the id of a card.
    """

    def __init__(self, sort: str, card_type: type[CardT], key: Callable[[CardT], str]) -> None:
        self.sort, self.card_type, self.key = sort, card_type, key
        self._claims: dict[str, list[Claim[CardT]]] = {}

    def add(self, plugin: Plugin, cards: Iterable[CardT]) -> None:
        """Enter the cards of one plugin."""
        for card in cards:
            self._claims.setdefault(self.key(card), []).append(Claim(card, plugin))

    def check(self, cards: Iterable[Any]) -> None:
        """Refuse what is no card or holds what no card holds, and one id twice from the same plugin.

        Raises:
            PluginError: what was registered, and what belongs there.
        """
        seen: set[str] = set()
        hints = get_type_hints(self.card_type)
        for card in cards:
            if not isinstance(card, self.card_type):
                raise PluginError(f"registered {card!r} as a {self.sort}; register takes a {self.card_type.__name__}")
            check_fields(card, hints, self.sort)
            name = self.key(card)
            if not name or name in seen:
                raise PluginError(f"registered {self.sort} {name!r} twice" if name else f"registered a {self.sort} without an id: {card!r}")
            seen.add(name)

    def claims(self) -> list[Claim[CardT]]:
        """What can be used, sorted by id."""
        return [self._claims[name][0] for name in sorted(self._claims) if len(self._claims[name]) == 1]

    def ids(self) -> list[str]:
        return [self.key(claim.card) for claim in self.claims()]

    def __contains__(self, name: str) -> bool:
        return name in self._claims

    def __iter__(self) -> Iterator[str]:
        return iter(self._claims)

    def get(self, name: str) -> Claim[CardT]:
        """The card of an id, with its owner.

        Raises:
            UserError: nobody registered the id; the nearest ones are named.
            PluginError: more than one plugin did; all of them are named.
        """
        claims = self._claims.get(name)
        if claims is None:
            raise unknown(self.sort, name, self.ids())
        if len(claims) > 1:
            raise PluginError(self._clash(name))
        return claims[0]

    def clashes(self) -> list[str]:
        """One line for every id that is claimed more than once."""
        return [self._clash(name) for name in sorted(self._claims) if len(self._claims[name]) > 1]

    def _clash(self, name: str) -> str:
        owners = " and ".join(claim.plugin.described for claim in self._claims[name])
        return f"{self.sort} {name!r} is claimed by the plugins {owners}; uninstall one, or limit them with POLYADAPT_PLUGINS"


class Registry:
    """All that plugins registered: models, families, methods and readers."""

    def __init__(self) -> None:
        self.models = Table[ModelCard]("model", ModelCard, lambda card: card.reference)
        self.families = Table[FamilyCard]("family", FamilyCard, lambda card: card.id)
        self.methods = Table[MethodCard]("method", MethodCard, lambda card: card.id)
        self.readers = Table[ReaderCard]("reader", ReaderCard, lambda card: card.scheme)

    def tables(self) -> dict[str, Table[Any]]:
        """The tables by the hook that fills them."""
        return {
            "polyadapt_register_models": self.models,
            "polyadapt_register_families": self.families,
            "polyadapt_register_methods": self.methods,
            "polyadapt_register_data": self.readers,
        }

    def clashes(self) -> list[str]:
        """One line for every id that cannot be used because two plugins claim it."""
        return [line for table in self.tables().values() for line in table.clashes()]

    def model(self, reference: str) -> Claim[ModelCard]:
        """The card of a reference: its own, else that of its scheme.

        Raises:
            UserError: nobody registered it, or it is no reference.
            PluginError: more than one plugin did.
        """
        parsed = parse_reference(reference)
        for name in (parsed.base, f"{parsed.scheme}:"):
            if name in self.models:
                return self.models.get(name)
        raise UserError(f"unknown model {parsed.base!r}{nearest(parsed.base, self.models.ids())}; list them: polyadapt models")

    def reader(self, uri: str) -> Claim[ReaderCard]:
        """The card that reads a URI: the one of this very set (`data:sonic-pi`), else that of its scheme.

        Raises:
            UserError: nobody registered it, or it is no URI.
            PluginError: more than one plugin did.
        """
        return self.readers.get(scheme_of(uri, self.readers))

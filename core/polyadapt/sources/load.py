"""From a reference to a model: find the card, read the options, call the card's loader."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from polyadapt.errors import MissingExtraError, PluginError
from polyadapt.options import Options, read_options
from polyadapt.sources.card import ModelCard
from polyadapt.sources.reference import find_card, parse_reference

if TYPE_CHECKING:
    from polyadapt.families.card import FamilyCard
    from polyadapt.model import Model


def open_reference(text: str, cards: Iterable[ModelCard] | None = None, given: Mapping[str, Any] | None = None, families: Iterable[FamilyCard] | None = None) -> Model:
    """Load what a reference names.

    Args:
        text: for instance `polyadapt:minilm?task=features`.
        cards: where to look it up; core's own catalogue by default.
        given: options beside those behind the `?`; the same option in both places is refused.
        families: cards of families to recognise backbones by; core's own by default.

    Raises:
        UserError: the reference or an option is unknown, or the weights are not there.
    """
    card, name, options = resolve(text, cards, given)
    return load(card, name, options, families)


def resolve(text: str, cards: Iterable[ModelCard] | None = None, given: Mapping[str, Any] | None = None) -> tuple[ModelCard, str, Options]:
    """The card of a reference, its name and its validated options, without loading anything; what is given beside the reference wins over what stands in it.

    Raises:
        UserError: the reference or an option is unknown.
    """
    reference = parse_reference(text)
    if cards is None:
        from polyadapt.sources.catalog import CARDS

        cards = CARDS
    card = find_card(reference, cards)
    return card, reference.name, read_options(card.options, {**reference.options, **(given or {})}, f"model {reference.base!r}")


def load(card: ModelCard, name: str, options: Options, families: Iterable[FamilyCard] | None = None) -> Model:
    """Call a card's loader.

    Args:
        card: names the loader as `"package.module:function"`, called as `function(card, name, options)`; it may take `families` as well.
        name: the reference without its scheme.
        options: an instance of the card's options class.
        families: cards of families to recognise backbones by; core's own by default.

    Raises:
        UserError: the weights are not there or cannot be used.
        MissingExtraError: a library is not installed.
        PluginError: the card names no function, or the function returned no model.
    """
    from polyadapt.model import Model

    home, _, function = card.implementation.partition(":")
    try:
        loader = getattr(import_module(home), function)
    except ModuleNotFoundError as error:
        if card.extra and error.name and not error.name.startswith("polyadapt"):
            raise MissingExtraError(error.name.partition(".")[0], card.extra, f"model {card.reference!r}") from error
        raise PluginError(f"model {card.reference!r}: its loader {card.implementation} cannot be imported ({error})") from error
    except AttributeError as error:
        raise PluginError(f"model {card.reference!r}: there is no {card.implementation}") from error
    takes_families = "families" in inspect.signature(loader).parameters
    made = loader(card, name, options, families=families) if takes_families else loader(card, name, options)
    if not isinstance(made, Model):
        raise PluginError(f"model {card.reference!r}: its loader returned {type(made).__name__}, not a polyadapt.model.Model")
    return made

"""References to models: `scheme:name?key=value&key=value`, parsed and matched to a card."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from polyadapt.errors import UserError, nearest, unknown
from polyadapt.options import options_behind
from polyadapt.sources.card import ModelCard


@dataclass(frozen=True)
class Reference:
    """A parsed reference. `options` are strings as written; a card's options class turns them into values."""

    scheme: str
    name: str
    options: dict[str, str] = field(default_factory=dict)

    @property
    def base(self) -> str:
        """The reference without the part behind `?`."""
        return f"{self.scheme}:{self.name}"


def parse_reference(text: str) -> Reference:
    """Take a reference apart.

    Args:
        text: for instance `timm:vit_tiny_patch16_224?allow_download=true`. Values may hold `%xx` and `+`.

    Raises:
        UserError: there is no scheme or no name, or an option is malformed or given twice.
    """
    base, mark, query = text.strip().partition("?")
    scheme, colon, name = base.partition(":")
    if not colon or not scheme:
        raise UserError(f"model reference {text!r} has no scheme; write SCHEME:NAME, for instance timm:{base or 'NAME'} or polyadapt:minilm")
    if scheme == "module":
        raise UserError(f"{text!r} stands for a module that was passed in; it cannot be loaded by name, pass the module itself")
    if not name:
        raise UserError(f"model reference {text!r} has no name behind {scheme + ':'!r}; `polyadapt models` lists what there is")
    return Reference(scheme, name, options_behind(query, f"model reference {text!r}") if mark else {})


def find_card(reference: Reference, cards: Iterable[ModelCard]) -> ModelCard:
    """The card that owns a reference: the one with exactly this name, else the scheme's.

    Raises:
        UserError: no card owns it; the nearest known reference or scheme is named.
    """
    known = {card.reference: card for card in cards}
    if reference.base in known:
        return known[reference.base]
    if f"{reference.scheme}:" in known:
        return known[f"{reference.scheme}:"]
    schemes = {name.partition(":")[0] for name in known}
    if reference.scheme not in schemes:
        raise UserError(f"unknown scheme {reference.scheme!r} in {reference.base!r}{nearest(reference.scheme, schemes)}")
    raise unknown("model", reference.base, [name for name in known if name.startswith(f"{reference.scheme}:")])

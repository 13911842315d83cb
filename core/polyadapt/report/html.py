"""HTML from small functions that escape everything which is not markup already."""

from __future__ import annotations

import html
from typing import Any

_VOID = frozenset({"meta", "img", "br", "hr"})


class Html(str):
    """Text that is markup already. Only `tag`, `join` and constants in this package make it."""

    __slots__ = ()


def escape(value: Any) -> Html:
    """Any value as harmless text; markup stays as it is."""
    return value if isinstance(value, Html) else Html(html.escape(str(value), quote=True))


def join(*parts: Any) -> Html:
    """Parts one behind another, each escaped unless it is markup. None and False leave nothing."""
    return Html("".join(escape(part) for part in parts if part is not None and part is not False))


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """An element. `class_` stands for `class`, other underscores for hyphens; attributes that are None or False are left out."""
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{html.escape(str(value), quote=True)}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(*children)}</{name}>")


def table(head: list[Any], rows: list[list[Any]], class_: str = "") -> Html:
    """A table. The first column is the rows' heading; cells that are Html starting with `<td` are taken as they stand."""
    body = [tag("tr", tag("th", row[0], scope="row"), *(cell if isinstance(cell, Html) and cell.startswith("<td") else tag("td", cell) for cell in row[1:])) for row in rows]
    return tag("div", tag("table", tag("thead", tag("tr", *(tag("th", cell, scope="col") for cell in head))), tag("tbody", *body), class_=class_ or None), class_="scroll")

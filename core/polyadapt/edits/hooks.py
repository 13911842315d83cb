"""The hooks that stand at ports: ops, spans, the head, attention calls and token streams.

Order at one module: edits before the span that begins there, input scales, the op itself, edits of its sites, then edits
of the span that ends there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from polyadapt.edits.attention import AttentionInterception
from polyadapt.edits.edit import Edit, in_dtype_of
from polyadapt.edits.kinds import kind_of
from polyadapt.edits.kinds.place import SKIP, entered, is_before, placed
from polyadapt.edits.source import EditSource
from polyadapt.edits.streams import StreamHooks
from polyadapt.sites import AttentionPort, HeadPort, OpPort, SpanPort


@dataclass
class Entry:
    """What came into a span.

    Attributes:
        x: its input as the base computed it.
        changed: the input that the span runs on.
        made: what each edit before the span made, by its place in the row of edits.
    """

    x: torch.Tensor
    changed: torch.Tensor
    made: dict[int, torch.Tensor] = field(default_factory=dict)


class Hooks:
    """All hooks of one root; `install` returns the handles that remove them."""

    def __init__(self, attachments: EditSource) -> None:
        self._attachments = attachments
        self._entries: dict[str, Entry] = {}
        self._entered: dict[int, list[AttentionInterception | None]] = {}
        self._streams = StreamHooks(attachments)

    def install(self) -> list[Any]:
        ports = self._attachments.ports
        ops: dict[int, tuple[nn.Module, list[OpPort]]] = {}
        for op in ports.ops.values():
            ops.setdefault(id(op.hooked), (op.hooked, []))[1].append(op)
        starts: dict[int, list[SpanPort]] = {}
        ends: dict[int, list[SpanPort]] = {}
        for span in ports.spans.values():
            for reader in span.readers:
                starts.setdefault(id(reader), []).append(span)
            ends.setdefault(id(span.end.module), []).append(span)
        handles = []
        for key, (module, sites) in ops.items():
            handles.append(module.register_forward_pre_hook(self._before_op(sites, starts.get(key, []))))
            handles.append(module.register_forward_hook(self._after_op(sites, ends.get(key, []))))
        for attention in ports.attention.values():
            handles.append(attention.module.register_forward_pre_hook(self._before_attention(attention)))
            handles.append(attention.module.register_forward_hook(self._after_attention(attention), always_call=True))
        if ports.head is not None:
            handles.append(ports.head.module.register_forward_hook(self._after_head(ports.head)))
        handles.extend(self._streams.install())
        return handles

    def _before_op(self, sites: list[OpPort], starts: list[SpanPort]) -> Callable[..., Any]:
        attachments = self._attachments

        def hook(module: nn.Module, args: tuple[Any, ...]) -> Any:
            x = args[0]
            changed = x
            for span in starts:
                changed = self._enter(span, x, changed)
            for port in sites:
                for edit in attachments.edits_at("op", port.site):
                    if edit.variant == "input":
                        changed = kind_of("scale").apply_input(in_dtype_of(edit, changed), changed, port)  # type: ignore[attr-defined]
                        attachments.saw(edit)
            return None if changed is x else (changed, *args[1:])

        return hook

    def _after_op(self, sites: list[OpPort], ends: list[SpanPort]) -> Callable[..., Any]:
        attachments = self._attachments

        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            h = apply_at_op(attachments, sites, args[0], output)
            for span in ends:
                edits = attachments.edits_at("span", span.site)
                if edits:
                    h = self._leave(edits, self._entries.pop(span.site), h, span)
            return None if h is output else h

        return hook

    def _enter(self, span: SpanPort, x: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """What a module that reads a span's input gets in place of `present`. Several modules may read the same input."""
        edits = self._attachments.edits_at("span", span.site)
        if not edits:
            return present
        entry = self._entries.get(span.site)
        if entry is None or entry.x is not x:
            entry = self._entries[span.site] = Entry(x, x)
            for index, edit in enumerate(edits):
                kind = kind_of(edit.kind)
                if is_before(kind.place(edit.variant)):
                    fitting = in_dtype_of(edit, entry.changed)
                    entry.made[index] = kind.made(fitting, dropped(self._attachments, edit, entry.changed))
                    entry.changed = entered(entry.changed, entry.made[index], fitting.tensors[SKIP])
        return entry.changed if entry.made else present

    def _leave(self, edits: list[Edit], entry: Entry, h: torch.Tensor, span: SpanPort) -> torch.Tensor:
        """A span's output with the edits before, beside and behind it."""
        for index, edit in enumerate(edits):
            if index in entry.made:
                h = placed(kind_of(edit.kind).place(edit.variant), entry.x, entry.made[index], h, None)
                self._attachments.saw(edit)
            else:
                h = apply_edits(self._attachments, [edit], entry.x, h, span)
        return h

    def _after_head(self, port: HeadPort) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            edits = self._attachments.edits_at("head", port.site)
            return apply_edits(self._attachments, edits, args[0], output, port) if edits else None

        return hook

    def _before_attention(self, port: AttentionPort) -> Callable[..., Any]:
        stream = self._streams.around(port.module)

        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            edits = self._attachments.edits_at("attention", port.site)
            shown = None if stream is None else self._streams.shown(stream)
            mode = AttentionInterception(edits, self._attachments.context, self._attachments.saw, shown) if edits or shown else None
            self._entered.setdefault(id(module), []).append(mode)
            if mode is not None:
                mode.__enter__()  # type: ignore[no-untyped-call]

        return hook

    def _after_attention(self, port: AttentionPort) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            entered = self._entered.get(id(module))
            mode = entered.pop() if entered else None
            if mode is not None:
                mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]

        return hook


def apply_at_op(attachments: EditSource, sites: list[OpPort], x: Any, output: torch.Tensor) -> torch.Tensor:
    """Output of an op with the edits of its sites, those of a fused projection together."""
    work = [(port, [edit for edit in attachments.edits_at("op", port.site) if edit.variant != "input"]) for port in sites]
    work = [(port, edits) for port, edits in work if edits]
    if not work:
        return output
    whole = [(port, edits) for port, edits in work if port.rows is None]
    parts = {port.rows: (port, edits) for port, edits in work if port.rows is not None}
    h = output
    for port, edits in whole:
        h = apply_edits(attachments, edits, x, h, port)
    if parts:
        h = _apply_to_rows(attachments, parts, x, h)
    return h


def _apply_to_rows(attachments: EditSource, parts: dict[Any, tuple[OpPort, list[Edit]]], x: Any, h: torch.Tensor) -> torch.Tensor:
    """Edits of the sites of a fused op, each widened to the whole op and joined with its like.

    One low-rank product serves all sites, and no slice of the output is cut out and put back: that copy, and its
    gradient, cost more than the product does.
    """
    port = next(iter(parts.values()))[0]
    size = h.shape[port.channel_dim]
    wide: dict[tuple[int, float], Edit] = {}
    for (start, _), (_, edits) in parts.items():
        for edit in edits:
            kind = kind_of(edit.kind)
            tensors = kind.widened(edit.tensors, edit.variant, start, size)
            attachments.saw(edit)
            # Every edit that drops its input draws anew, so those are not joined.
            key = (kind.order, float(len(wide)) if edit.dropout and attachments.training else -1.0)
            if key in wide:
                tensors = kind.mix(wide[key].tensors, tensors, edit.variant)
            wide[key] = replace(edit, tensors=tensors)
    return apply_edits(attachments, [wide[key] for key in sorted(wide)], x, h, port)


def apply_edits(attachments: EditSource, edits: list[Edit], x: torch.Tensor, h: torch.Tensor, port: Any) -> torch.Tensor:
    """Apply edits of one port in order; what they read is dropped out for edits that ask for it while training."""
    for edit in edits:
        kind: Any = kind_of(edit.kind)
        fitting = in_dtype_of(edit, h)
        if kind.port == "span":  # its place says what an adapter reads, and what stays whole beside it
            h = kind.apply(fitting, x, h, port, dropout=edit.dropout if attachments.training else 0.0)
        else:
            h = kind.apply(fitting, dropped(attachments, edit, x), h, port)
        attachments.saw(edit)
    return h


def dropped(attachments: EditSource, edit: Edit, x: torch.Tensor) -> torch.Tensor:
    """What an edit reads: x, with dropout while training where the edit asks for it; ids of tokens are nothing to drop."""
    return F.dropout(x, edit.dropout) if edit.dropout and attachments.training and x.is_floating_point() else x

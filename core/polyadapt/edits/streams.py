"""The stream port: prompts in a sequence, with the bookkeeping of the longer length.

mode `blocks`: the prompt is inserted before block 0 and cut off behind the last block; masks that blocks
receive are widened, so pooling, frame counts and labels outside see the old length.
mode `embeds`: token embeddings are computed here, the prompt is put in front, the tower gets
`inputs_embeds` and a widened mask, and the first P positions of its output are cut off.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from polyadapt.edits.kinds.prepend import Prepend
from polyadapt.edits.source import EditSource
from polyadapt.sites import StreamPort


class StreamHooks:
    """Hooks of all streams of one root."""

    def __init__(self, attachments: EditSource) -> None:
        self._attachments = attachments
        self._prepend = Prepend()

    def install(self) -> list[Any]:
        handles = []
        for port in self._attachments.ports.streams.values():
            if port.mode == "embeds":
                handles.append(port.tower.register_forward_pre_hook(self._before_tower(port), with_kwargs=True))
                handles.append(port.tower.register_forward_hook(self._after_tower(port)))
            else:
                handles.append(port.blocks[port.index].register_forward_pre_hook(self._before_block(port), with_kwargs=True))
                if port.index == 0:
                    handles.extend(block.register_forward_pre_hook(self._widen_masks(port), with_kwargs=True) for block in port.blocks)
                    handles.append(port.blocks[-1].register_forward_hook(self._after_blocks(port)))
        return handles

    def length(self, port: StreamPort) -> int | None:
        """Tokens that the active prompt adds to the stream; None without one. Stays symbolic while a graph is traced."""
        edits = self._attachments.edits_at("stream", port.site)
        return sum(edit.tensors["tokens"].shape[0] for edit in edits) if edits else None

    def _before_block(self, port: StreamPort) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            edits = self._attachments.edits_at("stream", port.site)
            if not edits:
                return None
            hidden = args[0] if args else kwargs["hidden_states"]
            behind, change = 0, self._prepend.insert if port.index == 0 else self._prepend.overwrite
            for edit in edits:
                hidden = change(edit.tensors, hidden, port.offset, behind)
                behind += edit.tensors["tokens"].shape[0]
                self._attachments.saw(edit)
            return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

        return hook

    def _widen_masks(self, port: StreamPort) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            length = self.length(port)
            if length is None:
                return None
            wide_args = tuple(widen_square_mask(value, length, port.offset) for value in args[1:])
            wide_kwargs = {name: widen_square_mask(value, length, port.offset) if "mask" in name else value for name, value in kwargs.items()}
            return (*args[:1], *wide_args), wide_kwargs

        return hook

    def _after_blocks(self, port: StreamPort) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            length = self.length(port)
            if length is None:
                return None
            hidden = output[0] if isinstance(output, tuple) else output
            kept = torch.cat([hidden[:, : port.offset], hidden[:, port.offset + length :]], dim=1)
            return (kept, *output[1:]) if isinstance(output, tuple) else kept

        return hook

    def _before_tower(self, port: StreamPort) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            edits = self._attachments.edits_at("stream", port.site)
            if not edits:
                return None
            kwargs = dict(kwargs)
            ids = args[0] if args else kwargs.pop("input_ids", None)
            hidden = kwargs.pop("inputs_embeds", None)
            if hidden is None:
                assert port.embed is not None
                hidden = port.embed(ids)
            before = hidden.shape[1]
            for edit in edits:
                hidden = self._prepend.insert(edit.tensors, hidden, 0)
                self._attachments.saw(edit)
            length = hidden.shape[1] - before
            if kwargs.get("attention_mask") is not None:
                mask = kwargs["attention_mask"]
                kwargs["attention_mask"] = torch.cat([mask.new_ones(mask.shape[0], length), mask], dim=1)
            if kwargs.get("token_type_ids") is not None:
                kwargs["token_type_ids"] = F.pad(kwargs["token_type_ids"], (length, 0))
            if kwargs.get("position_ids") is not None:
                # Real tokens start at position P, as in PEFT; the prompt takes positions 0 … P - 1.
                places = kwargs["position_ids"]
                front = torch.arange(length, device=places.device).expand(places.shape[0], -1)
                kwargs["position_ids"] = torch.cat([front, places + length], dim=1)
            return args[1:], {**kwargs, "input_ids": None, "inputs_embeds": hidden}

        return hook

    def _after_tower(self, port: StreamPort) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            length = self.length(port)
            return None if length is None else cut_front(output, length)

        return hook


def widen_square_mask(value: Any, length: int, offset: int) -> Any:
    """A mask [..., T, T] (or [..., 1, T]) with `length` visible positions put in at `offset`; anything else unchanged."""
    if not isinstance(value, torch.Tensor) or value.dim() < 2 or (value.dim() == 2 and value.shape[0] != value.shape[1]):
        return value
    fill = True if value.dtype == torch.bool else 0
    columns = value.new_full((*value.shape[:-1], length), fill)
    wide = torch.cat([value[..., :offset], columns, value[..., offset:]], dim=-1)
    if value.shape[-2] == 1:
        return wide
    rows = wide[..., :1, :].expand(*wide.shape[:-2], length, wide.shape[-1])
    return torch.cat([wide[..., :offset, :], rows, wide[..., offset:, :]], dim=-2)


def cut_front(output: Any, length: int) -> Any:
    """The first `length` positions of a tower's sequence outputs removed."""
    if isinstance(output, torch.Tensor):
        return output[:, length:]
    if isinstance(output, tuple):
        return (cut_front(output[0], length), *output[1:])
    if is_dataclass(output):
        for name in ("last_hidden_state", "logits"):
            value = getattr(output, name, None)
            if value is not None:
                output[name] = value[:, length:]  # type: ignore[index]
    return output

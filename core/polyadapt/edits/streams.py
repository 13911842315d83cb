"""The stream port: prompts in a sequence, with the bookkeeping of the longer length.

mode `blocks`: the prompt is inserted before block 0 and cut off behind the last block; masks that blocks
receive are widened, so pooling, frame counts and labels outside see the old length.
mode `embeds`: token embeddings are computed here, the prompt is put in front, the tower gets
`inputs_embeds` and a widened mask, and the first P positions of its output are cut off. A library's cache that a prompt
went into keeps it: later steps with that cache get no prompt again, but masks and positions that count it.

Rows of a batch may have prompts of their own, padded to the longest. In mode `blocks` the padding is hidden at every
attention call of the blocks; in mode `embeds` it stands in front, the mask hides it, and positions begin behind it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from polyadapt.edits.edit import Edit
from polyadapt.edits.kinds.prepend import Prepend, padded_in_front, real
from polyadapt.edits.source import EditSource
from polyadapt.errors import UserError
from polyadapt.sites import StreamPort

PROMPT = "polyadapt_prompt"  # a mark on a library's cache, so that also a copy of the cache knows of the prompt in it


class StreamHooks:
    """Hooks of all streams of one root."""

    def __init__(self, attachments: EditSource) -> None:
        self._attachments = attachments
        self._prepend = Prepend()
        self._inserted: dict[str, bool] = {}  # by site of an active prompt: whether the present call of its tower got it

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
        return sum(edit.tensors["tokens"].shape[-2] for edit in edits) if edits else None

    def around(self, module: nn.Module) -> StreamPort | None:
        """The stream whose blocks hold a module, where prompts are put in before block 0."""
        for port in self._attachments.ports.streams.values():
            if port.mode == "blocks" and port.index == 0 and any(module is inner for block in port.blocks for inner in block.modules()):
                return port
        return None

    def shown(self, port: StreamPort) -> Callable[[int], torch.Tensor] | None:
        """From the length of a stream, which of its positions are no padding in each row; None where rows share their prompts."""
        edits = self._attachments.edits_at("stream", port.site)
        if not any("length" in edit.tensors for edit in edits):
            return None
        prompt = torch.cat([real(edit.tensors) for edit in edits], dim=1)  # (batch, P)

        def places(count: int) -> torch.Tensor:
            return F.pad(prompt, (port.offset, count - port.offset - prompt.shape[1]), value=True)  # (batch, count)

        return places

    def _before_block(self, port: StreamPort) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            edits = self._attachments.edits_at("stream", port.site)
            if not edits:
                return None
            hidden = args[0] if args else kwargs["hidden_states"]
            behind, change = 0, self._prepend.insert if port.index == 0 else self._prepend.overwrite
            for edit in edits:
                hidden = change(edit.tensors, hidden, port.offset, behind)
                behind += edit.tensors["tokens"].shape[-2]
                self._attachments.saw(edit)
            return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

        return hook

    def _widen_masks(self, port: StreamPort) -> Callable[..., Any]:
        inside = {module for block in port.blocks for module in block.modules()}
        causal = any(attention.causal and not attention.cross for attention in self._attachments.ports.attention.values() if attention.module in inside)

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            length = self.length(port)
            if length is None:
                return None
            wide_args = tuple(widen_square_mask(value, length, port.offset, causal) for value in args[1:])
            wide_kwargs = {name: widen_square_mask(value, length, port.offset, causal) if "mask" in name else value for name, value in kwargs.items()}
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
            new, kept = hidden.shape[1], cached_prompt(kwargs.get("past_key_values"), self.length(port))
            for edit in edits:
                if kept is None:
                    hidden = self._prepend.insert(padded_in_front(edit.tensors) if "length" in edit.tensors else edit.tensors, hidden, 0)
                self._attachments.saw(edit)
            self._inserted[port.site] = kept is None
            own = Front.of(edits, hidden.shape[0], hidden.shape[1] - new if kept is None else kept, hidden.device, kept is not None)
            past = 0 if kept is None else kwargs["past_key_values"].get_seq_length() - kept  # of the caller's own tokens
            kwargs.update(widened(port, own, kwargs, past, new))
            return args[1:], {**kwargs, "input_ids": None, "inputs_embeds": hidden}

        return hook

    def _after_tower(self, port: StreamPort) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            length = self.length(port)
            if not self._inserted.pop(port.site, False) or length is None:
                return None
            cache = getattr(output, "past_key_values", None)
            if cache is not None:
                setattr(cache, PROMPT, length)
            return cut_front(output, length)

        return hook


@dataclass(frozen=True)
class Front:
    """The prompts in front of a sequence: `shown` bool [batch, P] is False for padding, which comes first in its row.

    `is_cached` says that they stand in a cache already, so that only the mask and the count of positions know of them.
    """

    shown: torch.Tensor
    differs: bool
    is_cached: bool = False

    @classmethod
    def of(cls, edits: Sequence[Edit], batch: int, length: int, device: torch.device, is_cached: bool = False) -> Front:
        """Of edits in the order in which they were put in."""
        if not any("length" in edit.tensors for edit in edits):
            return cls(torch.ones(batch, length, dtype=torch.bool, device=device), False, is_cached)
        return cls(torch.cat([real(edit.tensors).flip(1) for edit in reversed(edits)], dim=1), True, is_cached)

    def positions(self, places: torch.Tensor) -> torch.Tensor:
        """Positions of prompt and sequence, from those of the sequence alone [batch, T].

        Real tokens start at position P, as in PEFT; the prompt takes positions 0 … P - 1, and padding shares the first.
        """
        length = self.shown.shape[1]
        count: Any = self.shown.sum(1, keepdim=True) if self.differs else length
        behind: torch.Tensor = places + count  # (batch, T)
        if self.is_cached:
            return behind
        front = torch.arange(length, device=places.device).expand(places.shape[0], -1) - (length - count)
        return torch.cat([front.clamp_min(0), behind], dim=1)  # (batch, P + T)


def cached_prompt(cache: Any, length: int | None) -> int | None:
    """How many tokens of a prompt a library's cache holds; None where none went into it (or the cache is a graph's input, whose caller counts).

    Raises:
        UserError: the prompt in the cache is not of the length of the active one, or the cache is of a fixed size, which leaves
            no room for a prompt.
    """
    if getattr(cache, "is_compileable", False):
        raise UserError(f"a {type(cache).__name__} of fixed size has no room for a prompt; generate with a cache that grows (no cache_implementation), or use_cache=False")
    kept = getattr(cache, PROMPT, None)
    if kept is None or not cache.get_seq_length():
        return None
    if kept != length:
        raise UserError(f"the cache holds a prompt of {kept} tokens, and the active one has {length}; begin with an empty cache after switching adapters")
    return int(kept)


def widened(port: StreamPort, own: Front, kwargs: dict[str, Any], past: int, new: int) -> dict[str, Any]:
    """Masks, types and positions of a tower's call that count the prompt, for `new` tokens behind `past` of the caller's own in a cache."""
    made: dict[str, Any] = {}
    mask, batch, device = kwargs.get("attention_mask"), own.shown.shape[0], own.shown.device
    if mask is not None or own.differs:
        mask = torch.ones(batch, past + new, dtype=torch.int64, device=device) if mask is None else mask
        made["attention_mask"] = torch.cat([own.shown.to(mask.dtype), mask], dim=1)
    if kwargs.get("token_type_ids") is not None and not own.is_cached:
        made["token_type_ids"] = F.pad(kwargs["token_type_ids"], (own.shown.shape[1], 0))
    places = kwargs.get("position_ids")
    if places is None and own.differs and "position_ids" in inspect.signature(port.tower.forward).parameters:
        places = torch.arange(past, past + new, device=device).expand(batch, -1)
    if places is not None:
        made["position_ids"] = own.positions(places)
    return made


def widen_square_mask(value: Any, length: int, offset: int, causal: bool = False) -> Any:
    """A mask [..., T, T] (or [..., 1, T]) with `length` visible positions put in at `offset`; anything else unchanged.

    In causal blocks a new position sees what stands before it and itself, and is seen from behind alone, as where nothing is padded
    and blocks are given no mask at all.
    """
    if not isinstance(value, torch.Tensor) or value.dim() < 2 or (value.dim() == 2 and value.shape[0] != value.shape[1]):
        return value
    fill = True if value.dtype == torch.bool else 0
    columns = value.new_full((*value.shape[:-1], length), fill)
    wide = torch.cat([value[..., :offset], columns, value[..., offset:]], dim=-1)
    if value.shape[-2] == 1:
        return wide
    rows = wide[..., :1, :].expand(*wide.shape[:-2], length, wide.shape[-1])
    wide = torch.cat([wide[..., :offset, :], rows, wide[..., offset:, :]], dim=-2)
    if not causal:
        return wide
    place = torch.arange(wide.shape[-1], device=value.device)
    is_new = (place >= offset) & (place < offset + length)
    ahead = place[None, :] > place[:, None]  # (T + length, T + length)
    shown, hidden = is_new[:, None] & ~ahead, (is_new[:, None] | is_new[None, :]) & ahead
    if value.dtype == torch.bool:  # onnxruntime has no Where of booleans
        return (wide | shown) & ~hidden
    return torch.where(hidden, torch.full_like(wide, torch.finfo(value.dtype).min), torch.where(shown, torch.zeros_like(wide), wide))


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


def prompted(edits: Iterable[Edit]) -> int:
    """Tokens that learned prompts put in front of a sequence; those of later blocks take the places of the first one's."""
    found: dict[str, int] = {}
    for edit in edits:
        if edit.kind == Prepend.name:
            found[edit.site] = found.get(edit.site, 0) + edit.tensors["tokens"].shape[-2]
    return max(found.values(), default=0)

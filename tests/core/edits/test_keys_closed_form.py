"""`keys`: a prefix is exactly a gated parallel adapter (He et al. 2022, arXiv 2110.04366, section 3.1), in float64.

    lam = sum exp(b) / (sum exp(a) + sum exp(b));   head = (1 - lam) softmax(a) V + lam softmax(b) P_v
with a the scores over the real keys and b those over the prefix.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from polyadapt.edits import Edit, Lowered, attachments_of
from polyadapt.errors import UserError
from polyadapt.sites import AttentionPort, Ports

HEADS, SIZE, BATCH, QUERIES, KEYS, PREFIX = 4, 8, 3, 5, 7, 6
BOUND = 1e-10


class Attend(nn.Module):
    """The call that libraries make, with whatever mask the test gives."""

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: object) -> torch.Tensor:
        result: torch.Tensor = F.scaled_dot_product_attention(query, key, value, **options)  # type: ignore[arg-type]
        return result


class Root(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = Attend()

    def forward(self, *given: torch.Tensor, **options: object) -> torch.Tensor:
        result: torch.Tensor = self.attention(*given, **options)
        return result


def values(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_prefix(k: torch.Tensor, v: torch.Tensor) -> Root:
    root = Root()
    ports = Ports("toy", attention={"attn": AttentionPort("attn", "attention", root.attention, k.shape[0], SIZE, False, False)})
    attachments_of(root, ports).add("prefix", Lowered([Edit("attn", "keys", {"k": k, "v": v})]))
    return root.eval()


def gated(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, k: torch.Tensor, v: torch.Tensor, visible: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
    """The formula above, head by head; `visible` says which real keys a query sees, `added` goes onto their scores."""
    scale = 1.0 / math.sqrt(SIZE)
    a = (query @ key.transpose(-1, -2)) * scale + added  # (batch, heads, queries, keys)
    b = (query @ k.transpose(-1, -2)) * scale  # (batch, heads, queries, prefix)
    top = torch.maximum(a.masked_fill(~visible, -math.inf).amax(-1, keepdim=True), b.amax(-1, keepdim=True))
    ea, eb = torch.exp(a - top) * visible, torch.exp(b - top)
    lam = eb.sum(-1, keepdim=True) / (ea.sum(-1, keepdim=True) + eb.sum(-1, keepdim=True))
    return (1 - lam) * (ea / ea.sum(-1, keepdim=True)) @ value + lam * (eb / eb.sum(-1, keepdim=True)) @ v


MASKS = ("none", "padding", "added", "causal")


@pytest.mark.parametrize("mask", MASKS)
def test_prefix_is_a_gated_adapter(mask: str) -> None:
    queries = KEYS if mask == "causal" else QUERIES
    query, key, value = values(BATCH, HEADS, queries, SIZE, seed=0), values(BATCH, HEADS, KEYS, SIZE, seed=1), values(BATCH, HEADS, KEYS, SIZE, seed=2)
    k, v = values(HEADS, PREFIX, SIZE, seed=3), values(HEADS, PREFIX, SIZE, seed=4)
    visible = torch.ones(BATCH, 1, queries, KEYS, dtype=torch.bool)
    added = torch.zeros(BATCH, 1, queries, KEYS, dtype=torch.float64)
    options: dict[str, object] = {}
    if mask == "padding":  # texts of 7, 5 and 2 tokens
        visible = (torch.arange(KEYS) < torch.tensor([7, 5, 2])[:, None])[:, None, None, :].expand(BATCH, 1, queries, KEYS)
        options["attn_mask"] = visible
    elif mask == "added":
        added = values(BATCH, 1, queries, KEYS, seed=5)
        options["attn_mask"] = added
    elif mask == "causal":
        visible = torch.ones(queries, KEYS, dtype=torch.bool).tril().expand(BATCH, 1, queries, KEYS)
        options["is_causal"] = True
    found = with_prefix(k, v)(query, key, value, **options)
    expected = gated(query, key, value, k, v, visible, added)
    assert float((found - expected).detach().abs().max()) < BOUND


@pytest.mark.parametrize("seen", ["grouped by the call", "repeated by the library"])
def test_grouped_heads_share_a_prefix(seen: str) -> None:
    """Two key/value heads for four queries' heads: query head i belongs to key head i // 2."""
    query, key, value = values(BATCH, HEADS, QUERIES, SIZE, seed=0), values(BATCH, 2, KEYS, SIZE, seed=1), values(BATCH, 2, KEYS, SIZE, seed=2)
    k, v = values(2, PREFIX, SIZE, seed=3), values(2, PREFIX, SIZE, seed=4)
    wide_key, wide_value, wide_k, wide_v = (part.repeat_interleave(2, dim=-3) for part in (key, value, k, v))
    if seen.startswith("grouped"):
        found = with_prefix(k, v)(query, key, value, enable_gqa=True)
    else:
        found = with_prefix(k, v)(query, wide_key, wide_value)
    visible, added = torch.ones(BATCH, 1, QUERIES, KEYS, dtype=torch.bool), torch.zeros(1, dtype=torch.float64)
    assert float((found - gated(query, wide_key, wide_value, wide_k, wide_v, visible, added)).detach().abs().max()) < BOUND


def test_causal_prefix_needs_the_shifted_mask() -> None:
    """Keeping `is_causal` with the prefix in front would hide real keys: the trap is large, so the test would see it."""
    query, key, value = (values(BATCH, HEADS, KEYS, SIZE, seed=seed) for seed in (0, 1, 2))
    k, v = values(HEADS, PREFIX, SIZE, seed=3), values(HEADS, PREFIX, SIZE, seed=4)
    right = with_prefix(k, v)(query, key, value, is_causal=True).detach()
    joined = [torch.cat([part.expand(BATCH, -1, -1, -1), real], dim=2) for part, real in ((k, key), (v, value))]
    wrong = F.scaled_dot_product_attention(query, *joined, is_causal=True)
    assert float((right - wrong).abs().max()) > 0.1


@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (3, 7), (7, 3)])
def test_an_empty_prefix_keeps_what_causal_means(queries: int, keys: int) -> None:
    """torch's triangle starts at the first key also where queries and keys differ in number."""
    query, key, value = values(2, HEADS, queries, SIZE, seed=0), values(2, HEADS, keys, SIZE, seed=1), values(2, HEADS, keys, SIZE, seed=2)
    found = with_prefix(torch.zeros(HEADS, 0, SIZE, dtype=torch.float64), torch.zeros(HEADS, 0, SIZE, dtype=torch.float64))(query, key, value, is_causal=True)
    assert float((found - F.scaled_dot_product_attention(query, key, value, is_causal=True)).detach().abs().max()) < 1e-14


def test_one_key_of_a_prefix_takes_its_share() -> None:
    """With one real key and one equal prefix key, each takes one half."""
    key = values(1, 1, 1, SIZE, seed=1)
    value = torch.ones(1, 1, 1, SIZE, dtype=torch.float64)
    found = with_prefix(key[0], 3 * value[0])(values(1, 1, 4, SIZE, seed=0), key, value)
    assert float((found - 2.0).detach().abs().max()) < 1e-14


def test_a_zero_key_takes_mass_so_padding_is_refused() -> None:
    from polyadapt.edits import kind_of

    query, key, value = (values(1, HEADS, QUERIES, SIZE, seed=seed) for seed in (0, 1, 2))
    zeros = torch.zeros(HEADS, 1, SIZE, dtype=torch.float64)
    moved = with_prefix(zeros, zeros)(query, key, value)
    assert float((moved - F.scaled_dot_product_attention(query, key, value)).detach().abs().max()) > 0.01
    with pytest.raises(UserError, match="'keys' cannot be padded"):
        kind_of("keys").pad({"k": zeros, "v": zeros}, "", 4)


def test_cross_is_a_second_attention_over_the_context() -> None:
    """out + scale * softmax(q (c k)^T / sqrt(size)) (c v), per head."""
    query, key, value = (values(BATCH, HEADS, QUERIES, SIZE, seed=seed) for seed in (0, 1, 2))
    width, context = 9, values(BATCH, 3, 9, seed=5)
    tensors = {"k": values(width, HEADS * SIZE, seed=6), "v": values(width, HEADS * SIZE, seed=7), "scale": torch.tensor([0.7], dtype=torch.float64)}
    root = Root()
    ports = Ports("toy", attention={"attn": AttentionPort("attn", "attention", root.attention, HEADS, SIZE, False, True)})
    attachments = attachments_of(root, ports)
    attachments.add("image", Lowered([Edit("attn", "cross", tensors)]))
    with pytest.raises(UserError, match="attn:cross needs context tokens"):
        root(query, key, value)
    attachments.context = context
    found = root(query, key, value)
    expected = F.scaled_dot_product_attention(query, key, value)
    for head in range(HEADS):
        rows = slice(head * SIZE, (head + 1) * SIZE)
        k, v = (context @ tensors["k"])[:, :, rows], (context @ tensors["v"])[:, :, rows]  # (batch, n, size)
        weights = torch.softmax(query[:, head] @ k.transpose(1, 2) / math.sqrt(SIZE), dim=-1)
        expected[:, head] += 0.7 * weights @ v
    assert float((found - expected).detach().abs().max()) < BOUND

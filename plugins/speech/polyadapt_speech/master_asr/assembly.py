"""From a language's row to its mask: which specialists are chosen, what they score together, which weights stay.

    T_l [K]         row of the mapping matrix          1[sigmoid(T_l) > 0.5] [K]   the choice
    M_k [out, in]   scores of a specialist             S = sum of chosen M_k       the assembly
    t               share of weights switched off      B = 1[S among the largest]  the mask

Both hard steps pass gradients straight through (Bengio et al., arXiv 1308.3432).
"""

from __future__ import annotations

import torch

LEAST_SHARE = 1e-9  # so that a share such as 0.3 of 10 weights is 3 and not 2.9999


def choice(row: torch.Tensor, gradient: str) -> torch.Tensor:
    """The specialists that a row chooses, as zeros and ones; the likeliest alone where it would choose none.

    Args:
        row: T_l, [K].
        gradient: `sigmoid` for the slope of the sigmoid, `identity` for 1.

    Shape:
        [K] -> [K].
    """
    hard = (row > 0).to(row.dtype)  # sigmoid(T) > 0.5
    if not bool(hard.any()):
        hard[row.argmax()] = 1.0
    soft = torch.sigmoid(row) if gradient == "sigmoid" else row
    return hard + (soft - soft.detach())


def mask(scores: torch.Tensor, weight: torch.Tensor, sparsity: float) -> torch.Tensor:
    """Ones where a weight stays. Exactly the share `sparsity` goes: the lowest scores, and among equal ones the smallest weights.

    Args:
        scores: S; the gradient of the mask is theirs.
        weight: W, which breaks ties.
        sparsity: t.

    Shape:
        [out, in] -> [out, in].
    """
    hard = kept(scores.detach().flatten(), weight.detach().abs().flatten(), int(sparsity * scores.numel() + LEAST_SHARE)).reshape(scores.shape)
    return hard + (scores - scores.detach())


def kept(scores: torch.Tensor, sizes: torch.Tensor, gone: int) -> torch.Tensor:
    """1 for all but the `gone` lowest of scores [n], the smaller first among equals."""
    if not gone:
        return torch.ones_like(scores)
    edge = scores.kthvalue(gone).values
    stays = scores > edge
    missing = len(scores) - gone - int(stays.sum())
    if missing:
        equal = torch.nonzero(scores == edge).flatten()
        stays[equal[sizes[equal].argsort(descending=True, stable=True)[:missing]]] = True
    return stays.to(scores.dtype)

"""Monotonic rational-quadratic splines: Durkan et al., Neural Spline Flows, arXiv 1906.04032, section 3.1.

Knots (x_k, y_k) with slopes d_k inside [-bound, bound]; outside, the identity. Within bin k, with t the place in the bin
from 0 to 1, s the bin's mean slope and h its height:

    y = y_k + h (s t^2 + d_k t (1 - t)) / (s + (d_k + d_{k+1} - 2 s) t (1 - t))                          (equation 4)

Raw numbers of a network become widths and heights by softmax and slopes by softplus, each with a floor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

FLOOR = 1e-3  # least share of a width or height, and least slope (the authors' code)


@dataclass(frozen=True)
class Spline:
    """A spline for each element: places, values and slopes [..., knots] of its knots."""

    x: torch.Tensor
    y: torch.Tensor
    slope: torch.Tensor
    bound: float

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Values [...] and the logarithms of the derivatives there."""
        inside = x.abs() <= self.bound
        given = x.clamp(-self.bound, self.bound)
        piece = self._piece(given, self.x)
        t = (given - piece.x) / piece.width
        y = piece.y + piece.height * (piece.mean * t.square() + piece.left * t * (1 - t)) / piece.denominator(t)
        return torch.where(inside, y, x), torch.where(inside, piece.log_derivative(t), 0.0)

    def inverse(self, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the spline takes the values y [...], and the logarithms of the inverse's derivatives (equations 6 to 8)."""
        inside = y.abs() <= self.bound
        given = y.clamp(-self.bound, self.bound)
        piece = self._piece(given, self.y)
        rise, bend = given - piece.y, piece.left + piece.right - 2 * piece.mean
        a = piece.height * (piece.mean - piece.left) + rise * bend
        b = piece.height * piece.left - rise * bend
        c = -piece.mean * rise
        t = 2 * c / (-b - (b.square() - 4 * a * c).clamp_min(0).sqrt())  # the root that stays exact for small a
        return torch.where(inside, t * piece.width + piece.x, y), torch.where(inside, -piece.log_derivative(t), 0.0)

    def _piece(self, values: torch.Tensor, edges: torch.Tensor) -> Piece:
        """The bin of every value, bins being bounded by `edges`."""
        index = (values[..., None] >= edges[..., 1:-1]).sum(-1, keepdim=True)  # (..., 1)

        def pick(knots: torch.Tensor) -> torch.Tensor:
            return knots.gather(-1, index).squeeze(-1)  # (...)

        x, y = pick(self.x), pick(self.y)
        return Piece(x, y, pick(self.x[..., 1:]) - x, pick(self.y[..., 1:]) - y, pick(self.slope), pick(self.slope[..., 1:]))


@dataclass(frozen=True)
class Piece:
    """One bin for each element: its left end (x, y), its size, and the slopes at both ends."""

    x: torch.Tensor
    y: torch.Tensor
    width: torch.Tensor
    height: torch.Tensor
    left: torch.Tensor
    right: torch.Tensor

    @property
    def mean(self) -> torch.Tensor:
        """s: the mean slope."""
        return self.height / self.width

    def denominator(self, t: torch.Tensor) -> torch.Tensor:
        """Of equation 4."""
        return self.mean + (self.left + self.right - 2 * self.mean) * t * (1 - t)

    def log_derivative(self, t: torch.Tensor) -> torch.Tensor:
        """Equation 5."""
        slope = self.right * t.square() + 2 * self.mean * t * (1 - t) + self.left * (1 - t).square()
        return 2 * self.mean.log() + slope.log() - 2 * self.denominator(t).log()


def spline(widths: torch.Tensor, heights: torch.Tensor, slopes: torch.Tensor, bound: float) -> Spline:
    """A spline from a network's raw numbers.

    Shape:
        widths and heights [..., bins], slopes [..., bins - 1]; the slopes at both ends are 1, as outside.
    """
    inner = FLOOR + F.softplus(slopes)  # (..., bins - 1)
    return Spline(_edges(widths, bound), _edges(heights, bound), F.pad(inner, (1, 1), value=1.0), bound)


def _edges(raw: torch.Tensor, bound: float) -> torch.Tensor:
    """[..., bins] -> [..., bins + 1], from -bound to bound exactly."""
    shares = FLOOR + (1 - FLOOR * raw.shape[-1]) * raw.softmax(-1)
    inner = bound * (2 * shares.cumsum(-1)[..., :-1] - 1)  # (..., bins - 1)
    return F.pad(F.pad(inner, (1, 0), value=-bound), (0, 1), value=bound)

"""Master-ASR's assembly: which weights a mask keeps, and which specialists a row chooses."""

from __future__ import annotations

import pytest
import torch

from polyadapt_speech.master_asr.assembly import choice, kept, mask


def test_exactly_the_lowest_scores_go_and_equal_ones_by_weight() -> None:
    """kept = n - floor(t n), for every t, with ties everywhere: against a full sort."""
    generator = torch.Generator().manual_seed(0)
    for sparsity in (0.0, 0.1, 0.3, 0.5, 0.99):
        scores = torch.randint(0, 4, (7, 9), generator=generator).float()
        weight = torch.randn(7, 9, generator=generator)
        found = mask(scores, weight, sparsity)
        gone = int(sparsity * 63 + 1e-9)
        order = sorted(range(63), key=lambda place: (float(scores.flatten()[place]), float(weight.abs().flatten()[place])))
        expected = torch.ones(63)
        expected[order[:gone]] = 0.0
        assert torch.equal(found, expected.reshape(7, 9)), sparsity


def test_no_score_at_all_falls_back_on_the_size_of_the_weights() -> None:
    """The strict comparison of the paper would switch the whole layer off."""
    sizes = torch.arange(10.0)
    assert kept(torch.zeros(10), sizes, 3).tolist() == [0.0] * 3 + [1.0] * 7


@pytest.mark.parametrize(("gradient", "slope"), [("sigmoid", [0.25, 0.19661193]), ("identity", [1.0, 1.0])])
def test_a_choice_is_hard_and_passes_gradients(gradient: str, slope: list[float]) -> None:
    row = torch.tensor([0.0, 1.0], requires_grad=True)
    chosen = choice(row, gradient)
    assert chosen.tolist() == [0.0, 1.0]
    chosen.sum().backward()
    assert row.grad is not None and torch.allclose(row.grad, torch.tensor(slope))


def test_a_row_never_chooses_nothing() -> None:
    assert choice(torch.tensor([-3.0, -1.0, -2.0]), "sigmoid").tolist() == [0.0, 1.0, 0.0]

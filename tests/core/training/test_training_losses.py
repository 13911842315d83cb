"""Losses against their formulas, and the counts that they are divided by."""

from __future__ import annotations

import math

import pytest
import torch

from polyadapt.errors import UserError
from polyadapt.signature import Task
from polyadapt.training.losses import objective_for


def test_classification_is_the_negative_log_probability() -> None:
    objective = objective_for(Task("classification", ("a", "b")))
    outputs, targets = {"logits": torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 3.0]])}, {"label": torch.tensor([0, 1, 0])}
    expected = math.log(1 + math.exp(-2)) + math.log(2) + math.log(1 + math.exp(3))
    assert float(objective.total(outputs, targets)) == pytest.approx(expected, rel=1e-6)
    assert objective.count(targets) == 3
    assert int(objective.measures["accuracy"](outputs, targets)) == 1 and objective.metric == "accuracy"


def test_next_token_counts_targets_only_and_shifts_by_one() -> None:
    """Position t scores token t + 1; a certain right answer costs nothing, ignored ones never count."""
    objective = objective_for(Task("causal-lm"))
    tokens = torch.tensor([[-100, -100, 2, 1], [-100, 3, -100, -100]])
    logits = torch.full((2, 4, 5), 0.0)
    logits[0, 1, 2] = 50.0  # sees positions 0 and 1, names token 2
    outputs, targets = {"logits": logits}, {"tokens": tokens}
    assert objective.count(targets) == 3
    assert float(objective.total(outputs, targets)) == pytest.approx(2 * math.log(5), rel=1e-6)
    assert int(objective.measures["token_accuracy"](outputs, targets)) == 1


def test_the_first_token_of_a_whole_text_is_not_scored() -> None:
    assert objective_for(Task("causal-lm")).count({"tokens": torch.tensor([[4, 5, 6]])}) == 2


def test_decoder_tokens_are_scored_in_place() -> None:
    objective = objective_for(Task("seq2seq-lm"))
    logits = torch.zeros(1, 3, 4)
    logits[0, 0, 3] = 50.0
    targets = {"tokens": torch.tensor([[3, 1, -100]])}
    assert objective.count(targets) == 2
    assert float(objective.total({"logits": logits}, targets)) == pytest.approx(math.log(4), rel=1e-6)


def test_ctc_sums_over_all_alignments() -> None:
    """Two frames, text "a" (symbol 1), blank 0: the paths are a-, -a and aa."""
    objective = objective_for(Task("ctc", ("-", "a", "b")))
    probability = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]])
    outputs = {"logits": torch.cat([probability.log(), torch.zeros(1, 3)])[None]}  # the third frame is padding
    targets = {"tokens": torch.tensor([[1, -100]]), "frames": torch.tensor([2])}
    expected = -math.log(0.3 * 0.1 + 0.5 * 0.6 + 0.3 * 0.6)
    assert float(objective.total(outputs, targets)) == pytest.approx(expected, rel=1e-5)
    assert objective.count(targets) == 1


def test_ctc_takes_the_blank_of_the_task() -> None:
    logits = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(0))
    targets = {"tokens": torch.tensor([[0, 1]]), "frames": torch.tensor([6])}
    found = objective_for(Task("ctc", details={"blank_id": 3})).total({"logits": logits}, targets)
    swapped = logits[..., [3, 0, 1, 2]]  # the same with the blank in front
    expected = objective_for(Task("ctc")).total({"logits": swapped}, {**targets, "tokens": torch.tensor([[1, 2]])})
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(("task", "output"), [("control", "action"), ("denoising", "noise")])
def test_squared_error_is_a_mean_within_a_row(task: str, output: str) -> None:
    objective = objective_for(Task(task))
    targets = {"target": torch.tensor([[0.0, 0.0], [1.0, 1.0]])}
    assert float(objective.total({output: torch.tensor([[1.0, 3.0], [1.0, 1.0]])}, targets)) == 5.0
    assert objective.count(targets) == 2
    with pytest.raises(UserError, match=r"\(2, 3\).*\(2, 2\)"):
        objective.total({output: torch.zeros(2, 3)}, targets)


def test_contrastive_is_symmetric_and_never_split() -> None:
    objective = objective_for(Task("image-text"))
    logits = torch.tensor([[4.0, 1.0], [0.0, 2.0]])

    def entropy(scores: torch.Tensor) -> float:
        return float(-(scores.log_softmax(1)).diagonal().sum())

    assert float(objective.total({"logits": logits}, {"pair": torch.zeros(2)})) == pytest.approx((entropy(logits) + entropy(logits.T)) / 2, rel=1e-6)
    assert not objective.is_separable


def test_a_task_without_a_loss_is_refused() -> None:
    with pytest.raises(UserError, match="features"):
        objective_for(Task("features"))


def test_losses_are_computed_in_float32() -> None:
    objective = objective_for(Task("classification", ("a", "b")))
    assert objective.total({"logits": torch.zeros(1, 2, dtype=torch.bfloat16)}, {"label": torch.tensor([0])}).dtype == torch.float32

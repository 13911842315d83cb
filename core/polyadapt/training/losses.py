"""What is minimised for each task: sums of losses, and the true counts that they are divided by.

A loss returns the *sum* over a batch's items (rows, or tokens that count); the loop divides by the count of the
whole global batch. So neither accumulation nor the number of processes weighs an item otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

from polyadapt.errors import UserError
from polyadapt.signature import Task

Tensors = Mapping[str, torch.Tensor]
IGNORED = -100


@dataclass(frozen=True)
class Objective:
    """A loss with what the loop has to know about it.

    Attributes:
        total: (outputs, targets) -> sum of the losses of a batch, a scalar in float32.
        count: targets -> items that the sum runs over.
        measures: validation metrics besides the loss: name -> (outputs, targets) -> sum over the same items.
        metric: what early stopping looks at; `loss`, or one of `measures`, of which more is better.
        is_separable: whether a batch may be cut into pieces without changing the sum.
    """

    total: Callable[[Tensors, Tensors], torch.Tensor]
    count: Callable[[Tensors], int]
    measures: Mapping[str, Callable[[Tensors, Tensors], torch.Tensor]] = field(default_factory=dict)
    metric: str = "loss"
    is_separable: bool = True


def objective_for(task: Task) -> Objective:
    """The usual loss of a task.

    Raises:
        UserError: the task has none; a method with its own loop may still train on it.
    """
    blank = int(str(task.details.get("blank_id", 0)))
    made: dict[str, Objective] = {
        "classification": Objective(class_loss, _rows, {"accuracy": class_hits}, "accuracy"),
        "causal-lm": Objective(next_token_loss, _next_tokens, {"token_accuracy": next_token_hits}),
        "seq2seq-lm": Objective(token_loss, _tokens, {"token_accuracy": token_hits}),
        "transcription": Objective(token_loss, _tokens, {"token_accuracy": token_hits}),
        "ctc": Objective(ctc_loss_with(blank), _tokens, {"symbol_accuracy": ctc_hits_with(blank)}, "symbol_accuracy"),
        "control": Objective(squared_error, _rows),
        "denoising": Objective(squared_error, _rows),
        "synthesis": Objective(row_losses, _rows, {"divergence": part_of("divergence"), "durations": part_of("durations")}),
        "image-text": Objective(contrastive_loss, _rows, is_separable=False),
    }
    if task.kind not in made:
        raise UserError(f"task {task.kind!r} has no loss to train with; load the model for one of: {', '.join(made)}")
    return made[task.kind]


def class_loss(outputs: Tensors, targets: Tensors) -> torch.Tensor:
    """Cross entropy: logits [batch, C], label [batch] -> scalar."""
    return F.cross_entropy(outputs["logits"].float(), targets["label"], reduction="sum")


def class_hits(outputs: Tensors, targets: Tensors) -> torch.Tensor:
    """Rows whose best class is the right one."""
    return (outputs["logits"].argmax(-1) == targets["label"]).sum()


def token_loss(outputs: Tensors, targets: Tensors) -> torch.Tensor:
    """Cross entropy where position t scores the token of position t: logits [batch, tokens, V], tokens [batch, tokens]."""
    logits = outputs["logits"].float()
    return F.cross_entropy(logits.flatten(0, -2), targets["tokens"].flatten(), ignore_index=IGNORED, reduction="sum")


def token_hits(outputs: Tensors, targets: Tensors) -> torch.Tensor:
    """Tokens that count and are predicted."""
    tokens = targets["tokens"]
    return ((outputs["logits"].argmax(-1) == tokens) & (tokens != IGNORED)).sum()


def next_token_loss(outputs: Tensors, targets: Tensors) -> torch.Tensor:
    """Cross entropy where position t scores the token of position t + 1; prompts and padding are -100."""
    # Targets are moved, not scores: cutting the last position off would copy every score.
    return token_loss(outputs, {"tokens": F.pad(targets["tokens"][:, 1:], (0, 1), value=IGNORED)})  # (batch, tokens)


def next_token_hits(outputs: Tensors, targets: Tensors) -> torch.Tensor:
    """Tokens that count and are predicted from those before them."""
    return token_hits({"logits": outputs["logits"][:, :-1]}, {"tokens": targets["tokens"][:, 1:]})


def ctc_loss_with(blank: int) -> Callable[[Tensors, Tensors], torch.Tensor]:
    """Connectionist temporal classification (Graves et al. 2006) with the given blank.

    Shape:
        logits [batch, frames, V]; tokens [batch, length] padded with -100; frames [batch], those that are no padding.
    """

    def ctc_loss(outputs: Tensors, targets: Tensors) -> torch.Tensor:
        scores = outputs["logits"].float().log_softmax(-1).transpose(0, 1)  # (frames, batch, V)
        tokens = targets["tokens"]
        lengths = (tokens != IGNORED).sum(-1)  # (batch,)
        frames = targets["frames"].clamp(max=scores.shape[0])
        # A text longer than its frames has no path; its infinite loss would stop the run for one bad clip.
        return F.ctc_loss(scores, tokens.clamp_min(0), frames, lengths, blank=blank, reduction="sum", zero_infinity=True)

    return ctc_loss


def ctc_hits_with(blank: int) -> Callable[[Tensors, Tensors], torch.Tensor]:
    """Symbols less the edits that the best path needs to become the transcript: over the symbols it is 1 less the error rate.

    Loss goes on rising while transcripts still improve, so a head is stopped by this.

    Shape:
        as `ctc_loss_with`.
    """

    def ctc_hits(outputs: Tensors, targets: Tensors) -> torch.Tensor:
        paths, tokens = outputs["logits"].argmax(-1), targets["tokens"]  # (batch, frames), (batch, length)
        hits = 0
        for path, frames, wanted in zip(paths, targets["frames"].tolist(), tokens, strict=True):
            said = torch.unique_consecutive(path[:frames])
            truth = wanted[wanted != IGNORED].tolist()
            hits += len(truth) - edit_distance(said[said != blank].tolist(), truth)
        return torch.tensor(hits, device=tokens.device)

    return ctc_hits


def edit_distance(said: Sequence[int], truth: Sequence[int]) -> int:
    """Least number of insertions, deletions and substitutions between two sequences (Levenshtein)."""
    row = list(range(len(truth) + 1))
    for place, symbol in enumerate(said, 1):
        left, row = row, [place]
        for column, wanted in enumerate(truth, 1):
            row.append(min(left[column] + 1, row[-1] + 1, left[column - 1] + (symbol != wanted)))
    return row[-1]


def squared_error(outputs: Tensors, targets: Tensors) -> torch.Tensor:
    """Squared error, mean within a row and summed over rows: the first output against `target`, of equal shape."""
    found = next(iter(outputs.values())).float()
    wanted = targets["target"].float()
    if found.shape != wanted.shape:
        raise UserError(f"the model gives {tuple(found.shape)} and the data ask for {tuple(wanted.shape)} (batch first); give targets of the model's output size")
    return (found - wanted).pow(2).flatten(1).mean(1).sum()


def row_losses(outputs: Tensors, targets: Tensors) -> torch.Tensor:
    """The sum of all losses that the family itself gives for every row [batch]."""
    return torch.stack([value.float() for value in outputs.values()]).sum()


def part_of(name: str) -> Callable[[Tensors, Tensors], torch.Tensor]:
    """One of these losses."""
    return lambda outputs, targets: outputs[name].float().sum()


def contrastive_loss(outputs: Tensors, targets: Tensors) -> torch.Tensor:
    """Symmetric cross entropy of image and text scores within a batch (CLIP, arXiv 2103.00020, figure 3), times rows.

    Shape:
        logits [images, texts] with pair i at (i, i).
    """
    logits = outputs["logits"].float()
    pairs = torch.arange(logits.shape[0], device=logits.device)
    return 0.5 * (F.cross_entropy(logits, pairs, reduction="sum") + F.cross_entropy(logits.T, pairs, reduction="sum"))


def _rows(targets: Tensors) -> int:
    return int(next(iter(targets.values())).shape[0])


def _tokens(targets: Tensors) -> int:
    return int((targets["tokens"] != IGNORED).sum())


def _next_tokens(targets: Tensors) -> int:
    return int((targets["tokens"][:, 1:] != IGNORED).sum())

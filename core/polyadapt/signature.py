"""What goes into a model and what comes out: named tensors with symbolic shapes and units."""

from __future__ import annotations

from dataclasses import dataclass, field

TASK_KINDS = (
    "classification",  # features -> class scores
    "features",  # pooled features, no classes
    "ctc",  # frames -> vocabulary scores
    "causal-lm",  # tokens -> next-token scores
    "seq2seq-lm",  # source tokens + target tokens -> next-token scores
    "transcription",  # audio + target tokens -> next-token scores
    "image-text",  # image features and text features in one space
    "denoising",  # noisy latents -> noise
    "synthesis",  # token ids -> waveform
    "control",  # observation -> action
)

DEFAULT_METRICS = {
    "classification": "accuracy",
    "ctc": "wer",
    "causal-lm": "perplexity",
    "seq2seq-lm": "perplexity",
    "transcription": "wer",
    "image-text": "accuracy",
    "denoising": "mse",
    "synthesis": "divergence",
    "control": "mse",
}
"""What a task is measured by when nobody says otherwise."""


SEPARATOR = "|"
"""The symbol between words of task `ctc` where its details name none: that of wav2vec 2.0 and its kin."""


@dataclass(frozen=True)
class TensorSpec:
    """One named tensor. `shape` mixes integers and symbols such as `batch`."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str
    meaning: str
    unit: str = ""

    def to_dict(self) -> dict[str, object]:
        return {"name": self.name, "shape": list(self.shape), "dtype": self.dtype, "meaning": self.meaning, "unit": self.unit}


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a model, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def symbols(self) -> tuple[str, ...]:
        """Symbolic dimensions of the inputs, in order of first appearance."""
        found: dict[str, None] = {}
        for spec in self.inputs:
            for size in spec.shape:
                if isinstance(size, str):
                    found.setdefault(size)
        return tuple(found)


@dataclass(frozen=True)
class Task:
    """What a model is asked to do. `labels` names the classes in order; empty when there are none."""

    kind: str
    labels: tuple[str, ...] = ()
    metric: str = ""
    details: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in TASK_KINDS:
            from polyadapt.errors import unknown

            raise unknown("task", self.kind, TASK_KINDS)

    @property
    def separator(self) -> str:
        """The symbol between words of task `ctc`, in training, beside torch and in a bundle alike; empty where that is a space already."""
        return str(self.details.get("separator", SEPARATOR) or "")

    @property
    def transcribes(self) -> bool:
        """Whether it writes sound down as text: labels of the data are no classes then."""
        return self.kind in ("ctc", "transcription")

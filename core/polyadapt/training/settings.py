"""Settings of a training run: the `[train]` table of a recipe."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from polyadapt.options import Options

_BESIDE_THE_RESULT = ("checkpoint_every_steps", "keep", "log_every_steps", "memory_bytes", "device")


class TrainSettings(Options):
    """How to train. Defaults are ours unless a method's card gives its own."""

    epochs: int = Field(10, ge=1, description="passes over the training data")
    max_steps: int = Field(0, ge=0, description="stop after so many steps, however many epochs that is; 0 for no limit")
    batch_size: int = Field(16, ge=1, description="examples a step, over all processes together")
    accumulation: int = Field(1, ge=1, description="pieces in which a process computes its part of a batch: less memory, the same step")
    learning_rate: float | None = Field(None, gt=0, description="of AdamW; the method's own when not given")
    weight_decay: float | None = Field(None, ge=0, description="of AdamW; the method's own when not given")
    group_by_length: bool = Field(False, description="put texts or sounds of like length into one batch, so that less is filled up and a step takes less time")
    schedule: str = Field("cosine", pattern="^(constant|cosine|linear)$", description="of the learning rate: constant, or cosine or linear, which fall towards 0")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps during which the learning rate rises from 0")
    gradient_clip: float = Field(1.0, ge=0, description="greatest norm of the whole gradient; 0 for no limit")
    precision: str = Field("no", pattern="^(no|bf16|fp16)$", description="of the forward pass: no (the model's own), bf16, or fp16 (GPU only); weights train in their own dtype")
    frozen_prefix: str = Field(
        "auto", pattern="^(auto|cache|off)$", description="what lies below the lowest trained block is computed once: auto where that is exact and fits, cache insists, off"
    )
    gradient_checkpointing: bool = Field(False, description="blocks run again in the backward pass: less memory, the same result, about a third slower")
    early_stopping: int = Field(0, ge=0, description="stop after so many epochs without a better validation metric, and keep the best state; 0 for never")
    checkpoint_every_steps: int = Field(0, ge=0, description="besides the checkpoint after every epoch; 0 for no others")
    keep: int = Field(2, ge=1, description="newest checkpoints that are kept")
    mask_bands: int = Field(0, ge=0, description="SpecAugment: most mel bands that are blanked in a spectrogram while training, for instance 24; 0 for none")
    mask_frames: int = Field(0, ge=0, description="SpecAugment: most spectrogram frames that are blanked while training, for instance 80; 0 for none")
    check_readings: bool = Field(True, description="task synthesis: leave out recordings that fit other texts better than their own; false trains on all of them")
    log_every_steps: int = Field(10, ge=1, description="steps between two `step` events")
    memory_bytes: int = Field(2**31, ge=0, description="processed examples and cached activations that are held in memory; the rest is computed again or read from disk")
    seed: int = Field(0, ge=0, lt=2**63, description="of the starting values, the order of examples and dropout")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto takes a GPU where there is one")

    def deciding(self) -> dict[str, Any]:
        """The settings that the trained weights depend on; a checkpoint is resumed only under the same ones."""
        return {name: value for name, value in self.model_dump().items() if name not in _BESIDE_THE_RESULT}

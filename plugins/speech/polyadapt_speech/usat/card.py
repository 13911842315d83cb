"""Fine-grained adaptation of a voice to a speaker: adapters in flow and durations, if wanted in the text encoder too, and a speaker vector.

Paper: USAT: A Universal Speaker-Adaptive Text-to-Speech Approach, Wang, Song and Jha 2024, arXiv 2404.18094.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from polyadapt.methods.card import MethodCard, Paper
from polyadapt.options import Options

PLACEMENTS = {"inside": ("flow.block.*.shift",), "beside": ("flow.block.*.coupling",)}
DURATION_SITES = ("durations.block.*.shift",)  # inside alone: x0 has one channel here, which a norm would empty


class UsatOptions(Options):
    """Options of USAT's adapters."""

    placement: Literal["inside", "beside"] = Field(
        "inside", description="flow adapters read the transform's hidden frames (H in the paper, its best) or what the transform reads (X)"
    )
    sites: tuple[str, ...] = Field((), description="globs over span sites of the flow; in place of `placement` when given")
    rank: int = Field(8, ge=1, description="inner width r of flow adapters (the paper's best: 8)")
    kernel: int = Field(3, ge=1, description="width of the flow adapters' convolution in frames, an odd number (ours: 3); 1 is the paper's linear variant")
    durations: bool = Field(True, description="adapters of the same rank and kernel inside the couplings of the duration predictor too")
    duration_dropout: float = Field(0.5, ge=0, lt=1, description="share of what duration adapters read that is dropped while training (ours: 0.5, VITS' own in this predictor)")
    phoneme_rank: int = Field(0, ge=0, description="inner width of the paper's adapters at the text encoder's attention, such as 8; 0 for none (ours: 0, as they cost words)")
    speaker: bool = Field(True, description="train a speaker vector, which is added to the one that is fed; only voices with speakers have a place for it")

    @field_validator("kernel")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("must be odd, so that a frame stands in the middle of what is seen")
        return value


CARD = MethodCard(
    id="usat",
    title="Flow adapters and a speaker vector (USAT)",
    kind="edits",
    domains=("speech",),
    options=UsatOptions,
    implementation="polyadapt_speech.usat.method:Usat",
    paper=Paper("USAT: A Universal Speaker-Adaptive Text-to-Speech Approach", "2404.18094", 2024),
    ports=("span",),
    families=("voice",),
    learning_rate=2e-4,
    notes="Adapters have a skip, the paper's Res; without one (its Seq) a voice could not start as it is. "
    "Learns from recordings with texts, on voices that listen (usat:FOLDER); the mean speaker vector of the recordings is fed, and kept in the artifact.",
)

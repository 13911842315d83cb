"""Options that mixtures of adapters share."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from polyadapt.methods.placing import PlacedOptions


class MixtureOptions(PlacedOptions):
    """Base of the options of mixtures."""

    placement: Literal["pfeiffer", "houlsby", "attention"] = Field("attention", description="at the FFN, at attention and FFN, or at attention (the paper's)")
    experts: int = Field(7, ge=1, description="adapters n (the paper: 7)")
    reduction: float = Field(128.0, ge=1e-3, description="RR: each adapter is d / RR wide inside (the paper: 128, which is 6 at d = 768)")

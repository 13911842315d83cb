"""Linear probe: a class head on the frozen backbone. The honest baseline of every adapter."""

from __future__ import annotations

from pydantic import Field

from polyadapt.methods.base_options import AdapterOptions
from polyadapt.methods.card import MethodCard


class LinearProbeOptions(AdapterOptions):
    """Options of the linear probe."""

    norms: tuple[str, ...] = Field((), description="globs over norm sites that train beside the head, 2 d values each, such as norm, the last one (2312.03694; ours: none)")


CARD = MethodCard(
    id="linear-probe",
    title="Linear probe on the frozen backbone",
    kind="edits",
    domains=("any",),
    options=LinearProbeOptions,
    implementation="polyadapt.methods.linear_probe.method:LinearProbe",
    ports=("head",),
    exports=("slots", "merged", "bank"),
    folds=True,
    learning_rate=1e-2,
)

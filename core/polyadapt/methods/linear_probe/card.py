"""Linear probe: a class head on the frozen backbone. The honest baseline of every adapter."""

from __future__ import annotations

from polyadapt.methods.base_options import AdapterOptions
from polyadapt.methods.card import MethodCard

CARD = MethodCard(
    id="linear-probe",
    title="Linear probe on the frozen backbone",
    kind="edits",
    domains=("any",),
    options=AdapterOptions,
    implementation="polyadapt.methods.linear_probe.method:LinearProbe",
    ports=("head",),
    exports=("slots", "merged", "bank"),
    folds=True,
    learning_rate=1e-2,
)

"""Options that every method with a class head takes."""

from __future__ import annotations

from pydantic import Field

from polyadapt.options import Options


class AdapterOptions(Options):
    """Base of the options of methods that train a class head beside their edits."""

    head: str = Field("linear", pattern="^(linear|cosine)$", description="class scores for new labels: linear, or cosine prototypes (ours: linear)")

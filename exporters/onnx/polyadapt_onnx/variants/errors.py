"""What a variant fails with: the float32 graph is fine, so another exporter is no cure."""

from __future__ import annotations

from polyadapt.errors import ExportError


class VariantError(ExportError):
    """A variant cannot be made, or did not pass its gate."""

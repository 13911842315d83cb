"""Entry point of the speech plugin: what it registers. Imports cards only, so that a listing stays light."""

from __future__ import annotations

HOOK_API_RANGE = (1, 1)

"""What a transcript of a Whisper checkpoint can be asked for at run time, as data for `generation`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STEP_S = 0.02
"""Between two times. Source: Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", section 2.3."""


def spoken_choices(languages: Mapping[str, int], plain: int | None) -> dict[str, Any]:
    """What a transcript of Whisper can be asked for, by token ids: a language, and times in steps of 20 ms.

    Args:
        languages: ids by code; empty where there is one language.
        plain: the token that asks for no times; those of the times follow it. None where there are no times.
    """
    times = {} if plain is None else {"timestamps": {"first_id": plain + 1, "off_id": plain, "step_s": STEP_S}}
    return {**({"languages": dict(languages)} if languages else {}), **times}

"""The manifest's own digest, which stands first in it: a byte that changes there is noticed as in any other file.

The digest is that of the manifest's bytes with the digest itself written as zeros. It guards against damage, not against
somebody who writes a new one: that is what signatures are for.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polyadapt_runtime.errors import IntegrityError

FIELD, BLANK = "sha256", "0" * 64


def sealed(table: Mapping[str, Any]) -> str:
    """The text of a manifest with its digest in front."""
    rest = {key: value for key, value in table.items() if key != FIELD}
    text = json.dumps(finite({FIELD: BLANK, **rest}), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.replace(BLANK, hashlib.sha256(text.encode()).hexdigest(), 1)


def finite(value: Any) -> Any:
    """JSON has no word for infinite or not a number: both become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def check_seal(path: Path, recorded: str) -> None:
    """Compare a manifest with its digest.

    Args:
        path: the file.
        recorded: the digest that it holds, 64 hexadecimal digits.

    Raises:
        IntegrityError: some byte is another one.
    """
    data = path.read_bytes().replace(recorded.encode(), BLANK.encode(), 1)
    if hashlib.sha256(data).hexdigest() != recorded:
        raise IntegrityError(f"{path} was altered: its sha256 is not the recorded one; copy the bundle again")

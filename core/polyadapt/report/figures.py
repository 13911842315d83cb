"""Numbers as people read them."""

from __future__ import annotations

import math

from polyadapt.evaluation.metrics import METRICS

MINUS = "\u2212"
THIN = "\u202f"


def value_of(metric: str, value: float, signed: bool = False, is_tick: bool = False) -> str:
    """A metric's value: per cent (or points of it, `signed`) for shares, else four significant digits. Ticks come without idle zeros."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else ("∞" if value > 0 else f"{MINUS}∞")
    is_share = metric in METRICS and METRICS[metric].is_share
    text = f"{abs(value) * 100:.1f}" if is_share else significant(abs(value))
    if is_tick and "." in text and "e" not in text:
        text = text.rstrip("0").rstrip(".")
    if is_tick and value == 0:
        return "0"
    sign = MINUS if value < 0 and float(text.replace(THIN, "") or 0) else ("+" if signed else "")
    unit = f"{THIN}{'pt' if signed else '%'}" if is_share else ""
    return f"{sign}{text}{unit}"


def significant(value: float, digits: int = 4) -> str:
    """A number with so many significant digits and no exponent between 1e-4 and 1e7."""
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e7:
        return f"{value:.{digits - 2}e}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def count(value: float) -> str:
    """1234567 as `1.23 M`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * (10 if unit == "k" else 1):
            return f"{significant(value / size, 3)}{THIN}{unit}"
    return f"{value:,.0f}".replace(",", THIN)


def size(n_bytes: float) -> str:
    """Bytes as `35.1 kB` (powers of 1000)."""
    for unit_size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if n_bytes >= unit_size:
            return f"{significant(n_bytes / unit_size, 3)}{THIN}{unit}"
    return f"{n_bytes:.0f}{THIN}B"


def duration(seconds: float) -> str:
    """Seconds as `12 ms`, `4.2 s`, `3 min 20 s` or `1 h 05 min`."""
    if 0 < seconds < 1:
        return f"{significant(seconds * 1000, 3)}{THIN}ms"
    if seconds < 60:
        return f"{significant(seconds, 2)}{THIN}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{THIN}min {rest:02d}{THIN}s"
    return f"{minutes // 60}{THIN}h {minutes % 60:02d}{THIN}min"


def ticks(low: float, high: float, aim: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) from `low` to `high`."""
    if not high > low:
        return [low]
    rough = (high - low) / max(aim, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]

"""Numbers as people read them."""

from __future__ import annotations

import math


def number(value: float) -> str:
    """Three significant digits."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞" if value < 0 else "NaN"
    mantissa, _, exponent = f"{value:.3g}".replace("-", "−").partition("e")
    if not exponent:
        return mantissa
    sign = "⁻" if exponent[0] == "−" else ""
    power = sign + exponent.lstrip("+−0").translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa} · 10{power}"


def share_text(part: int, whole: int) -> str:
    """A percentage that says neither 0 nor 100 of what is not."""
    if part in (0, whole):
        return "0 %" if not part else "100 %"
    percent = 100 * part / whole
    if percent < 0.01:
        return "< 0.01 %"
    return f"{percent:.3g} %" if percent < 99.95 else "> 99.9 %"


def in_bytes(count: int) -> str:
    """A size in decimal units."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"


def time_text(seconds: float) -> str:
    """Seconds, and minutes where there are some."""
    return f"{seconds:.1f} s" if seconds < 100 else f"{int(seconds // 60)} min {seconds % 60:.0f} s"

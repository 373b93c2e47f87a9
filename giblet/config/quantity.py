"""Kubernetes quantities as numbers, as far as memory and counts need them."""

from __future__ import annotations

import re

_SCALES: dict[str, float] = {"m": 1e-3, "": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15} | {
    f"{letter}i": 2 ** (10 * power) for power, letter in enumerate("KMGTP", start=1)
}
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)([A-Za-z]*)")


def quantity_value(text: object) -> float | None:
    """`"1.5Gi"` → 1610612736.0; None where there is no quantity, or one that only Kubernetes understands."""
    match = _QUANTITY.fullmatch(str(text))
    if match is None or match[2] not in _SCALES:
        return None
    return float(match[1]) * _SCALES[match[2]]

"""JSON that gives back exactly what went in: every float, infinities, tuples, integer keys. Never a pickle.

Plain values stay plain JSON. What JSON lacks is written as an object with one `$…` key:
`{"$float": "inf"}`, `{"$tuple": […]}`, `{"$dict": [[key, value], …]}`, `{"$bytes": "base64"}`.
"""

from __future__ import annotations

import base64
import json
import math
from typing import Any


def encode(value: Any) -> Any:
    """`value` as plain JSON. Raises `TypeError` for what is neither number, string, bytes, None, nor made of those."""
    if value is None or isinstance(value, bool | str):
        return value
    if type(value) is int:
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if type(value) is bytes:
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, tuple):
        return {"$tuple": [encode(item) for item in value]}
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: encode(item) for key, item in value.items()}
        return {"$dict": [[encode(key), encode(item)] for key, item in value.items()]}
    raise TypeError(f"a {type(value).__module__}.{type(value).__qualname__} has no exact JSON")


def decode(value: Any) -> Any:
    """The inverse of `encode`. Raises `ValueError` for a `$…` key it does not know."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1 and (key := next(iter(value))).startswith("$"):
        inner = value[key]
        if key == "$float":
            return float(inner)
        if key == "$bytes":
            return base64.b64decode(inner, validate=True)
        if key == "$tuple":
            return tuple(decode(item) for item in inner)
        if key == "$dict":
            return {decode(name): decode(item) for name, item in inner}
        raise ValueError(f"{key} is no known kind of value")
    return {name: decode(item) for name, item in value.items()}


def dumps(value: Any) -> bytes:
    """Encoded, as UTF-8."""
    return dumps_plain(encode(value))


def dumps_plain(value: Any) -> bytes:
    """What is plain JSON already, as compact UTF-8."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def loads(data: bytes) -> Any:
    """The inverse of `dumps`. Raises `ValueError`."""
    return decode(json.loads(data))

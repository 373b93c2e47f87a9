"""The small pieces of HTML that every section of the report is made of."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from giblet.evaluate import figures


def figure(picture: figures.Picture, caption: str, *, raw_caption: bool = False) -> str:
    """A picture with its caption; `raw_caption` is HTML already."""
    text = caption if raw_caption else escape(caption)
    plain = escape(caption.replace("<code>", "").replace("</code>", ""), quote=True)
    return f'<figure><img src="{picture.data_uri}" alt="{plain}"><figcaption>{text}</figcaption></figure>'


def value_text(value: float | None, kind: str) -> str:
    """A number to three or one decimals (`r3`, `r1`), or as a percentage (`percent`, `percent1`); a dash for None."""
    if value is None:
        return "–"
    text = {"r3": f"{value:.3f}", "r1": f"{value:.1f}", "percent": f"{value:.0%}", "percent1": f"{value:.1%}"}[kind]
    return text.replace("%", " %").replace("-", "−")


def with_interval(value: float | None, bounds: Iterable[float] | None) -> str:
    """A correlation with its interval in brackets."""
    if value is None or bounds is None:
        return value_text(value, "r3")
    low, high = bounds
    return f"{value_text(value, 'r3')} <small>[{value_text(low, 'r3')}, {value_text(high, 'r3')}]</small>"

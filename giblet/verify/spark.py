"""Small pictures as inline SVG: a histogram the height of a line of text, and a bar. Each is a few hundred bytes."""

from __future__ import annotations

from html import escape

from giblet.verify.statistics import Array

WIDTH, HEIGHT = 132, 26


def histogram(shares: Array, kind: str, label: str, *, zero: float | None = None, peak: float | None = None) -> str:
    """Bars of equal width, as high as their share. `zero` and `peak`: where on the axis (0 to 1) a mark stands."""
    top = float(shares.max()) if shares.size else 0.0
    width = WIDTH / max(shares.size, 1)
    steps, level = [], HEIGHT
    for index, share in enumerate(shares.tolist()):
        # What is there at all is to be seen: at least half a pixel.
        height = HEIGHT - max(share / top * (HEIGHT - 1), 0.5) if share > 0 else HEIGHT
        if height != level:
            steps.append(f"H{index * width:.4g}V{height:.3g}")
            level = height
    path = f"M0 {HEIGHT}{''.join(steps)}H{WIDTH}V{HEIGHT}Z" if steps else ""
    marks = "".join(
        f'<line class="{name}" x1="{at * WIDTH:.4g}" x2="{at * WIDTH:.4g}" y1="{start}" y2="{HEIGHT}"/>'
        for name, at, start in (("zero", zero, 0), ("peak", peak, HEIGHT - 9))
        if at is not None and 0 <= at <= 1
    )
    return (
        f'<svg width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(label)}">'
        f'<line class="axis" x1="0" x2="{WIDTH}" y1="{HEIGHT}" y2="{HEIGHT}"/>'
        f'<path class="{kind}" d="{path}"/>{marks}</svg>'
    )


def decades(low: int, high: int) -> str:
    """The axis of the logarithmic histograms, for the head of their column."""
    step = max(1, -(-(high - low) // 4))
    ticks = "".join(
        f'<text x="{(at - low) / (high - low) * WIDTH:.4g}" y="11">{_power(at)}</text>'
        for at in range(low + -low % step, high + 1, step)
    )
    return f'<svg width="{WIDTH}" height="14" viewBox="0 0 {WIDTH} 14" aria-hidden="true">{ticks}</svg>'


def _power(exponent: int) -> str:
    raised = str(exponent).translate(str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"))
    return "1" if exponent == 0 else f"10{raised}"


def bar(share: float, label: str) -> str:
    """A bar of this share of the full width."""
    width = 90
    return (
        f'<svg width="{width}" height="7" viewBox="0 0 {width} 7" role="img" aria-label="{escape(label)}">'
        f'<line class="axis" x1="0" x2="{width}" y1="6.5" y2="6.5"/>'
        f'<rect class="change" width="{max(0.0, min(share, 1.0)) * width:.3g}" height="6"/></svg>'
    )

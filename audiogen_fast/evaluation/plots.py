"""Plots as SVG text, drawn with the page's own colours and fonts."""

import hashlib
import html
import math
from collections.abc import Sequence

_WIDTH, _LABEL, _RIGHT, _ROW, _TOP, _BOTTOM = 440, 140, 22, 24, 6, 26


def intervals(
    names: Sequence[str],
    values: Sequence[tuple[float | None, float | None, float | None]],
    kinds: Sequence[str],
    title: str,
) -> str:
    """A dot and a line for each value with its interval `(value, low, high)`."""
    numbers = [x for row in values for x in row if x is not None]
    if not numbers:
        return ""
    scale = _Scale(min(numbers), max(numbers))
    marks = []
    for i, (value, low, high) in enumerate(values):
        y = _TOP + i * _ROW + _ROW / 2
        if value is None:
            marks.append(f'<text class="soft" x="{_LABEL + 8}" y="{y + 4}">no value</text>')
            continue
        if low is not None and high is not None:
            marks.append(
                f'<line class="bar {kinds[i]}" x1="{scale(low):.1f}" x2="{scale(high):.1f}" '
                f'y1="{y}" y2="{y}"/>'
            )
        marks.append(f'<circle class="{kinds[i]}" cx="{scale(value):.1f}" cy="{y}" r="4.5"/>')
    return _figure(names, marks, scale, title)


def strips(
    names: Sequence[str], values: Sequence[Sequence[float]], kinds: Sequence[str], title: str
) -> str:
    """A point for every clip of every row."""
    numbers = [x for row in values for x in row]
    if not numbers:
        return ""
    scale = _Scale(min(numbers), max(numbers))
    marks = []
    for i, row in enumerate(values):
        middle = _TOP + i * _ROW + _ROW / 2
        for j, value in enumerate(row):
            # spread by a hash, so that a page made again is the same page
            spread = hashlib.sha256(f"{i} {j}".encode()).digest()[0] / 255 - 0.5
            y = middle + spread * _ROW * 0.7
            marks.append(
                f'<circle class="point {kinds[i]}" cx="{scale(value):.1f}" cy="{y:.1f}" r="2"/>'
            )
    return _figure(names, marks, scale, title)


class _Scale:
    """From values to pixels, with round ticks."""

    def __init__(self, low: float, high: float):
        span = (high - low) or abs(high) or 1.0
        power = 10 ** math.floor(math.log10(span / 4))
        step = next(power * f for f in (1, 2, 5, 10) if span / (power * f) <= 5)
        self.low = math.floor(low / step) * step
        count = max(1, math.ceil((high - self.low) / step - 1e-9))
        self.high = self.low + count * step
        self.ticks = [self.low + i * step for i in range(count + 1)]

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return _LABEL + share * (_WIDTH - _LABEL - _RIGHT)


def _figure(names: Sequence[str], marks: Sequence[str], scale: _Scale, title: str) -> str:
    height = _TOP + len(names) * _ROW + _BOTTOM
    floor = height - _BOTTOM
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{_escape(title)}">',
    ]
    for tick in scale.ticks:
        x = scale(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{floor}"/>')
        place = f'x="{x:.1f}" y="{height - 8}" text-anchor="middle"'
        parts.append(f'<text class="soft" {place}>{tick:.4g}</text>')
    for i, name in enumerate(names):
        y = _TOP + i * _ROW + _ROW / 2 + 4
        parts.append(
            f'<text x="{_LABEL - 10}" y="{y}" text-anchor="end">{_escape(_short(name))}</text>'
        )
    return "\n".join([*parts, *marks, "</svg>"])


def _short(name: str) -> str:
    return name if len(name) <= 20 else name[:19] + "…"


def _escape(text: str) -> str:
    return html.escape(text, quote=True)

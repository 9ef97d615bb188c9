"""Small scatter plots as inline SVG, drawn with the colours of the page that they stand in."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 18, 16, 50
CHARACTER = 7.6  # pixels: mean width of a bold label's character at 12 px
LINE = 15  # pixels: height of a label


@dataclass(frozen=True)
class Point:
    """One mark, of the series of that number."""

    label: str
    x: float
    y: float
    series: int


def scatter(points: Sequence[Point], x_label: str, y_label: str) -> str:
    """A scatter plot as an SVG element; x is logarithmic where it spans more than a factor of three."""
    xs, ys = [point.x for point in points], [point.y for point in points]
    is_log = min(xs) > 0 and max(xs) > 3 * min(xs)
    x_ticks = _log_ticks(min(xs), max(xs)) if is_log else _linear_ticks(min(xs), max(xs))
    y_ticks = _linear_ticks(min(ys), max(ys))

    def to_x(x: float) -> float:
        low, high, value = (map(math.log, (x_ticks[0], x_ticks[-1], x))) if is_log else (x_ticks[0], x_ticks[-1], x)
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def to_y(y: float) -> float:
        return HEIGHT - BOTTOM - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (HEIGHT - TOP - BOTTOM)

    scale = ", logarithmic" if is_log else ""
    description = "; ".join(f"{p.label}: {_tick(p.x)}, {p.y:.2f}" for p in points)
    parts = [
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(y_label)} against {escape(x_label)}. {escape(description)}">'
    ]
    for y in y_ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{to_y(y):.1f}" y2="{to_y(y):.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{to_y(y) + 4:.1f}" text-anchor="end">{_tick(y)}</text>')
    for x in x_ticks:
        anchor = "end" if x == x_ticks[-1] else "middle"
        parts.append(f'<line class="grid" x1="{to_x(x):.1f}" x2="{to_x(x):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        place = f'x="{to_x(x):.1f}" y="{HEIGHT - BOTTOM + 18}"'
        parts.append(f'<text class="tick" {place} text-anchor="{anchor}">{_tick(x)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text class="axis" x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">{escape(x_label)}{scale}</text>'
    )
    turned = f'transform="translate(14 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor="middle"'
    parts.append(f'<text class="axis" {turned}>{escape(y_label)}</text>')
    marks = [(to_x(point.x), to_y(point.y)) for point in points]
    for point, (x, y), (text_x, text_y) in zip(points, marks, _place_labels(points, marks), strict=True):
        title = f"<title>{escape(point.label)}: {_tick(point.x)}, {point.y:.2f}</title>"
        parts.append(f'<circle class="series-{point.series % 8}" cx="{x:.1f}" cy="{y:.1f}" r="5.5">{title}</circle>')
        if abs(text_y - 4 - y) > 2 * LINE:
            parts.append(f'<line class="leader" x1="{x:.1f}" y1="{y:.1f}" x2="{text_x:.1f}" y2="{text_y - 4:.1f}"/>')
        end = text_x + CHARACTER * len(point.label)
        place = f'x="{end:.1f}" text-anchor="end"' if text_x < x else f'x="{text_x:.1f}"'
        parts.append(f'<text class="label" {place} y="{text_y:.1f}">{escape(point.label)}</text>')
    return "\n".join([*parts, "</svg>"])


Box = tuple[float, float, float, float]


def _place_labels(points: Sequence[Point], marks: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Where each label begins: beside its mark, moved up or down until it covers no mark and no label before it."""
    taken: list[Box] = [(x - 7, y - 7, x + 7, y + 7) for x, y in marks]
    places = []
    for point, (x, y) in zip(points, marks, strict=True):
        width = CHARACTER * len(point.label)
        sides = [side for side in (x + 10, x - 10 - width) if LEFT <= side <= WIDTH - width] or [LEFT + 2]
        shifts = sorted((step * LINE / 2 for step in range(-30, 31)), key=abs)
        candidates = [(side, y + 4 + shift) for shift in shifts for side in sides]
        candidates = [(a, b) for a, b in candidates if TOP + 8 <= b <= HEIGHT - BOTTOM - 4] or candidates
        free = (c for c in candidates if not any(_overlap(_box(c, width), box) for box in taken))
        place = next(free, candidates[0])
        taken.append(_box(place, width))
        places.append(place)
    return places


def _box(place: tuple[float, float], width: float) -> Box:
    return place[0], place[1] - LINE + 3, place[0] + width, place[1] + 3


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _linear_ticks(low: float, high: float) -> list[float]:
    """About five round values whose ends lie outside of low and high."""
    margin = max((high - low) * 0.08, abs(high) * 0.01, 1e-9)
    low, high = (0.0 if 0 <= low <= margin else low - margin), high + margin
    power = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if (high - low) / (factor * power) <= 5)
    return [number * step for number in range(math.floor(low / step), math.ceil(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Values 1, 2 and 5 times a power of ten, over long ranges powers alone, whose ends lie outside of low and high."""
    factors = (1, 2, 5) if high / low < 200 else (1,)
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    values = [factor * 10.0**decade for decade in decades for factor in factors]
    start = max(index for index, value in enumerate(values) if value <= low * 0.95)
    stop = min(index for index, value in enumerate(values) if value >= high * 1.05)
    return values[start : stop + 1]


def _tick(value: float) -> str:
    """A number as short as it can be read: 200k, 0.05."""
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.4g}{prefix}"
    return f"{value:.4g}"

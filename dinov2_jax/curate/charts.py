"""Charts of the report as SVG, which needs neither scripts nor a plotting library."""

import html
import math
from collections.abc import Mapping, Sequence

import numpy as np

_WIDTH, _HEIGHT = 660, 232  # px
_LEFT, _RIGHT, _BOTTOM, _TOP = 60, 30, 36, 24  # px around the bars or lines
_COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#b83280", "#4a5568")


def histogram(
    values: np.ndarray, *, marks: Mapping[str, float], label: str, bins: int = 60
) -> str:
    """Return a histogram with a square-root scale, which shows rare values too.

    Args:
      values: The values, [n], at least one.
      marks: Values to mark by a dashed line, by the text beside it.
      label: What the values are.
      bins: Number of bars.
    """
    low = min(float(values.min()), *marks.values(), 1.0)
    high = max(float(values.max()), *marks.values(), low + 1e-6)
    counts, edges = np.histogram(values, bins, (low, high))
    most = int(counts.max())

    def x(value: float) -> float:
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def y(count: float) -> float:
        return _TOP + (1 - math.sqrt(count / most)) * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for count, begin, end in zip(counts.tolist(), edges, edges[1:]):
        if count:
            parts.append(
                f"<rect x='{x(begin):.1f}' y='{y(count):.1f}' "
                f"width='{max(x(end) - x(begin) - 1, 0.5):.1f}' "
                f"height='{y(0) - y(count):.1f}' fill='{_COLOURS[0]}'/>"
            )
    for text, value in marks.items():
        parts.append(
            f"<path d='M{x(value):.1f} {_TOP}V{y(0):.1f}' stroke='{_COLOURS[1]}' "
            "stroke-width='2' stroke-dasharray='5 3'/>"
        )
        parts.append(_text(x(value), _TOP - 8, text, anchor="end"))
    ticks = [(x(v), f"{v:.3f}") for v in np.linspace(low, high, 6)]
    heights = sorted({1, math.ceil(most / 4), most})
    return _svg(parts, ticks, [(y(n), f"{n:,}") for n in heights], label)


def sizes(series: Mapping[str, np.ndarray], *, label: str) -> str:
    """Return sizes from the largest to the smallest, on logarithmic scales.

    Args:
      series: Positive sizes, [n], by name.
      label: What the ranks are.
    """
    longest = max(len(values) for values in series.values())
    largest = max(int(values.max()) for values in series.values())

    def x(rank: float) -> float:
        share = math.log(rank) / max(math.log(longest), 1e-6)
        return _LEFT + share * (_WIDTH - _LEFT - 120)

    def y(size: float) -> float:
        share = math.log(size) / max(math.log(largest), 1e-6)
        return _TOP + (1 - share) * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for number, (name, values) in enumerate(series.items()):
        ordered = np.sort(values)[::-1]
        # 200 points show as much as a million would.
        ranks = np.unique(np.geomspace(1, len(ordered), 200).round().astype(int))
        points = " ".join(f"{x(r):.1f},{y(ordered[r - 1]):.1f}" for r in ranks)
        colour = _COLOURS[number % len(_COLOURS)]
        parts.append(
            f"<polyline points='{points}' fill='none' stroke='{colour}' "
            "stroke-width='2'/>"
        )
        where = _TOP + 14 + 16 * number
        parts.append(_text(_WIDTH - 100, where, name, anchor="start", fill=colour))
    ticks = [(x(n), f"{n:,}") for n in _powers(longest)]
    return _svg(parts, ticks, [(y(n), f"{n:,}") for n in _powers(largest)], label)


def _powers(most: int) -> list[int]:
    """Return the powers of ten up to a number."""
    return [10**power for power in range(len(str(most)))]


def _text(x: float, y: float, text: str, *, anchor: str, fill: str = "#333") -> str:
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' font-size='12' text-anchor='{anchor}' "
        f"fill='{fill}'>{html.escape(text)}</text>"
    )


def _svg(
    parts: Sequence[str],
    below: Sequence[tuple[float, str]],
    beside: Sequence[tuple[float, str]],
    label: str,
) -> str:
    """Return a chart with the labels of its axes."""
    bottom = _HEIGHT - _BOTTOM
    axes = [
        f"<path d='M{_LEFT} {_TOP}V{bottom}H{_WIDTH - _RIGHT}' fill='none' "
        "stroke='#888'/>",
        *(_text(at, bottom + 15, text, anchor="middle") for at, text in below),
        *(_text(_LEFT - 6, at + 4, text, anchor="end") for at, text in beside),
        _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 4, label, anchor="middle"),
    ]
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{_WIDTH}' height='{_HEIGHT}' "
        f"viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img'>{''.join([*parts, *axes])}</svg>"
    )

"""Line plots as SVG inside HTML: no script, no plotting library, nothing to load.

Long series are drawn as the mean and the range of each column of pixels, so a plot has
the same size for a thousand and for a million values, and no extreme is lost. Pointing
at a plot shows the values there.
"""

import dataclasses
import html
import math
from collections.abc import Callable, Sequence

import numpy as np

_WIDTH, _HEIGHT = 420, 210  # px
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 8, 24  # px around the lines
_BINS = (_WIDTH - _LEFT - _RIGHT) // 2  # columns of long series
_HOVER_COLUMNS = 48
_MOST_POINTS = 60  # of a series whose points are drawn too
# Readable on white and on black.
_COLOURS = (
    *("#3d7fd0", "#d9742b", "#2f9e62", "#8f66cc", "#d0527f", "#a08a1c", "#1d9aa6"),
    "#8b8f96",
)
STYLE = """
.plots { display: grid; gap: .8em 1.6em;
         grid-template-columns: repeat(auto-fill, minmax(min(100%, 23em), 1fr)); }
.plot { margin: 0; min-width: 0; }
.plot svg { width: 100%; height: auto; display: block; }
.plot text { font: 11px system-ui, sans-serif; fill: currentColor; opacity: .75; }
.plot .grid { stroke: currentColor; opacity: .13; }
.plot .axis { stroke: currentColor; opacity: .45; fill: none; }
.plot .column { fill: transparent; }
.plot .column:hover { fill: currentColor; fill-opacity: .1; }
.legend { font-size: 12px; display: flex; flex-wrap: wrap; gap: .1em 1em; }
.legend i { display: inline-block; width: 1.4em; margin-right: .4em;
            vertical-align: middle; border-top: 3px solid; }
.legend i.dashed { border-top-style: dotted; }
.legend b { font-variant-numeric: tabular-nums; }
"""


@dataclasses.dataclass(frozen=True)
class Line:
    """A series of a plot.

    Attributes:
      name: Name in the legend.
      x: Steps, [n], ascending.
      y: Values, [n]; those that are not finite are left out.
      colour: Number of its colour.
      dashed: Whether it is drawn dashed, for what is only compared with.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    colour: int = 0
    dashed: bool = False


@dataclasses.dataclass(frozen=True)
class Columns:
    """A series by columns of positions: only those with values, [m] each.

    Attributes:
      x: Mean position.
      low: Least value.
      high: Greatest value.
      mean: Mean value.
    """

    x: np.ndarray
    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray


def columns(
    x: np.ndarray, y: np.ndarray, x_range: tuple[float, float], count: int
) -> Columns:
    """Reduce a series to columns of equal width.

    Args:
      x: Positions, [n], at least one, in any order.
      y: Finite values, [n].
      x_range: Left side of the first column and right side of the last.
      count: Number of columns.
    """
    low, high = x_range
    scale = count / max(high - low, 1e-300)
    numbers = np.clip(((x - low) * scale).astype(int), 0, count - 1)
    order = np.argsort(numbers, kind="stable")
    x, y, numbers = x[order], y[order], numbers[order]
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))
    sizes = np.diff(np.append(starts, len(y)))
    return Columns(
        np.add.reduceat(x, starts) / sizes,
        np.minimum.reduceat(y, starts),
        np.maximum.reduceat(y, starts),
        np.add.reduceat(y, starts) / sizes,
    )


def plot(
    lines: Sequence[Line],
    *,
    title: str,
    x_range: tuple[float, float],
    unit: str = "",
    log_scale: bool = False,
    marks: Sequence[tuple[float, str]] = (),
) -> str:
    """Return a figure of lines, with axes, legend and last values.

    Args:
      lines: The series.
      title: Title of the figure.
      x_range: First and last step, also of other figures beside it.
      unit: Unit of the values; "%" if they are shares, to be shown as percentages.
      log_scale: Whether the vertical axis is logarithmic; values of 0 and less are
        then left out.
      marks: Steps of vertical lines, and what each of them means.
    """
    kept = [_finite(line, positive=log_scale) for line in lines]
    values = np.concatenate([line.y for line in kept]) if kept else np.zeros(0)
    caption = f"<figcaption>{html.escape(title)}"
    notes = [unit] * (unit not in ("", "%")) + ["logarithmic"] * log_scale
    caption += f" <small>{html.escape(', '.join(notes))}</small>" if notes else ""
    legend = "".join(map(_legend, lines, [unit] * len(lines)))
    head = f"<figure class='plot'>{caption}</figcaption>"
    foot = f"<div class='legend'>{legend}</div></figure>"
    if not len(values):
        return f"{head}<p>no finite value</p>{foot}"
    vertical = _log_axis(values) if log_scale else _linear_axis(values, unit)
    left, right = x_range
    across = (_WIDTH - _LEFT - _RIGHT) / max(right - left, 1e-300)

    def to_x(position: float) -> float:
        return _LEFT + (position - left) * across

    parts = _axes(vertical, x_range, to_x)
    for position, text in marks:
        parts.append(
            f"<path d='M{to_x(position):.1f} {_TOP}V{_HEIGHT - _BOTTOM}' "
            "stroke='#d33' stroke-dasharray='3 3' fill='none'>"
            f"<title>{html.escape(text)}</title></path>"
        )
    for line in reversed(kept):  # the first on top
        parts += _draw(line, to_x, vertical.place, x_range)
    parts += _hover(kept, x_range, unit)
    svg = (
        f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img' "
        f"aria-label='{html.escape(title)}'>{''.join(parts)}</svg>"
    )
    return head + svg + foot


def number(value: float, unit: str = "") -> str:
    """Return a value as text, with four digits or fewer.

    Args:
      value: The value.
      unit: "%" for a share, to be shown as a percentage.
    """
    if unit == "%":
        return f"{100 * value:.4g}%"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"


def _finite(line: Line, *, positive: bool) -> Line:
    keep = np.isfinite(line.y) & np.isfinite(line.x)
    if positive:
        keep &= line.y > 0
    return dataclasses.replace(line, x=line.x[keep], y=line.y[keep])


def _legend(line: Line, unit: str) -> str:
    last = number(float(line.y[-1]), unit) if len(line.y) else "no value"
    style = f"border-color: {_COLOURS[line.colour % len(_COLOURS)]}"
    shape = " class='dashed'" if line.dashed else ""
    name = html.escape(line.name)
    return f"<span><i{shape} style='{style}'></i>{name} <b>{last}</b></span>"


@dataclasses.dataclass(frozen=True)
class _Axis:
    """A vertical axis: where values are, and its ticks."""

    place: Callable[[np.ndarray | float], np.ndarray | float]
    ticks: list[tuple[float, str]]


def _linear_axis(values: np.ndarray, unit: str) -> _Axis:
    factor = 100 if unit == "%" else 1
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-9 * max(abs(high), abs(low)):
        room = abs(high) * 0.1 or 1.0
        low, high = low - room, high + room
    room = 0.04 * (high - low)
    low, high = low - room, high + room
    tall = (_HEIGHT - _TOP - _BOTTOM) / (high - low)
    numbers = _round_numbers(low * factor, high * factor, 5)
    sign = "%" if unit == "%" else ""
    ticks = [(n / factor, _tick(n, numbers) + sign) for n in numbers]
    return _Axis(lambda v: _HEIGHT - _BOTTOM - (v - low) * tall, ticks)


def _log_axis(values: np.ndarray) -> _Axis:
    low, high = math.log10(values.min()), math.log10(values.max())
    if high - low < 0.3:
        low, high = low - 0.15, high + 0.15
    tall = (_HEIGHT - _TOP - _BOTTOM) / (high - low)
    # One at least is in any range from a value to its double.
    digits = (1, 2, 3, 5, 7)
    if high - low > 1:
        digits = (1, 2, 5) if high - low <= 2 else (1,)
    powers = range(math.floor(low), math.ceil(high) + 1)
    powers = powers[:: max(1, len(powers) // 5)]
    numbers = [d * 10.0**p for p in powers for d in digits]
    ticks = [(n, f"{n:g}") for n in numbers if low <= math.log10(n) <= high]
    return _Axis(lambda v: _HEIGHT - _BOTTOM - (np.log10(v) - low) * tall, ticks)


def _round_numbers(low: float, high: float, most: int) -> list[float]:
    """Return at most so many round numbers in a range, evenly spaced."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= rough * 0.999)
    first = math.ceil(low / step)
    return [i * step for i in range(first, math.floor(high / step) + 1)]


def _tick(value: float, numbers: Sequence[float]) -> str:
    """Return a tick's text, with the decimals that all of the ticks need."""
    largest = max(map(abs, numbers))
    step = numbers[1] - numbers[0] if len(numbers) > 1 else largest or 1.0
    # The power of ten of the last digit: one less for a step such as 0.25.
    last = math.floor(math.log10(step) + 1e-9)
    last -= round(step / 10.0**last, 6) % 1 > 0
    if largest >= 1e4 or largest < 1e-3:
        digits = math.floor(math.log10(largest) + 1e-9) - last + 1 if largest else 1
        return f"{value:.{max(3, digits)}g}" if value else "0"
    return f"{value:.{max(0, -last)}f}"


def _short(step: float) -> str:
    """Return a position with k or M for thousands and millions."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(step) >= size:
            return f"{step / size:.4g}{letter}"
    return f"{step:.4g}"


def _axes(axis: _Axis, x_range: tuple[float, float], to_x) -> list[str]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = [f"<text x='{_LEFT - 6}' y='{bottom + 16}' text-anchor='end'>step</text>"]
    for value, text in axis.ticks:
        y = axis.place(value)
        parts.append(f"<path class='grid' d='M{_LEFT} {y:.1f}H{right}'/>")
        parts.append(
            f"<text x='{_LEFT - 6}' y='{y + 4:.1f}' text-anchor='end'>{text}</text>"
        )
    positions = _round_numbers(*x_range, 5) if x_range[1] > x_range[0] else x_range[:1]
    for position in positions:
        x = to_x(position)
        parts.append(f"<path class='axis' d='M{x:.1f} {bottom}v4'/>")
        anchor = "end" if x > right - 12 else "middle"
        parts.append(
            f"<text x='{x:.1f}' y='{bottom + 16}' text-anchor='{anchor}'>"
            f"{_short(position)}</text>"
        )
    parts.append(f"<path class='axis' d='M{_LEFT} {_TOP}V{bottom}H{right}'/>")
    return parts


def _draw(line: Line, to_x, to_y, x_range: tuple[float, float]) -> list[str]:
    """Return the line; of a long one the means, over its range."""
    if not len(line.x):
        return []
    colour = _COLOURS[line.colour % len(_COLOURS)]
    parts, x, y = [], line.x, line.y
    if len(x) > 2 * _BINS:
        reduced = columns(x, y, x_range, _BINS)
        x, y = reduced.x, reduced.mean
        around = [*zip(x, reduced.high), *zip(x[::-1], reduced.low[::-1])]
        path = "L".join(f"{to_x(a):.1f} {to_y(b):.1f}" for a, b in around)
        # The outline keeps extremes of a single step visible.
        parts.append(
            f"<path d='M{path}Z' fill='{colour}' fill-opacity='.28' stroke='{colour}' "
            "stroke-opacity='.35' stroke-width='.7'/>"
        )
    points = [f"{to_x(a):.1f} {to_y(b):.1f}" for a, b in zip(x, y)]
    dashes = " stroke-dasharray='2 3'" if line.dashed else ""
    parts.append(
        f"<path d='M{'L'.join(points)}' fill='none' stroke='{colour}' "
        f"stroke-width='1.6' stroke-linejoin='round'{dashes}/>"
    )
    if len(points) <= _MOST_POINTS and not line.dashed:
        dots = "".join(f"M{point}h0" for point in points)
        parts.append(
            f"<path d='{dots}' stroke='{colour}' stroke-width='4' "
            "stroke-linecap='round'/>"
        )
    return parts


def _hover(lines: Sequence[Line], x_range: tuple[float, float], unit: str) -> list[str]:
    """Return columns that show the values below the pointer."""
    width = (_WIDTH - _LEFT - _RIGHT) / _HOVER_COLUMNS
    scale = _HOVER_COLUMNS / max(x_range[1] - x_range[0], 1e-300)
    texts: dict[int, list[str]] = {}
    for line in lines:
        if not len(line.x):
            continue
        reduced = columns(line.x, line.y, x_range, _HOVER_COLUMNS)
        for x, low, high, mean in zip(
            reduced.x, reduced.low, reduced.high, reduced.mean
        ):
            column = min(int((x - x_range[0]) * scale), _HOVER_COLUMNS - 1)
            text = f"{line.name} {number(mean, unit)}"
            if high > low:
                text += f" ({number(low, unit)} to {number(high, unit)})"
            first = f"step {'' if high == low else 'about '}{x:,.0f}"
            texts.setdefault(column, [first]).append(text)
    return [
        f"<rect class='column' x='{_LEFT + column * width:.1f}' y='{_TOP}' "
        f"width='{width:.1f}' height='{_HEIGHT - _TOP - _BOTTOM}'>"
        f"<title>{html.escape(chr(10).join(text))}</title></rect>"
        for column, text in sorted(texts.items())
    ]

"""Line plots: what is kept of long series, ticks and names."""

import html
import math
import re

import numpy as np
import pytest

from dinov2_jax import svg_plot


def test_columns_against_a_slow_twin():
    rng = np.random.default_rng(0)
    x = np.sort(rng.uniform(0, 100, 500))
    y = rng.standard_normal(500)
    found = svg_plot.columns(x, y, (0.0, 100.0), 30)
    groups = {}
    for a, b in zip(x, y):
        groups.setdefault(min(int(a / 100 * 30), 29), []).append((a, b))
    groups = [np.array(groups[i]).T for i in sorted(groups)]
    np.testing.assert_allclose(found.x, [g[0].mean() for g in groups])
    np.testing.assert_allclose(found.mean, [g[1].mean() for g in groups])
    assert found.low.tolist() == [g[1].min() for g in groups]
    assert found.high.tolist() == [g[1].max() for g in groups]


def points(svg):
    """All heights of filled outlines."""
    outlines = re.findall(r"<path d='M([^']*)Z'", svg)
    return [float(p.split()[1]) for o in outlines for p in o.split("L")]


def test_a_million_values_keep_their_extremes():
    y = np.sin(np.arange(10**6) / 1e5)
    y[123_456], y[654_321] = 40.0, -60.0
    line = svg_plot.Line("loss", np.arange(10.0**6), y)
    figure = svg_plot.plot([line], title="t", x_range=(0.0, 1e6))
    assert len(figure) < 40_000
    # The room above and below is 4 % of the range, of 178 px.
    top, bottom = min(points(figure)), max(points(figure))
    assert top == pytest.approx(8 + 178 * 0.04 / 1.08, abs=0.1)
    assert bottom == pytest.approx(210 - 24 - 178 * 0.04 / 1.08, abs=0.1)
    assert "(-0.9" in figure or "40)" in figure  # ranges are shown on hover


def test_names_values_and_gaps():
    name = "<a & 'b'>"
    y = np.array([1.0, math.nan, 3.0, math.inf, 2.5])
    line = svg_plot.Line(name, np.arange(5.0), y)
    figure = svg_plot.plot(
        [line, svg_plot.Line("none", np.zeros(0), np.zeros(0))],
        title=name,
        unit="images/s",
        x_range=(0.0, 4.0),
        marks=[(2.0, name)],
    )
    assert name not in figure and figure.count(html.escape(name)) >= 4
    assert "<b>2.5</b>" in figure and "none <b>no value</b>" in figure
    assert "nan" not in figure and "inf" not in figure
    empty = svg_plot.plot([], title="t", x_range=(0.0, 1.0))
    assert "no finite value" in empty


def ticks(figure):
    return re.findall(r"text-anchor='end'>([^<]*)</text>", figure)


@pytest.mark.parametrize(
    "values, options, expected",
    [
        ([0.0, 1.0], {}, ["0.00", "0.25", "0.50", "0.75", "1.00"]),
        ([0.5, 0.62], {"unit": "%"}, ["50%", "55%", "60%"]),
        ([1.0, 1000.0], {"log_scale": True}, ["1", "10", "100", "1000"]),
        ([2.1, 4.7], {"log_scale": True}, ["3"]),
        ([5.0, 5.0], {}, ["4.50", "4.75", "5.00", "5.25", "5.50"]),
        ([0.0, 2e6], {}, ["0", "5e+05", "1e+06", "1.5e+06", "2e+06"]),
        ([12340.0, 12360.0], {}, ["12340", "12345", "12350", "12355", "12360"]),
        ([0.0008121, 0.0008129], {}, ["0.0008122", "0.0008124", "0.0008126"]),
    ],
)
def test_ticks(values, options, expected):
    line = svg_plot.Line("a", np.array([0.0, 1.0]), np.array(values))
    figure = svg_plot.plot([line], title="t", x_range=(0.0, 1.0), **options)
    assert [t for t in ticks(figure) if t != "step"][: len(expected)] == expected


def test_colours_differ_and_the_scale_is_said():
    lines = [
        svg_plot.Line(f"line {i}", np.arange(3.0), np.arange(1.0, 4.0), colour=i)
        for i in range(8)
    ]
    figure = svg_plot.plot(lines, title="t", x_range=(0.0, 2.0), log_scale=True)
    assert len(set(re.findall(r"border-color: (#\w+)", figure))) == 8
    assert "logarithmic" in figure

"""Matches against planted permutations and warps, and a search pair by pair."""

import tracemalloc

import numpy as np
import pytest
from PIL import Image

from dinov2_jax.visualize import matches, panels, views


def unit(shape, seed=0):
    x = np.random.default_rng(seed).normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def as_dict(found):
    return {tuple(f): tuple(s) for f, s in zip(found.first, found.second)}


def test_a_planted_permutation_is_recovered():
    rng = np.random.default_rng(1)
    first = unit((6, 9, 32))
    order = rng.permutation(54)
    # Of another shape, every feature of another length, a little noise.
    second = first.reshape(54, 32)[order] + 0.02 * rng.normal(size=(54, 32))
    second = (second * rng.uniform(0.1, 9, (54, 1))).reshape(3, 18, 32)
    found = as_dict(matches.mutual_nearest(first, second))
    expected = {divmod(int(n), 9): divmod(i, 18) for i, n in enumerate(order)}
    assert found == expected


def test_memory_is_that_of_the_similarities():
    first = unit((40, 40, 8), 4)
    tracemalloc.start()
    found = matches.mutual_nearest(first, first)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 1600
    assert peak < 2.5 * 1600**2 * first.itemsize  # all places at once: 6 times


@pytest.mark.parametrize("rows", [7, 256])
def test_against_a_search_pair_by_pair(rows, monkeypatch):
    monkeypatch.setattr(matches, "_ROWS", rows)
    first, second = unit((4, 5, 6), 2), unit((5, 7, 6), 3)
    found = matches.mutual_nearest(first, second)
    places = [list(np.ndindex(x.shape[:2])) for x in (first, second)]
    expected = {}
    for p in places[0]:
        q = max(places[1], key=lambda q: first[p] @ second[q])
        if p != max(places[0], key=lambda p: first[p] @ second[q]):
            continue
        others = [second[o] @ first[p] for o in places[1] if far(o, q)]
        others += [first[o] @ second[q] for o in places[0] if far(o, p)]
        score = first[p] @ second[q]
        expected[p] = (q, score, score - max(others))
    assert 3 < len(expected) < 20
    assert as_dict(found) == {p: q for p, (q, _, _) in expected.items()}
    for f, score, lead in zip(found.first, found.scores, found.leads):
        assert expected[tuple(f)][1:] == pytest.approx((score, lead))
    assert (np.diff(found.leads) <= 0).all()  # the best first


def far(a, b):
    return max(abs(a[0] - b[0]), abs(a[1] - b[1])) > 2


def test_a_known_warp_of_smooth_features_is_recovered():
    """Features sampled from one smooth field, through a rotation and a zoom."""
    rng = np.random.default_rng(4)
    waves, phases = rng.normal(size=(48, 2)) * 0.7, rng.uniform(0, 6.3, 48)

    def field(points):
        return np.sin(points @ waves.T + phases)

    angle = np.deg2rad(15)
    turn = 1.1 * np.array(
        [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    )
    places = np.moveaxis(np.indices((16, 16)), 0, -1)
    first = field(places.astype(float))
    second = field((places - 8.0) @ turn + 8.0)  # second[q] is first[(q - 8) turn + 8]
    found = matches.mutual_nearest(first, second)
    error = np.abs((found.second - 8.0) @ turn + 8.0 - found.first).max(axis=1)
    inside = (found.first > 0).all(1) & (found.first < 15).all(1)
    assert inside.sum() > 60
    assert np.mean(error[inside] < 1) > 0.95


def test_distinct_match_ranks_before_ambiguous_ones():
    first, second = unit((8, 8, 16), 5), unit((8, 8, 16), 6)
    blank = unit(16, 7)
    first[:, 4:], second[:, 4:] = blank, blank  # perfect scores, at any place
    thing = unit(16, 8)
    first[2, 1] = thing
    second[6, 2] = thing + 0.3 * unit(16, 9)
    found = matches.mutual_nearest(first, second)
    assert tuple(found.first[0]) == (2, 1) and tuple(found.second[0]) == (6, 2)
    assert found.scores[0] < found.scores.max() - 0.01
    blanks = found.leads[found.first[:, 1] >= 4]
    assert len(blanks) and np.abs(blanks).max() < 1e-6


def test_masks_leave_patches_out():
    first = unit((5, 5, 16))
    masks = [np.zeros((5, 5), bool), np.ones((5, 5), bool)]
    masks[0][1:3, 2:] = True
    masks[1][2, 3] = False
    found = as_dict(matches.mutual_nearest(first, first, masks))
    same = {p: q for p, q in found.items() if p == q}
    assert set(same) == {(1, 2), (1, 3), (1, 4), (2, 2), (2, 4)}
    assert all(masks[0][p] and masks[1][q] for p, q in found.items())
    nothing = matches.mutual_nearest(first, first, [masks[0], np.zeros((5, 5), bool)])
    assert len(nothing) == 0 and len(matches.spread(nothing, 5)) == 0


def test_zero_features_match_without_a_warning():
    with np.errstate(all="raise"):
        matches.mutual_nearest(np.zeros((3, 3, 4)), np.zeros((2, 2, 4)))


def crowd():
    """A crowd of the best matches in one corner, a few weaker ones elsewhere."""
    corner = [(r, c) for r in range(4) for c in range(4)]
    far = [(0, 20), (20, 0), (20, 20), (10, 10)]
    first = np.array(corner + far)
    leads = np.concatenate([np.linspace(0.9, 0.8, 16), [0.5, 0.4, 0.3, 0.2]])
    return matches.Matches(first, first[:, ::-1] + 1, leads, leads)


def test_thinning_spreads():
    kept = matches.spread(crowd(), 7)
    assert len(kept) == 7 and kept[:1].leads == crowd().leads[0]
    assert (np.diff(kept.leads) <= 0).all()
    assert set(map(tuple, kept.first)) >= {(0, 20), (20, 0), (20, 20), (10, 10)}
    alike = matches.spread(crowd(), 20)
    np.testing.assert_array_equal(alike.first, crowd().first)


def test_thinning_looks_at_both_images_and_only_at_good_ones():
    spread_here = np.array([(0, 10 * i + i**2) for i in range(8)])  # ever farther
    crowded_there = np.array([(0, 0), *[(9, i) for i in range(7)]])
    leads = np.linspace(0.9, 0.2, 8)
    both = matches.Matches(spread_here, crowded_there, leads, leads)
    kept = matches.spread(both, 3)
    assert list(kept.leads[:2]) == list(leads[:2])  # 9 apart; the others 1 from better
    weak = matches.Matches(spread_here, spread_here, leads, leads)
    assert matches.spread(weak, 2).leads.min() >= leads[5]  # of the best 6


def view(name, grid, shade=255):
    pixels = np.full((grid[0] * 4, grid[1] * 4, 3), shade, np.uint8)
    return views.View(name, pixels, np.zeros((*grid, 3)), np.zeros(1), None)


def test_lines_join_the_patches():
    seen = view("a.png", (10, 20)), view("b.png", (20, 10))
    one = np.array([0.8])
    kept = matches.Matches(np.array([[2, 15]]), np.array([[18, 3]]), one, one)
    sheet = matches.draw(*seen, kept, 5)
    assert sheet.tobytes() == matches.draw(*seen, kept, 5).tobytes()
    drawn = np.asarray(sheet).astype(int)
    red = (drawn[..., 0] > 200) & (drawn[..., 1] < 80) & (drawn[..., 2] < 80)
    rows, columns = np.nonzero(red)
    cell, left, top = 28, panels.GAP, panels.HEADER  # 560 px by 20 patches
    start = (left + 15.5 * cell, top + 2.5 * cell)
    end = (left + 560 + 24 + 3.5 * cell, top + 18.5 * cell)
    assert columns.min() == pytest.approx(start[0], abs=7)
    assert columns.max() == pytest.approx(end[0], abs=7)
    # All of it lies on the line between the two, and it has no gaps.
    expected = start[1] + (columns - start[0]) * (end[1] - start[1]) / (
        end[0] - start[0]
    )
    assert np.abs(rows - expected).max() < 10
    assert len(np.unique(columns)) > 0.95 * (end[0] - start[0])


def test_pictures_without_matches_and_with_many():
    seen = view("a.png", (3, 4), 90), view("b.png", (3, 4), 90)
    nothing = matches.mutual_nearest(
        np.ones((3, 4, 2)), np.ones((3, 4, 2)), [np.zeros((3, 4), bool)] * 2
    )
    plain = matches.draw(*seen, nothing, 0)
    assert isinstance(plain, Image.Image)
    corners = np.array([(0, 0), (0, 3), (2, 0), (2, 3)])
    ones = np.ones(4)
    full = matches.draw(*seen, matches.Matches(corners, corners, ones, ones), 4)
    # Numbers at the edges are whole: the margins stay white.
    margins = np.asarray(full)[: panels.HEADER + 420]
    assert (margins[:, : panels.GAP] == 255).all()
    assert (margins[:, -panels.GAP :] == 255).all()

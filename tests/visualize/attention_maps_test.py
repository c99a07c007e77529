"""Attention maps of planted attention, and the brightness of pictures."""

import numpy as np
import pytest
from PIL import Image

from dinov2_jax.visualize import attention_maps, panels, views

GRID = (5, 8)


def view(attention, *, grid=GRID, pixels=None, norms=None):
    height, width = grid
    if pixels is None:
        pixels = np.full((height * 4, width * 4, 3), 128, np.uint8)
    return views.View("x.png", pixels, np.zeros((*grid, 3)), norms, attention)


def planted(places, num_registers=0, share=0.9):
    """[A, 1 + R, T]: head a looks at places[a]; the rest of it is everywhere."""
    tokens = 1 + num_registers + GRID[0] * GRID[1]
    attention = np.full((len(places), 1 + num_registers, tokens), (1 - share) / tokens)
    for head, (row, column) in enumerate(places):
        attention[head, :, 1 + num_registers + row * GRID[1] + column] += share
    return attention


def brightest_patch(panel, grid=GRID):
    """Row and column of the brightest patch of a drawn panel."""
    light = np.asarray(panel.image.convert("L")).astype(float)
    cell = light.shape[0] // grid[0]
    light = light.reshape(grid[0], cell, grid[1], cell).mean(axis=(1, 3))
    return tuple(int(i) for i in np.unravel_index(light.argmax(), grid))


@pytest.mark.parametrize("num_registers", [0, 4])
def test_each_head_is_brightest_where_it_attends(num_registers):
    places = [(0, 0), (4, 7), (1, 6), (3, 2)]
    attention = planted(places, num_registers)
    shown = attention_maps.attention_panels(view(attention))
    assert len(shown) == 2 + 4 + num_registers
    assert shown[0].title == "x.png"
    assert shown[1].title.startswith("mean, ")
    for head, place in enumerate(places):
        panel = shown[2 + head]
        assert panel.title.startswith(f"head {head}, ")
        assert brightest_patch(panel) == place


def test_mean_is_over_heads_and_registers_have_separate_maps():
    attention = np.zeros((3, 3, 3 + 40))
    attention[:, 0, 3 + 8 * 1 + 3] = 1.0  # the class token, in all heads
    attention[:, 1, 3 + 8 * 2 + 7] = 1.0  # a register
    attention[0, 2, 3 + 8 * 4 + 1], attention[1:, 2, 0] = 1.0, 1.0  # another
    shown = attention_maps.attention_panels(view(attention))
    assert brightest_patch(shown[1]) == (1, 3)
    titles = [panel.title for panel in shown]
    assert [panels.shortened(title, 130) for title in titles] == titles  # px; portraits
    assert brightest_patch(shown[-2]) == (2, 7)
    assert brightest_patch(shown[-1]) == (4, 1)
    assert shown[-2].title == "register 0, 100%"
    assert shown[-1].title == "register 1, 33%"


def test_class_token_and_registers_never_reach_the_grid():
    attention = np.random.default_rng(0).random((2, 5, 5 + 40))
    expected = np.empty((2, 5, *GRID))
    for row in range(GRID[0]):
        for column in range(GRID[1]):
            expected[..., row, column] = attention[..., 5 + row * GRID[1] + column]
    found = attention_maps.maps_over_patches(attention, GRID, 4)
    np.testing.assert_array_equal(found, expected)
    drawn = attention_maps.draw_attention(view(attention), block=0)
    attention[..., :5] = 1e6  # all there is but the patches
    shown = attention_maps.attention_panels(view(attention))
    for panel, before in zip(shown[1:], _panels_of(drawn, len(shown))[1:]):
        np.testing.assert_array_equal(np.asarray(panel.image), before)


def _panels_of(sheet, count):
    """The panels' pixels, cut from a sheet of panels of 256 x 160 px."""
    sheet, columns = np.asarray(sheet), (sheet.width - 6) // (256 + 6)
    tops = [28 + (i // columns) * (28 + 160 + 6) for i in range(count)]
    lefts = [6 + (i % columns) * (256 + 6) for i in range(count)]
    return [sheet[t : t + 160, x : x + 256] for t, x in zip(tops, lefts)]


@pytest.mark.parametrize("registers", [0, 3, 5])
def test_a_wrong_number_of_registers_is_refused(registers):
    with pytest.raises(ValueError, match=r"45 tokens: expected 1 class token"):
        attention_maps.maps_over_patches(np.ones((2, 45)), GRID, registers)


def test_photograph_shows_through_and_equal_input_gives_equal_pictures():
    attention = np.full((1, 1, 41), 1 / 41)
    attention[:, :, 1 + 17] = 0.5
    pixels = np.full((20, 32, 3), 0, np.uint8)
    pixels[:, 16:] = 255
    sheet = attention_maps.draw_attention(view(attention, pixels=pixels), block=3)
    again = attention_maps.draw_attention(view(attention, pixels=pixels), block=3)
    assert sheet.tobytes() == again.tobytes()
    head = np.asarray(
        attention_maps.attention_panels(view(attention, pixels=pixels))[2].image
    ).astype(int)
    assert head[80, 200].sum() > head[80, 20].sum() + 150


def test_norms_share_a_scale_and_leave_out_the_other_tokens():
    first = np.full(5 + 40, 10.0)
    first[:5] = 900.0  # class token and registers
    first[5 + 8 * 2 + 6] = 50.0
    second = np.full(5 + 6, 20.0)
    seen = [view(None, norms=first), view(None, norms=second, grid=(3, 2))]
    sheet = attention_maps.draw_norms(seen, block=1)
    assert sheet.tobytes() == attention_maps.draw_norms(seen, block=1).tobytes()
    light = np.asarray(sheet.convert("L")).astype(int)
    map_ = light[28 : 28 + 160, 6 + 256 + 6 :][:, :256]
    cells = map_[16::32, 16::32]
    assert np.unravel_index(cells.argmax(), GRID) == (2, 6) and cells.max() > 230
    assert np.median(cells) < 5  # the smallest of all
    other = light[28 + 160 + 6 + 28 :, 6 + 256 + 6 :][:255, :170]
    assert len(np.unique(other)) == 1 and 5 < other[0, 0] < cells.max()


def test_a_sheet_is_a_picture():
    sheet = attention_maps.draw_attention(view(planted([(0, 0)] * 16)), block=11)
    assert isinstance(sheet, Image.Image) and sheet.mode == "RGB"

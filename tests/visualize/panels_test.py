"""Positions on the sheet, and files after a failed write."""

import numpy as np
import pytest
from PIL import Image

from dinov2_jax import errors
from dinov2_jax.visualize import panels


def plain(color, size):
    return Image.new("RGB", size, color)


def test_panels_stand_in_columns_below_their_titles():
    rows = [
        [
            panels.Panel(plain("red", (50, 20)), "a"),
            panels.Panel(plain("lime", (8, 40))),
        ],
        [panels.Panel(plain("blue", (20, 10))), None],
    ]
    sheet = np.asarray(panels.sheet(rows))
    gap, header = panels.GAP, panels.HEADER
    assert sheet.shape == (header + 40 + gap + 10 + gap, gap + 50 + gap + 8 + gap, 3)
    expected = np.full_like(sheet, 255)
    expected[:header] = sheet[:header]  # the title
    assert (sheet[:header, : gap + 50 + gap] < 128).any()
    assert (sheet[:header, gap + 50 :] == 255).all()
    expected[header : header + 20, gap : gap + 50] = (255, 0, 0)
    expected[header : header + 40, gap + 50 + gap : -gap] = (0, 255, 0)
    below = header + 40 + gap
    expected[below : below + 10, gap : gap + 20] = (0, 0, 255)
    np.testing.assert_array_equal(sheet, expected)


def test_notes_are_broken_at_the_width():
    rows = [[panels.Panel(plain("red", (200, 20)))]]
    bare = panels.sheet(rows).height
    for note, lines in (
        (panels.Note("short"), 1),
        (panels.Note("word " * 20), 5),
        (panels.Note("of\xa0one\xa0piece " * 6), 3),
        (panels.Note("a bar comes after this", ("0", "1")), 2),
        (panels.Note("", ("0", "1")), 1),
    ):
        sheet = panels.sheet(rows, [note])
        assert sheet.width == 212
        found = (sheet.height - bare) / panels.HEADER
        assert found == lines, note
        for line in range(lines):  # every line has something, the margin nothing
            part = np.asarray(sheet)[bare + line * panels.HEADER :][: panels.HEADER]
            assert (part < 128).any() and (part[:, -4:] == 255).all()


def test_long_titles_are_cut():
    font = panels.font()
    name = "a very long name of a photograph.jpeg"
    cut = panels.shortened(name, 120)
    assert font.getlength(cut) <= 120 < font.getlength(name)
    assert cut.startswith("a very") and cut.endswith(".jpeg") and "..." in cut
    assert panels.shortened("short", 120) == "short"
    assert panels.shortened(name, 3) == ""


def test_heat_grows_brighter_and_is_clipped():
    colors = panels.heat(np.linspace(-1, 3, 401)[None], 0.0, 2.0)
    assert colors.shape == (1, 401, 3) and colors.dtype == np.uint8
    light = np.asarray(Image.fromarray(colors).convert("L"))[0].astype(int)
    assert (np.diff(light) >= 0).all() and light[0] < 5 and light[-1] > 230
    assert (colors[0, :100] == colors[0, 0]).all()
    assert (colors[0, 301:] == colors[0, -1]).all()
    assert len(np.unique(panels.heat(np.ones((2, 2)), 1.0, 1.0))) <= 3  # no range


def test_patches_are_equal_squares():
    assert panels.shown_size((37, 37), 336) == (333, 333)
    assert panels.shown_size((2, 4), 336) == (336, 168)
    assert panels.shown_size((1, 2000), 336) == (2000, 1)
    colors = np.random.default_rng(0).integers(0, 256, (3, 5, 3), np.uint8)
    shown = np.asarray(panels.patches(colors, panels.shown_size((3, 5), 50)))
    np.testing.assert_array_equal(shown, colors.repeat(10, 0).repeat(10, 1))


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    panels.save(plain("red", (9, 9)), path)
    before = path.read_bytes()

    def full(self, file, format):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(errors.UserError, match="a.png .No space left"):
        panels.save(plain("blue", (9, 9)), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]

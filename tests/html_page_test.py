"""Pages of one file: what is escaped, and how cells are written."""

from dinov2_jax import html_page


def test_texts_are_escaped():
    evil = "<script>&'\""
    safe = "&lt;script&gt;&amp;&#x27;&quot;"
    picture = html_page.image(b"\x00\xff", evil, kind="jpeg")
    assert picture == f"<img alt='{safe}' src='data:image/jpeg;base64,AP8='>"
    parts = [
        html_page.heading(evil),
        html_page.paragraph(evil),
        html_page.note(evil),
        html_page.table([evil], [[evil]]),
        html_page.figure(picture, evil),
    ]
    page = html_page.page(evil, parts)
    assert "<script" not in page and page.count(safe) == 2 + 3 + 2 + 2


def test_cells():
    table = html_page.table("abcd", [[1234567, 0.5, True, "x"]])
    assert "<td class='number'>1,234,567</td><td class='number'>0.5000</td>" in table
    assert "<td>True</td><td>x</td>" in table

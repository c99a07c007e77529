"""HTML pages of one file: no scripts, pictures inside, and nothing is loaded."""

import base64
import html
from collections.abc import Sequence
from typing import Any

_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; max-width: 70em; margin: 2em auto; }
table { border-collapse: collapse; margin: 1em 0; }
td, th { border-bottom: 1px solid #ccc; padding: .2em .8em; text-align: left; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
figure { margin: 1em 0; } img { max-width: 100%; } p.note { color: #a40; }
"""


def page(title: str, parts: Sequence[str], *, style: str = "") -> str:
    """Return a whole page.

    Args:
      title: Title and heading.
      parts: HTML of the parts in their order.
      style: Further rules of CSS.
    """
    title = html.escape(title)
    head = "<!doctype html><html lang='en'><meta charset='utf-8'>"
    head += f"<meta name='viewport' content='width=device-width'><title>{title}"
    begin = f"</title>\n<style>{_STYLE}{style}</style><h1>{title}</h1>"
    return "\n".join([head + begin, *parts, "</html>"]) + "\n"


def heading(text: str) -> str:
    """Return the heading of a part."""
    return f"<h2>{html.escape(text)}</h2>"


def paragraph(text: str) -> str:
    """Return a paragraph."""
    return f"<p>{html.escape(text)}</p>"


def note(text: str) -> str:
    """Return a caveat, coloured."""
    return f"<p class='note'>{html.escape(text)}</p>"


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table.

    Args:
      columns: Names of the columns.
      rows: Rows of numbers and texts.
    """
    head = "".join(f"<th>{html.escape(str(column))}</th>" for column in columns)
    lines = "\n".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>\n{lines}</table>"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"<td class='number'>{value:.4f}</td>"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"<td class='number'>{value:,}</td>"
    return f"<td>{html.escape(str(value))}</td>"


def image(data: bytes, text: str, *, kind: str = "png") -> str:
    """Return a picture.

    Args:
      data: Content of an image file.
      text: Text for those who do not see the picture.
      kind: Kind of the file, png or jpeg.
    """
    content = base64.b64encode(data).decode()
    return f"<img alt='{html.escape(text)}' src='data:image/{kind};base64,{content}'>"


def figure(picture: str, caption: str) -> str:
    """Return a picture with a caption.

    Args:
      picture: HTML of the picture.
      caption: Text below it.
    """
    return f"<figure>{picture}<figcaption>{html.escape(caption)}</figcaption></figure>"

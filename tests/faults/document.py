"""Writes measurements into a guide, between two comments that name them."""

import pathlib
import re


def write(path: pathlib.Path, name: str, text: str) -> None:
    """Replaces the text between the comments `name: begin` and `name: end`."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before = path.read_text()
    assert begin in before and end in before, (path, name)
    replaced = re.sub(
        f"{begin}.*{end}", lambda _: f"{begin}\n{text}\n{end}", before, flags=re.S
    )
    path.write_text(replaced)

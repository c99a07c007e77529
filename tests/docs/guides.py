"""The pages that users read, and what is in them: links, headings, commands."""

import pathlib
import re
import shlex
from collections.abc import Iterator

import processes

ROOT = processes.ROOT
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
_LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)", re.S)


def prose(page: pathlib.Path) -> str:
    """The text of a page outside blocks of code."""
    return _FENCE.sub("", page.read_text())


def links(page: pathlib.Path) -> list[str]:
    """The targets of a page's links and pictures, but not addresses."""
    found = _LINK.findall(re.sub(r"`[^`\n]*`", "`", prose(page)))
    return [target for target in found if "://" not in target]


def anchors(page: pathlib.Path) -> set[str]:
    """The anchors of a page's headings, as GitHub names them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.M)
    texts = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text) for text in headings]
    return {
        re.sub(r"[^\w\- ]", "", text).strip().lower().replace(" ", "-")
        for text in texts
    }


def commands(page: pathlib.Path) -> Iterator[list[str]]:
    """The words of each command of a page, in blocks of code and within lines."""
    blocks = [text for kind, text in _FENCE.findall(page.read_text()) if kind != "sql"]
    within = re.findall(r"`([^`]+)`", prose(page))
    for text in [*blocks, *within]:
        for line in re.sub(r"\\\n", " ", text).splitlines():
            if words := _words(line):
                yield from _split(words)


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError:  # an apostrophe: no command
        return []


def _split(words: list[str]) -> Iterator[list[str]]:
    """Divide a line at its pipes and ends of commands."""
    start = 0
    for end in [n for n, word in enumerate(words) if word in ("&&", "|", ";")]:
        yield words[start:end]
        start = end + 1
    yield words[start:]

"""The tables of config.md, made of configs/default.py and its comments.

A comment above fields is about all of them up to the next comment, a comment behind a
field about that one.
"""

import ast
import dataclasses
import importlib
import inspect
import io
import pathlib
import re
import tokenize
from typing import Any

from dinov2_jax import configs
from dinov2_jax.config import flattening
from dinov2_jax.configs import default

_FIELDS, _PRESETS = "<!-- fields -->", "<!-- presets -->"


@dataclasses.dataclass
class Row:
    """Fields that share a comment.

    Attributes:
      names: The fields, such as "optim.base_lr".
      about: The comment, in one line; "" if there is none.
    """

    names: list[str]
    about: str


@dataclasses.dataclass
class Section:
    """A section of a config.

    Attributes:
      name: The section, such as "optim"; "" for fields in none.
      about: The comment above the section, in one line.
      rows: Its fields.
    """

    name: str
    about: str = ""
    rows: list[Row] = dataclasses.field(default_factory=list)


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Return config.md with tables at its markers; other pages as they are."""
    if page.file.src_uri != "config.md":
        return markdown
    return markdown.replace(_FIELDS, fields()).replace(_PRESETS, presets())


def fields() -> str:
    """Return a heading and a table for each section of a config."""
    values = flattening.flatten(default.get_config())
    parts = []
    for section in read_sections(pathlib.Path(default.__file__).read_text()):
        if section.name:
            parts.append(f"## {section.name}\n")
        if section.about:
            parts.append(f"{_prose(section.about)}\n")
        rows = [
            (
                "<br>".join(f'<a id="{n}"></a>`{n}`' for n in row.names),
                "<br>".join(_code(values[n]) for n in row.names),
                _prose(row.about),
            )
            for row in section.rows
        ]
        parts.append(_table(("field", "default", "what it is"), rows))
    return "\n".join(parts)


def presets() -> str:
    """Return a heading and a table of the changed fields for each preset."""
    before = flattening.flatten(default.get_config())
    parts = []
    for name in configs.names():
        module = importlib.import_module(f"dinov2_jax.configs.{name}")
        if module is default:
            continue
        values = flattening.flatten(module.get_config())
        rows = [
            (f"[`{n}`](#{n})", _code(value), _code(before[n]))
            for n, value in values.items()
            if value != before[n]
        ]
        about = inspect.getdoc(module).partition("\n\n")[0]
        parts += [
            f"### {name}\n",
            f"[configs/{name}.py](../configs/{name}.py): {_prose(about)}\n",
            _table(("field", "value", "default"), rows),
        ]
    return "\n".join(parts)


def read_sections(source: str) -> list[Section]:
    """Read the sections, fields and comments of a `get_config` that sets every field.

    Args:
      source: Text of configs/default.py.
    """
    above, behind = _comments(source)
    (function,) = (
        node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)
    )
    sections, shared = [Section("")], None
    for node in function.body:
        if not isinstance(node, ast.Assign) or "." not in ast.unparse(node.targets[0]):
            continue
        name = ast.unparse(node.targets[0]).partition(".")[2]
        comment = _lines_above(above, node.lineno)
        if ast.unparse(node.value) == "config_dict.ConfigDict()":
            sections.append(Section(name, comment))
            shared = None
            continue
        lines = range(node.lineno, node.end_lineno + 1)
        own = " ".join(behind[line] for line in lines if line in behind)
        if shared and not comment and not own:
            shared.names.append(name)
            continue
        row = Row([name], " ".join(filter(None, (comment, own))))
        sections[-1].rows.append(row)
        if comment:
            shared = row
    return [section for section in sections if section.rows]


def _comments(source: str) -> tuple[dict[int, str], dict[int, str]]:
    """Return the comments that fill a line and those behind code, by line."""
    above, behind = {}, {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            alone = not token.line[: token.start[1]].strip()
            text = token.string.lstrip("# ")
            (above if alone else behind)[token.start[0]] = text
    return above, behind


def _lines_above(comments: dict[int, str], line: int) -> str:
    """Return the comment that ends just above a line."""
    first = line
    while first - 1 in comments:
        first -= 1
    return " ".join(comments[number] for number in range(first, line))


def _prose(text: str) -> str:
    """Return a comment as Markdown: names of guides as links, no accidental marks."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    for i in range(0, len(parts), 2):
        linked = re.sub(r"([*_\[\]])", r"\\\1", parts[i]).replace("<", "&lt;")
        parts[i] = re.sub(r"docs/([\w-]+)\.md", r"[\1.md](\1.md)", linked)
    return "".join(parts)


def _code(value: Any) -> str:
    return f"`{value!r}`"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells) + "\n"

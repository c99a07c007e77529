"""Results of an evaluation as text, as results.json and as a page, report.html."""

import contextlib
import dataclasses
import json
import math
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dinov2_jax import errors, files, html_page
from dinov2_jax.eval import protocol_card


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of the report.

    Attributes:
      title: What it shows.
      columns: Names of the columns.
      rows: Rows of numbers and texts.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture of the report.

    Attributes:
      caption: What it shows.
      png: The bytes of a PNG file.
    """

    caption: str
    png: bytes


@dataclasses.dataclass(frozen=True)
class Result:
    """What an evaluation found.

    Attributes:
      card: Its protocol.
      numbers: {name: value}; accuracies in [0, 1]. Empty if nothing is measured.
      notes: Caveats for readers of the numbers, such as what was selected on the
        test data.
      tables: Further tables.
      pictures: Pictures.
      summary: Table of all numbers, for the page in place of their list.
    """

    card: protocol_card.Card
    numbers: dict[str, float]
    notes: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    summary: Table | None = None


def text(result: Result) -> str:
    """Return the card, the numbers and the notes as lines of a terminal."""
    width = max(map(len, result.numbers), default=0)
    numbers = [f"{name:{width}}  {value:.4f}" for name, value in result.numbers.items()]
    notes = [f"note: {note}" for note in result.notes]
    return "\n".join([*result.card.lines(), "", *numbers, *notes])


def check_folder(folder: pathlib.Path) -> None:
    """Make the folder of results, and check that files can be written there.

    Args:
      folder: The folder.

    Raises:
      UserError: They cannot.
    """
    with _named_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


def write(result: Result, folder: pathlib.Path) -> None:
    """Write results.json and report.html.

    Args:
      result: What to write.
      folder: Folder of both files; made if it is missing.

    Raises:
      UserError: A file cannot be written.
    """
    with _named_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        files.write_text(folder / "results.json", _json(result))
        files.write_text(folder / "report.html", _page(result))


@contextlib.contextmanager
def _named_errors(folder: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise errors.UserError(
            f"cannot write the results into {folder} ({error.strerror or error}): "
            "choose another --out"
        ) from error


def _json(result: Result) -> str:
    card = result.card
    tables = [result.summary, *result.tables] if result.summary else result.tables
    fields = {
        "task": card.task,
        "protocol": card.protocol,
        "changed": card.changed,
        "card": card.fields,
        "numbers": result.numbers,
        "notes": list(result.notes),
        "tables": [dataclasses.asdict(table) for table in tables],
    }
    return json.dumps(_plain(fields), indent=1, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """Convert what JSON does not know: NumPy's numbers, paths, and NaN to null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    known = value is None or isinstance(value, (str, int, float))
    return value if known else str(value)


def _page(result: Result) -> str:
    card = result.card
    title = f"dinov2_jax: {card.task}"
    fields = {"protocol": card.protocol_line()} | card.fields
    rows = [(name, str(value)) for name, value in fields.items()]
    numbers = Table("Results", ("number", "value"), [*result.numbers.items()])
    tables = [result.summary or numbers] if result.numbers else []
    parts = [*map(html_page.note, result.notes)]
    parts += map(_html_table, [*tables, *result.tables])
    for picture in result.pictures:
        image = html_page.image(picture.png, picture.caption)
        parts.append(html_page.figure(image, picture.caption))
    parts.append(_html_table(Table("Protocol", ("setting", "value"), rows)))
    return html_page.page(title, parts)


def _html_table(table: Table) -> str:
    return html_page.heading(table.title) + html_page.table(table.columns, table.rows)

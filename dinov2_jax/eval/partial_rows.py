"""Results of single images, kept in a file so that a killed evaluation can resume."""

import json
import pathlib
from collections.abc import Callable, Iterator

from dinov2_jax import errors, progress_bar


def collect(
    path: pathlib.Path,
    fingerprint: str,
    rows: Callable[[int], Iterator[list[float]]],
    total: int,
) -> list[list[float]]:
    """Compute the rows that a file does not hold yet, and return all.

    Args:
      path: File with a line for each image; it stays, for the next call.
      fingerprint: Text of all that the rows depend on; a file of another is replaced.
      rows: Function that yields the rows from an index on.
      total: Number of rows.

    Raises:
      UserError: The file cannot be written.
    """
    found = _read(path, fingerprint)[:total]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w") as file:  # without a line that was cut short
            lines = [{"fingerprint": fingerprint}, *found]
            file.writelines(json.dumps(line) + "\n" for line in lines)
            with progress_bar.Bar(total, what="evaluating", done=len(found)) as bar:
                for row in rows(len(found)):
                    found.append(row)
                    file.write(json.dumps(row) + "\n")
                    file.flush()
                    bar.update()
    except OSError as error:
        raise errors.UserError(
            f"cannot write {path} ({error.strerror or error}): choose another --out"
        ) from error
    return found


def _read(path: pathlib.Path, fingerprint: str) -> list[list[float]]:
    """Return the whole rows of a file, none if it belongs to another evaluation."""
    try:
        lines = path.read_text().splitlines(keepends=True)
        whole = [json.loads(line) for line in lines if line.endswith("\n")]
    except (OSError, ValueError):
        return []
    if not whole or whole[0] != {"fingerprint": fingerprint}:
        return []
    return whole[1:]

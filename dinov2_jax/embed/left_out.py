"""Images that could not be read once, and perhaps can be now."""

import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dinov2_jax.data.decode import image_decoder
from dinov2_jax.embed import output

_TRIED = 100


def readable(read: Callable[[int], Any], indices: Sequence[int]) -> int:
    """Return how many of some images can be read now; at most 100 are tried.

    Args:
      read: Function of an index that raises `BadImage` if the image cannot be read.
      indices: Which of them.
    """
    tried = np.unique(np.linspace(0, len(indices) - 1, _TRIED).astype(int))
    count = 0
    for place in tried if len(indices) else ():
        with contextlib.suppress(image_decoder.BadImage):
            read(indices[place])
            count += 1
    return count


def of_file(source: Any, out: pathlib.Path, read: Callable[[int], Any]) -> str:
    """Return what to do if a features file lacks images that can be read now, or "".

    Args:
      source: The images of the file, of `images.open_source` or a shard of them.
      out: The file, complete.
      read: As in `readable`.
    """
    description = json.loads(output.description_of(out).read_bytes())
    names = {os.fsencode(name) for name in description.get("skipped", ())}
    if not names:
        return ""
    indices = [i for i in range(len(source)) if source.relative_path(i) in names]
    count = readable(read, indices)
    if not count:
        return ""
    least = "at least " * (len(indices) > _TRIED)
    return (
        f"{least}{count:,} of the {len(names):,} images that could not be read then "
        f"can be now: to include them, remove {out} and repeat the command"
    )

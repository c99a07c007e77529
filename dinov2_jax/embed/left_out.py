"""Images that could not be read once, and perhaps can be now."""

import contextlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from dinov2_jax.data.decode import image_decoder
from dinov2_jax.data.sources import base
from dinov2_jax.embed import output

_TRIED = 100


def readable(source: base.Source, indices: Sequence[int]) -> int:
    """Return how many of some images can be read now; the first 100 are tried.

    Args:
      source: The images.
      indices: Which of them.
    """
    count = 0
    for index in indices[:_TRIED]:
        with contextlib.suppress(image_decoder.BadImage):
            source.open(index).pixels()
            count += 1
    return count


def of_file(source: Any, out: pathlib.Path) -> str:
    """Return what to do if a features file lacks images that can be read now, or "".

    Args:
      source: The images of the file, of `images.open_source` or a shard of them.
      out: The file, complete.
    """
    description = json.loads(output.description_of(out).read_bytes())
    names = {os.fsencode(name) for name in description.get("skipped", ())}
    if not names:
        return ""
    indices = [i for i in range(len(source)) if source.relative_path(i) in names]
    count = readable(source, indices)
    if not count:
        return ""
    return (
        f"{count:,} of the {len(names):,} images that could not be read then can be "
        f"now: to have them too, remove {out} and repeat the command"
    )

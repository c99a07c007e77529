"""Flipped bits and cut files in checkpoints, looked for as a start looks for them."""

import pathlib
import random
import shutil
from collections.abc import Callable

from dinov2_jax.checkpoint import checkpointer, checksums
from tests.faults import runs


def damage(folder: pathlib.Path, draw: random.Random, cut: bool | None = None) -> str:
    """Flips one bit of a file, or cuts one off at random; returns what was done.

    Args:
      folder: A checkpoint.
      draw: Where.
      cut: One of both; None for either.
    """
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.stat().st_size]
    # Half of them anywhere, half in any file, however small.
    sizes = [p.stat().st_size for p in files]
    path = draw.choices(files, sizes if draw.random() < 0.5 else None)[0]
    content = bytearray(path.read_bytes())
    if draw.random() < 0.5 if cut is None else cut:
        keep = draw.choice([0, draw.randrange(len(content))])
        path.write_bytes(content[:keep])
        return f"{path}: {keep} of {len(content)} bytes kept"
    place, bit = draw.randrange(len(content)), draw.randrange(8)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    return f"{path}: bit {bit} of byte {place} flipped"


def campaign(ours: runs.Runs, count: int, draw: random.Random, say: Callable) -> dict:
    """Damages the newest of two checkpoints, one time in eleven by a cut.

    Returns:
      Flipped bits and cut files, and how many of them were found, so that the
      checkpoint before serves.
    """
    flips = cuts = found = 0
    source = ours.uninterrupted / "checkpoints"
    older, newer = runs.saved(ours.uninterrupted)[-2:]
    workdir = ours.new_folder()
    for step in (older, newer):
        shutil.copytree(source / str(step), workdir / "checkpoints" / str(step))
    pristine = workdir / "pristine"
    shutil.copytree(source / str(newer), pristine)
    while flips + cuts < count:
        cut = (flips + cuts) % 11 == 10
        folder = workdir / "checkpoints" / str(newer)
        done = damage(folder, draw, cut)
        assert checksums.problem(folder) or not checksums.is_sealed(folder), done
        checkpoints = checkpointer.Checkpointer(workdir)
        lines = checkpoints.set_aside_damaged()
        assert len(lines) == 1 and "is damaged (" in lines[0], (done, lines)
        assert checkpoints.latest_step() == older, done
        checkpoints.close()
        shutil.rmtree(workdir / "damaged_checkpoints")
        shutil.copytree(pristine, folder)
        flips, cuts, found = flips + (not cut), cuts + cut, found + 1
        if found % 20 == 0:
            say(found)
    return {"flips": flips, "cuts": cuts, "found": found}

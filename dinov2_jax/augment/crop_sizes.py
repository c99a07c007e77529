"""The sizes of crops of each step, if a run mixes several resolutions.

All crops of a step have one pair of sizes. The pair of step n is a function of (seed,
n) alone, so processes and restarts agree on it. Pairs are drawn without replacement in
cycles of 100 steps, so each has exactly its share of every cycle.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

CYCLE = 100  # steps
# Stream of random numbers; `data.batch_builder` uses 0 to 4 with the same seed.
_SIZES = 5


class Size(NamedTuple):
    """Sides of the crops of a step, in pixels.

    Attributes:
      global_size: Side of a global crop, S.
      local_size: Side of a local crop, s.
    """

    global_size: int
    local_size: int


@dataclasses.dataclass(frozen=True)
class CropSizes:
    """Function from the number of a step to the sizes of its crops.

    Attributes:
      sizes: The sizes, each once.
      counts: Steps of each in a cycle of 100.
      num_local: Local crops per image.
      seed: The seed of the run.
    """

    sizes: tuple[Size, ...]
    counts: tuple[int, ...]
    num_local: int
    seed: int

    def __call__(self, step: int) -> Size:
        """Return the sizes of a step, counted as the batches are."""
        if len(self.sizes) == 1:
            return self.sizes[0]
        cycle, place = divmod(step, CYCLE)
        return self.sizes[_order(self.counts, self.seed, cycle)[place]]

    def mean(self, of_size: Callable[[Size], float]) -> float:
        """Return the mean of what a function gives for the size of each step."""
        return float(np.average([of_size(s) for s in self.sizes], weights=self.counts))

    @property
    def largest(self) -> Size:
        """The sizes whose crops have the most pixels."""
        return max(
            self.sizes,
            key=lambda s: 2 * s.global_size**2 + self.num_local * s.local_size**2,
        )


@functools.lru_cache(maxsize=16)
def _order(counts: tuple[int, ...], seed: int, cycle: int) -> np.ndarray:
    """Return the index of the sizes of each step of a cycle."""
    rng = np.random.default_rng((seed, _SIZES, cycle))
    return rng.permutation(np.repeat(np.arange(len(counts)), counts))


def make_crop_sizes(config: Any) -> CropSizes:
    """Return the sizes that `config.crops` describes, a single pair without `sizes`."""
    crops = config.crops
    rows = crops.sizes or ((crops.global_crops_size, crops.local_crops_size, 1.0),)
    return CropSizes(
        sizes=tuple(Size(large, small) for large, small, _ in rows),
        counts=tuple(round(CYCLE * share) for *_, share in rows),
        num_local=crops.local_crops_number,
        seed=config.seed,
    )


def problems(flat: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with `crops.sizes`; `flat` is a flattened config."""
    rows, patch = flat["crops.sizes"], flat["model.patch_size"]
    if not rows:
        return
    if not all(map(_is_row, rows)):
        yield (
            f"crops.sizes = {rows!r}: must be triples (global px, local px, share), "
            "such as ((512, 112, 0.5), (768, 112, 0.5))"
        )
        return
    kinds = {"global": [row[0] for row in rows]}
    if flat["crops.local_crops_number"]:
        kinds["local"] = [row[1] for row in rows]
    for kind, sides in kinds.items():
        for side in sorted({side for side in sides if side % patch}):
            lower = side // patch * patch
            near = f"{lower} or {lower + patch}" if lower else f"{patch}"
            yield (
                f"crops.sizes has {kind} crops of {side} px, not a multiple of "
                f"model.patch_size = {patch}: use {near}"
            )
        # What else reads the config knows only these two fields.
        name = f"crops.{kind}_crops_size"
        if flat[name] != max(sides):
            yield (
                f"{name} = {flat[name]} is not the largest of crops.sizes: set "
                f"--config.{name}={max(sides)}"
            )
    if len({row[:2] for row in map(tuple, rows)}) < len(rows):
        yield f"crops.sizes = {rows!r} has the same sizes twice: add up their shares"
    counts = [CYCLE * row[2] for row in rows]
    whole = all(abs(count - round(count)) < 1e-6 for count in counts)
    if not whole or sum(map(round, counts)) != CYCLE:
        yield (
            f"the shares of crops.sizes are {', '.join(f'{row[2]:g}' for row in rows)}:"
            f" must be hundredths and sum to 1, because sizes are drawn in cycles of "
            f"{CYCLE} steps"
        )


def _is_row(row: Any) -> bool:
    return (
        isinstance(row, tuple | list)
        and len(row) == 3
        and all(isinstance(side, int) and side > 0 for side in row[:2])
        and isinstance(row[2], int | float)
        and 0 < row[2] <= 1
    )

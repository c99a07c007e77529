"""Stochastic depth by batch subsets: dropped samples are not computed.

Mirrors `NestedTensorBlock.forward_nested` of the reference's `layers/block.py`: in each
crop group and residual branch, k = max(int(b * (1 - rate)), 1) of the b samples are
drawn without replacement, and their residual is added back scaled by b / k. Here b
counts the samples of one group of the batch, so that gathers stay on one device.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dinov2_jax.kernels import crops, linear

Sequences = tuple[tuple[int, int], ...]
Branch = Callable[
    [jax.Array, Sequences, crops.Statistics], tuple[jax.Array, jax.Array | None]
]

Kept = tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]


class MicroBatch(NamedTuple):
    """Which groups of a batch are computed together.

    Attributes:
      groups: Their numbers in the batch, int32 [g].
      num_groups: Number of groups of the whole batch.
    """

    groups: jax.Array
    num_groups: int


class Run(NamedTuple):
    """Consecutive blocks that share a drop rate.

    Attributes:
      start: Index of the first block.
      stop: Index after the last block.
      kept: Kept samples of these blocks, from `draw_kept`; None if all are kept.
    """

    start: int
    stop: int
    kept: Kept | None


def num_kept(batch: int, rate: float) -> int:
    """Return how many samples of `batch` are computed at a drop rate."""
    return max(int(batch * (1 - rate)), 1)


def draw_kept(
    key: jax.Array,
    *,
    rate: float,
    num_groups: int,
    depth: int,
    batches: Sequence[int],
    micro_batch: MicroBatch | None = None,
) -> Kept:
    """Draw the samples that each block computes, for all blocks at once.

    Args:
      key: PRNG key.
      rate: Drop rate, above 0.
      num_groups: Number of groups G.
      depth: Number of blocks L that share this rate.
      batches: Number of samples b of each crop group.
      micro_batch: The groups to draw for, which get what the whole batch would draw;
        None: all.

    Returns:
      For each of the two branches, indices int32 [L, G, k] of each crop group.
    """

    def draw_crop_group(key, batch):
        if micro_batch is None:
            ranks = jax.random.uniform(key, (depth, num_groups, batch))
        else:
            ranks = jax.random.uniform(key, (depth, micro_batch.num_groups, batch))
            ranks = ranks[:, micro_batch.groups]
        return jnp.argsort(ranks, axis=-1)[..., : num_kept(batch, rate)]

    def draw(branch_key):
        keys = jax.random.split(branch_key, len(batches))
        return tuple(draw_crop_group(k, batch) for k, batch in zip(keys, batches))

    first, second = jax.random.split(key, 2)
    return draw(first), draw(second)


def draw_runs(
    key: jax.Array,
    rates: Sequence[float],
    *,
    num_groups: int,
    batches: Sequence[int],
    micro_batch: MicroBatch | None = None,
) -> list[Run]:
    """Draw the samples that all blocks compute.

    Args:
      key: PRNG key.
      rates: Drop rate of each block.
      num_groups: Number of groups G.
      batches: Number of samples b of each crop group.
      micro_batch: The groups to draw for, as in `draw_kept`.

    Returns:
      The blocks in order, with neighbours of the same rate in one run.
    """
    runs, start = [], 0
    for rate, run in itertools.groupby(rates):
        stop = start + len(list(run))
        kept = None
        if rate > 0:
            kept = draw_kept(
                jax.random.fold_in(key, start),
                rate=rate,
                num_groups=num_groups,
                depth=stop - start,
                batches=batches,
                micro_batch=micro_batch,
            )
        runs.append(Run(start, stop, kept))
        start = stop
    return runs


def add_residual(
    x: jax.Array,
    branch: Branch,
    sequences: Sequences,
    kept: tuple[jax.Array, ...] | None,
) -> jax.Array:
    """Compute x + branch(x) on the kept samples only.

    Args:
      x: Tokens, [G, T, D], crop group after crop group and sample after sample.
      branch: Function (tokens [G, T', D], their sequences, their `statistics` for
        `kernels.layer_norm.project` or None) -> residual [G, T', D] and a bias [D], or
        None, still to be added to it.
      sequences: (count, length) of each crop group of x.
      kept: Indices of the kept samples, [G, k] a crop group; None for all.

    Returns:
      Tokens, [G, T, D].
    """
    if kept is None:
        residual, bias = branch(x, sequences, None)
        return x + linear.add_bias(residual, bias).astype(x.dtype)
    left = [crops.leave(*part) for part in zip(_split(x, sequences), kept)]
    parts, tokens, statistics = zip(*left)
    sub_sequences = tuple(
        (indices.shape[1], length) for indices, (_, length) in zip(kept, sequences)
    )
    known = None if None in statistics else _joined(statistics)
    residual, bias = branch(_joined(tokens), sub_sequences, known)
    if residual.dtype != x.dtype:
        residual, bias = linear.add_bias(residual, bias).astype(x.dtype), None
    ends = itertools.accumulate(count * length for count, length in sub_sequences)
    residuals = jnp.split(residual, list(ends)[:-1], axis=1)
    added = [
        crops.rejoin(part, indices, residual, bias)
        for part, indices, residual in zip(parts, kept, residuals)
    ]
    return _joined([part.reshape(len(x), -1, x.shape[-1]) for part in added])


def residual_scale(kept: jax.Array, batch: int) -> jax.Array:
    """Return float32 [G, batch]: batch / k for the kept samples [G, k], else 0."""
    is_kept = jnp.any(kept[..., None] == jnp.arange(batch), axis=1)
    return is_kept * (batch / kept.shape[1])


def _split(x: jax.Array, sequences: Sequences) -> list[jax.Array]:
    """Split [G, T, D] into one [G, count, length, D] a crop group."""
    parts, start = [], 0
    for count, length in sequences:
        stop = start + count * length
        parts.append(x[:, start:stop].reshape(x.shape[0], count, length, x.shape[-1]))
        start = stop
    return parts


def _joined(parts: Sequence[Any]) -> Any:
    """Concatenate trees of [G, T, ...] along T."""
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays, axis=1), *parts)

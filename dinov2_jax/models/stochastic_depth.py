"""Stochastic depth as a batch subset: dropped samples are not computed.

Mirrors `NestedTensorBlock.forward_nested` of the reference's `layers/block.py`: in each
crop group and residual branch, k = max(int(b * (1 - rate)), 1) of the b samples are
drawn without replacement, and their residual is added back scaled by b / k. Here b
counts the samples of one group of the batch, so that gathers stay on their device.
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


class Run(NamedTuple):
    """Blocks `start` to `stop`, which share a drop rate.

    Attributes:
      start: The first of them.
      stop: The one after the last.
      kept: As `draw_kept` of these blocks; None where all samples are.
    """

    start: int
    stop: int
    kept: Kept | None


def num_kept(batch: int, rate: float) -> int:
    """Samples computed out of `batch` at a drop rate."""
    return max(int(batch * (1 - rate)), 1)


def draw_kept(
    key: jax.Array,
    *,
    rate: float,
    num_groups: int,
    depth: int,
    batches: Sequence[int],
) -> Kept:
    """Which samples each block computes, drawn for all blocks at once.

    Args:
      key: PRNG key.
      rate: Drop rate, above 0.
      num_groups: G.
      depth: Number of blocks L that share this rate.
      batches: Samples b of each crop group.

    Returns:
      For the two branches, for each crop group: int32 [L, G, k].
    """

    def draw(branch_key):
        keys = jax.random.split(branch_key, len(batches))
        return tuple(
            jnp.argsort(jax.random.uniform(k, (depth, num_groups, batch)), axis=-1)[
                ..., : num_kept(batch, rate)
            ]
            for k, batch in zip(keys, batches)
        )

    first, second = jax.random.split(key, 2)
    return draw(first), draw(second)


def draw_runs(
    key: jax.Array,
    rates: Sequence[float],
    *,
    num_groups: int,
    batches: Sequence[int],
) -> list[Run]:
    """What all blocks keep.

    Args:
      key: PRNG key.
      rates: Drop rate of each block.
      num_groups: G.
      batches: Samples b of each crop group.

    Returns:
      The blocks in order, those next to each other with the same rate in one run.
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
    """x + branch(x), computed on the kept samples only.

    Args:
      x: [G, T, D], crop groups one after another, their samples one after another.
      branch: ([G, T', D], sequences of T', their `statistics` of
        `kernels.layer_norm.project` or None) -> [G, T', D] and a bias [D], or None,
        that is to be added to it.
      sequences: (count, length) of each crop group of x.
      kept: None for all; else one [G, k] of sample indices a crop group.

    Returns:
      [G, T, D].
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
    """[G, k] kept samples of `batch` -> float32 [G, batch]: b / k of those, else 0."""
    is_kept = jnp.any(kept[..., None] == jnp.arange(batch), axis=1)
    return is_kept * (batch / kept.shape[1])


def _split(x: jax.Array, sequences: Sequences) -> list[jax.Array]:
    """[G, T, D] -> one [G, count, length, D] a crop group."""
    parts, start = [], 0
    for count, length in sequences:
        stop = start + count * length
        parts.append(x[:, start:stop].reshape(x.shape[0], count, length, x.shape[-1]))
        start = stop
    return parts


def _joined(parts: Sequence[Any]) -> Any:
    """Trees of [G, T, ...] -> one tree, one part after another."""
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays, axis=1), *parts)

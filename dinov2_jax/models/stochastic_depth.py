"""Stochastic depth as a batch subset: dropped samples are not computed.

Mirrors `NestedTensorBlock.forward_nested` of the reference's `layers/block.py`: in each
crop group and residual branch, k = max(int(b * (1 - rate)), 1) of the b samples are
drawn without replacement, and their residual is added back scaled by b / k. Here b
counts the samples of one group of the batch, so that gathers stay on their device.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

# Otherwise gathers select between what they take and a fill value.
_IN_BOUNDS = "promise_in_bounds"

Sequences = tuple[tuple[int, int], ...]


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
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
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
    branches = []
    for branch_key in jax.random.split(key, 2):
        keys = jax.random.split(branch_key, len(batches))
        branches.append(
            tuple(
                jnp.argsort(jax.random.uniform(k, (depth, num_groups, batch)), axis=-1)[
                    ..., : num_kept(batch, rate)
                ]
                for k, batch in zip(keys, batches)
            )
        )
    return tuple(branches)


def add_residual(
    x: jax.Array,
    branch: Callable[[jax.Array, Sequences], jax.Array],
    sequences: Sequences,
    kept: tuple[jax.Array, ...] | None,
) -> jax.Array:
    """x + branch(x), computed on the kept samples only.

    Args:
      x: [G, T, D], crop groups one after another, their samples one after another.
      branch: ([G, T', D], sequences of T') -> [G, T', D].
      sequences: (count, length) of each crop group of x.
      kept: None for all; else one [G, k] of sample indices a crop group.

    Returns:
      [G, T, D].
    """
    if kept is None:
        return x + branch(x, sequences).astype(x.dtype)
    parts = _split(x, sequences)
    subsets = [
        jnp.take_along_axis(part, indices[:, :, None, None], axis=1, mode=_IN_BOUNDS)
        for part, indices in zip(parts, kept)
    ]
    sub_sequences = tuple((s.shape[1], s.shape[2]) for s in subsets)
    residuals = _split(branch(_flatten(subsets), sub_sequences), sub_sequences)
    added = []
    for part, residual, indices in zip(parts, residuals, kept):
        scale = part.shape[1] / residual.shape[1]
        add = jax.vmap(
            lambda p, i, r: p.at[i].add(r, unique_indices=True, mode=_IN_BOUNDS)
        )
        added.append(add(part, indices, (residual * scale).astype(x.dtype)))
    return _flatten(added)


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


def _flatten(parts: Sequence[jax.Array]) -> jax.Array:
    """Inverse of `_split`."""
    return jnp.concatenate(
        [p.reshape(p.shape[0], -1, p.shape[-1]) for p in parts], axis=1
    )

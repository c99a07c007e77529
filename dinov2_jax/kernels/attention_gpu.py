"""Attention of one crop group on Hopper GPUs, directly from the packed projection.

Compiles for sm90 (H100, H200) and is checked in interpret mode on a CPU; it has not
yet run on hardware.

The method is FlashAttention's (Dao 2023, arXiv:2307.08691): scores never reach main
memory, and the backward pass recomputes them from the saved log-sum-exp. What is new is
the handling of ragged crops. The token matrix is viewed as [crops, length, channels],
so the copy engine (TMA) reads tiles of q, k and v directly from the packed matrix,
fills rows past the end of a crop with zeros and drops them when writing. Main memory
holds no padding, no transposed copy and no mask.

Shapes: G groups, B crops of a group, N = G * B crops, L tokens of a crop, H heads of
64 channels, D = 64 * H. L4 is L rounded up to a multiple of 4, because the copy engine
needs strides of 16 bytes.
"""

import functools
import math
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu

from dinov2_jax.kernels import attention_gpu_launch as launch

# Not yet tuned on hardware. The forward pass uses 94 to 98 registers a thread (see
# `benchmarks/gpu_compile.py`), so four warpgroups share a multiprocessor; the backward
# pass uses 157 to 160, so three do: keep it under 168.
TEAM = 2  # warpgroups in a forward block, which share the keys they read
STAGES = 5  # pairs of tiles in memory at a time, forward
BACKWARD_STAGES = 3

Q, K, V, DOUT = range(4)  # the first three index parts of the packed matrix

_SCALE = launch.CHANNELS**-0.5
_EXP2_SCALE = _SCALE * math.log2(math.e)  # exp(_SCALE * s) = exp2(_EXP2_SCALE * s)


def supports(*, dtype: Any, length: int, num_heads: int, head_dim: int) -> bool:
    """Whether `attention` supports such a crop group."""
    del length, num_heads
    half = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
    return half and head_dim == launch.CHANNELS


def attention(
    qkv: jax.Array, *, count: int, length: int, num_heads: int, interpret: bool = False
) -> jax.Array:
    """Compute softmax attention within each crop of a group, differentiable once.

    Args:
      qkv: Packed projections, bfloat16 or float16 [G, B * L, 3*D]; the last axis is
        [q | k | v], each H heads of 64 channels.
      count: Number of crops B in a group.
      length: Number of tokens L in a crop.
      num_heads: Number of heads H.
      interpret: Whether to run in jax's interpreter of GPU kernels, on any machine.

    Returns:
      [G, B * L, D] in the dtype of `qkv`; sums and softmax in float32.

    Raises:
      ValueError: `supports` is false, the sizes do not agree, or there are 65536 crops
        or more.
    """
    groups, tokens, width = qkv.shape
    shape = {"length": length, "num_heads": num_heads}
    if (
        not supports(dtype=qkv.dtype, **shape, head_dim=width // (3 * num_heads))
        or (tokens, width) != (count * length, 3 * launch.CHANNELS * num_heads)
        or groups * count >= 2**16  # limit of a launch's slowest grid axis
    ):
        raise ValueError(
            "the GPU kernel takes 16-bit qkv of [G, count * length, 192 * num_heads],"
            f" not {qkv.dtype}{list(qkv.shape)} with {count=} {length=} {num_heads=}"
        )
    crops = qkv.reshape(groups * count, length, width)
    return _attention(crops, interpret).reshape(groups, tokens, width // 3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _attention(qkv, interpret):
    """Compute attention, [N, L, 3*D] -> [N, L, D]."""
    return _forward(qkv, interpret, with_lse=False)[0]


def _attention_fwd(qkv, interpret):
    out, lse = _forward(qkv, interpret, with_lse=True)
    return out, (qkv, out, lse)


def _attention_bwd(interpret, residuals, dout):
    return (_backward(*residuals, dout, interpret),)


_attention.defvjp(_attention_fwd, _attention_bwd)


def _forward(qkv, interpret, *, with_lse):
    """Return out [N, L, D] and, if asked, the base-2 log-sum-exp, float32 [N, H, L4].

    Each warpgroup has a tile of queries; the warpgroups of a block share the keys and
    values that are streamed.
    """
    plan = launch.Plan(qkv, STAGES, interpret)
    ops, stages = plan.ops, plan.stages
    team = min(TEAM, plan.tiles)

    def kernel(
        qkv_ref, out_ref, lse_ref,
        q2, k, v, lse2, q_ready, k_ready, v_ready, free,
    ):  # fmt: skip
        crop, head, block, member = _indices()
        mine = block * team + member
        q, lse = q2.at[member], lse2.at[member]
        source = functools.partial(plan.window, qkv_ref, crop, head)

        def load(step, slot):
            plan.load(source(K, step), k.at[slot], k_ready.at[slot])
            plan.load(source(V, step), v.at[slot], v_ready.at[slot])

        def release(slot, refill):
            plgpu.barrier_arrive(free.at[slot])

            @pl.when(member == 0)
            def _leader():
                plgpu.barrier_wait(free.at[slot])
                refill()

        def body(step, slot, sums, last):
            out, top, total = sums  # over the keys so far; top is the largest score
            plgpu.barrier_wait(k_ready.at[slot])
            scores = ops.matmul(q, k.at[slot], transpose=True)
            if last:
                scores = jnp.where(plan.last_keys(), scores, -jnp.inf)
            new_top = jnp.maximum(top, _EXP2_SCALE * scores.max(axis=1))
            fade = jnp.exp2(top - new_top)
            weights = jnp.exp2(_EXP2_SCALE * scores - _spread(new_top, launch.ROWS))
            total = total * fade + weights.sum(axis=1)
            out = out * _spread(fade, launch.ROWS)
            plgpu.barrier_wait(v_ready.at[slot])
            out = ops.matmul(weights.astype(qkv.dtype), v.at[slot], add_to=out)
            return out, new_top, total

        def run():
            plan.load(source(Q, mine), q, q_ready.at[member])
            plgpu.barrier_wait(q_ready.at[member])
            out = plan.full(0.0)
            top = plan.full(-jnp.inf, launch.ROWS)
            total = plan.full(0.0, launch.ROWS)
            out, top, total = plan.stream(load, body, (out, top, total), release)
            q[...] = (out * _spread(1 / total, launch.ROWS)).astype(qkv.dtype)
            if with_lse:
                lse[...] = top + jnp.log2(total)
            plgpu.commit_smem()
            plan.store(q, plan.window(out_ref, crop, head, Q, mine))
            if with_lse:
                plgpu.copy_smem_to_gmem(lse, _row(lse_ref, crop, head, mine))
            plgpu.wait_smem_to_gmem(0)

        @pl.when(member == 0)
        def _fill():
            plan.fill(load)

        # A warpgroup past the end of the crop may exit, unless others wait for it to
        # free tiles: then it works on zeros, and the copy engine drops what it writes.
        if stages == plan.tiles:
            pl.when(mine < plan.tiles)(run)
        else:
            run()

    out, lse = plan.call(
        kernel,
        blocks=pl.cdiv(plan.tiles, team),
        team=team,
        out_type=(
            plan.tokens(qkv.shape[2] // 3, team),
            plan.statistics(team) if with_lse else None,
        ),
        scratch_types=(
            plan.buffers(team),
            plan.buffers(stages),
            plan.buffers(stages),
            plgpu.SMEM((team, launch.TILE), jnp.float32),
            plgpu.Barrier(num_barriers=team),
            plgpu.Barrier(num_barriers=stages),
            plgpu.Barrier(num_barriers=stages),
            plgpu.Barrier(num_arrivals=team, num_barriers=stages),
        ),
    )(qkv)
    return out[:, : plan.length], lse


def _backward(qkv, out, lse, dout, interpret):
    """Return the gradient [N, L, 3*D] of qkv, given that of the output, [N, L, D].

    One launch has two kinds of blocks, of one warpgroup each. Both hold a tile of the
    tokens whose gradient they write and stream all tokens:

      writes   holds     streams   scores are
      dk, dv   k, v      q, dout   [keys, queries]
      dq       q, dout   k, v      [queries, keys]

    so no two blocks add to the same number, and results are deterministic. Queries past
    the crop need no mask: their dout is zero.
    """
    plan = launch.Plan(qkv, BACKWARD_STAGES, interpret)
    ops, tiles, stages = plan.ops, plan.tiles, plan.stages

    def kernel(
        qkv_ref, dout_ref, lse_ref, delta_ref, dqkv_ref,
        held_a, held_b, streamed_a, streamed_b, lse, delta,
        held_ready, a_ready, b_ready, statistics_ready,
    ):  # fmt: skip
        crop, head, block, _ = _indices()

        def source(part, tile):
            if part == DOUT:
                return plan.window(dout_ref, crop, head, Q, tile)
            return plan.window(qkv_ref, crop, head, part, tile)

        def load_statistics(tile, slot):
            ready = statistics_ready.at[slot]
            for ref, buffer in ((lse_ref, lse), (delta_ref, delta)):
                source = _row(ref, crop, head, tile)
                plgpu.copy_gmem_to_smem(source, buffer.at[slot], ready)

        def run(mine, held, streamed):
            of_keys = held == (K, V)
            queries = launch.COLUMNS if of_keys else launch.ROWS

            def load(step, slot):
                a, b = (source(part, step) for part in streamed)
                plan.load(a, streamed_a.at[slot], a_ready.at[slot])
                plan.load(b, streamed_b.at[slot], b_ready.at[slot])
                if of_keys:
                    load_statistics(step, slot)

            def body(step, slot, sums, last):
                a, b = streamed_a.at[slot], streamed_b.at[slot]
                place = slot if of_keys else 0
                plgpu.barrier_wait(a_ready.at[slot])
                scores = ops.matmul(held_a, a, transpose=True)
                if of_keys:
                    plgpu.barrier_wait(statistics_ready.at[slot])
                log_total = ops.lay_out(lse.at[place][...], queries)
                weights = jnp.exp2(_EXP2_SCALE * scores - _spread(log_total, queries))
                if last and not of_keys:
                    weights = jnp.where(plan.last_keys(), weights, 0.0)
                plgpu.barrier_wait(b_ready.at[slot])
                if of_keys:  # first, as it frees registers
                    db = ops.matmul(weights.astype(qkv.dtype), b, add_to=sums[1])
                dweights = ops.matmul(held_b, b, transpose=True)
                mean = ops.lay_out(delta.at[place][...], queries)
                dscores = weights * (dweights - _spread(mean, queries))
                da = ops.matmul(dscores.astype(qkv.dtype), a, add_to=sums[0])
                return (da, db) if of_keys else (da,)

            def release(slot, refill):
                if of_keys:  # threads must have read statistics before their overwrite
                    plgpu.commit_smem()
                refill()

            for part, buffer in zip(held, (held_a, held_b)):
                plan.load(source(part, mine), buffer, held_ready)
            if not of_keys:
                load_statistics(mine, 0)
                plgpu.barrier_wait(statistics_ready.at[0])
            plan.fill(load)
            plgpu.barrier_wait(held_ready)
            written = held if of_keys else (Q,)
            sums = tuple(plan.full(0.0) for _ in written)
            sums = plan.stream(load, body, sums, release)
            # The held tiles are no longer needed: reuse them to store the gradients.
            held_a[...] = (_SCALE * sums[0]).astype(qkv.dtype)
            if of_keys:
                held_b[...] = sums[1].astype(qkv.dtype)
            plgpu.commit_smem()
            for part, buffer in zip(written, (held_a, held_b)):
                plan.store(buffer, plan.window(dqkv_ref, crop, head, part, mine))
            plgpu.wait_smem_to_gmem(0)

        @pl.when(block < tiles)
        def _keys():
            run(block, (K, V), (Q, DOUT))

        @pl.when(block >= tiles)
        def _queries():
            run(block - tiles, (Q, DOUT), (K, V))

    delta = out.astype(jnp.float32) * dout.astype(jnp.float32)
    delta = delta.reshape(*out.shape[:2], plan.heads, launch.CHANNELS).sum(axis=-1)
    delta = jnp.pad(delta.swapaxes(1, 2), ((0, 0), (0, 0), (0, -plan.length % 4)))
    dqkv = plan.call(
        kernel,
        blocks=2 * tiles,
        out_type=plan.tokens(qkv.shape[2]),
        scratch_types=(
            plan.buffers(),
            plan.buffers(),
            plan.buffers(stages),
            plan.buffers(stages),
            plgpu.SMEM((stages, launch.TILE), jnp.float32),
            plgpu.SMEM((stages, launch.TILE), jnp.float32),
            plgpu.Barrier(num_arrivals=2),
            plgpu.Barrier(num_barriers=stages),
            plgpu.Barrier(num_barriers=stages),
            plgpu.Barrier(num_arrivals=2, num_barriers=stages),
        ),
    )(qkv, dout, lse, delta)
    return dqkv[:, : plan.length]


def _indices():
    return (lax.axis_index(name) for name in ("crop", "head", "block", "member"))


def _row(ref, crop, head, tile):
    """Index the statistics of a tile of queries."""
    return ref.at[crop, head, pl.ds(tile * launch.TILE, launch.TILE)]


def _spread(x, along):
    """Broadcast a number for each row or column over a tile."""
    return lax.broadcast_in_dim(x, (launch.TILE, launch.TILE), [along])

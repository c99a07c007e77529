"""The work of the TPU attention kernels in one step of their grids.

Every function takes the blocks of `attention_tpu` as references, then scratch memory:
float32 rows of q, k, v, of the output's gradient, and of the results.
"""

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from dinov2_jax.kernels import attention_tpu_ops as ops

SUBLANES = 8


def _interleave(crops, width):
    """Run generators of three stages in batches, interleaved.

    The first stage of a batch runs before the other two stages of the previous batch.

    Args:
      crops: Generators, one a crop.
      width: Number of generators in a batch.
    """
    waiting = []
    for start in range(0, len(crops) + width, width):
        started = crops[start : start + width]
        for stage in (started, waiting, waiting):
            for crop in stage:
                next(crop, None)
        waiting = started


def _crops_together(length):
    return 4 if length <= ops.LANES else 1


def forward_unrolled(length, q_ref, k_ref, v_ref, *refs):
    """Compute the output of a block of crops, with every crop unrolled."""
    *biases, out_ref, q, k, v, out = refs
    dtype = q_ref.dtype
    keys = ops.round_up(length, 16)
    tiles, edge = ops.tiles(length)
    ops.widen((q_ref, k_ref, v_ref), biases, (q, k, v))

    def crop(start):
        last = start + length - edge
        k_crop = ops.load(k, start, keys, length)
        scores = [
            ops.scores(
                k_crop,
                ops.stack(ops.load(q, start + first, rows, valid)),
                length,
                dtype,
            )
            for first, rows, valid in tiles
        ]
        if edge:
            q_edge = ops.stack(ops.load(q, last, 8, edge))
            edge_scores = ops.edge_scores(q_edge, k_crop, length, dtype)
        yield
        v_crop = ops.load(v, start, keys, length)
        softmax = [ops.softmax(tile, 0) for tile in scores]
        if edge:
            edge_weights, edge_norm = ops.softmax(edge_scores, 1)
        yield
        vt = v_crop.T
        for (first, _, valid), (weights, norm) in zip(tiles, softmax):
            values = ops.by_query(vt, weights, norm, dtype)
            out[pl.ds(start + first, valid), :] = values[:valid]
        if edge:
            values = ops.unstack(
                ops.dot(edge_weights, v_crop, ops.NN, dtype) * edge_norm
            )
            out[pl.ds(last, edge), :] = values[:edge]

    rows = q_ref.shape[1]
    crops = [crop(start) for start in range(0, rows, length)]
    _interleave(crops, _crops_together(length))
    out_ref[0] = out[:rows, :].astype(dtype)


def backward_unrolled(length, dtype, refs, biases, q, k, v, dout, dq, dk, dv):
    """Compute dq, dk and dv of a block of crops, with every crop unrolled."""
    keys = ops.round_up(length, 16)
    tiles, edge = ops.tiles(length)
    ops.widen(refs, (*biases, None), (q, k, v, dout))

    def crop(start):
        last = start + length - edge
        k_crop = ops.load(k, start, keys, length)
        v_crop = ops.load(v, start, keys, length)
        operands = [
            [ops.stack(ops.load(x, start + first, rows, valid)) for x in (q, dout)]
            for first, rows, valid in tiles
        ]
        scores = [
            (
                ops.scores(k_crop, q_tile, length, dtype),
                ops.dot(v_crop, dout_tile, ops.NT, dtype),
            )
            for q_tile, dout_tile in operands
        ]
        if edge:
            q_edge, dout_edge = (
                ops.stack(ops.load(x, last, 8, edge)) for x in (q, dout)
            )
            edge_scores = ops.edge_scores(q_edge, k_crop, length, dtype)
            edge_dweights = ops.dot(dout_edge, v_crop, ops.NT, dtype)
        yield
        gradients = [ops.gradients(*tile, 0, dtype) for tile in scores]
        if edge:
            weights, dscores = ops.gradients(edge_scores, edge_dweights, 1, dtype)
        yield
        dk_crop = dv_crop = 0
        kt = k_crop.T
        if edge:
            dv_crop = ops.dot(weights, dout_edge, ops.TN, dtype)
            dk_crop = ops.dot(dscores, q_edge, ops.TN, dtype)
            values = ops.unstack(ops.dot(dscores, k_crop, ops.NN, dtype)) * ops.SCALE
            dq[pl.ds(last, edge), :] = values[:edge]
        for (first, _, valid), tile, (weights, dscores) in zip(
            tiles, operands, gradients
        ):
            q_tile, dout_tile = tile
            dv_crop += ops.dot(weights, dout_tile, ops.NN, dtype)
            dk_crop += ops.dot(dscores, q_tile, ops.NN, dtype)
            norm = jnp.full((1, dscores.shape[1]), ops.SCALE)
            values = ops.by_query(kt, dscores, norm, dtype)
            dq[pl.ds(start + first, valid), :] = values[:valid]
        dv[pl.ds(start, length), :] = dv_crop[:length]
        dk[pl.ds(start, length), :] = dk_crop[:length] / ops.LOG2_E

    rows = refs[0].shape[1]
    crops = [crop(start) for start in range(0, rows, length)]
    _interleave(crops, _crops_together(length))


def forward_looped(length, q_ref, k_ref, v_ref, *refs):
    """Compute the output of a block of long crops, looping over crops and tiles."""
    *biases, out_ref, q, k, v, out, k_crop, vt_crop = refs
    dtype = q_ref.dtype
    keys = ops.round_up(length, 16)
    ops.widen((q_ref, k_ref, v_ref), biases, (q, k, v))

    def crop(n, _):
        start = n * length
        k_crop[...] = ops.load(k, start, keys, length).astype(dtype)
        vt_crop[...] = ops.load(v, start, keys, length).T.astype(dtype)

        def tile(t, _):
            first = t * ops.LANES
            stacked = ops.stack(ops.load(q, start + first, ops.LANES, length - first))
            scores = ops.scores(k_crop[...], stacked, length, dtype)
            weights, norm = ops.softmax(scores, 0)
            # The next crop overwrites what a last tile writes beyond its crop.
            out[pl.ds(start + first, ops.LANES), :] = ops.by_query(
                vt_crop[...], weights, norm, dtype
            )

        lax.fori_loop(0, pl.cdiv(length, ops.LANES), tile, None)

    rows = q_ref.shape[1]
    lax.fori_loop(0, rows // length, crop, None)
    out_ref[0] = out[:rows, :].astype(dtype)


def backward_looped(
    length,
    dtype,
    refs,
    biases,
    q,
    k,
    v,
    dout,
    dq,
    dk,
    dv,
    k_crop,
    v_crop,
    kt_crop,
    dk_crop,
    dv_crop,
):
    """Compute dq, dk and dv of a block of long crops, by the same loops."""
    keys = ops.round_up(length, 16)
    ops.widen(refs, (*biases, None), (q, k, v, dout))

    def crop(n, _):
        start = n * length
        k_rows = ops.load(k, start, keys, length)
        k_crop[...] = k_rows.astype(dtype)
        kt_crop[...] = k_rows.T.astype(dtype)
        v_crop[...] = ops.load(v, start, keys, length).astype(dtype)
        dk_crop[...] = jnp.zeros_like(dk_crop)
        dv_crop[...] = jnp.zeros_like(dv_crop)

        def tile(t, _):
            first = t * ops.LANES
            q_tile, dout_tile = (
                ops.stack(ops.load(x, start + first, ops.LANES, length - first))
                for x in (q, dout)
            )
            scores = ops.scores(k_crop[...], q_tile, length, dtype)
            dweights = ops.dot(v_crop[...], dout_tile, ops.NT, dtype)
            weights, dscores = ops.gradients(scores, dweights, 0, dtype)
            dv_crop[...] += ops.dot(weights, dout_tile, ops.NN, dtype)
            dk_crop[...] += ops.dot(dscores, q_tile, ops.NN, dtype)
            norm = jnp.full((1, 2 * ops.LANES), ops.SCALE)
            dq[pl.ds(start + first, ops.LANES), :] = ops.by_query(
                kt_crop[...], dscores, norm, dtype
            )

        lax.fori_loop(0, pl.cdiv(length, ops.LANES), tile, None)
        dv[pl.ds(start, length), :] = dv_crop[:length, :]
        dk[pl.ds(start, length), :] = dk_crop[:length, :] / ops.LOG2_E

    lax.fori_loop(0, refs[0].shape[1] // length, crop, None)


def write_in_turn(kernel, tokens, q_ref, k_ref, v_ref, *refs):
    """Run `kernel` at the first step; write one of dq, dk, dv and its sums at each."""
    *biases, dout_ref, dqkv_ref, dbias_ref, q, k, v, dout, dq, dk, dv = refs[:13]
    block, part = pl.program_id(1), pl.program_id(3)

    @pl.when(part == 0)
    def _():
        kernel(
            dqkv_ref.dtype,
            (q_ref, k_ref, v_ref, dout_ref),
            biases,
            *(q, k, v, dout, dq, dk, dv, *refs[13:]),
        )

    for n, gradient in enumerate((dq, dk, dv)):

        @pl.when(part == n)
        def _(gradient=gradient):
            rows = dqkv_ref.shape[1]
            size = ops.round_up(rows, SUBLANES)
            x = gradient[:size, :]
            dqkv_ref[0] = x[:rows].astype(dqkv_ref.dtype)
            valid = rows
            if tokens % rows:  # the last block extends beyond the stream
                valid = jnp.minimum(tokens - block * rows, rows)
            dbias_ref[0, 0] = _sums(x, valid)


def _sums(x, valid):
    """Sum every eighth row of those below `valid`, to [8, 128]."""
    if not isinstance(valid, int) or valid < len(x):
        x = jnp.where(lax.broadcasted_iota(jnp.int32, (len(x), 1), 0) < valid, x, 0)
    return jnp.sum(x.reshape(-1, SUBLANES, ops.LANES), axis=0)

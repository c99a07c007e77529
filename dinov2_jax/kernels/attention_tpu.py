"""Attention inside whole crops as Pallas kernels for TPU, forward and backward.

Mirrors `MemEffAttention` of the reference's `layers/attention.py` for one group of
crops of equal length. Nothing is padded, copied or transposed in main memory: q, k
and v are column blocks of the packed projection, 128 lanes (two heads of 64) wide and
a whole number of crops tall, and the gradient leaves in the same packed form.

Inside a block the rows of one crop start anywhere, which only 32-bit rows may do, so a
block is first widened to float32 in scratch memory (and q scaled by log2(e) / 8, for
powers of two instead of exponentials). Scores are kept transposed, [keys, queries]:
maxima, sums and their broadcasts then run along sublanes, the other matrix products
need no transposed score matrix, and both heads share one contraction over 128 lanes,
[k0 | k1] times [[q0, 0], [0, q1]] transposed. One to eight queries beyond a multiple of
128 (the class token and registers of 256 patches) would fill a tile of 128 columns, so
they stay rows. Whole score matrices fit in vector memory, so softmax is never online,
and the backward kernel recomputes it from q and k alone: nothing else is saved.

The scheduler of the compiler sees little further than a crop, so the order of the
program interleaves crops: the scores of the next are formed before the softmax of this
one. Every choice was made by counting scheduled bundles (`benchmarks/tpu_cycles.py`).

Letters: G groups, D = 64 * H width, H heads, N = keys of a crop rounded up to 16,
M query rows of one head.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

HEAD_DIM = 64
LANES = 128
SCALE = HEAD_DIM**-0.5
LOG2_E = math.log2(math.e)
# Longer crops are walked in tiles of 128 queries by a loop instead of being unrolled.
LONGEST_UNROLLED = 600
# Rows that a crop's last tile may reach beyond it.
SLACK = 128
VMEM_BYTES = 60 * 2**20
_SUBLANES = 8

NN = (((1,), (0,)), ((), ()))
NT = (((1,), (1,)), ((), ()))
TN = (((0,), (0,)), ((), ()))


def supports(*, dtype: Any, length: int, num_heads: int, head_dim: int) -> bool:
    """Whether `attention` takes crops of this shape, however many they are.

    The longest that fit in vector memory are 1,105 tokens in bfloat16 where the length
    is odd, 1,978, 3,268 and 4,840 where 2, 4 and 8 divide it, because a block is whole
    crops and whole tiles of 8 rows.
    """
    dtype = jnp.dtype(dtype)
    return (
        head_dim == HEAD_DIM
        and num_heads % 2 == 0
        and dtype in (jnp.bfloat16, jnp.float32)
        and _vmem_bytes(length, dtype) <= VMEM_BYTES
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _attention(qkv, bias, count, length, num_heads, interpret):
    return _forward(qkv, bias, count, length, num_heads, interpret)


def attention(
    qkv: jax.Array,
    bias: jax.Array | None = None,
    *,
    count: int,
    length: int,
    num_heads: int,
    interpret: bool = False,
) -> jax.Array:
    """Softmax attention inside each of `count` crops of `length` tokens.

    Args:
      qkv: [G, count * length, 3 * D] bfloat16 or float32; the last axis is
        [q | k | v], each H heads of 64 channels.
      bias: [3 * D], added to the projection of every token, or None.
      count: Crops of a group.
      length: Tokens of a crop.
      num_heads: H, even.
      interpret: Run the kernels' operations one by one on any backend; also a
        `pltpu.InterpretParams`.

    Returns:
      [G, count * length, D] in the dtype of `qkv`; scores, softmax and sums are
      float32.

    Raises:
      ValueError: `supports` is false for these shapes.
    """
    shape = dict(
        length=length, num_heads=num_heads, head_dim=qkv.shape[2] // (3 * num_heads)
    )
    if qkv.shape[1] != count * length or not supports(dtype=qkv.dtype, **shape):
        raise ValueError(f"no kernel for {qkv.dtype} {qkv.shape}, {count=}, {shape}")
    if bias is None:
        bias = jnp.zeros(qkv.shape[-1:], qkv.dtype)
    varying = (jax.typeof(x).manual_axis_type.varying for x in (qkv, bias))
    axes = tuple(frozenset.difference(*varying))
    if axes:  # of a mesh over whose devices the gradient of the bias is summed
        bias = lax.pcast(bias, axes, to="varying")
    return _attention(qkv, bias, count, length, num_heads, interpret)


def _attention_fwd(qkv, bias, count, length, num_heads, interpret):
    out = _forward(qkv, bias, count, length, num_heads, interpret)
    return out, (checkpoint_name(qkv, "qkv"), bias)


def _attention_bwd(count, length, num_heads, interpret, saved, dout):
    return _backward(*saved, dout, count, length, num_heads, interpret)


_attention.defvjp(_attention_fwd, _attention_bwd)


def _round_up(x: int, multiple: int) -> int:
    return -(-x // multiple) * multiple


def _crops_per_block(count: int, length: int) -> int:
    """Crops of a block: whole tiles of 8 rows, few crops computed for nothing."""
    step = 8 // math.gcd(length, 8)
    if length > LONGEST_UNROLLED:
        return min(count, step)
    most = 32 if length <= LANES else 8
    if count <= most:
        return count
    choices = range(_round_up(most // 2, step), most + 1, step)
    return min(choices, key=lambda crops: (_round_up(count, crops), -crops))


def _vmem_bytes(length: int, dtype: jnp.dtype) -> int:
    """Vector memory of the backward kernel, the larger one, at its largest block."""
    crops = max(_crops_per_block(count, length) for count in range(1, 65))
    rows = _round_up(crops * length, 16) + SLACK
    blocks = 5 * 2 * rows * LANES * dtype.itemsize
    scratch = 7 * rows * LANES * 4
    if length > LONGEST_UNROLLED:
        # Staged operands and sums of a crop, then four tiles of scores.
        scratch += 5 * (length + 16) * LANES * 4
        scratch += 4 * (length + 16) * 2 * LANES * 4
    return blocks + scratch


def _specs(qkv, count, length, num_heads):
    """Grid, crops of a block, and the block of a column of heads and of its bias."""
    crops = _crops_per_block(count, length)
    pairs = num_heads // 2
    grid = (qkv.shape[0], pl.cdiv(count, crops), pairs)

    def spec(part):
        def index(g, i, pair, *_):
            return g, i, part * pairs + pair

        return pl.BlockSpec((1, crops * length, LANES), index)

    def bias_spec(part):
        return pl.BlockSpec((1, LANES), lambda g, i, pair, *_: (0, part * pairs + pair))

    return grid, crops, spec, bias_spec


def _scratch(crops, length, number):
    rows = _round_up(crops * length, 16) + SLACK
    return [pltpu.VMEM((rows, LANES), jnp.float32)] * number


def _cost(qkv, count, length, products):
    groups, tokens, columns = qkv.shape
    scores = groups * count * length**2 * (columns // (3 * HEAD_DIM))
    return pl.CostEstimate(
        flops=2 * products * HEAD_DIM * scores,
        transcendentals=scores,
        bytes_accessed=(4 if products == 2 else 7) * qkv.size // 3 * qkv.dtype.itemsize,
    )


def _params(grid):
    return pltpu.CompilerParams(
        dimension_semantics=("parallel",) * 3 + ("arbitrary",) * (len(grid) - 3),
        vmem_limit_bytes=VMEM_BYTES,
    )


def _like(shape, x, dtype=None):
    """An array of this shape that varies over a mesh as `x` does."""
    varying = jax.typeof(x).manual_axis_type
    return jax.ShapeDtypeStruct(shape, dtype or x.dtype, manual_axis_type=varying)


def _forward(qkv, bias, count, length, num_heads, interpret):
    grid, crops, spec, bias_spec = _specs(qkv, count, length, num_heads)
    looped = length > LONGEST_UNROLLED
    keys = _round_up(length, 16)
    staged = [
        pltpu.VMEM((keys, LANES), qkv.dtype),
        pltpu.VMEM((LANES, keys), qkv.dtype),
    ]
    return pl.pallas_call(
        functools.partial(_forward_looped if looped else _forward_unrolled, length),
        grid=grid,
        in_specs=[f(part) for f in (spec, bias_spec) for part in range(3)],
        out_specs=spec(0),
        out_shape=_like((*qkv.shape[:2], HEAD_DIM * num_heads), qkv),
        scratch_shapes=_scratch(crops, length, 4) + (staged if looped else []),
        compiler_params=_params(grid),
        cost_estimate=_cost(qkv, count, length, products=2),
        interpret=interpret,
        name="attention_forward",
    )(*[qkv] * 3, *[bias[None]] * 3)


def _backward(qkv, bias, dout, count, length, num_heads, interpret):
    grid, crops, spec, bias_spec = _specs(qkv, count, length, num_heads)
    looped = length > LONGEST_UNROLLED
    keys = _round_up(length, 16)
    staged = [pltpu.VMEM((keys, LANES), qkv.dtype)] * 2
    staged += [pltpu.VMEM((LANES, keys), qkv.dtype)]
    staged += [pltpu.VMEM((keys, LANES), jnp.float32)] * 2
    pairs = num_heads // 2
    kernel = _backward_looped if looped else _backward_unrolled
    # The last axis writes dq, dk and dv of one pair of heads, each into its own
    # columns: the inputs stay where they are and the work is done at its first step.
    # The gradient of the bias leaves as sums of every eighth row of a block.
    _, tokens, columns = qkv.shape
    sums = (*grid[:2], _SUBLANES, columns)
    dqkv, dbias = pl.pallas_call(
        functools.partial(_write_in_turn, functools.partial(kernel, length), tokens),
        grid=(*grid, 3),
        in_specs=[f(part) for f in (spec, bias_spec) for part in range(3)] + [spec(0)],
        out_specs=[
            pl.BlockSpec(
                (1, crops * length, LANES),
                lambda g, i, pair, part: (g, i, part * pairs + pair),
            ),
            pl.BlockSpec(
                (1, 1, _SUBLANES, LANES),
                lambda g, i, pair, part: (g, i, 0, part * pairs + pair),
            ),
        ],
        out_shape=[_like(qkv.shape, qkv), _like(sums, qkv, jnp.float32)],
        scratch_shapes=_scratch(crops, length, 7) + (staged if looped else []),
        compiler_params=_params((*grid, 3)),
        cost_estimate=_cost(qkv, count, length, products=5),
        interpret=interpret,
        name="attention_backward",
    )(*[qkv] * 3, *[bias[None]] * 3, dout)
    return dqkv, jnp.sum(dbias, axis=(0, 1, 2)).astype(bias.dtype)


# Arithmetic of one crop and one pair of heads.


def _dot(a, b, contraction, dtype):
    return lax.dot_general(
        a.astype(dtype),
        b.astype(dtype),
        contraction,
        precision=lax.Precision.HIGHEST if dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )


def _first_head():
    """[1, 128]: the lanes of the first of two heads."""
    return lax.broadcasted_iota(jnp.int32, (1, LANES), 1) < HEAD_DIM


def _rows(ref, start, rows, valid):
    """[rows, 128] float32 from row `start`; zero from row `valid` on."""
    x = ref[pl.ds(start, rows), :]
    if isinstance(valid, int) and valid >= rows:
        return x
    return jnp.where(lax.broadcasted_iota(jnp.int32, (rows, 1), 0) < valid, x, 0)


def _stack(x):
    """[M, 128] -> [2 * M, 128]: one head after the other, the other's lanes zero."""
    first = _first_head()
    return jnp.concatenate([jnp.where(first, x, 0), jnp.where(first, 0, x)])


def _unstack(x):
    """[2 * M, 128] -> [M, 128]: the lanes of each head from its own rows."""
    half = x.shape[0] // 2
    return jnp.where(_first_head(), x[:half], x[half:])


def _by_query(at, weights, norm, dtype):
    """[128, N] by [N, 2 * M] by [1, 2 * M], each head its own queries -> [M, 128]."""
    rows = weights.shape[1] // 2
    if rows % LANES:
        return _unstack((_dot(at, weights, NN, dtype) * norm).T)
    parts = []
    for h in range(2):
        channels = slice(h * HEAD_DIM, (h + 1) * HEAD_DIM)
        queries = slice(h * rows, (h + 1) * rows)
        product = _dot(at[channels], weights[:, queries], NN, dtype)
        parts.append(product * norm[:, queries])
    return jnp.concatenate(parts).T


def _scores(k, stacked, length, dtype):
    """[N, 2 * M] base-2 scores of stacked queries, -inf for keys beyond the crop."""
    scores = _dot(k, stacked, NT, dtype)
    if k.shape[0] == length:
        return scores
    keys = lax.broadcasted_iota(jnp.int32, (k.shape[0], 1), 0)
    return jnp.where(keys < length, scores, -jnp.inf)


def _edge_scores(stacked, k, length, dtype):
    """[16, N]: the same of a few queries, as rows."""
    keys = lax.broadcasted_iota(jnp.int32, (1, k.shape[0]), 1)
    return jnp.where(keys < length, _dot(stacked, k, NT, dtype), -jnp.inf)


def _softmax(scores, axis):
    """Weights before division, and what to multiply them by."""
    weights = jnp.exp2(scores - jnp.max(scores, axis, keepdims=True))
    return weights, 1 / jnp.sum(weights, axis, keepdims=True)


def _gradients(scores, dweights, axis, dtype):
    """The weights, and the gradient of the scores (in units of natural scores)."""
    weights, norm = _softmax(scores, axis)
    weights = weights * norm
    delta = jnp.sum(weights * dweights, axis, keepdims=True)
    return weights.astype(dtype), (weights * (dweights - delta)).astype(dtype)


def _tiles(length):
    """Tiles of a crop as (first query, rows a head, valid rows); queries at its edge.

    The rows of both heads together fill whole tiles of 128 lanes.
    """
    whole = length // LANES * LANES
    rest = length - whole
    if rest > LANES // 2:
        return [(0, whole + LANES, length)], 0
    tiles = [(0, whole, whole)] if whole else []
    if whole and rest <= 8:
        return tiles, rest
    return tiles + [(whole, LANES // 2, rest)], 0


def _widen(refs, biases, targets):
    """Blocks to float32 rows; the first, q, to the units of base-2 scores."""
    for n, (ref, bias, target) in enumerate(zip(refs, biases, targets)):
        x = ref[0].astype(jnp.float32)
        if bias is not None:
            x += bias[...].astype(jnp.float32)
        target[: ref.shape[1], :] = x * (SCALE * LOG2_E) if n == 0 else x


def _interleave(crops, width):
    """Runs generators of three stages: the first of some before the others of others.

    Args:
      crops: The generators.
      width: How many go together.
    """
    waiting = []
    for start in range(0, len(crops) + width, width):
        started = crops[start : start + width]
        for stage in (started, waiting, waiting):
            for crop in stage:
                next(crop, None)
        waiting = started


def _crops_together(length):
    return 4 if length <= LANES else 1


def _forward_unrolled(length, q_ref, k_ref, v_ref, *refs):
    *biases, out_ref, q, k, v, out = refs
    dtype = q_ref.dtype
    keys = _round_up(length, 16)
    tiles, edge = _tiles(length)
    _widen((q_ref, k_ref, v_ref), biases, (q, k, v))

    def crop(start):
        last = start + length - edge
        k_crop = _rows(k, start, keys, length)
        scores = [
            _scores(k_crop, _stack(_rows(q, start + first, rows, valid)), length, dtype)
            for first, rows, valid in tiles
        ]
        if edge:
            q_edge = _stack(_rows(q, last, 8, edge))
            edge_scores = _edge_scores(q_edge, k_crop, length, dtype)
        yield
        v_crop = _rows(v, start, keys, length)
        softmax = [_softmax(tile, 0) for tile in scores]
        if edge:
            edge_weights, edge_norm = _softmax(edge_scores, 1)
        yield
        vt = v_crop.T
        for (first, _, valid), (weights, norm) in zip(tiles, softmax):
            values = _by_query(vt, weights, norm, dtype)
            out[pl.ds(start + first, valid), :] = values[:valid]
        if edge:
            values = _unstack(_dot(edge_weights, v_crop, NN, dtype) * edge_norm)
            out[pl.ds(last, edge), :] = values[:edge]

    rows = q_ref.shape[1]
    crops = [crop(start) for start in range(0, rows, length)]
    _interleave(crops, _crops_together(length))
    out_ref[0] = out[:rows, :].astype(dtype)


def _backward_unrolled(length, dtype, refs, biases, q, k, v, dout, dq, dk, dv):
    keys = _round_up(length, 16)
    tiles, edge = _tiles(length)
    _widen(refs, (*biases, None), (q, k, v, dout))

    def crop(start):
        last = start + length - edge
        k_crop = _rows(k, start, keys, length)
        v_crop = _rows(v, start, keys, length)
        operands = [
            [_stack(_rows(x, start + first, rows, valid)) for x in (q, dout)]
            for first, rows, valid in tiles
        ]
        scores = [
            (_scores(k_crop, q_tile, length, dtype), _dot(v_crop, dout_tile, NT, dtype))
            for q_tile, dout_tile in operands
        ]
        if edge:
            q_edge, dout_edge = (_stack(_rows(x, last, 8, edge)) for x in (q, dout))
            edge_scores = _edge_scores(q_edge, k_crop, length, dtype)
            edge_dweights = _dot(dout_edge, v_crop, NT, dtype)
        yield
        gradients = [_gradients(*tile, 0, dtype) for tile in scores]
        if edge:
            weights, dscores = _gradients(edge_scores, edge_dweights, 1, dtype)
        yield
        dk_crop = dv_crop = 0
        kt = k_crop.T
        if edge:
            dv_crop = _dot(weights, dout_edge, TN, dtype)
            dk_crop = _dot(dscores, q_edge, TN, dtype)
            values = _unstack(_dot(dscores, k_crop, NN, dtype)) * SCALE
            dq[pl.ds(last, edge), :] = values[:edge]
        for (first, _, valid), tile, (weights, dscores) in zip(
            tiles, operands, gradients
        ):
            q_tile, dout_tile = tile
            dv_crop += _dot(weights, dout_tile, NN, dtype)
            dk_crop += _dot(dscores, q_tile, NN, dtype)
            norm = jnp.full((1, dscores.shape[1]), SCALE)
            values = _by_query(kt, dscores, norm, dtype)
            dq[pl.ds(start + first, valid), :] = values[:valid]
        dv[pl.ds(start, length), :] = dv_crop[:length]
        dk[pl.ds(start, length), :] = dk_crop[:length] / LOG2_E

    rows = refs[0].shape[1]
    crops = [crop(start) for start in range(0, rows, length)]
    _interleave(crops, _crops_together(length))


def _forward_looped(length, q_ref, k_ref, v_ref, *refs):
    *biases, out_ref, q, k, v, out, k_crop, vt_crop = refs
    dtype = q_ref.dtype
    keys = _round_up(length, 16)
    _widen((q_ref, k_ref, v_ref), biases, (q, k, v))

    def crop(n, _):
        start = n * length
        k_crop[...] = _rows(k, start, keys, length).astype(dtype)
        vt_crop[...] = _rows(v, start, keys, length).T.astype(dtype)

        def tile(t, _):
            first = t * LANES
            stacked = _stack(_rows(q, start + first, LANES, length - first))
            scores = _scores(k_crop[...], stacked, length, dtype)
            weights, norm = _softmax(scores, 0)
            # What a last tile writes beyond its crop is written again by the next.
            out[pl.ds(start + first, LANES), :] = _by_query(
                vt_crop[...], weights, norm, dtype
            )

        lax.fori_loop(0, pl.cdiv(length, LANES), tile, None)

    rows = q_ref.shape[1]
    lax.fori_loop(0, rows // length, crop, None)
    out_ref[0] = out[:rows, :].astype(dtype)


def _backward_looped(
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
    keys = _round_up(length, 16)
    _widen(refs, (*biases, None), (q, k, v, dout))

    def crop(n, _):
        start = n * length
        k_rows = _rows(k, start, keys, length)
        k_crop[...] = k_rows.astype(dtype)
        kt_crop[...] = k_rows.T.astype(dtype)
        v_crop[...] = _rows(v, start, keys, length).astype(dtype)
        dk_crop[...] = jnp.zeros_like(dk_crop)
        dv_crop[...] = jnp.zeros_like(dv_crop)

        def tile(t, _):
            first = t * LANES
            q_tile, dout_tile = (
                _stack(_rows(x, start + first, LANES, length - first))
                for x in (q, dout)
            )
            scores = _scores(k_crop[...], q_tile, length, dtype)
            dweights = _dot(v_crop[...], dout_tile, NT, dtype)
            weights, dscores = _gradients(scores, dweights, 0, dtype)
            dv_crop[...] += _dot(weights, dout_tile, NN, dtype)
            dk_crop[...] += _dot(dscores, q_tile, NN, dtype)
            norm = jnp.full((1, 2 * LANES), SCALE)
            dq[pl.ds(start + first, LANES), :] = _by_query(
                kt_crop[...], dscores, norm, dtype
            )

        lax.fori_loop(0, pl.cdiv(length, LANES), tile, None)
        dv[pl.ds(start, length), :] = dv_crop[:length, :]
        dk[pl.ds(start, length), :] = dk_crop[:length, :] / LOG2_E

    lax.fori_loop(0, refs[0].shape[1] // length, crop, None)


def _write_in_turn(kernel, tokens, q_ref, k_ref, v_ref, *refs):
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
            size = _round_up(rows, _SUBLANES)
            x = gradient[:size, :]
            dqkv_ref[0] = x[:rows].astype(dqkv_ref.dtype)
            valid = rows
            if tokens % rows:  # the last block reaches beyond the stream
                valid = jnp.minimum(tokens - block * rows, rows)
            dbias_ref[0, 0] = _sums(x, valid)


def _sums(x, valid):
    """[8, 128]: sums of every eighth row, of those below `valid`."""
    if not isinstance(valid, int) or valid < len(x):
        x = jnp.where(lax.broadcasted_iota(jnp.int32, (len(x), 1), 0) < valid, x, 0)
    return jnp.sum(x.reshape(-1, _SUBLANES, LANES), axis=0)

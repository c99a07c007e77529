"""Attention within crops as Pallas kernels for TPU, forward and backward.

Mirrors `MemEffAttention` of the reference's `layers/attention.py` for one group of
crops of equal length. Nothing is padded, copied or transposed in main memory: q, k
and v are column blocks of the packed projection, 128 lanes (two heads of 64) wide and
a whole number of crops tall, and the gradient is written in the same packed form.

Inside a block a crop may start at any row, which only 32-bit rows allow, so a block is
first widened to float32 in scratch memory (and q scaled by log2(e) / 8, to use powers
of two instead of exponentials). Scores are kept transposed, [keys, queries]: maxima,
sums and their broadcasts then run along sublanes, the other matrix products need no
transposed score matrix, and both heads share one contraction over 128 lanes, [k0 | k1]
times [[q0, 0], [0, q1]] transposed. One to eight queries beyond a multiple of 128 (the
class token and registers of 256 patches) would take a whole tile of 128 columns, so
they are kept as rows. Whole score matrices fit in vector memory, so softmax is never
online, and the backward kernel recomputes it from q and k: nothing else is saved.

The compiler's scheduler looks little further than one crop, so the program itself
interleaves crops: it computes the next crop's scores before this one's softmax. Every
choice was made by counting scheduled bundles (`benchmarks/tpu_cycles.py`).

This file has the calls and their blocks, `attention_tpu_steps` the work in one block,
`attention_tpu_ops` the arithmetic of one crop.

Shapes: G groups, D = 64 * H width, H heads, N = keys of a crop rounded up to 16,
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

from dinov2_jax.kernels import attention_tpu_ops as ops
from dinov2_jax.kernels import attention_tpu_steps as steps

# Longer crops take a loop over tiles of 128 queries instead of unrolled code.
LONGEST_UNROLLED = 600
# Rows that a crop's last tile may extend beyond it.
SLACK = 128
VMEM_BYTES = 60 * 2**20


def supports(*, dtype: Any, length: int, num_heads: int, head_dim: int) -> bool:
    """Whether `attention` supports crops of this shape, in any number.

    The longest bfloat16 crops that fit in vector memory have 1,105 tokens if the length
    is odd, and 1,978, 3,268 and 4,840 if 2, 4 and 8 divide it, because a block is whole
    crops and whole tiles of 8 rows.
    """
    dtype = jnp.dtype(dtype)
    return (
        head_dim == ops.HEAD_DIM
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
    """Compute softmax attention within each of `count` crops of `length` tokens.

    Args:
      qkv: Packed projections, bfloat16 or float32 [G, count * length, 3 * D]; the last
        axis is [q | k | v], each H heads of 64 channels.
      bias: Bias of every token's projection, [3 * D], or None.
      count: Number of crops in a group.
      length: Number of tokens in a crop.
      num_heads: Number of heads H, even.
      interpret: Whether to run the kernels' operations one by one on any backend; may
        also be a `pltpu.InterpretParams`.

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
    if axes:  # mesh axes over which the gradient of the bias is summed
        bias = lax.pcast(bias, axes, to="varying")
    return _attention(qkv, bias, count, length, num_heads, interpret)


def _attention_fwd(qkv, bias, count, length, num_heads, interpret):
    out = _forward(qkv, bias, count, length, num_heads, interpret)
    return out, (checkpoint_name(qkv, "qkv"), bias)


def _attention_bwd(count, length, num_heads, interpret, saved, dout):
    return _backward(*saved, dout, count, length, num_heads, interpret)


_attention.defvjp(_attention_fwd, _attention_bwd)


def _crops_per_block(count: int, length: int) -> int:
    """Choose the crops in a block: whole tiles of 8 rows, little wasted computation."""
    step = 8 // math.gcd(length, 8)
    if length > LONGEST_UNROLLED:
        return min(count, step)
    most = 32 if length <= ops.LANES else 8
    if count <= most:
        return count
    choices = range(ops.round_up(most // 2, step), most + 1, step)
    return min(choices, key=lambda crops: (ops.round_up(count, crops), -crops))


def _vmem_bytes(length: int, dtype: jnp.dtype) -> int:
    """Return the vector memory of the backward kernel, the larger, at most."""
    crops = max(_crops_per_block(count, length) for count in range(1, 65))
    rows = ops.round_up(crops * length, 16) + SLACK
    blocks = 5 * 2 * rows * ops.LANES * dtype.itemsize
    scratch = 7 * rows * ops.LANES * 4
    if length > LONGEST_UNROLLED:
        # Staged operands and sums of a crop, and four tiles of scores.
        scratch += 5 * (length + 16) * ops.LANES * 4
        scratch += 4 * (length + 16) * 2 * ops.LANES * 4
    return blocks + scratch


def _specs(qkv, count, length, num_heads):
    """Return the grid, the crops in a block, and block specs of heads and of biases."""
    crops = _crops_per_block(count, length)
    pairs = num_heads // 2
    grid = (qkv.shape[0], pl.cdiv(count, crops), pairs)

    def spec(part):
        def index(g, i, pair, *_):
            return g, i, part * pairs + pair

        return pl.BlockSpec((1, crops * length, ops.LANES), index)

    def bias_spec(part):
        return pl.BlockSpec(
            (1, ops.LANES), lambda g, i, pair, *_: (0, part * pairs + pair)
        )

    return grid, crops, spec, bias_spec


def _scratch(crops, length, number):
    rows = ops.round_up(crops * length, 16) + SLACK
    return [pltpu.VMEM((rows, ops.LANES), jnp.float32)] * number


def _cost(qkv, count, length, products):
    groups, tokens, columns = qkv.shape
    scores = groups * count * length**2 * (columns // (3 * ops.HEAD_DIM))
    return pl.CostEstimate(
        flops=2 * products * ops.HEAD_DIM * scores,
        transcendentals=scores,
        bytes_accessed=(4 if products == 2 else 7) * qkv.size // 3 * qkv.dtype.itemsize,
    )


def _params(grid):
    return pltpu.CompilerParams(
        dimension_semantics=("parallel",) * 3 + ("arbitrary",) * (len(grid) - 3),
        vmem_limit_bytes=VMEM_BYTES,
    )


def _like(shape, x, dtype=None):
    """Return the type of an array of this shape that varies over a mesh as `x` does."""
    varying = jax.typeof(x).manual_axis_type
    return jax.ShapeDtypeStruct(shape, dtype or x.dtype, manual_axis_type=varying)


def _forward(qkv, bias, count, length, num_heads, interpret):
    grid, crops, spec, bias_spec = _specs(qkv, count, length, num_heads)
    looped = length > LONGEST_UNROLLED
    keys = ops.round_up(length, 16)
    staged = [
        pltpu.VMEM((keys, ops.LANES), qkv.dtype),
        pltpu.VMEM((ops.LANES, keys), qkv.dtype),
    ]
    return pl.pallas_call(
        functools.partial(
            steps.forward_looped if looped else steps.forward_unrolled, length
        ),
        grid=grid,
        in_specs=[f(part) for f in (spec, bias_spec) for part in range(3)],
        out_specs=spec(0),
        out_shape=_like((*qkv.shape[:2], ops.HEAD_DIM * num_heads), qkv),
        scratch_shapes=_scratch(crops, length, 4) + (staged if looped else []),
        compiler_params=_params(grid),
        cost_estimate=_cost(qkv, count, length, products=2),
        interpret=interpret,
        name="attention_forward",
    )(*[qkv] * 3, *[bias[None]] * 3)


def _backward(qkv, bias, dout, count, length, num_heads, interpret):
    grid, crops, spec, bias_spec = _specs(qkv, count, length, num_heads)
    looped = length > LONGEST_UNROLLED
    keys = ops.round_up(length, 16)
    staged = [pltpu.VMEM((keys, ops.LANES), qkv.dtype)] * 2
    staged += [pltpu.VMEM((ops.LANES, keys), qkv.dtype)]
    staged += [pltpu.VMEM((keys, ops.LANES), jnp.float32)] * 2
    pairs = num_heads // 2
    kernel = steps.backward_looped if looped else steps.backward_unrolled
    # The steps of the last axis write dq, dk and dv of one pair of heads, each into its
    # own columns: the inputs stay in place and the first step does all the work. The
    # gradient of the bias is written as sums of every eighth row of a block.
    _, tokens, columns = qkv.shape
    sums = (*grid[:2], steps.SUBLANES, columns)
    dqkv, dbias = pl.pallas_call(
        functools.partial(
            steps.write_in_turn, functools.partial(kernel, length), tokens
        ),
        grid=(*grid, 3),
        in_specs=[f(part) for f in (spec, bias_spec) for part in range(3)] + [spec(0)],
        out_specs=[
            pl.BlockSpec(
                (1, crops * length, ops.LANES),
                lambda g, i, pair, part: (g, i, part * pairs + pair),
            ),
            pl.BlockSpec(
                (1, 1, steps.SUBLANES, ops.LANES),
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

"""Taking chosen crops out of a stream and adding to them, as Pallas kernels for TPU.

Between the stream, in which a crop begins at a tile of 8 rows, and the flat rows that
matmuls and attention read, where it begins anywhere, XLA moves everything once more:
50 or 257 tokens are no whole tiles. Here crops are shifted in vector memory, on their
way from one to the other, and what else needs every row of them is taken along: means
and deviations for the norm, sums for the gradient of a bias.

Crops are copied by hand, the next block's while this one is worked on, because each
comes from a place of its own. Rows are shifted as float32: others cannot begin
anywhere.

Letters: G groups, B crops of N tokens, of which k are kept, D width.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

SUBLANES = 8
LANES = 128
VMEM_BYTES = 60 * 2**20
# Rows of a block, about: a step of the grid is to take longer than what it costs.
_ROWS = 1024
_SLOTS = 3  # blocks of crops in vector memory: coming, worked on, leaving


def supports(*, dtype: Any, length: int, width: int) -> bool:
    """Whether `take` and `add` take crops of this shape, however many they are."""
    dtype = jnp.dtype(dtype)
    if width % LANES or dtype not in (jnp.bfloat16, jnp.float32):
        return False
    rows = _step(length) * max(1, _ROWS // (_step(length) * length)) * length
    padded = rows // length * _round_up(length)
    crops = _SLOTS * padded * width * dtype.itemsize
    return crops + rows * width * (4 + 2 * dtype.itemsize) <= VMEM_BYTES


def take(
    x: jax.Array,
    kept: jax.Array,
    *,
    scale: float = 1.0,
    epsilon: float | None = None,
    sums: bool = False,
    interpret: Any = False,
) -> tuple[jax.Array, ...]:
    """The kept crops, one after another.

    Args:
      x: [G, B, N, D], bfloat16 or float32.
      kept: int32 [G, k], which.
      scale: Factor of what is taken.
      epsilon: Also give the mean of each row and 1 / sqrt(variance + epsilon), both
        before `scale`.
      sums: Also give the sum of all rows of a group.
      interpret: Run the kernel's operations one by one on any backend.

    Returns:
      [G, k * N, D] in the dtype of `x`; float32 [G, k * N, 1] twice; float32 [G, D].
    """
    groups, _, length, width = x.shape
    plan = _Plan(x.shape, kept.shape[1])
    rows = plan.crops * length

    def kernel(kept_ref, x_ref, *refs):
        *outputs, buffer, wide, semaphores = refs
        out_ref, *extra = outputs
        step = pl.program_id(0)
        copies = plan.copies(kept_ref, x_ref, buffer, semaphores)

        @pl.when(step == 0)
        def _():
            copies.start(step)

        @pl.when(step + 1 < plan.steps)
        def _():
            copies.start(step + 1)

        copies.wait(step)
        if sums:
            extra[-1][...] = jnp.zeros_like(extra[-1])

        def crop(n, _):
            place = pl.ds(n * length, length)

            def shift(column, lanes, total, squares):
                tokens = buffer[step % _SLOTS, n, :, lanes].astype(jnp.float32)
                if epsilon is not None:
                    total, squares = total + tokens, squares + jnp.square(tokens)
                if scale != 1:
                    tokens *= scale
                if sums:
                    extra[-1][0, :, lanes] += jnp.sum(tokens, axis=0, keepdims=True)
                wide[column, place, :] = tokens
                return total, squares

            zeros = jnp.zeros((length, LANES), jnp.float32)
            total, squares = _each_column(width, shift, zeros, zeros, unroll=True)
            if epsilon is not None:
                mean = jnp.sum(total, axis=-1, keepdims=True) / width
                variance = jnp.sum(squares, axis=-1, keepdims=True) / width
                variance = jnp.maximum(variance - jnp.square(mean), 0.0)
                extra[0][0, place, :] = mean
                extra[1][0, place, :] = lax.rsqrt(variance + epsilon)

        lax.fori_loop(0, plan.valid(step), crop, None)

        def narrow(column, lanes):
            out_ref[0, :, lanes] = wide[column, :rows, :].astype(out_ref.dtype)

        _each_column(width, narrow)

    def row_spec(columns):
        return pl.BlockSpec((1, rows, columns), lambda s, _: (*plan.place(s), 0))

    shapes = [jax.ShapeDtypeStruct((groups, kept.shape[1] * length, width), x.dtype)]
    specs = [row_spec(width)]
    if epsilon is not None:
        shape = (*shapes[0].shape[:2], 1)
        shapes += [jax.ShapeDtypeStruct(shape, jnp.float32)] * 2
        specs += [row_spec(1)] * 2
    if sums:
        shapes.append(jax.ShapeDtypeStruct((plan.steps, 1, width), jnp.float32))
        specs.append(pl.BlockSpec((1, 1, width), lambda s, _: (s, 0, 0)))
    outputs = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(plan.steps,),
            in_specs=[pl.BlockSpec(memory_space=pl.ANY)],
            out_specs=specs,
            scratch_shapes=plan.scratch(x.dtype, semaphores=1),
        ),
        out_shape=shapes,
        compiler_params=_PARAMS,
        cost_estimate=plan.cost(x.dtype, passes=2),
        interpret=interpret,
        name="take_crops",
    )(kept, x)
    if sums:
        of_groups = outputs[-1].reshape(groups, -1, width)
        outputs = (*outputs[:-1], jnp.sum(of_groups, axis=1))
    return tuple(outputs)


def add(
    x: jax.Array,
    kept: jax.Array,
    rows: jax.Array,
    *,
    scale: float = 1.0,
    interpret: Any = False,
) -> jax.Array:
    """Adds to the kept crops, in place where nobody else reads `x`.

    Args:
      x: [G, B, N, D], bfloat16 or float32.
      kept: int32 [G, k], which; none twice.
      rows: [G, k * N, D], what to add, crop after crop.
      scale: Factor of it.
      interpret: As in `take`.

    Returns:
      [G, B, N, D] in the dtype of `x`, summed in float32.
    """
    _, _, length, width = x.shape
    plan = _Plan(x.shape, kept.shape[1])

    def kernel(kept_ref, rows_ref, x_ref, out_ref, buffer, wide, semaphores):
        del x_ref  # the same memory
        step = pl.program_id(0)
        coming = plan.copies(kept_ref, out_ref, buffer, semaphores.at[0])
        leaving = plan.copies(kept_ref, out_ref, buffer, semaphores.at[1], back=True)

        @pl.when(step == 0)
        def _():
            coming.start(step)

        @pl.when(step >= _SLOTS - 1)
        def _():
            leaving.wait(step - (_SLOTS - 1))

        @pl.when(step + 1 < plan.steps)
        def _():
            coming.start(step + 1)

        size = plan.crops * length

        def widen(column, lanes):
            wide[column, :size, :] = rows_ref[0, :, lanes].astype(jnp.float32)

        _each_column(width, widen)
        coming.wait(step)

        def crop(n, _):
            place = pl.ds(n * length, length)

            def shift(column, lanes):
                tokens = buffer[step % _SLOTS, n, :, lanes].astype(jnp.float32)
                tokens += wide[column, place, :] * scale
                buffer[step % _SLOTS, n, :, lanes] = tokens.astype(buffer.dtype)

            _each_column(width, shift, unroll=True)

        lax.fori_loop(0, plan.valid(step), crop, None)
        leaving.start(step)

        @pl.when(step == plan.steps - 1)
        def _():
            for earlier in range(min(_SLOTS - 1, plan.steps)):
                leaving.wait(step - earlier)

    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(plan.steps,),
            in_specs=[
                pl.BlockSpec(
                    (1, plan.crops * length, width), lambda s, _: (*plan.place(s), 0)
                ),
                pl.BlockSpec(memory_space=pl.ANY),
            ],
            out_specs=pl.BlockSpec(memory_space=pl.ANY),
            scratch_shapes=plan.scratch(x.dtype, semaphores=2),
        ),
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        input_output_aliases={2: 0},
        compiler_params=_PARAMS,
        cost_estimate=plan.cost(x.dtype, passes=3),
        interpret=interpret,
        name="add_crops",
    )(kept, rows, x)


_PARAMS = pltpu.CompilerParams(
    dimension_semantics=("arbitrary",), vmem_limit_bytes=VMEM_BYTES
)


class _Plan:
    """How the kept crops of all groups are divided into steps of a grid."""

    def __init__(self, shape: tuple[int, ...], kept: int):
        self.groups, _, self.length, self.width = shape
        self.kept = kept
        step = _step(self.length)
        self.crops = min(kept, step * max(1, _ROWS // (step * self.length)))
        self.blocks = pl.cdiv(kept, self.crops)
        self.steps = self.groups * self.blocks

    def place(self, step):
        """Group and block of a step."""
        return step // self.blocks, step % self.blocks

    def valid(self, step):
        """Crops of a step's block."""
        _, block = self.place(step)
        return jnp.minimum(self.kept - block * self.crops, self.crops)

    def copies(self, kept_ref, x_ref, buffer, semaphores, back=False):
        """Of the crops of a step's block, between `x_ref` and its slot of a buffer."""
        return _Copies(self, kept_ref, x_ref, buffer, semaphores, back)

    def scratch(self, dtype, semaphores):
        """Slots of crops, their rows as float32, semaphores of the copies."""
        slots = (_SLOTS, self.crops, self.length, self.width)
        kinds = (_SLOTS,) if semaphores == 1 else (semaphores, _SLOTS)
        return [
            pltpu.VMEM(slots, dtype),
            pltpu.VMEM(
                (self.width // LANES, _round_up(self.crops * self.length), LANES),
                jnp.float32,
            ),
            pltpu.SemaphoreType.DMA(kinds),
        ]

    def cost(self, dtype, passes):
        """For the compiler: nothing but memory."""
        size = self.groups * self.kept * self.length * self.width
        return pl.CostEstimate(
            flops=0,
            transcendentals=0,
            bytes_accessed=passes * size * jnp.dtype(dtype).itemsize,
        )


class _Copies:
    """All copies of a step in one direction; waited for in the same order."""

    def __init__(self, plan, kept_ref, x_ref, buffer, semaphores, back):
        self.plan, self.kept_ref, self.x_ref = plan, kept_ref, x_ref
        self.buffer, self.semaphores, self.back = buffer, semaphores, back

    def _each(self, step, act):
        group, block = self.plan.place(step)
        slot = step % _SLOTS

        def one(n, _):
            crop = self.kept_ref[group, block * self.plan.crops + n]
            ends = self.x_ref.at[group, crop], self.buffer.at[slot, n]
            source, target = reversed(ends) if self.back else ends
            act(pltpu.make_async_copy(source, target, self.semaphores.at[slot]))

        lax.fori_loop(0, self.plan.valid(step), one, None)

    def start(self, step):
        self._each(step, lambda copy: copy.start())

    def wait(self, step):
        self._each(step, lambda copy: copy.wait())


def _each_column(width, act, *carry, unroll=False):
    """`act` on one tile of lanes after another; what it returns goes to the next."""

    def one(n, carry):
        lanes = pl.ds(pl.multiple_of(n * LANES, LANES), LANES)
        return act(n, lanes, *carry) or ()

    return lax.fori_loop(0, width // LANES, one, carry, unroll=unroll)


def _step(length):
    """The fewest crops that are whole tiles of rows."""
    return SUBLANES // math.gcd(length, SUBLANES)


def _round_up(x):
    return -(-x // SUBLANES) * SUBLANES

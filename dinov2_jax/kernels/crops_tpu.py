"""Extraction of kept crops from a stream, and addition to them, in Pallas for TPU.

In the stream a crop begins at a tile of 8 rows; in the flat rows that matmuls and
attention read it may begin at any row, because 50 or 257 tokens are not whole tiles.
XLA copies everything once more to convert between the two. Here crops are shifted in
vector memory as they are copied, and other work on every row is done in the same pass:
means and deviations for the norm, sums for the gradient of a bias.

Crops are copied explicitly, because each comes from a different place; the next block's
crops are copied during the work on this one. Rows are shifted as float32: only 32-bit
rows can begin anywhere.

Shapes: G groups, B crops of N tokens, of which k are kept, D width.
"""

import functools
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
# Approximate rows of a block, enough for a step's work to exceed its overhead.
_ROWS = 1024
# Blocks of crops in vector memory: loading, in work and, for `add`, storing.
_TAKE_SLOTS, _ADD_SLOTS = 2, 3


def supports(*, dtype: Any, length: int, width: int) -> bool:
    """Whether `take` and `add` support crops of this shape, in any number.

    A block is whole crops and whole tiles of 8 rows, and has to fit in vector memory.
    In bfloat16 the longest crops have 505 tokens at 1,024 channels and 345 at 1,536 if
    the length is odd, twice as many if it is even, four times if 4 divides it.
    """
    dtype = jnp.dtype(dtype)
    if width % LANES or dtype not in (jnp.bfloat16, jnp.float32):
        return False
    plan = _Plan((1, 1, length, width), dtype, kept=most_crops(length))
    return plan.vmem_bytes(_ADD_SLOTS) <= VMEM_BYTES


def take(
    x: jax.Array,
    kept: jax.Array,
    *,
    scale: float = 1.0,
    epsilon: float | None = None,
    sums: bool = False,
    interpret: Any = False,
) -> tuple[jax.Array, ...]:
    """Return the kept crops, one after another.

    Args:
      x: The stream, [G, B, N, D], bfloat16 or float32.
      kept: Indices of the kept crops, int32 [G, k].
      scale: Factor of the crops that are returned.
      epsilon: If given, also return the mean of each row and 1 / sqrt(variance +
        epsilon), both before `scale`.
      sums: Whether to return the sum of all rows of each group too.
      interpret: Whether to run the kernel's operations one by one on any backend.

    Returns:
      The tokens, [G, k * N, D] in the dtype of `x`, then, as requested, means and
      inverse deviations, float32 [G, k * N, 1] each, and sums, float32 [G, D].
    """
    groups, _, length, width = x.shape
    plan = _Plan(x.shape, x.dtype, kept.shape[1])
    with_norm = epsilon is not None

    def kernel(kept_ref, x_ref, *refs):
        out_ref, *extra = refs[: 1 + with_norm + sums]
        buffer, semaphores, wide, of_rows = refs[1 + with_norm + sums :]
        step = pl.program_id(0)
        copies = functools.partial(
            plan.each_copy, kept_ref, x_ref, buffer, semaphores.at[0]
        )

        @pl.when(step == 0)
        def _():
            copies(step, _start)

        @pl.when(step + 1 < plan.steps)
        def _():
            copies(step + 1, _start)

        copies(step, _wait)

        def crop(n, _):
            place = pl.ds(n * length, length)
            total = squares = 0
            for column, lanes in plan.columns():
                tokens = buffer[step % _TAKE_SLOTS, n, :, lanes].astype(jnp.float32)
                if with_norm:
                    total += tokens
                    squares += jnp.square(tokens)
                tokens *= scale
                if sums:
                    extra[-1][0, :, lanes] += jnp.sum(tokens, axis=0, keepdims=True)
                wide[column, place, :] = tokens
            if with_norm:
                of_rows[0, place, :] = total
                of_rows[1, place, :] = squares

        if sums:
            extra[-1][...] = jnp.zeros_like(extra[-1])
        lax.fori_loop(0, plan.valid(step), crop, None)

        def narrow(column, lanes):
            out_ref[0, :, lanes] = wide[column, : plan.rows, :].astype(x.dtype)

        plan.each_column(narrow)
        if with_norm:
            mean, square = (
                jnp.sum(of_rows[i].T, axis=0, keepdims=True) / width for i in range(2)
            )
            variance = jnp.maximum(square - jnp.square(mean), 0.0)
            extra[0][0, :1] = mean
            extra[0][0, 1:] = lax.rsqrt(variance + epsilon)

    shapes = [jax.ShapeDtypeStruct((groups, kept.shape[1] * length, width), x.dtype)]
    specs = [plan.row_spec]
    of_rows = pltpu.VMEM((2, _round_up(plan.rows, LANES), LANES), jnp.float32)
    for shape in [(2, of_rows.shape[1])] * with_norm + [(1, width)] * sums:
        shapes.append(jax.ShapeDtypeStruct((plan.steps, *shape), jnp.float32))
        specs.append(pl.BlockSpec((1, *shape), lambda s, _: (s, 0, 0)))
    tokens, *extra = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(plan.steps,),
            in_specs=[pl.BlockSpec(memory_space=pl.ANY)],
            out_specs=specs,
            scratch_shapes=[*plan.scratch(_TAKE_SLOTS, directions=1), of_rows],
        ),
        out_shape=shapes,
        compiler_params=plan.params(_TAKE_SLOTS),
        cost_estimate=plan.cost(passes=2),
        interpret=interpret,
        name="take_crops",
    )(kept, x)
    outputs = [tokens]
    if with_norm:
        numbers = extra[0][..., : plan.rows].reshape(groups, plan.blocks, 2, -1)
        numbers = jnp.moveaxis(numbers, 2, 0).reshape(2, groups, -1, 1)
        outputs += list(numbers[:, :, : tokens.shape[1]])
    if sums:
        outputs.append(jnp.sum(extra[-1].reshape(groups, -1, width), axis=1))
    return tuple(outputs)


def add(
    x: jax.Array,
    kept: jax.Array,
    rows: jax.Array,
    *,
    scale: float = 1.0,
    interpret: Any = False,
) -> jax.Array:
    """Add to the kept crops, in place if nothing else reads `x`.

    Args:
      x: The stream, [G, B, N, D], bfloat16 or float32.
      kept: Indices of the kept crops, int32 [G, k], without duplicates.
      rows: Rows to add, [G, k * N, D], crop after crop.
      scale: Factor of the rows.
      interpret: Whether to interpret the kernel, as in `take`.

    Returns:
      The new stream, [G, B, N, D] in the dtype of `x`, summed in float32.
    """
    plan = _Plan(x.shape, x.dtype, kept.shape[1])

    def kernel(kept_ref, rows_ref, x_ref, out_ref, buffer, semaphores, wide):
        del x_ref  # the same memory as out_ref
        step = pl.program_id(0)
        each_copy = functools.partial(plan.each_copy, kept_ref, out_ref, buffer)
        coming = functools.partial(each_copy, semaphores.at[0])
        leaving = functools.partial(each_copy, semaphores.at[1], back=True)

        @pl.when(step == 0)
        def _():
            coming(step, _start)

        @pl.when(step >= _ADD_SLOTS - 1)
        def _():
            leaving(step - (_ADD_SLOTS - 1), _wait)

        @pl.when(step + 1 < plan.steps)
        def _():
            coming(step + 1, _start)

        def widen(column, lanes):
            rows = rows_ref[0, :, lanes]
            wide[column, : plan.rows, :] = rows.astype(jnp.float32)

        plan.each_column(widen)
        coming(step, _wait)

        def crop(n, _):
            for column, lanes in plan.columns():
                at = (step % _ADD_SLOTS, n, slice(None), lanes)
                rows = wide[column, pl.ds(n * plan.length, plan.length), :]
                tokens = buffer[at].astype(jnp.float32) + rows * scale
                buffer[at] = tokens.astype(x.dtype)

        lax.fori_loop(0, plan.valid(step), crop, None)
        leaving(step, _start)

        @pl.when(step == plan.steps - 1)
        def _():
            for earlier in range(min(_ADD_SLOTS - 1, plan.steps)):
                leaving(step - earlier, _wait)

    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(plan.steps,),
            in_specs=[plan.row_spec, pl.BlockSpec(memory_space=pl.ANY)],
            out_specs=pl.BlockSpec(memory_space=pl.ANY),
            scratch_shapes=plan.scratch(_ADD_SLOTS, directions=2),
        ),
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        input_output_aliases={2: 0},
        compiler_params=plan.params(_ADD_SLOTS),
        cost_estimate=plan.cost(passes=3),
        interpret=interpret,
        name="add_crops",
    )(kept, rows, x)


class _Plan:
    """The division of all groups' kept crops into the steps of a grid.

    Attributes:
      crops: Number of crops in a block, whose rows are whole tiles or all rows.
      rows: Number of rows in a block.
      blocks: Number of blocks in a group; the last may have fewer crops.
      steps: Number of steps of the grid.
      row_spec: Block spec of a step's rows, one crop after another.
      wide: Scratch memory for the rows as float32, 128 channels after another.
    """

    def __init__(self, shape: tuple[int, ...], dtype: Any, kept: int):
        groups, _, self.length, self.width = shape
        self.dtype, self.kept = jnp.dtype(dtype), kept
        self.crops = min(kept, most_crops(self.length))
        self.rows = self.crops * self.length
        self.blocks = pl.cdiv(kept, self.crops)
        self.steps = groups * self.blocks
        self.size = groups * kept * self.length * self.width
        self.row_spec = pl.BlockSpec(
            (1, self.rows, self.width), lambda step, _: (*self._place(step), 0)
        )
        rows = _round_up(self.rows, SUBLANES)
        self.wide = pltpu.VMEM((self.width // LANES, rows, LANES), jnp.float32)

    def _place(self, step):
        """Return group and block of a step."""
        return step // self.blocks, step % self.blocks

    def valid(self, step):
        """Return the number of crops in a step's block."""
        _, block = self._place(step)
        return jnp.minimum(self.kept - block * self.crops, self.crops)

    def columns(self) -> list[tuple[int, Any]]:
        """Return each column of 128 channels, as index and slice."""
        starts = range(0, self.width, LANES)
        return [(n, pl.ds(start, LANES)) for n, start in enumerate(starts)]

    def each_column(self, act) -> None:
        """Call `act` on index and slice of each column, in a loop."""

        def one(n, _):
            act(n, pl.ds(pl.multiple_of(n * LANES, LANES), LANES))

        lax.fori_loop(0, self.width // LANES, one, None)

    def each_copy(
        self, kept_ref, x_ref, buffer, semaphores, step, act, *, back=False
    ) -> None:
        """Call `act` on the copies of a step's crops, from `x_ref` to slots or back."""
        group, block = self._place(step)
        slot = step % buffer.shape[0]

        def one(n, _):
            crop = kept_ref[group, block * self.crops + n]
            ends = x_ref.at[group, crop], buffer.at[slot, n]
            source, target = reversed(ends) if back else ends
            act(pltpu.make_async_copy(source, target, semaphores.at[slot]))

        lax.fori_loop(0, self.valid(step), one, None)

    def scratch(self, slots: int, directions: int) -> list[Any]:
        """Return slots for crops, semaphores for their copies, and `wide`."""
        crops = (slots, self.crops, self.length, self.width)
        semaphores = pltpu.SemaphoreType.DMA((directions, slots))
        return [pltpu.VMEM(crops, self.dtype), semaphores, self.wide]

    def vmem_bytes(self, slots: int) -> int:
        """Return a kernel's vector memory: slots, row blocks, `wide`, statistics."""
        padded = self.crops * _round_up(self.length, SUBLANES)
        rows = (slots * padded + 2 * self.rows) * self.width * self.dtype.itemsize
        numbers = 2 * (self.rows + LANES) * LANES
        return rows + 4 * (math.prod(self.wide.shape) + numbers)

    def params(self, slots: int) -> pltpu.CompilerParams:
        """Limit the vector memory to the need: XLA keeps arrays in the rest."""
        return pltpu.CompilerParams(
            dimension_semantics=("arbitrary",),
            vmem_limit_bytes=self.vmem_bytes(slots) + 4 * 2**20,
        )

    def cost(self, passes: int) -> pl.CostEstimate:
        """Return the cost estimate for the compiler: memory traffic only."""
        moved = passes * self.size * self.dtype.itemsize
        return pl.CostEstimate(flops=0, transcendentals=0, bytes_accessed=moved)


def _start(copy):
    copy.start()


def _wait(copy):
    copy.wait()


def most_crops(length: int) -> int:
    """Return the most crops in a block: whole tiles of rows, about `_ROWS` in all."""
    step = SUBLANES // math.gcd(length, SUBLANES)
    return step * max(1, _ROWS // (step * length))


def _round_up(x, multiple):
    return -(-x // multiple) * multiple

"""A launch of the GPU attention kernels: sizes, copies, matrix products.

`Plan` is what forward and backward passes share. `_Device` has the operations that
jax's interpreter of GPU kernels cannot run, `_Interpreter` their equivalents on a CPU.
Shapes as in `attention_gpu`.
"""

import dataclasses

import jax
import jax.experimental.pallas as pl
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu

CHANNELS = 64  # in a head: 128 bytes, the widest swizzled row of shared memory
TILE = 64  # tokens in a tile: the rows of a warpgroup's matrix instruction

ROWS, COLUMNS = 0, 1  # axes of a tile of scores


class Plan:
    """Sizes of a launch, and operations that both kernels share."""

    def __init__(self, qkv, stages, interpret):
        self.crops, self.length, width = qkv.shape
        self.dtype, self.heads = qkv.dtype, width // (3 * CHANNELS)
        self.tiles = pl.cdiv(self.length, TILE)
        self.stages = min(stages, self.tiles)
        self.ops = _Interpreter if interpret else _Device

    def tokens(self, width, team=1):
        """Return the type of a token matrix [N, L, width]."""
        shape = (self.crops, self.ops.room(self.length, team), width)
        return jax.ShapeDtypeStruct(shape, self.dtype)

    def statistics(self, team):
        """Return the type of one number for each query, [N, H, L4]."""
        room = self.ops.room(pl.cdiv(self.length, 4) * 4, team)
        return jax.ShapeDtypeStruct((self.crops, self.heads, room), jnp.float32)

    def buffers(self, *number):
        """Return the type of shared-memory tiles, laid out for matrix instructions."""
        transforms = (plgpu.TilingTransform((8, CHANNELS)), plgpu.SwizzleTransform(128))
        return plgpu.SMEM((*number, TILE, CHANNELS), self.dtype, transforms=transforms)

    def window(self, ref, crop, head, part, tile):
        """Index a tile of one head of a token matrix; it is zero past the crop."""
        column = (part * self.heads + head) * CHANNELS
        return ref.at[crop, pl.ds(tile * TILE, TILE), pl.ds(column, CHANNELS)]

    def call(self, kernel, *, blocks, team=1, **types):
        """Make the kernel a function of its arrays, with `team` warpgroups a block."""
        return plgpu.kernel(
            kernel,
            grid=(self.crops, self.heads, blocks),  # the last axis runs fastest
            grid_names=("crop", "head", "block"),
            num_threads=team,
            thread_name="member",
            interpret=self.ops.params(),
            compiler_params=plgpu.CompilerParams(
                approx_math=True,
                # Gives refs explicit layouts, which `by_rows` changes.
                lowering_semantics=plgpu.LoweringSemantics.Lane,
            ),
            **types,
        )

    def load(self, source, buffer, ready):
        """Start a copy from main memory that signals the barrier `ready` at its end."""
        plgpu.copy_gmem_to_smem(source, self.ops.by_rows(buffer), ready)

    def store(self, buffer, target):
        """Start a copy to main memory."""
        plgpu.copy_smem_to_gmem(self.ops.by_rows(buffer), target)

    def full(self, value, along=None):
        """Return a tile filled with `value`, or a vector along its ROWS or COLUMNS."""
        shape = (TILE, CHANNELS) if along is None else (TILE,)
        return self.ops.lay_out(jnp.full(shape, value, jnp.float32), along)

    def last_keys(self):
        """Return which columns of the last tile's scores are in the crop, as a mask."""
        columns = lax.broadcasted_iota(jnp.int32, (TILE, TILE), 1)
        columns = self.ops.lay_out(columns, None)
        return columns < self.length - (self.tiles - 1) * TILE

    def fill(self, load):
        """Call load(step, slot) for the first `stages` tiles."""

        @pl.loop(0, self.stages)
        def _load(step):
            load(step, step)

    def stream(self, load, body, sums, release):
        """Fold body(step, slot, sums, last) over all tiles, `stages` of them in memory.

        release(slot, refill) is called when a tile is done and another replaces it.
        """

        def turn(step, sums):
            slot = lax.rem(step, jnp.int32(self.stages))
            sums = body(step, slot, sums, last=False)

            @pl.when(step + self.stages < self.tiles)
            def _release():
                release(slot, lambda: load(step + self.stages, slot))

            return sums

        end = self.tiles - 1
        sums = lax.fori_loop(0, end, turn, sums)
        return body(end, end % self.stages, sums, last=True)


class _Device:
    """Operations that the interpreter cannot run, on the GPU."""

    @staticmethod
    def params():
        return None

    @staticmethod
    def room(length, team):
        return length

    @staticmethod
    def by_rows(ref):
        """Return the view of a buffer that the copy engine needs, of the same bytes.

        Buffers are declared in the (8, 64) tiles of matrix instructions, in which a
        copy would need crop lengths that are multiples of 8.
        """
        swizzled, _tiled, *picks = ref.transforms
        view = ref.ref.reshape(*ref.ref.shape[:-4], TILE, CHANNELS)
        transforms = (*view.transforms, swizzled, *picks)
        return dataclasses.replace(view, transforms=transforms)

    @staticmethod
    def lay_out(x, along):
        """Lay out a tile, or a vector along its ROWS or COLUMNS, over threads."""
        tile = plgpu.Layout.WGMMA
        return plgpu.layout_cast(x, tile if along is None else tile.reduce(1 - along))

    @staticmethod
    def matmul(a, b, *, transpose=False, add_to=None):
        """Compute add_to + a @ b or a @ b.T in float32; `a` may be in registers."""
        b = b.transpose((1, 0)) if transpose else b
        if add_to is not None:
            accumulate = pl.run_state(lambda ref: plgpu.wgmma(ref, a, b))
            return accumulate(plgpu.ACC.init(add_to))

        def product(ref):
            plgpu.wgmma(ref, a, b)
            return ref[...]

        return pl.run_scoped(product, plgpu.ACC((TILE, TILE), jnp.float32))


class _Interpreter:
    """The same operations on a CPU.

    The interpreter of jax 0.10 and 0.11 multiplies buffers only as they are stored,
    cannot continue an accumulator and drops copies that cross an edge; that of 0.10 has
    no layouts.
    """

    @staticmethod
    def params():
        from jax._src.pallas.mosaic_gpu.interpret import params  # public since 0.11

        return params.InterpretGPUParams(
            detect_races=True,
            out_of_bounds_reads="uninitialized",
            uninitialized_memory="zero",
        )

    @staticmethod
    def room(length, team):
        return pl.cdiv(length, team * TILE) * team * TILE

    @staticmethod
    def by_rows(ref):
        return ref

    @staticmethod
    def lay_out(x, along):
        return x

    @staticmethod
    def matmul(a, b, *, transpose=False, add_to=0.0):
        a, b = a if isinstance(a, jax.Array) else a[...], b[...]
        plgpu.commit_smem()  # matrix instructions read before later copies
        b = b.T if transpose else b
        return add_to + jnp.dot(a, b, preferred_element_type=jnp.float32)

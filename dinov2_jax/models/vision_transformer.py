"""The DINOv2 ViT. Mirrors the reference's `models/vision_transformer.py`.

The blocks' weights are stacked on a leading axis of length `depth` and the blocks run
in one `lax.scan`, so forty compile as fast as one; `scan_unroll=depth` unrolls it.
Crop groups go through a block one after the other, each a flat [G, B*N, D]. One stream
would be split and joined again for every attention, which takes a fifth of a step on
TPUs by the compiler's figures.

Shapes: G groups, B crops a group, H x W pixels, C channels, h x w patches, N = h * w,
R registers, D width.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax import sharding
from dinov2_jax.models import (
    explicit_axes,
    folded_block,
    model_config,
    patch_embed,
    pos_embed,
    remat,
    stochastic_depth,
)
from dinov2_jax.models import layers as layers_lib


@flax.struct.dataclass
class Features:
    """The backbone's features of a batch of images; leading axes [...] as in the input.

    Attributes:
      cls: Normalised class tokens, [..., D].
      registers: Normalised registers, [..., R, D].
      patches: Normalised patch tokens, [..., h, w, D].
      prenorm: All tokens before the last LayerNorm, [..., 1 + R + h*w, D].
      layers: `Features` after each requested block, by the index that was requested.
      attention: Softmax maps of each requested block, float32 [..., H, T, T], by the
        index that was requested; rows are queries, of which there may be fewer, and
        T = 1 + R + h*w as in `prenorm`.
    """

    cls: jax.Array
    registers: jax.Array
    patches: jax.Array
    prenorm: jax.Array
    layers: dict[int, "Features"] = flax.struct.field(default_factory=dict)
    attention: dict[int, jax.Array] = flax.struct.field(default_factory=dict)


class VisionTransformer(nn.Module):
    """A ViT for a list of crop groups, or for a plain batch of images.

    Attributes:
      config: The architecture.
      drop_path_rate: Stochastic depth rate, used only with a `drop_path_key`.
      drop_path_uniform: Whether all blocks have this rate; False increases it over
        depth, from 0 to `drop_path_rate`.
      dtype: Dtype of the matmuls and the residual stream.
      block: Form of the blocks, a key of `BLOCKS`.
      attention: Implementation, one of `kernels.attention.IMPLEMENTATIONS`.
      remat: What blocks keep for the backward pass, a key of `models.remat.POLICIES`.
      scan_unroll: Number of blocks in each iteration of the scan.
    """

    config: model_config.ModelConfig
    drop_path_rate: float = 0.0
    drop_path_uniform: bool = True
    dtype: Any = jnp.float32
    block: str = "plain"
    attention: str = "auto"
    remat: str = "none"
    scan_unroll: int = 1

    def setup(self):
        """Declare the parameters under the reference's names."""
        dim = self.config.embed_dim
        num_patches = self.config.grid_size**2
        token_init = nn.initializers.normal(1e-6)
        self.cls_token = self.param("cls_token", token_init, (1, 1, dim))
        self.pos_embed = self.param(
            "pos_embed", nn.initializers.normal(0.02), (1, 1 + num_patches, dim)
        )
        self.mask_token = self.param("mask_token", nn.initializers.zeros, (1, dim))
        if self.config.num_register_tokens:
            self.register_tokens = self.param(
                "register_tokens", token_init, (1, self.config.num_register_tokens, dim)
            )
        self.patch_embed = patch_embed.PatchEmbed(
            self.config.patch_size, dim, self.dtype
        )
        self.blocks = self.param("blocks", self._init_blocks)
        self.norm = layers_lib.LayerNorm(self.dtype)

    def _init_blocks(self, key: jax.Array) -> Any:
        """Initialise the weights of all blocks, each leaf [depth, ...]."""
        block = layers_lib.Block(self.config, dtype=self.dtype, parent=None)
        token = jnp.zeros((1, 1, self.config.embed_dim), self.dtype)
        return jax.vmap(lambda k: block.init(k, token, ((1, 1),))["params"])(
            jax.random.split(key, self.config.depth)
        )

    @explicit_axes.as_auto
    def __call__(
        self,
        images: jax.Array,
        masks: jax.Array | None = None,
        *,
        layers: Sequence[int] = (),
        attention: Sequence[int] = (),
        attention_queries: Sequence[int] | None = None,
    ) -> Features:
        """Compute the features of a batch of images, without stochastic depth.

        Args:
          images: Normalised images, [B, H, W, C]; H and W multiples of the patch size.
          masks: Optional bool [B, h*w]; True patches become the mask token.
          layers: Blocks after which to return features too; -1 is the last. They go
            through the last LayerNorm, with the raw tokens in `prenorm`.
          attention: Blocks whose attention maps to return. The forward pass never forms
            maps, so they are computed separately for these blocks.
          attention_queries: Tokens whose rows of the maps to return, in the order of
            `prenorm`; None returns all T of them.

        Returns:
          `Features` with leading axis B.

        Raises:
          ValueError: There is no such block or token.
        """
        after = {index: self._block_index(index) for index in layers}
        before = {index: self._block_index(index) for index in attention}
        chosen = sorted({*after.values(), *(i - 1 for i in before.values() if i)})
        # Groups matter only to stochastic depth: use one image a group.
        masks = None if masks is None else masks[:, None]
        grids, embedded, sequences = self._embed([images[:, None]], [masks])
        (last,), taps = self._run_blocks(
            embedded, sequences, self._all_kept(), chosen=chosen
        )

        ((_, length),) = sequences
        for token in attention_queries or ():
            if not -length <= token < length:
                raise ValueError(
                    f"there is no token {token}: these images have {length}, 0 to "
                    f"{length - 1}"
                )

        def features(tokens):
            (out,) = self._features([tokens], sequences, grids, norm=True)
            return jax.tree.map(lambda x: x[:, 0], out)

        def attention_map(index):
            x = taps[chosen.index(index - 1)] if index else embedded[0]
            params = jax.tree.map(lambda p: p[index], self._weights())
            (maps,) = self._block(params).attention_maps(
                x, sequences, attention_queries
            )
            return maps[:, 0]

        return features(last).replace(
            layers={i: features(taps[chosen.index(n)]) for i, n in after.items()},
            attention={i: attention_map(n) for i, n in before.items()},
        )

    def _block_index(self, index: int) -> int:
        """Return the index of a block from 0; negative ones count from the end."""
        if not -self.config.depth <= index < self.config.depth:
            raise ValueError(
                f"there is no block {index}: the model has {self.config.depth}, 0 to "
                f"{self.config.depth - 1}, or -1 for the last"
            )
        return index % self.config.depth

    @explicit_axes.as_auto
    def class_tokens(self, images: jax.Array) -> jax.Array:
        """Compute only the class tokens of `__call__`.

        The last block's attention and FFN act only on the class token, which saves a
        sixteenth of the work of twelve blocks.

        Args:
          images: Normalised images, [B, H, W, C].

        Returns:
          Normalised class tokens, [B, D].
        """
        _, parts, sequences = self._embed([images[:, None]], [None])
        (x,), _ = self._run_blocks(
            parts, sequences, self._all_kept(), stop=self.config.depth - 1
        )
        last = jax.tree.map(lambda p: p[-1], self.blocks)
        block = layers_lib.bind(
            layers_lib.cast_matmuls(last, self.dtype),
            self.config,
            kernel=self.attention,
            dtype=self.dtype,
        )
        return self.norm(block.first_token(x))[:, 0]

    def forward_crops(
        self,
        crops: Sequence[jax.Array],
        masks: Sequence[jax.Array | None],
        drop_path_key: jax.Array | None = None,
    ) -> list[Features]:
        """Compute the features of several crop groups in one pass.

        Args:
          crops: Crops of each crop group, [G, B, H, W, C]; B, H and W may differ.
          masks: Masked patches of each crop group, bool [G, B, h*w] or None each.
          drop_path_key: PRNG key of the stochastic-depth subsets; None drops nothing.

        Returns:
          `Features` of each crop group, leading axes [G, B].
        """
        grids, parts, sequences = self._embed(crops, masks)
        runs = self._kept_samples(sequences, len(parts[0]), drop_path_key)
        parts, _ = self._run_blocks(parts, sequences, runs)
        return self._features(parts, sequences, grids, norm=True)

    def forward_chosen(
        self,
        crops: Sequence[jax.Array],
        masks: Sequence[jax.Array | None],
        indices: jax.Array,
        drop_path_key: jax.Array | None = None,
        micro_batch: stochastic_depth.MicroBatch | None = None,
    ) -> tuple[list[jax.Array], jax.Array]:
        """Compute only the class tokens and chosen patches of `forward_crops`.

        The last FFN and LayerNorm act on each token separately, so they are computed
        only for these tokens.

        Args:
          crops: Crops, as in `forward_crops`.
          masks: Masked patches, as in `forward_crops`.
          indices: Patches of the first crop group, [G, M], flat over its B*h*w.
          drop_path_key: PRNG key, as in `forward_crops`.
          micro_batch: The groups of the batch that these are; None: all.

        Returns:
          Normalised class tokens, [G, B, D] a crop group, and patches [G, M, D].
        """
        _, parts, sequences = self._embed(crops, masks)
        runs = self._kept_samples(sequences, len(parts[0]), drop_path_key, micro_batch)
        parts, _ = self._run_blocks(parts, sequences, runs, stop=self.config.depth - 1)
        kept = runs[-1].kept
        tokens = self._checkpoint(self._last_block, static_argnums=2)(
            jax.tree.map(lambda p: p[-1], self._weights()),
            parts,
            sequences,
            kept and jax.tree.map(lambda k: k[-1], kept),
            indices,
        )
        ends = np.cumsum([count for count, _ in sequences])
        *cls, patches = jnp.split(self.norm(tokens), ends, axis=1)
        return cls, patches

    def _last_block(self, params, parts, sequences, kept, indices):
        """Return the class tokens, then chosen patches of the first part, [G, P, D]."""
        block = self._block(params)
        first = 1 + self.config.num_register_tokens  # index of a crop's first patch
        crop, patch = jnp.divmod(indices, sequences[0][1] - first)
        patches = crop * sequences[0][1] + first + patch
        tokens, scales = [], []
        for i, (x, (count, length)) in enumerate(zip(parts, sequences)):
            of_group = kept and (kept[0][i],)
            x = block.add_attention(x, ((count, length),), of_group)
            # By index: the gradient of x[:, ::length] makes libtpu 0.0.51 abort.
            cls = jnp.broadcast_to(length * np.arange(count), (len(x), count))
            tokens.append(jnp.take_along_axis(x, cls[..., None], axis=1))
            if i == 0:
                patches = jnp.take_along_axis(x, patches[..., None], axis=1)
            if kept:
                scales.append(stochastic_depth.residual_scale(kept[1][i], count))
        tokens = jnp.concatenate([*tokens, patches], axis=1)
        residual = block.ffn(tokens)
        if kept:
            of_patches = jnp.take_along_axis(scales[0], crop, axis=1)
            scale = jnp.concatenate([*scales, of_patches], axis=1)
            residual *= scale[..., None].astype(residual.dtype)
        return sharding.constrain_batch(tokens + residual.astype(tokens.dtype))

    @explicit_axes.as_auto
    def get_intermediate_layers(
        self, images: jax.Array, n: int | Sequence[int] = 1, *, norm: bool = True
    ) -> list[Features]:
        """Compute features after chosen blocks, in network order, not that of `n`.

        Args:
          images: Normalised images, [B, H, W, C].
          n: Number of last blocks, or the blocks' indices.
          norm: Whether to apply the last LayerNorm to each (the reference's default).

        Returns:
          `Features` of each chosen block, leading axis B.
        """
        chosen = (
            range(self.config.depth - n, self.config.depth) if isinstance(n, int) else n
        )
        chosen = sorted(set(chosen))
        if not chosen or chosen[0] < 0 or chosen[-1] >= self.config.depth:
            raise ValueError(f"n={n} names blocks outside 0..{self.config.depth - 1}")
        grids, parts, sequences = self._embed([images[:, None]], [None])
        _, taps = self._run_blocks(parts, sequences, self._all_kept(), chosen=chosen)
        outputs = []
        for tap in taps:
            (features,) = self._features([tap], sequences, grids, norm=norm)
            outputs.append(jax.tree.map(lambda x: x[:, 0], features))
        return outputs

    def position_embeddings(self, height: int, width: int) -> jax.Array:
        """Return position embeddings [1, 1 + h*w, D] for height x width pixels."""
        return pos_embed.interpolate_pos_embed(
            self.pos_embed,
            height // self.config.patch_size,
            width // self.config.patch_size,
            offset=self.config.interpolate_offset,
            antialias=self.config.interpolate_antialias,
        )

    def _embed(self, crops, masks):
        """Embed crops; return the grid, tokens [G, B*N, D] and (B, N) a crop group."""
        grids, parts, sequences = [], [], []
        for images, mask in zip(crops, masks, strict=True):
            num_groups, batch, height, width, _ = images.shape
            if height % self.config.patch_size or width % self.config.patch_size:
                raise ValueError(
                    f"image of {height}x{width} px is not a multiple of the patch "
                    f"size {self.config.patch_size}"
                )
            grids.append(
                (height // self.config.patch_size, width // self.config.patch_size)
            )
            x = self.patch_embed(images)  # [G, B, N, D]
            if mask is not None:
                x = jnp.where(mask[..., None], self.mask_token.astype(x.dtype), x)
            pos = self.position_embeddings(height, width).astype(x.dtype)[0]
            pos = sharding.gather(pos)
            cls = self.cls_token[0].astype(x.dtype) + pos[:1]
            prefix = [cls]
            if self.config.num_register_tokens:
                prefix.append(self.register_tokens[0].astype(x.dtype))
            prefix = jnp.concatenate(prefix)  # [1 + R, D]
            prefix = jnp.broadcast_to(prefix, (num_groups, batch, *prefix.shape))
            x = jnp.concatenate([prefix, x + pos[1:]], axis=2)
            sequences.append((batch, x.shape[2]))
            x = x.reshape(num_groups, -1, self.config.embed_dim)
            parts.append(sharding.constrain_batch(x))
        return grids, tuple(parts), tuple(sequences)

    def _run_blocks(self, parts, sequences, runs, *, chosen=(), stop=None):
        """Scan blocks up to `stop`; also return the first part after chosen ones."""
        slots = np.full(self.config.depth, len(chosen))  # the last slot is dropped
        slots[list(chosen)] = range(len(chosen))
        taps = None
        if chosen:
            taps = jnp.broadcast_to(parts[0], (len(chosen), *parts[0].shape))

        def run_block(carry, block):
            parts, taps = carry
            params, kept, slot = block
            run = self._block(params)
            parts = tuple(
                run(x, (sequence,), kept and tuple((k[i],) for k in kept))
                for i, (x, sequence) in enumerate(zip(parts, sequences))
            )
            parts = jax.tree.map(sharding.constrain_batch, parts)
            if taps is not None:
                taps = taps.at[slot].set(parts[0], mode="drop")
            return (parts, taps), None

        weights = self._weights()
        carry = (parts, taps)
        for first, last, kept in runs:
            blocks = slice(
                first, min(last, self.config.depth if stop is None else stop)
            )
            count = blocks.stop - blocks.start
            if count:
                carry, _ = jax.lax.scan(
                    self._checkpoint(run_block),
                    carry,
                    (
                        jax.tree.map(lambda p: p[blocks], weights),  # noqa: B023
                        jax.tree.map(lambda k: k[:count], kept),  # noqa: B023
                        slots[blocks],
                    ),
                    unroll=min(self.scan_unroll, count),
                )
        return carry

    def _checkpoint(self, function, **kwargs):
        """Wrap the function of one block in `jax.checkpoint` as `remat` says."""
        policy = remat.POLICIES[self.remat]
        return jax.checkpoint(function, policy=policy, prevent_cse=False, **kwargs)

    def _weights(self):
        """Return the weights of all blocks in the form that the blocks take."""
        return BLOCKS[self.block].prepare(self.blocks, self.dtype)

    def _block(self, weights):
        """Return the function of one block, whose weights are gathered once."""
        return BLOCKS[self.block].bind(
            weights, self.config, kernel=self.attention, dtype=self.dtype
        )

    def _all_kept(self):
        return [stochastic_depth.Run(0, self.config.depth, None)]

    def _kept_samples(self, sequences, num_groups, key, micro_batch=None):
        """Draw the blocks' kept samples; see `stochastic_depth.draw_runs`."""
        if key is None or not self.drop_path_rate:
            return self._all_kept()
        rates = [self.drop_path_rate] * self.config.depth
        if not self.drop_path_uniform:
            rates = np.linspace(0, self.drop_path_rate, self.config.depth).tolist()
        batches = [count for count, _ in sequences]
        return stochastic_depth.draw_runs(
            key,
            rates,
            num_groups=num_groups,
            batches=batches,
            micro_batch=micro_batch,
        )

    def _features(self, parts, sequences, grids, *, norm):
        """Split the tokens of each crop group into `Features`."""
        outputs = []
        first = 1 + self.config.num_register_tokens  # index of the first patch
        for tokens, (batch, length), grid in zip(parts, sequences, grids):
            shape = (tokens.shape[0], batch, length, self.config.embed_dim)
            x = (self.norm(tokens) if norm else tokens).reshape(shape)
            outputs.append(
                Features(
                    cls=x[:, :, 0],
                    registers=x[:, :, 1:first],
                    patches=x[:, :, first:].reshape(*shape[:2], *grid, -1),
                    prenorm=tokens.reshape(shape),
                )
            )
        return outputs


class _Form(NamedTuple):
    """A form of the blocks.

    Attributes:
      prepare: Function (stacked parameters of all blocks, dtype) -> weights in the
        form that the blocks take, cast to the dtype of the matmuls.
      bind: Function (weights of one block, config, kernel, dtype) -> the block.
    """

    prepare: Callable[[Any, Any], Any]
    bind: Callable[..., Any]


# Name -> form of the blocks; equal up to rounding.
BLOCKS = {
    "plain": _Form(layers_lib.cast_matmuls, layers_lib.bind),
    "folded": _Form(folded_block.fold, folded_block.bind),
}


def make_vision_transformer(config: Any, dtype: Any) -> VisionTransformer:
    """Return the backbone of `config.model` for global crops of `config.crops`."""
    model = config.model
    return VisionTransformer(
        model_config.make_model_config(config),
        drop_path_rate=model.drop_path_rate,
        drop_path_uniform=model.drop_path_uniform,
        dtype=dtype,
        block=model.block,
        attention=model.attention,
        remat=model.remat,
        scan_unroll=model.scan_unroll,
    )

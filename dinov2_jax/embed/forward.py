"""The backbone's forward pass for inference only: uint8 images to chosen features.

Equal to `models.vision_transformer` up to rounding, but faster:

- For features of the class token, the last block needs the keys and values of all
  tokens, but the query, projection and FFN of only one. With twelve blocks this saves
  a twelfth of the work.
- On the CPU, attention runs image by image, so that its scores stay in the cache, and
  divides by the softmax's sum after the product with the values.

Shapes: B images, S their side in pixels, C channels, h x w patches, T tokens (class,
registers, patches), Q of them as queries, H heads, D width.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dinov2_jax.data import preprocessing
from dinov2_jax.kernels import attention as attention_kernel
from dinov2_jax.kernels import layer_norm
from dinov2_jax.models import layers, patch_embed, vision_transformer

KINDS = ("cls", "patch_mean", "cls+patch_mean", "patches")


def features_shape(
    module: vision_transformer.VisionTransformer, kind: str, size: int
) -> tuple[int, ...]:
    """Return the shape of one image's features.

    Args:
      module: The backbone.
      kind: Kind of features, one of `KINDS`.
      size: Side S of the images, px.

    Returns:
      (D,), (2 * D,) for "cls+patch_mean", (h, w, D) for "patches".
    """
    side = size // module.patch_size
    width = module.embed_dim
    return {"cls+patch_mean": (2 * width,), "patches": (side, side, width)}.get(
        kind, (width,)
    )


def prepare(
    module: vision_transformer.VisionTransformer, params: Mapping[str, Any], size: int
) -> dict[str, Any]:
    """Return the parameters in the form that `features` takes.

    Args:
      module: The backbone.
      params: Parameters of the backbone.
      size: Side S of the images, px.

    Returns:
      `params` with the last block separate and position embeddings for this size.
    """
    return dict(
        params,
        blocks=jax.tree.map(lambda leaf: leaf[:-1], params["blocks"]),
        last=jax.tree.map(lambda leaf: leaf[-1], params["blocks"]),
        pos_embed=module.apply(
            {"params": params}, size, size, method="position_embeddings"
        ),
    )


def features(
    module: vision_transformer.VisionTransformer,
    params: Mapping[str, Any],
    images: jax.Array,
    *,
    kind: str,
    prepare_images: preprocessing.Preprocessing,
    by_image: bool,
) -> jax.Array:
    """Compute a batch's features after the last LayerNorm.

    Args:
      module: The backbone; its `dtype` is that of the matmuls.
      params: Parameters from `prepare`.
      images: uint8 [B, S, S, C].
      kind: "cls", the class token; "patch_mean", the mean of the patch tokens;
        "cls+patch_mean", both concatenated; or "patches", the patch tokens.
      prepare_images: Preprocessing with the mean and deviation.
      by_image: Whether attention runs image by image, as suits the CPU.

    Returns:
      float32 [B, ...]; see `features_shape`.
    """
    x = (images.astype(jnp.float32) / 255.0 - jnp.float32(prepare_images.mean)) / (
        jnp.float32(prepare_images.std)
    )
    grid = images.shape[1] // module.patch_size
    x = _tokens(module, params, x)  # [B, T, D]

    def run_block(x, block):
        return _block(module, block, x, None, by_image), None

    x, _ = jax.lax.scan(run_block, x, params["blocks"])
    x = _block(module, params["last"], x, 1 if kind == "cls" else None, by_image)
    x = _norm(x, params["norm"], module.dtype).astype(jnp.float32)
    cls, patches = x[:, 0], x[:, 1 + module.num_register_tokens :]
    if kind == "cls":
        return cls
    if kind == "patches":
        return patches.reshape(len(x), grid, grid, -1)
    mean = patches.mean(axis=1)
    return mean if kind == "patch_mean" else jnp.concatenate([cls, mean], axis=-1)


def _tokens(module, params, x):
    """Embed images [B, S, S, C] as tokens [B, T, D]."""
    embed = patch_embed.PatchEmbed(module.patch_size, module.embed_dim, module.dtype)
    x = embed.apply({"params": params["patch_embed"]}, x)  # [B, h*w, D]
    pos = params["pos_embed"].astype(x.dtype)
    prefix = [params["cls_token"].astype(x.dtype) + pos[:, :1]]
    if module.num_register_tokens:
        prefix.append(params["register_tokens"].astype(x.dtype))
    prefix = jnp.concatenate(prefix, axis=1)
    prefix = jnp.broadcast_to(prefix, (len(x), *prefix.shape[1:]))
    return jnp.concatenate([prefix, x + pos[:, 1:]], axis=1)


def _norm(x, params, dtype):
    return layer_norm.layer_norm(x, params["scale"], params["bias"]).astype(dtype)


def _dense(x, params, columns=slice(None)):
    """Apply a linear layer, or compute only some of its outputs."""
    y = x @ params["kernel"][:, columns].astype(x.dtype)
    return y + params["bias"][columns].astype(x.dtype) if "bias" in params else y


def _scaled(x, params, name):
    """Apply LayerScale, if there is one."""
    return x * params[name]["gamma"].astype(x.dtype) if name in params else x


def _block(module, params, x, queries, by_image):
    """Apply a block, [B, T, D] -> [B, Q, D], for the first Q tokens (None: all)."""
    attn, dim = params["attn"], x.shape[-1]
    y = _norm(x, params["norm1"], module.dtype)
    if queries is None:
        y = _attention(_dense(y, attn["qkv"]), module.num_heads, by_image)
    else:
        y = _few_queries(
            _dense(y[:, :queries], attn["qkv"], slice(dim)),
            _dense(y, attn["qkv"], slice(dim, None)),
            module.num_heads,
        )
    x = x[:, :queries] + _scaled(_dense(y, attn["proj"]), params, "ls1")
    y = _norm(x, params["norm2"], module.dtype)
    return x + _scaled(_ffn(y, params["mlp"]), params, "ls2")


def _ffn(x, params):
    if "fc1" in params:
        return _dense(layers.gelu(_dense(x, params["fc1"])), params["fc2"])
    gate, value = jnp.split(_dense(x, params["w12"]), 2, axis=-1)
    return _dense(jax.nn.silu(gate) * value, params["w3"])


def _attention(qkv, num_heads, by_image):
    """Apply self-attention, [B, T, 3*D] -> [B, T, D]."""
    batch, length, _ = qkv.shape
    if not by_image:
        return attention_kernel.attention(
            qkv, sequences=((1, length),), num_heads=num_heads
        )

    def one(image):
        q, k, v = jnp.moveaxis(image.reshape(length, 3, num_heads, -1), 1, 0)
        scores = jnp.einsum(
            "qhc,khc->hqk",
            q * q.shape[-1] ** -0.5,
            k,
            preferred_element_type=jnp.float32,
        )
        weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
        total = weights.sum(axis=-1, keepdims=True)
        out = jnp.einsum(
            "hqk,khc->hqc",
            weights.astype(v.dtype),
            v,
            preferred_element_type=jnp.float32,
        )
        out = (out / total).astype(v.dtype)
        return out.transpose(1, 0, 2).reshape(length, -1)

    return jax.lax.map(one, qkv)


def _few_queries(q, kv, num_heads):
    """Attend from queries [B, Q, D] to keys and values [B, T, 2*D] -> [B, Q, D]."""
    batch, count, dim = q.shape
    q = q.reshape(batch, count, num_heads, -1)
    k, v = jnp.moveaxis(kv.reshape(batch, -1, 2, num_heads, q.shape[-1]), 2, 0)
    scores = jnp.einsum(
        "bqhc,bkhc->bhqk",
        q * q.shape[-1] ** -0.5,
        k,
        preferred_element_type=jnp.float32,
    )
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bhqk,bkhc->bqhc", weights, v).reshape(batch, count, dim)

"""The DINOv2 forward pass in plain PyTorch, from a `state_dict` by the hub's names.

Used to check exports with PyTorch itself. Mirrors the reference's
`models/vision_transformer.py` as its hub builds it: whether there are registers decides
how position embeddings are interpolated. PyTorch is imported only here and in `verify`,
when an export is checked.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def features(
    tensors: Mapping[str, Any], images: np.ndarray, num_heads: int
) -> dict[str, np.ndarray]:
    """Compute normalised class token, registers and patch tokens.

    Args:
      tensors: torch tensors by the hub's names, float32.
      images: float32 [B, H, W, C], normalised, of any size in whole patches.
      num_heads: Number of attention heads.

    Returns:
      `cls` [B, D], `registers` [B, R, D] and `patches` [B, h, w, D].
    """
    import torch
    import torch.nn.functional as F

    def linear(name, x):
        return F.linear(x, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))

    def norm(name, x):
        weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        return F.layer_norm(x, weight.shape, weight, bias, eps=1e-6)

    def attention(block, x):
        qkv = linear(f"{block}.attn.qkv", x)
        qkv = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(*qkv)
        return linear(f"{block}.attn.proj", out.transpose(1, 2).flatten(2))

    def ffn(block, x):
        if f"{block}.mlp.w12.weight" in tensors:
            gate, value = linear(f"{block}.mlp.w12", x).chunk(2, dim=-1)
            return linear(f"{block}.mlp.w3", F.silu(gate) * value)
        return linear(f"{block}.mlp.fc2", F.gelu(linear(f"{block}.mlp.fc1", x)))

    def scaled(name, x):
        return x * tensors[name] if name in tensors else x

    patch = tensors["patch_embed.proj.weight"]
    with torch.inference_mode():
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        x = F.conv2d(
            pixels, patch, tensors["patch_embed.proj.bias"], stride=patch.shape[-1]
        )
        batch, dim, rows, columns = x.shape
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([tensors["cls_token"].expand(batch, -1, -1), x], dim=1)
        x = x + _positions(tensors, rows, columns)
        registers = tensors.get("register_tokens")
        if registers is not None:
            parts = [x[:, :1], registers.expand(batch, -1, -1), x[:, 1:]]
            x = torch.cat(parts, dim=1)
        depth = 1 + max(int(k.split(".")[1]) for k in tensors if k[:7] == "blocks.")
        for i in range(depth):
            block = f"blocks.{i}"
            residual = attention(block, norm(f"{block}.norm1", x))
            x = x + scaled(f"{block}.ls1.gamma", residual)
            residual = ffn(block, norm(f"{block}.norm2", x))
            x = x + scaled(f"{block}.ls2.gamma", residual)
        x = norm("norm", x).numpy()
    first = x.shape[1] - rows * columns
    return {
        "cls": x[:, 0],
        "registers": x[:, 1:first],
        "patches": x[:, first:].reshape(batch, rows, columns, dim),
    }


def _positions(tensors, rows: int, columns: int):
    """Return position embeddings [1, 1 + rows*columns, D], interpolated by torch."""
    import torch
    import torch.nn.functional as F

    stored = tensors["pos_embed"]
    if rows == columns and rows * columns == stored.shape[1] - 1:
        return stored
    side = math.isqrt(stored.shape[1] - 1)
    grid = stored[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    if "register_tokens" in tensors:
        grid = F.interpolate(grid, (rows, columns), mode="bicubic", antialias=True)
    else:  # torch samples at this scale factor, slightly above rows / side
        scale = ((rows + 0.1) / side, (columns + 0.1) / side)
        grid = F.interpolate(grid, scale_factor=scale, mode="bicubic")
    return torch.cat([stored[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)

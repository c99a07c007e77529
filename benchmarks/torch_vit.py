"""The modules of `benchmarks.torch_peer`: a ViT with subset drop path, and heads.

Parameters are float32. Each layer casts its own to the dtype of its input, so that a
bfloat16 image runs in bfloat16 throughout, as under FSDP's mixed precision.

Shapes: V crops of one kind, N patches, T tokens (1 + N), D width, K prototypes.
"""

import torch
import torch.nn.functional as F
from torch import nn


class Linear(nn.Linear):
    """A linear layer in the dtype of its input, with the reference's initialisation."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs)
        nn.init.normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [..., inputs] to [..., outputs]."""
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class LayerNorm(nn.LayerNorm):
    """Layer normalisation in the dtype of its input, with float32 statistics."""

    def __init__(self, dim: int):
        super().__init__(dim, eps=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [..., D] to [..., D]."""
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class Attention(nn.Module):
    """Fused multi-head self-attention."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [V, T, D] to [V, T, D]."""
        views, tokens, dim = x.shape
        qkv = self.qkv(x).view(views, tokens, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v)  # [V, H, T, D / H]
        return self.proj(x.transpose(1, 2).reshape(views, tokens, dim))


class Mlp(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, dim: int):
        super().__init__()
        self.fc1 = Linear(dim, 4 * dim)
        self.fc2 = Linear(4 * dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [V, T, D] to [V, T, D]."""
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGLU(nn.Module):
    """SwiGLU: silu(x1) * x2 of a packed projection, two thirds as wide as the MLP."""

    def __init__(self, dim: int):
        super().__init__()
        hidden = (int(4 * dim * 2 / 3) + 7) // 8 * 8
        self.w12 = Linear(dim, 2 * hidden)
        self.w3 = Linear(hidden, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [V, T, D] to [V, T, D]."""
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class Block(nn.Module):
    """A block; stochastic depth computes only the samples that it keeps."""

    def __init__(self, dim: int, heads: int, ffn_layer: str, layerscale: float):
        super().__init__()
        self.norm1 = LayerNorm(dim)
        self.attn = Attention(dim, heads)
        self.gamma1 = nn.Parameter(torch.full((dim,), layerscale))
        self.norm2 = LayerNorm(dim)
        self.mlp = SwiGLU(dim) if ffn_layer == "swiglufused" else Mlp(dim)
        self.gamma2 = nn.Parameter(torch.full((dim,), layerscale))

    def forward(self, x: torch.Tensor, drop_path_rate: float) -> torch.Tensor:
        """Map [V, T, D] to [V, T, D]."""
        for norm, branch, gamma in (
            (self.norm1, self.attn, self.gamma1),
            (self.norm2, self.mlp, self.gamma2),
        ):
            gamma = gamma.to(x.dtype)
            if drop_path_rate == 0.0:
                x = torch.addcmul(x, branch(norm(x)), gamma)
                continue
            views = x.shape[0]
            kept = max(int(views * (1.0 - drop_path_rate)), 1)
            subset = torch.randperm(views, device=x.device)[:kept]
            residual = branch(norm(x[subset])) * gamma
            x = x.index_add(0, subset, residual, alpha=views / kept)
        return x


class ViT(nn.Module):
    """The backbone; `grid` is the side of a global crop in patches."""

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        heads: int,
        patch: int,
        grid: int,
        ffn_layer: str,
        layerscale: float,
    ):
        super().__init__()
        self.grid = grid
        self.patch_embed = nn.Conv2d(3, dim, patch, patch)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * 1e-6)
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + grid**2, dim) * 0.02)
        self.mask_token = nn.Parameter(torch.zeros(1, dim))
        self.blocks = nn.ModuleList(
            Block(dim, heads, ffn_layer, layerscale) for _ in range(depth)
        )
        self.norm = LayerNorm(dim)

    def _positions(self, grid: int) -> torch.Tensor:
        if grid == self.grid:
            return self.pos_embed
        dim = self.pos_embed.shape[-1]
        patches = self.pos_embed[:, 1:].view(1, self.grid, self.grid, dim)
        patches = F.interpolate(
            patches.permute(0, 3, 1, 2),
            scale_factor=(grid + 0.1) / self.grid,
            mode="bicubic",
        )
        patches = patches.permute(0, 2, 3, 1).reshape(1, grid**2, dim)
        return torch.cat([self.pos_embed[:, :1], patches], dim=1)

    def forward(
        self,
        crops: torch.Tensor,
        masks: torch.Tensor | None = None,
        drop_path_rate: float = 0.0,
    ) -> torch.Tensor:
        """Map crops [V, 3, S, S], bool masks [V, N] to [V, T, D], class token first."""
        embed, dtype = self.patch_embed, crops.dtype
        weight, bias = embed.weight.to(dtype), embed.bias.to(dtype)
        x = F.conv2d(crops, weight, bias, embed.stride)  # [V, D, grid, grid]
        grid = x.shape[-1]
        x = x.flatten(2).transpose(1, 2)  # [V, N, D]
        if masks is not None:
            x = torch.where(masks[..., None], self.mask_token.to(dtype), x)
        cls = self.cls_token.to(dtype).expand(x.shape[0], -1, -1)
        x = torch.cat([cls, x], dim=1) + self._positions(grid).to(dtype)
        for block in self.blocks:
            x = block(x, drop_path_rate)
        return self.norm(x)


class Head(nn.Module):
    """MLP, L2 normalisation and a weight-normed linear layer to K prototypes."""

    def __init__(self, dim: int, hidden: int, bottleneck: int, prototypes: int):
        super().__init__()
        self.mlp = nn.Sequential(
            Linear(dim, hidden),
            nn.GELU(),
            Linear(hidden, hidden),
            nn.GELU(),
            Linear(hidden, bottleneck),
        )
        last = nn.Linear(bottleneck, prototypes, bias=False)
        self.last_layer = nn.utils.parametrizations.weight_norm(last)
        nn.init.ones_(self.last_layer.parametrizations.weight.original0)

    def forward(self, x: torch.Tensor, temperature: float) -> torch.Tensor:
        """Map [..., D] to float32 logits over the temperature, [..., K]."""
        dtype = x.dtype
        x = F.normalize(self.mlp(x).float(), eps=1e-12)
        x = (x / temperature).to(dtype)  # the bottleneck is narrower than K
        return F.linear(x, self.last_layer.weight.to(dtype)).float()


class Branch(nn.Module):
    """Backbone and heads of the student or the teacher."""

    def __init__(self, backbone: ViT, dino_head: Head, ibot_head: Head | None):
        super().__init__()
        self.backbone = backbone
        self.dino_head = dino_head
        if ibot_head is not None:
            self.ibot_head = ibot_head
        self.separate = ibot_head is not None

    def logits(
        self, cls: torch.Tensor, patches: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return prototype logits of class tokens [C, D] and masked patches [M, D]."""
        if self.separate:
            return (
                self.dino_head(cls, temperature),
                self.ibot_head(patches, temperature),
            )
        both = self.dino_head(torch.cat([cls, patches]), temperature)
        return both.split([len(cls), len(patches)])

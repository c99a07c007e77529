"""The peer to beat: one DINOv2 training step in plain PyTorch, float32, on the CPU.

The same work as the reference's step (`dinov2/train/ssl_meta_arch.py`) and as ours:
student and teacher ViT with 2 masked global and L local crops, subset drop path, shared
head, Sinkhorn-Knopp, DINO, iBOT and KoLeo losses, clip per submodule, AdamW with
layerwise decay, EMA teacher. It is written to be fast: fused attention, fused AdamW,
one pass of the head over all tokens, Sinkhorn on scaling vectors, no padded tokens.

    python -m benchmarks.torch_peer --batch_size=4 --drop_path_rate=0.3

Shapes: B images, V crops of one kind (2B or L*B), N patches, T tokens (1 + N), D width,
K prototypes, M masked patches.
"""

import argparse
import json
import math
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn

STUDENT_TEMP = 0.1
TEACHER_TEMP = 0.07
# glibc hands large arrays back to the system after each use and faults their pages in
# again at the next; keeping them made a step at batch 4 about a sixth faster. Read by
# glibc when a process starts, so it belongs in the environment of a new one.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
}


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = _linear(dim, 3 * dim)
        self.proj = _linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        views, tokens, dim = x.shape
        qkv = self.qkv(x).view(views, tokens, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v)  # [V, H, T, D / H]
        return self.proj(x.transpose(1, 2).reshape(views, tokens, dim))


class _Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = _linear(dim, hidden)
        self.fc2 = _linear(hidden, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _Block(nn.Module):
    def __init__(self, dim: int, heads: int, layerscale: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = _Attention(dim, heads)
        self.gamma1 = nn.Parameter(torch.full((dim,), layerscale))
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = _Mlp(dim, 4 * dim)
        self.gamma2 = nn.Parameter(torch.full((dim,), layerscale))

    def forward(self, x: torch.Tensor, drop_path_rate: float) -> torch.Tensor:
        for norm, branch, gamma in (
            (self.norm1, self.attn, self.gamma1),
            (self.norm2, self.mlp, self.gamma2),
        ):
            if drop_path_rate == 0.0:
                x = torch.addcmul(x, branch(norm(x)), gamma)
                continue
            views = x.shape[0]
            kept = max(int(views * (1.0 - drop_path_rate)), 1)
            subset = torch.randperm(views)[:kept]
            residual = branch(norm(x[subset])) * gamma
            x = x.index_add(0, subset, residual, alpha=views / kept)
        return x


class _ViT(nn.Module):
    def __init__(
        self, dim: int, depth: int, heads: int, patch: int, grid: int, layerscale: float
    ):
        super().__init__()
        self.grid = grid  # of the global crops
        self.patch_embed = nn.Conv2d(3, dim, patch, patch)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * 1e-6)
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + grid**2, dim) * 0.02)
        self.mask_token = nn.Parameter(torch.zeros(1, dim))
        self.blocks = nn.ModuleList(
            _Block(dim, heads, layerscale) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)

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
        x = self.patch_embed(crops)  # [V, D, grid, grid]
        grid = x.shape[-1]
        x = x.flatten(2).transpose(1, 2)  # [V, N, D]
        if masks is not None:
            x = torch.where(masks[..., None], self.mask_token, x)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = x + self._positions(grid)  # [V, T, D]
        for block in self.blocks:
            x = block(x, drop_path_rate)
        return self.norm(x)


class _Head(nn.Module):
    def __init__(self, dim: int, hidden: int, bottleneck: int, prototypes: int):
        super().__init__()
        self.mlp = nn.Sequential(
            _linear(dim, hidden),
            nn.GELU(),
            _linear(hidden, hidden),
            nn.GELU(),
            _linear(hidden, bottleneck),
        )
        last = nn.Linear(bottleneck, prototypes, bias=False)
        self.last_layer = nn.utils.parametrizations.weight_norm(last)
        nn.init.ones_(self.last_layer.parametrizations.weight.original0)

    def forward(self, x: torch.Tensor, temperature: float) -> torch.Tensor:
        x = F.normalize(self.mlp(x), eps=1e-12)
        return self.last_layer(x / temperature)  # dividing D columns, not K


def _sinkhorn_knopp(logits: torch.Tensor, iterations: int = 3) -> torch.Tensor:
    """Balanced assignment [rows, K] of `logits`, already divided by the temperature.

    Alternating row and column divisions only ever scale rows and columns, so the two
    scaling vectors are iterated and the matrix is written twice instead of six times.
    """
    rows, prototypes = logits.shape
    q = logits.exp_()
    row_scale = torch.full((rows,), 1.0 / q.sum().item())
    for _ in range(iterations):
        prototype_scale = 1.0 / ((row_scale @ q) * prototypes)
        row_scale = 1.0 / ((q @ prototype_scale) * rows)
    return q.mul_((row_scale * rows)[:, None]).mul_(prototype_scale)


def _cross_entropy(targets: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """-sum_k targets * log_softmax(logits), [..., K] twice -> [...]."""
    return -(targets * F.log_softmax(logits, dim=-1)).sum(dim=-1)


def _koleo(x: torch.Tensor) -> torch.Tensor:
    x = F.normalize(x, eps=1e-8)
    with torch.no_grad():
        nearest = (x @ x.T).fill_diagonal_(-1.0).argmax(dim=1)
    distance = F.pairwise_distance(x, x[nearest], eps=1e-8)
    return -(distance + 1e-8).log().mean()


class _Branch(nn.Module):
    """Backbone and head(s); the student is one, the teacher another."""

    def __init__(self, backbone: nn.Module, dino_head: nn.Module, ibot_head):
        super().__init__()
        self.backbone = backbone
        self.dino_head = dino_head
        if ibot_head is not None:
            self.ibot_head = ibot_head
        self.separate = ibot_head is not None

    def logits(self, cls, patches, temperature: float):
        """Prototype logits of class tokens [C, D] and masked patches [M, D]."""
        if self.separate:
            return (
                self.dino_head(cls, temperature),
                self.ibot_head(patches, temperature),
            )
        both = self.dino_head(torch.cat([cls, patches]), temperature)
        return both.split([len(cls), len(patches)])


def _optimizer(student: _Branch, depth: int, lr: float) -> torch.optim.AdamW:
    """AdamW, one group per (layerwise decay, weight decay) as the reference fuses."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in student.named_parameters():
        layer = depth + 1
        if ".blocks." in name:
            layer = int(name.split(".blocks.")[1].split(".")[0]) + 1
        elif name.startswith("backbone.") and "backbone.norm" not in name:
            layer = 0
        rate = lr * 0.9 ** (depth + 1 - layer) * (0.2 if "patch_embed" in name else 1.0)
        decays = not (name.endswith("bias") or "norm" in name or "gamma" in name)
        groups.setdefault((rate, 0.04 if decays else 0.0), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr": rate, "weight_decay": decay}
            for (rate, decay), parameters in groups.items()
        ],
        betas=(0.9, 0.999),
        eps=1e-8,
        fused=True,
    )


class TorchPeer:
    """A DINOv2 training step in PyTorch on fixed random crops and masks.

    Args:
      batch_size: B, images per step.
      drop_path_rate: share of the samples each residual branch leaves out, in [0, 1).
      num_prototypes: K.
      seed: of the weights, crops, masks and drop-path subsets.
      threads: CPU threads of PyTorch (for the whole process); None leaves its setting.
      embed_dim, depth, num_heads, patch_size: the ViT; ViT-S/14 by default.
      global_size, local_size: side of the crops in pixels.
      num_local_crops: L, local crops per image.
      layerscale: initial value of LayerScale.
      separate_head: give iBOT a head of its own.
      learning_rate: of AdamW, constant.
      momentum: of the EMA teacher.
    """

    def __init__(
        self,
        batch_size: int = 4,
        drop_path_rate: float = 0.0,
        num_prototypes: int = 65536,
        seed: int = 0,
        threads: int | None = None,
        *,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        patch_size: int = 14,
        global_size: int = 224,
        local_size: int = 98,
        num_local_crops: int = 8,
        layerscale: float = 1e-5,
        separate_head: bool = False,
        learning_rate: float = 1e-4,
        momentum: float = 0.992,
    ):
        if threads is not None:
            torch.set_num_threads(threads)
        torch.manual_seed(seed)
        self.batch_size = batch_size
        self.drop_path_rate = drop_path_rate
        self.num_local_crops = num_local_crops
        self.momentum = momentum
        self.losses: dict[str, float] = {}

        grid = global_size // patch_size

        def branch() -> _Branch:
            heads = [
                _Head(embed_dim, 2048, 256, num_prototypes)
                for _ in range(1 + separate_head)
            ]
            vit = _ViT(embed_dim, depth, num_heads, patch_size, grid, layerscale)
            return _Branch(vit, heads[0], heads[1] if separate_head else None)

        self.student, self.teacher = branch(), branch()
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)
        self.optimizer = _optimizer(self.student, depth, learning_rate)
        self._teacher_parameters = list(self.teacher.parameters())
        self._student_parameters = list(self.student.parameters())

        self.global_crops = torch.randn(2 * batch_size, 3, global_size, global_size)
        self.local_crops = torch.randn(
            num_local_crops * batch_size, 3, local_size, local_size
        )
        self.masks, weights = _masks(2 * batch_size, grid**2)
        self.masked_indices = self.masks.flatten().nonzero().flatten()  # [M]
        self.masked_weights = weights[self.masked_indices // grid**2]  # [M]

    def step(self) -> float:
        """Runs one whole training step; returns the total loss before the update.

        The weighted terms of that total are left in `self.losses`.
        """
        views, local_count = 2 * self.batch_size, self.num_local_crops
        terms = local_count * 2 + 2
        cls_targets, patch_targets = self._targets()

        globals_ = self.student.backbone(
            self.global_crops, self.masks, self.drop_path_rate
        )
        cls, patches = globals_[:, 0], globals_[:, 1:].flatten(0, 1)
        all_cls = cls
        if local_count:
            locals_ = self.student.backbone(
                self.local_crops, drop_path_rate=self.drop_path_rate
            )
            all_cls = torch.cat([cls, locals_[:, 0]])
        cls_logits, patch_logits = self.student.logits(
            all_cls, patches[self.masked_indices], STUDENT_TEMP
        )
        global_logits, local_logits = cls_logits.split([views, len(all_cls) - views])

        first, second = cls_targets.chunk(2)
        losses = {}
        if local_count:
            # Each local crop meets both teacher views: one entropy with their sum.
            local_logits = local_logits.view(local_count, self.batch_size, -1)
            entropy = _cross_entropy(first + second, local_logits)  # [L, B]
            losses["dino_local"] = entropy.mean(dim=1).sum() / terms
        swapped = torch.cat([second, first])
        losses["dino_global"] = _cross_entropy(swapped, global_logits).mean() * (
            2.0 / terms
        )
        losses["koleo"] = 0.1 * sum(_koleo(view) for view in cls.chunk(2))
        entropy = _cross_entropy(patch_targets, patch_logits)  # [M]
        losses["ibot"] = (self.masked_weights @ entropy) / views
        total = sum(losses.values())

        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        for submodule in self.student.children():
            nn.utils.clip_grad_norm_(submodule.parameters(), 3.0, foreach=True)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(
                self._teacher_parameters, self._student_parameters, 1 - self.momentum
            )
        self.losses = {name: float(value.detach()) for name, value in losses.items()}
        return float(total.detach())

    def time_steps(self, n: int, warmup: int = 1) -> list[float]:
        """Wall-clock seconds of each of `n` steps, after `warmup` untimed ones."""
        for _ in range(warmup):
            self.step()
        seconds = []
        for _ in range(n):
            start = time.perf_counter()
            self.step()
            seconds.append(time.perf_counter() - start)
        return seconds

    @torch.no_grad()
    def _targets(self) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.teacher.backbone(self.global_crops)
        cls, patches = x[:, 0], x[:, 1:].flatten(0, 1)
        cls, patches = self.teacher.logits(
            cls, patches[self.masked_indices], TEACHER_TEMP
        )
        return _sinkhorn_knopp(cls), _sinkhorn_knopp(patches)


def _masks(views: int, patches: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random masks [V, N] with the reference's mean ratios, and 1 / count [V].

    Half of the crops are masked, at the midpoints of equal steps from 0.1 to 0.5.
    """
    masked = views // 2
    edges = torch.linspace(0.1, 0.5, masked + 1)
    masks = torch.zeros(views, patches, dtype=torch.bool)
    for view, low, high in zip(torch.randperm(views)[:masked], edges, edges[1:]):
        masks[view, torch.randperm(patches)[: int(patches * (low + high) / 2)]] = True
    return masks, 1.0 / masks.sum(dim=1).clamp(min=1)


def main() -> None:
    """Prints one JSON object: seconds per step and images per second."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--drop_path_rate", type=float, default=0.0)
    parser.add_argument("--num_prototypes", type=int, default=65536)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=1)
    args = parser.parse_args()
    peer = TorchPeer(
        args.batch_size, args.drop_path_rate, args.num_prototypes, 0, args.threads
    )
    first_loss = peer.step()
    uniform = math.log(args.num_prototypes)
    report = {
        "first_loss": first_loss,
        "first_losses": peer.losses,
        "uniform_losses": {
            "dino_local": 16 / 18 * uniform,
            "dino_global": 2 / 18 * uniform,
            "ibot": uniform / 2,
        },
    }
    seconds = peer.time_steps(args.steps, max(args.warmup - 1, 0))
    report |= {
        "seconds": seconds,
        "seconds_median": statistics.median(seconds),
        "images_per_second": args.batch_size / statistics.median(seconds),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()

"""The peer to beat: one DINOv2 training step in plain PyTorch.

It does the same work as the reference's step (`dinov2/train/ssl_meta_arch.py`) and as
ours: student and teacher ViT with 2 masked global and L local crops, subset drop path,
Sinkhorn-Knopp, DINO, iBOT and KoLeo losses, clip per submodule, AdamW with layerwise
decay, EMA teacher. It is written to be fast: fused attention, fused AdamW, one pass of
a shared head over all tokens, Sinkhorn on scaling vectors, no padded tokens. On a GPU
it runs in bfloat16 and, with --compile, with torch.compile of blocks, heads and losses.

    python -m benchmarks.torch_peer --batch_size=4 --sizes='{"drop_path_rate": 0.3}'

Shapes: B images, V crops of one kind (2B or L*B), N patches, D width, K prototypes,
M masked patches.
"""

import argparse
import json

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import environment, timing, torch_vit

STUDENT_TEMP = 0.1
TEACHER_TEMP = 0.07
HEAD = (2048, 256, 65536)  # hidden width, bottleneck, K


def sinkhorn_knopp(logits: torch.Tensor, iterations: int = 3) -> torch.Tensor:
    """Compute balanced targets [rows, K] from `logits` over the temperature, in place.

    Alternating row and column divisions only scale rows and columns. So only the two
    scaling vectors are iterated, and the matrix is written twice instead of six times.
    """
    rows, prototypes = logits.shape
    q = logits.exp_()
    row_scale = (1.0 / q.sum()).expand(rows)
    for _ in range(iterations):
        prototype_scale = 1.0 / ((row_scale @ q) * prototypes)
        row_scale = 1.0 / ((q @ prototype_scale) * rows)
    return q.mul_((row_scale * rows)[:, None]).mul_(prototype_scale)


def cross_entropy(targets: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Return -sum_k targets * log_softmax(logits), [...], of two [..., K]."""
    return -(targets * F.log_softmax(logits, dim=-1)).sum(dim=-1)


def _koleo(x: torch.Tensor) -> torch.Tensor:
    x = F.normalize(x.float(), eps=1e-8)
    with torch.no_grad():
        nearest = (x @ x.T).fill_diagonal_(-1.0).argmax(dim=1)
    distance = F.pairwise_distance(x, x[nearest], eps=1e-8)
    return -(distance + 1e-8).log().mean()


def _optimizer(student: torch_vit.Branch, lr: float, decay: float) -> torch.optim.AdamW:
    """Make AdamW, one group per (learning rate, weight decay), like the reference."""
    last = len(student.backbone.blocks) + 1
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in student.named_parameters():
        layer = last
        if ".blocks." in name:
            layer = int(name.split(".blocks.")[1].split(".")[0]) + 1
        elif name.startswith("backbone.") and "backbone.norm" not in name:
            layer = 0
        rate = lr * decay ** (last - layer) * (0.2 if "patch_embed" in name else 1.0)
        decays = not (name.endswith("bias") or "norm" in name or "gamma" in name)
        groups.setdefault((rate, 0.04 if decays else 0.0), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr": rate, "weight_decay": weight_decay}
            for (rate, weight_decay), parameters in groups.items()
        ],
        betas=(0.9, 0.999),
        eps=1e-8,
        fused=True,
    )


class TorchPeer:
    """A DINOv2 training step in PyTorch on fixed random crops and masks.

    Args:
      batch_size: Images per step, B.
      seed: Seed of the weights, crops, masks and drop-path subsets.
      device: "cpu" or "cuda".
      dtype: Dtype of the matmuls and the residual stream.
      compile_backend: Backend of torch.compile for blocks, heads and losses; "" runs
        eagerly.
      drop_path_rate: Share of the samples that each residual branch skips, in [0, 1).
      embed_dim, depth, num_heads, patch_size, ffn_layer: The ViT; ViT-S/14 by default.
      global_size, local_size: Side of the crops in pixels.
      num_local_crops: Local crops per image, L.
      layerscale: Initial value of LayerScale.
      dino_head: Hidden width, bottleneck and K of the head.
      ibot_head: The same for a separate iBOT head; None shares the DINO head.
      layerwise_decay: Decay of the learning rate per layer; 1e-4 at the last layer.
      momentum: Momentum of the EMA teacher.

    Attributes:
      losses: The weighted loss terms of the last step.
    """

    def __init__(
        self,
        batch_size: int = 4,
        *,
        seed: int = 0,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        compile_backend: str = "",
        drop_path_rate: float = 0.0,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        patch_size: int = 14,
        ffn_layer: str = "mlp",
        global_size: int = 224,
        local_size: int = 98,
        num_local_crops: int = 8,
        layerscale: float = 1e-5,
        dino_head: tuple[int, int, int] = HEAD,
        ibot_head: tuple[int, int, int] | None = None,
        layerwise_decay: float = 0.9,
        momentum: float = 0.992,
    ):
        torch.manual_seed(seed)
        self.batch_size = batch_size
        self.drop_path_rate = drop_path_rate
        self.num_local_crops = num_local_crops
        self.momentum = momentum
        self.losses: dict[str, torch.Tensor] = {}
        grid = global_size // patch_size

        def branch() -> torch_vit.Branch:
            vit = torch_vit.ViT(
                dim=embed_dim,
                depth=depth,
                heads=num_heads,
                patch=patch_size,
                grid=grid,
                ffn_layer=ffn_layer,
                layerscale=layerscale,
            )
            heads = [
                torch_vit.Head(embed_dim, *head) if head else None
                for head in (dino_head, ibot_head)
            ]
            return torch_vit.Branch(vit, *heads)

        with torch.device(device):
            self.student, self.teacher = branch(), branch()
            self.global_crops = torch.randn(
                2 * batch_size, 3, global_size, global_size, dtype=dtype
            )
            self.local_crops = torch.randn(
                num_local_crops * batch_size, 3, local_size, local_size, dtype=dtype
            )
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)
        self.optimizer = _optimizer(self.student, 1e-4, layerwise_decay)
        self._teacher_parameters = list(self.teacher.parameters())
        self._student_parameters = list(self.student.parameters())
        masks, weights = random_masks(2 * batch_size, grid**2)
        indices = masks.flatten().nonzero().flatten()  # [M]
        self.masks, self.masked_indices = masks.to(device), indices.to(device)
        self.masked_weights = weights[indices // grid**2].to(device)  # [M]
        self._sinkhorn_knopp, self._cross_entropy = sinkhorn_knopp, cross_entropy
        if compile_backend:
            options = {"backend": compile_backend, "dynamic": False}
            # All blocks share one compilation if they are compiled one by one.
            for side in (self.student, self.teacher):
                for module in (*side.backbone.blocks, side.dino_head):
                    module.compile(**options)
                if side.separate:
                    side.ibot_head.compile(**options)
            self._sinkhorn_knopp = torch.compile(sinkhorn_knopp, **options)
            self._cross_entropy = torch.compile(cross_entropy, **options)

    def step(self) -> torch.Tensor:
        """Run one training step; return the total loss before the update."""
        self.losses = self._losses()
        total = sum(self.losses.values())
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        for submodule in self.student.children():
            nn.utils.clip_grad_norm_(submodule.parameters(), 3.0, foreach=True)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(
                self._teacher_parameters, self._student_parameters, 1 - self.momentum
            )
        self.losses = {name: value.detach() for name, value in self.losses.items()}
        return total.detach()

    def _losses(self) -> dict[str, torch.Tensor]:
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
            entropy = self._cross_entropy(first + second, local_logits)  # [L, B]
            losses["dino_local"] = entropy.mean(dim=1).sum() / terms
        swapped = torch.cat([second, first])
        entropy = self._cross_entropy(swapped, global_logits)
        losses["dino_global"] = entropy.mean() * (2.0 / terms)
        losses["koleo"] = 0.1 * sum(_koleo(view) for view in cls.chunk(2))
        entropy = self._cross_entropy(patch_targets, patch_logits)  # [M]
        losses["ibot"] = (self.masked_weights @ entropy) / views
        return losses

    @torch.no_grad()
    def _targets(self) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.teacher.backbone(self.global_crops)
        cls, patches = x[:, 0], x[:, 1:].flatten(0, 1)
        cls, patches = self.teacher.logits(
            cls, patches[self.masked_indices], TEACHER_TEMP
        )
        return self._sinkhorn_knopp(cls), self._sinkhorn_knopp(patches)


def random_masks(views: int, patches: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw masks [V, N] with the reference's mean ratios, and their 1 / count [V].

    Half of the crops are masked, at the midpoints of equal steps from 0.1 to 0.5.
    """
    masked = views // 2
    edges = torch.linspace(0.1, 0.5, masked + 1)
    masks = torch.zeros(views, patches, dtype=torch.bool)
    for view, low, high in zip(torch.randperm(views)[:masked], edges, edges[1:]):
        masks[view, torch.randperm(patches)[: int(patches * (low + high) / 2)]] = True
    return masks, 1.0 / masks.sum(dim=1).clamp(min=1)


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--sizes", type=json.loads, default={}, help="of TorchPeer")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--compile", default="", help="backend of torch.compile")
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--inner", type=int, default=1, help="steps a sample")
    parser.add_argument("--warmup", type=int, default=2)
    args = parser.parse_args()
    peer = TorchPeer(
        args.batch_size,
        device=args.device,
        dtype=getattr(torch, args.dtype),
        compile_backend=args.compile,
        **args.sizes,
    )
    cuda = args.device == "cuda"
    report = {
        "first_loss": float(peer.step()),
        "first_losses": {name: float(value) for name, value in peer.losses.items()},
    }
    report["seconds"] = timing.samples(
        peer.step,
        count=args.samples,
        inner=args.inner,
        warmup=max(args.warmup - 1, 0),
        finish=torch.cuda.synchronize if cuda else lambda: None,
    )
    report["host_bytes"] = environment.peak_host_bytes()
    if cuda:
        report["device_bytes"] = torch.cuda.max_memory_allocated()
    report["threads"] = torch.get_num_threads()
    print(json.dumps(report))


if __name__ == "__main__":
    main()

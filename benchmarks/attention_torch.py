"""A process that times PyTorch's attention, as `attention_jax` times ours."""

import argparse
import json

import torch
import torch.nn.functional as F

from benchmarks import timing


def attend(qkv: torch.Tensor, count: int, length: int, heads: int) -> torch.Tensor:
    """Map [1, count*length, 3*D] to [1, count*length, D]."""
    packed = qkv.view(count, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
    out = F.scaled_dot_product_attention(*packed)  # [count, H, length, C]
    return out.transpose(1, 2).reshape(1, count * length, -1)


def measure(length: int, args: argparse.Namespace) -> dict[str, list[float]]:
    """Return the seconds of the forward pass and of both passes."""
    count = max(args.tokens // length, 1)
    dim = 64 * args.heads
    options = {"dtype": getattr(torch, args.dtype), "device": args.device}
    qkv = torch.randn(1, count * length, 3 * dim, **options)
    grad = torch.randn(1, count * length, dim, **options)

    @torch.no_grad()
    def forward() -> None:
        attend(qkv, count, length, args.heads)

    leaf = qkv.clone().requires_grad_()

    def both() -> None:
        out = attend(leaf, count, length, args.heads)
        torch.autograd.grad(out, leaf, grad)

    finish = torch.cuda.synchronize if args.device == "cuda" else lambda: None
    return {
        name: timing.samples(
            call, count=args.samples, inner=args.inner, warmup=3, finish=finish
        )
        for name, call in (("forward", forward), ("both", both))
    }


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--lengths", type=int, nargs="+", required=True)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--inner", type=int, default=1)
    args = parser.parse_args()
    print(json.dumps({n: measure(n, args) for n in args.lengths}))


if __name__ == "__main__":
    main()

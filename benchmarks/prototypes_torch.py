"""A process that times `torch_peer`'s loss over prototypes, like `prototypes_jax`."""

import argparse
import json

import torch

from benchmarks import timing, torch_peer


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", default="", help="backend of torch.compile")
    parser.add_argument("--rows", type=int, default=1200)
    parser.add_argument("--columns", type=int, default=65536)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--inner", type=int, default=1)
    args = parser.parse_args()
    torch.manual_seed(0)
    options = {"dtype": getattr(torch, args.dtype), "device": args.device}
    unit = torch.nn.functional.normalize
    student, teacher = (unit(torch.randn(args.rows, 256, **options)) for _ in range(2))
    student_prototypes, teacher_prototypes = (
        unit(torch.randn(args.columns, 256, **options)) for _ in range(2)
    )
    weights = torch.rand(args.rows, device=args.device) + 0.5
    weights /= weights.sum()
    student.requires_grad_()
    student_prototypes.requires_grad_()
    sinkhorn, entropy = torch_peer.sinkhorn_knopp, torch_peer.cross_entropy
    if args.compile:
        sinkhorn, entropy = (
            torch.compile(f, backend=args.compile, dynamic=False)
            for f in (sinkhorn, entropy)
        )

    def call() -> torch.Tensor:
        with torch.no_grad():
            logits = (teacher / torch_peer.TEACHER_TEMP) @ teacher_prototypes.T
            targets = sinkhorn(logits.float())
        logits = (student / torch_peer.STUDENT_TEMP) @ student_prototypes.T
        loss = weights @ entropy(targets, logits.float())
        torch.autograd.grad(loss, (student, student_prototypes))
        return loss.detach()

    cuda = args.device == "cuda"
    report = {"loss": float(call())}
    before = 0
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    report["seconds"] = timing.samples(
        call,
        count=args.samples,
        inner=args.inner,
        warmup=1,
        finish=torch.cuda.synchronize if cuda else lambda: None,
    )
    if cuda:
        report["temp_bytes"] = torch.cuda.max_memory_allocated() - before
    print(json.dumps(report))


if __name__ == "__main__":
    main()

"""A process that times an implementation of `dinov2_jax.kernels.attention`."""

import argparse
import json

import jax
import jax.numpy as jnp

from benchmarks import timing
from dinov2_jax import cli
from dinov2_jax.kernels import attention


def measure(implementation: str, length: int, args: argparse.Namespace) -> dict:
    """Return the seconds of the forward pass and of both passes, or {"error": ...}."""
    sequences = ((max(args.tokens // length, 1), length),)
    shape = (1, sequences[0][0] * length, 64 * args.heads)
    keys = jax.random.split(jax.random.key(0))
    qkv = jax.random.normal(keys[0], (*shape[:2], 3 * shape[2]), args.dtype)
    grad = jax.random.normal(keys[1], shape, args.dtype)

    def forward(qkv):
        return attention.attention(
            qkv,
            sequences=sequences,
            num_heads=args.heads,
            implementation=implementation,
        )

    def both(qkv, grad):
        out, pullback = jax.vjp(forward, qkv)
        return out, pullback(grad)

    report = {}
    try:
        for name, function, inputs in (
            ("forward", forward, (qkv,)),
            ("both", both, (qkv, grad)),
        ):
            report[name] = time_calls(function, inputs, args)
    except Exception as error:  # a kernel's refusal is a result
        report["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:100]
    return report


def time_calls(function, inputs: tuple, args: argparse.Namespace) -> list[float]:
    """Return the seconds of a jitted call."""
    compiled = jax.jit(function).lower(*inputs).compile()
    out = None

    def call() -> None:
        nonlocal out
        out = compiled(*inputs)

    return timing.samples(
        call,
        count=args.samples,
        inner=args.inner,
        warmup=3,
        finish=lambda: jax.block_until_ready(out),
    )


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--implementation", required=True)
    parser.add_argument("--lengths", type=int, nargs="+", required=True)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--dtype", type=jnp.dtype, default=jnp.float32)
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--inner", type=int, default=1)
    args = parser.parse_args()
    cli.keep_freed_memory()
    report = {n: measure(args.implementation, n, args) for n in args.lengths}
    print(json.dumps(report))


if __name__ == "__main__":
    main()

"""A process that times the loss over prototypes, ours or a plain version.

Shapes: M rows, C channels, K prototypes.
"""

import argparse
import json
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from dinov2_jax import cli
from dinov2_jax.losses.tiled import cross_entropy
from dinov2_jax.losses.tiled import targets as targets_lib

STUDENT_TEMP, TEACHER_TEMP = 0.1, 0.07


def ours(student, student_prototypes, teacher, teacher_prototypes, weights):
    """Compute the loss as `ssl_meta_arch` computes the iBOT term, for one group."""
    rows = lambda x: x[None, :, None]  # noqa: E731  [M, C] -> [1, M, 1, C]
    targets = targets_lib.sinkhorn_knopp(
        rows(teacher), teacher_prototypes, TEACHER_TEMP, valid=weights[None] > 0
    )
    total, _ = cross_entropy.cross_entropy(
        rows(student),
        student_prototypes,
        jax.lax.stop_gradient(targets),
        weights[None],
        pairs=((0,),),
    )
    return total


def plain(student, student_prototypes, teacher, teacher_prototypes, weights):
    """Compute it as the reference does: `sinkhorn_knopp_teacher`, `lossfunc`."""
    dot = lambda x, w: jnp.matmul(x, w.T, preferred_element_type=jnp.float32)  # noqa: E731
    valid = weights > 0
    q = jnp.exp(dot(teacher, teacher_prototypes) / TEACHER_TEMP).T  # [K, M]
    q = jnp.where(valid, q, 0.0)
    count = jnp.sum(valid)
    q /= jnp.sum(q)
    for _ in range(3):
        q /= jnp.sum(q, axis=1, keepdims=True)
        q /= q.shape[0]
        q /= jnp.where(valid, jnp.sum(q, axis=0, keepdims=True), 1.0)
        q /= count
    targets = jax.lax.stop_gradient((q * count).T)
    log_p = jax.nn.log_softmax(dot(student, student_prototypes) / STUDENT_TEMP)
    return -jnp.sum(jnp.sum(targets * log_p, axis=-1) * weights)


IMPLEMENTATIONS: dict[str, Callable[..., jax.Array]] = {
    "jax": ours,
    "plain jax.numpy": plain,
}


def random_inputs(rows: int, columns: int) -> list[np.ndarray]:
    """Draw unit features [M, C] and prototypes [K, C] of both sides, weights [M]."""
    rng = np.random.default_rng(0)

    def unit(count: int) -> np.ndarray:
        x = rng.standard_normal((count, 256), np.float32)
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    weights = rng.uniform(0.5, 1.5, rows).astype(np.float32)
    weights[rows - rows // 50 :] = 0.0  # empty slots
    weights /= weights.sum()
    return [unit(rows), unit(columns), unit(rows), unit(columns), weights]


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--implementation", choices=IMPLEMENTATIONS, default="jax")
    parser.add_argument("--rows", type=int, default=1200)
    parser.add_argument("--columns", type=int, default=65536)
    parser.add_argument("--dtype", type=jnp.dtype, default=jnp.float32)
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--inner", type=int, default=1)
    args = parser.parse_args()
    cli.keep_freed_memory()
    *arrays, weights = random_inputs(args.rows, args.columns)
    inputs = [jnp.asarray(x, args.dtype) for x in arrays] + [jnp.asarray(weights)]
    function = jax.value_and_grad(IMPLEMENTATIONS[args.implementation], argnums=(0, 1))
    compiled = jax.jit(function).lower(*inputs).compile()
    out = None

    def call() -> None:
        nonlocal out
        out = compiled(*inputs)

    seconds = timing.samples(
        call,
        count=args.samples,
        inner=args.inner,
        warmup=2,
        finish=lambda: jax.block_until_ready(out),
    )
    report = {
        "seconds": seconds,
        "temp_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "loss": float(out[0]),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()

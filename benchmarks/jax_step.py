"""A process that times this project's training step on random input.

    python -m benchmarks.jax_step --config=vits --set=model.drop_path_rate=0.3

The step is that of `main`, on one device. Prints one JSON object.
"""

import argparse
import gc
import json
import time
from typing import Any

from benchmarks import environment, timing, workloads
from dinov2_jax import cli


def random_batch(config: Any) -> dict[str, Any]:
    """Return a batch of noise with real masks, as host arrays."""
    import numpy as np

    from dinov2_jax.data import batch_spec, masking

    rng = np.random.default_rng(0)
    spec = batch_spec.batch_spec(config)
    batch = {
        name: rng.integers(0, 256, spec[name][0], np.uint8)
        for name in ("global_crops", "local_crops")
    }
    groups, crops, patches = spec["masks"][0]
    side = config.crops.global_crops_size // config.model.patch_size
    masks = np.stack(
        [
            masking.group_masks(
                rng,
                num_crops=crops,
                grid=(side, patches // side),
                probability=config.ibot.mask_sample_probability,
                ratio_min_max=config.ibot.mask_ratio_min_max,
            )
            for _ in range(groups)
        ]
    )
    pairs = [masking.mask_indices(m, spec["masked_indices"][0][1]) for m in masks]
    batch["masks"] = masks
    batch["masked_indices"] = np.stack([p[0] for p in pairs])
    batch["masked_weights"] = np.stack([p[1] for p in pairs])
    return batch


def measure(config: Any, *, samples: int, inner: int, warmup: int) -> dict[str, Any]:
    """Compile and time the step.

    Args:
      config: The run's config.
      samples: Number of samples.
      inner: Steps per sample, dispatched without waiting, as in the training loop.
      warmup: Untimed steps before them, at least 1.

    Returns:
      `lower_seconds`, `compile_seconds`, `temp_bytes` (XLA's temporaries),
      `argument_bytes`, `first_loss`, `seconds` (per step, one per sample),
      `host_bytes` and, on an accelerator, `device_bytes` (peaks).
    """
    import jax
    import jax.numpy as jnp

    from dinov2_jax import sharding, trainer

    dtype = config.model.dtype
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    device = jax.devices()[0]
    built = trainer.Trainer(
        config, mesh=sharding.make_mesh(devices=[device]), dtype=jnp.dtype(dtype)
    )
    scalars = built.scalars(config.optim.warmup_steps)
    report: dict[str, Any] = {"dtype": dtype}
    with jax.set_mesh(built.mesh):
        batch = built.place(random_batch(config))
        start = time.perf_counter()
        lowered = built.lower()
        report["lower_seconds"] = time.perf_counter() - start
        start = time.perf_counter()
        compiled = lowered.compile()
        report["compile_seconds"] = time.perf_counter() - start
        memory = compiled.memory_analysis()
        report["temp_bytes"] = memory.temp_size_in_bytes
        report["argument_bytes"] = memory.argument_size_in_bytes
        state = built.first_state()
        state, metrics = compiled(state, batch, scalars)
        report["first_loss"] = float(metrics["loss/total"])

        def step() -> None:
            nonlocal state, metrics
            state, metrics = compiled(state, batch, scalars)

        report["seconds"] = timing.samples(
            step,
            count=samples,
            inner=inner,
            warmup=warmup - 1,
            finish=lambda: jax.block_until_ready((state, metrics)),
        )
    report["host_bytes"] = environment.peak_host_bytes()
    statistics = device.memory_stats() or {}
    if "peak_bytes_in_use" in statistics:
        report["device_bytes"] = statistics["peak_bytes_in_use"]
    return report


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="vits", help="a file of configs/")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--inner", type=int, default=1, help="steps a sample")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument(
        "--remat",
        nargs="+",
        help="policies of which the first that fits the device's memory is measured",
    )
    args = parser.parse_args()
    cli.keep_freed_memory()
    config = workloads.make_config(args.config, args.batch_size, args.set)
    policies = args.remat or [config.model.remat]
    for i, policy in enumerate(policies):
        config.model.remat = policy
        try:
            report = measure(
                config,
                samples=args.samples,
                inner=args.inner,
                warmup=args.warmup,
            )
            break
        except Exception as error:
            if i + 1 == len(policies) or "RESOURCE_EXHAUSTED" not in str(error):
                raise
        gc.collect()
    print(json.dumps(report | {"remat": policy}))


if __name__ == "__main__":
    main()

"""One process that times this project's training step on random input.

    python -m benchmarks.jax_step --drop_path_rate=0.3

ViT-S/14 with 224/98-px crops, 8 locals, a shared head, Sinkhorn-Knopp: the work of
`benchmarks.torch_peer`. Prints one JSON object. The step is the one that `main` runs.
"""

import argparse
import json
import statistics
import time

from dinov2_jax import host_memory


def make_config(drop_path_rate: float, batch_size: int, num_prototypes: int):
    """The config of the benchmark, one group."""
    from configs import vits

    config = vits.get_config()
    config.model.drop_path_rate = drop_path_rate
    config.dino.head_n_prototypes = num_prototypes
    config.train.update(
        batch_size=batch_size, group_size=batch_size, centering="sinkhorn_knopp"
    )
    return config


def random_batch(config):
    """A batch of noise with real masks, host arrays."""
    import numpy as np

    from dinov2_jax.data import loader, masking

    rng = np.random.default_rng(0)
    spec = loader.batch_spec(config)
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


def measure(config, *, steps: int, warmup: int) -> dict:
    """Compiles and times the step.

    Args:
      config: Of the run; one device.
      steps: Timed steps; 0 only compiles.
      warmup: Untimed steps before them.

    Returns:
      `lower_seconds`, `compile_seconds`, `temp_bytes`, `seconds` per step and
      `first_loss`.
    """
    import jax
    import numpy as np

    from dinov2_jax import (
        optimizer,
        schedules,
        sharding,
        ssl_meta_arch,
        train,
        train_state,
        train_step,
    )

    meta_arch = ssl_meta_arch.make_ssl_meta_arch(config, train.compute_dtype(config))
    shapes = jax.eval_shape(meta_arch.init, jax.random.key(0))
    tx = optimizer.make_optimizer(config, shapes)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    abstract = train_state.abstract_state(meta_arch, tx, mesh)
    step_fn = train_step.make_train_step(meta_arch, tx, abstract, mesh, seed=0)
    scalars = schedules.make_schedules(config)(config.optim.warmup_steps)
    scalars = {name: np.float32(value) for name, value in scalars.items()}
    batch = random_batch(config)
    report = {}
    with jax.set_mesh(mesh):
        start = time.perf_counter()
        lowered = step_fn.lower(abstract, batch, scalars)
        report["lower_seconds"] = time.perf_counter() - start
        start = time.perf_counter()
        compiled = lowered.compile()
        report["compile_seconds"] = time.perf_counter() - start
        report["temp_bytes"] = compiled.memory_analysis().temp_size_in_bytes
        report["seconds"] = []
        state = train_state.make_state(0, meta_arch, tx, mesh) if steps else None
        for i in range(warmup + steps if steps else 0):
            start = time.perf_counter()
            state, metrics = compiled(state, batch, scalars)
            jax.block_until_ready((state, metrics))
            if i == 0:
                report["first_loss"] = float(metrics["loss/total"])
            if i >= warmup:
                report["seconds"].append(time.perf_counter() - start)
    if steps:
        median = statistics.median(report["seconds"])
        report["seconds_median"] = median
        report["images_per_second"] = config.train.batch_size / median
    return report


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--drop_path_rate", type=float, default=0.0)
    parser.add_argument("--num_prototypes", type=int, default=65536)
    parser.add_argument("--scan_unroll", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    args = parser.parse_args()
    host_memory.keep_freed_memory()
    config = make_config(args.drop_path_rate, args.batch_size, args.num_prototypes)
    config.model.scan_unroll = args.scan_unroll
    print(json.dumps(measure(config, steps=args.steps, warmup=args.warmup), indent=2))


if __name__ == "__main__":
    main()

"""A process that times distillation steps of two students, together or apart."""

import argparse
import json

import numpy as np

from benchmarks import timing
from dinov2_jax import cli


def make_config(*, size: int, group: int, prototypes: int, tiny: int):
    """Return a config of distillation with two students."""
    from configs import distill

    c = distill.get_config()
    c.crops.update(
        global_crops_size=size, local_crops_size=size // 2, local_crops_number=4
    )
    c.model.update(arch="vit_small", patch_size=14, dtype="float32")
    if tiny:
        c.model.update(arch="custom", embed_dim=16, depth=1, num_heads=2)
        for head in (c.dino, c.ibot):
            head.update(head_hidden_dim=16, head_bottleneck_dim=8)
    c.train.update(batch_size=group, group_size=group)
    c.dino.head_n_prototypes = c.ibot.head_n_prototypes = prototypes
    c.distill.source = "random"
    depth = "model.arch=custom model.embed_dim={} model.depth={} model.num_heads={}"
    c.distill.students = (
        ("one", depth.format(*((8, 1, 2) if tiny else (384, 6, 6)))),
        ("other", depth.format(*((16, 1, 2) if tiny else (192, 12, 3)))),
    )
    return c


def make_teacher(c, tiny: int):
    """Return a random teacher, larger than its students."""
    import jax
    import jax.numpy as jnp

    from dinov2_jax.distillation import frozen_teacher
    from dinov2_jax.models import network

    larger = c.copy_and_resolve_references()
    larger.model.arch = "custom" if tiny else "vit_base"
    made = network.make_network(larger, jnp.float32)
    params = jax.tree.map(np.asarray, jax.jit(made.init)(jax.random.key(0)))
    return frozen_teacher.FrozenTeacher(made.backbone.config, params, "random")


def make_steps(c, teacher, together: bool):
    """Return a function that runs a step of both students, and its FLOPs per image."""
    import jax

    from dinov2_jax import several_students
    from dinov2_jax.data import batch_spec
    from dinov2_jax.distillation import students

    configs = [c] if together else list(students.configs(c).values())
    made = [several_students.make_trainer(config, teacher) for config in configs]
    rng = np.random.default_rng(0)
    batch = {
        name: rng.integers(0, 2, shape).astype(dtype)
        for name, (shape, dtype) in batch_spec.batch_spec(c).items()
    }
    states = [trainer.first_state() for trainer in made]
    steps = []
    for trainer in made:
        steps.append((trainer.compile(), trainer.place(batch), trainer.place_teacher()))

    def call():
        for i, (step, placed, frozen) in enumerate(steps):
            with jax.set_mesh(made[i].mesh):
                states[i], _ = step(states[i], placed, made[i].scalars(0), *frozen)
            jax.block_until_ready(states[i])

    return call, sum(trainer.flops_per_image for trainer in made)


def main() -> int:
    """Print a report of the samples as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("which", choices=("together", "apart"))
    parser.add_argument("sizes", type=json.loads)
    parser.add_argument("--samples", type=int, default=5)
    args = parser.parse_args()
    c = make_config(**args.sizes)
    teacher = make_teacher(c, args.sizes["tiny"])
    call, flops = make_steps(c, teacher, args.which == "together")
    seconds = timing.samples(call, count=args.samples, warmup=1)
    print(json.dumps({"seconds": seconds, "flops": flops}))
    return 0


if __name__ == "__main__":
    cli.start(main)

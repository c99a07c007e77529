"""FLOPs of distillation: one forward pass of the teacher, and the students' passes."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

from dinov2_jax.augment import crop_sizes
from dinov2_jax.data import batch_spec
from dinov2_jax.distillation import frozen_teacher
from dinov2_jax.runtime import flops
from dinov2_jax.weights import head_sizes


def flops_per_image(
    teacher: frozen_teacher.FrozenTeacher,
    configs: Iterable[Any],
    size: crop_sizes.Size | None = None,
) -> float:
    """Return the useful FLOPs per image of a step, as `flops.step_flops` counts them.

    Args:
      teacher: The frozen teacher.
      configs: The config of each student, from `frozen_teacher.resolve`.
      size: The sizes of the crops; None for the largest of the run.
    """
    configs = list(configs)
    size = size or crop_sizes.make_crop_sizes(configs[0]).largest
    total = flops.step_flops(_of_teacher(teacher, configs[0], size)).teacher
    for config in configs:
        student = flops.step_flops(_of_student(teacher, config, size))
        total += student.per_image - student.teacher
    return total


def _of_student(
    teacher: frozen_teacher.FrozenTeacher, config: Any, size: crop_sizes.Size
) -> flops.Workload:
    work = flops.make_workload(config, size)
    work = dataclasses.replace(work, masked=_patches(config, size))
    if config.distill.objective == "prototypes":
        return work
    hidden = [teacher.model.embed_dim] * (config.distill.features.head == "mlp")
    widths = (work.dim, *hidden, teacher.model.embed_dim)
    return dataclasses.replace(
        work, crops=work.crops[:1], dino_widths=widths, ibot_widths=widths
    )


def _of_teacher(
    teacher: frozen_teacher.FrozenTeacher, config: Any, size: crop_sizes.Size
) -> flops.Workload:
    model = teacher.model
    # With several sizes, it sees the student's crops as they are.
    side = size.global_size if config.crops.sizes else model.image_size
    heads = [
        _widths(model.embed_dim, teacher.params[name])
        for name in ("dino_head", "ibot_head")
        if name in teacher.params
    ]
    return flops.Workload(
        group_size=config.train.group_size,
        crops=((2, side),),
        patch_size=model.patch_size,
        in_chans=model.in_chans,
        dim=model.embed_dim,
        num_registers=model.num_register_tokens,
        ffn_weights=flops.ffn_weights(model),
        drop_rates=(0.0,) * model.depth,
        masked=_patches(config, size),
        dino_widths=heads[0] if heads else (),
        ibot_widths=heads[-1] if heads else (),
    )


def _widths(dim: int, head: Any) -> tuple[int, ...]:
    """Return the widths of a head from its input to the prototypes."""
    found = head_sizes.settings(head_sizes.shapes(head))
    hidden = [found.get("hidden_dim", 0)] * (found["nlayers"] - 1)
    return dim, *hidden, found["bottleneck_dim"], found["n_prototypes"]


def _patches(config: Any, size: crop_sizes.Size) -> int:
    """Return the number of patches of a group that the student learns from."""
    if config.distill.patches == "masked":
        return flops.make_workload(config, size).masked
    rows, columns = batch_spec.patch_grid(config, size)
    share = math.ceil(config.distill.patch_share * rows * columns)
    return 2 * config.train.group_size * share

"""Cosine schedules on the host, in float64, as closed forms of the step.

Mirrors the reference's `utils/utils.py:CosineScheduler` and
`train/train.py:build_schedulers`. They have no state to save.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

_GRAM_LENGTHS = ("gram.start", "gram.refresh_every")


@dataclasses.dataclass(frozen=True)
class Cosine:
    """A linear warm-up, then half a cosine, then the final value.

    Attributes:
      base: Value at the end of the warm-up.
      final: Value at `total_steps` and after.
      total_steps: Length including the warm-up, in steps.
      warmup_steps: Length of the warm-up from `start` to `base`, both included.
      start: First value of the warm-up.
    """

    base: float
    final: float
    total_steps: int
    warmup_steps: int = 0
    start: float = 0.0

    def __call__(self, step: int) -> float:
        """Return the value at `step`, counted from 0."""
        if step >= self.total_steps:
            return self.final
        if step < self.warmup_steps:
            if self.warmup_steps == 1:
                return self.start  # as np.linspace(start, base, 1)
            slope = (self.base - self.start) / (self.warmup_steps - 1)
            if step == self.warmup_steps - 1:
                return self.base
            return self.start + step * slope
        length = self.total_steps - self.warmup_steps
        angle = math.pi * (step - self.warmup_steps) / length
        return self.final + 0.5 * (self.base - self.final) * (1 + math.cos(angle))


@dataclasses.dataclass(frozen=True)
class Schedules:
    """All scalars that change with the step.

    Attributes:
      lr: Learning rate.
      weight_decay: Weight decay.
      momentum_teacher: Momentum of the teacher's EMA.
      teacher_temp: Temperature of the teacher.
      freeze_last_layer_steps: First steps, with learning rate 0 for the prototypes.
      heads_only_steps: First steps, with learning rate 0 for the backbone.
    """

    lr: Cosine
    weight_decay: Cosine
    momentum_teacher: Cosine
    teacher_temp: Cosine
    freeze_last_layer_steps: int
    heads_only_steps: int

    def __call__(self, step: int) -> dict[str, float]:
        """Return the scalars that `train_step` takes besides state and batch."""
        lr = self.lr(step)
        return {
            "lr": lr,
            "backbone_lr": 0.0 if step < self.heads_only_steps else lr,
            "last_layer_lr": 0.0 if step < self.freeze_last_layer_steps else lr,
            "weight_decay": self.weight_decay(step),
            "momentum_teacher": self.momentum_teacher(step),
            "teacher_temp": self.teacher_temp(step),
        }


def scaled_lr(base_lr: float, batch_size: int) -> float:
    """Return base_lr * sqrt(batch_size / 1024), the batch size in images."""
    return base_lr * math.sqrt(batch_size / 1024.0)


def compress(
    fields: Mapping[str, Any], *, steps_before: int, steps: int
) -> dict[str, int]:
    """Return the lengths in steps of a shorter run with schedules of the same form.

    Mirrors the paper's high-resolution phase (appendix B.2), which keeps all schedules
    but for their length. Fields count as lengths if their names end in `_steps`, and
    those of a Gram teacher in use; `train.max_nonfinite_steps` is none, nor is any
    other of `train`.

    Args:
      fields: Fields of the longer run by their full name, such as
        "optim.warmup_steps".
      steps_before: Steps of the longer run.
      steps: Steps of the shorter run.

    Returns:
      The new value of each length; at least 1 if it was not 0.
    """
    lengths = {
        name: value
        for name, value in fields.items()
        if (name in _GRAM_LENGTHS and fields.get("gram.loss_weight"))
        or (name.endswith("_steps") and not name.startswith("train."))
    }
    return {
        name: max(round(value * steps / steps_before), min(value, 1))
        for name, value in lengths.items()
    }


def make_schedules(config: Any) -> Schedules:
    """Return the schedules that a config describes over its `train.steps`."""
    optim, teacher, steps = config.optim, config.teacher, config.train.steps
    return Schedules(
        lr=Cosine(
            base=scaled_lr(optim.base_lr, config.train.batch_size),
            final=optim.min_lr,
            total_steps=steps,
            warmup_steps=optim.warmup_steps,
        ),
        weight_decay=Cosine(optim.weight_decay, optim.weight_decay_end, steps),
        momentum_teacher=Cosine(
            teacher.momentum_teacher, teacher.final_momentum_teacher, steps
        ),
        # Warm-up only: constant afterwards.
        teacher_temp=Cosine(
            base=teacher.teacher_temp,
            final=teacher.teacher_temp,
            total_steps=teacher.warmup_teacher_temp_steps,
            warmup_steps=teacher.warmup_teacher_temp_steps,
            start=teacher.warmup_teacher_temp,
        ),
        freeze_last_layer_steps=optim.freeze_last_layer_steps,
        heads_only_steps=config.init.heads_only_steps,
    )

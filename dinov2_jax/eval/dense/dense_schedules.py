"""Schedules of the training of segmentation and depth heads, by the step from 0.

Mirrors mmcv's learning-rate and momentum hooks with the released configs' settings: a
linear warm-up multiplies the rate that decays from the first step.
"""

import math


def segmentation_lr(
    step: int,
    *,
    base_lr: float = 1e-3,
    steps: int = 40_000,
    warmup_steps: int = 1500,
    warmup_ratio: float = 1e-6,
) -> float:
    """Return the learning rate of a segmentation head: linear to 0.

    Args:
      step: The step, from 0.
      base_lr: Rate at the start, if there were no warm-up.
      steps: Number of steps.
      warmup_steps: Number of steps of the warm-up.
      warmup_ratio: Factor of the rate at step 0.
    """
    decayed = base_lr * (1 - step / steps)
    return decayed * _warm_up(step, warmup_steps, warmup_ratio)


def depth_lr(
    step: int,
    *,
    base_lr: float = 1e-4,
    steps: int = 38_400,
    warmup_steps: int = 12_800,
    warmup_ratio: float = 1e-3,
    final_ratio: float = 1e-8,
) -> float:
    """Return the learning rate of a depth head: half a cosine.

    Args:
      step: The step, from 0.
      base_lr: Rate at the start, if there were no warm-up.
      steps: Number of steps.
      warmup_steps: Number of steps of the warm-up.
      warmup_ratio: Factor of the rate at step 0.
      final_ratio: Factor of `base_lr` at the end.
    """
    decayed = _cosine(base_lr, base_lr * final_ratio, step / steps)
    return decayed * _warm_up(step, warmup_steps, warmup_ratio)


def depth_beta1(
    step: int,
    *,
    steps: int = 38_400,
    low: float = 0.85,
    high: float = 0.95,
    turn: float = 0.3,
) -> float:
    """Return AdamW's first beta of a depth head: from high to low and back.

    Args:
      step: The step, from 0.
      steps: Number of steps.
      low: Least value.
      high: Value at both ends.
      turn: Share of the steps after which it is lowest.
    """
    lowest = turn * steps - 1
    if step <= lowest:
        return _cosine(high, low, step / lowest)
    return _cosine(low, high, (step - lowest) / max(steps - 1 - lowest, 1e-9))


def _cosine(start: float, end: float, share: float) -> float:
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * share))


def _warm_up(step: int, steps: int, ratio: float) -> float:
    return 1 - (1 - step / steps) * (1 - ratio) if step < steps else 1.0

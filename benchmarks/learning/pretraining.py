"""The pretraining that studies start from: the quickstart at a length of its own."""

from typing import Any

from benchmarks.learning import study
from configs import quickstart
from dinov2_jax import schedules
from dinov2_jax.config import flattening


def make_config(seed: int, steps: int) -> Any:
    """Return the quickstart's config with its schedules at another length.

    Args:
      seed: Seed of the run.
      steps: Steps of the run.
    """
    c = quickstart.get_config()
    c.update_from_flattened_dict(
        schedules.compress(
            flattening.flatten(c), steps_before=c.train.steps, steps=steps
        )
    )
    c.seed, c.train.steps = seed, steps
    judge_quarterly(c)
    return c


def judge_quarterly(c: Any) -> None:
    """Let a run be measured on `val`, and saved, after each quarter of its steps."""
    quarter = max(c.train.steps // 4, 1)
    c.checkpoint.update(every=quarter, keep_last=1)
    c.log.tensorboard = False
    c.evaluation.update(every=quarter, tasks=("knn", "matching"), photos_split="val")


def make_run(setting: study.Setting, steps: int | None = None) -> study.Run:
    """Return the pretraining of a setting, which all arms and studies share.

    Args:
      setting: The repetition.
      steps: Steps of the run; None: those of the setting.
    """
    config = make_config(setting.seed, steps or setting.steps)
    return study.Run(setting.workdir("pretraining", steps), config)

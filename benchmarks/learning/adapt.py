"""Continued training on another domain, naive or as configs/adapt.py guards it.

A model pretrained on the photographs goes on, with new heads, on photographs that are
grey, have the colours of histology or show textures only (`shifted`), for half of its
steps. It is measured on tiles of the same kind.
"""

import functools
import pathlib
from typing import Any

from benchmarks.learning import pretraining, shifted, study


def _folder(setting: study.Setting, shift: str) -> pathlib.Path:
    return setting.folder / "shifted" / shift


def _config(setting: study.Setting, shift: str) -> Any:
    """Return the config of a pretraining on a shifted set."""
    folder = _folder(setting, shift)
    c = pretraining.make_config(setting.seed, max(setting.steps // 2, 1))
    c.data.update(source="folder", path=str(folder / "train"))
    c.evaluation.train_path = str(folder / "bank")
    c.evaluation.val_path = str(folder / "val")
    return c


def _arm(setting: study.Setting, *, shift: str, how: str) -> study.Arm:
    start, c = pretraining.make_run(setting), _config(setting, shift)

    def prepare() -> None:
        shifted.write(_folder(setting, shift), shift)

    if how == "start":
        run = study.Run(start.workdir, start.config, prepare)
        return study.Arm((run,), judge=c)
    c.init.source = str(start.workdir)
    if how == "guarded":
        _guard(c)
    workdir = setting.workdir(f"adapt/{shift}-{how}")
    return study.Arm((start, study.Run(workdir, c, prepare)))


def _guard(c: Any) -> None:
    """Set what configs/adapt.py sets, in the same relation to the pretraining."""
    steps = c.train.steps
    c.init.heads_only_steps = steps // 10
    # A twentieth of the pretraining's rate.
    c.optim.update(base_lr=c.optim.base_lr / 20, layerwise_decay=0.8)
    c.optim.update(weight_decay_end=0.04, freeze_last_layer_steps=0)
    c.optim.warmup_steps = steps // 5
    # The teacher averages a fifth of the steps.
    c.teacher.momentum_teacher = 1 - 1 / max(steps / 5, 1)
    c.teacher.warmup_teacher_temp_steps = 3 * steps // 10
    c.checkpoint.keep_best = "all"
    c.evaluation.every = max(steps // 10, 1)


_HOW = ("start", "naive", "guarded")

STUDY = study.Study(
    question=(
        "In how many runs does continued training end below its start, and does the "
        "guard prevent it?"
    ),
    arms={
        f"{shift}-{how}": functools.partial(_arm, shift=shift, how=how)
        for shift in shifted.SHIFTS
        for how in _HOW
    },
    seeds=10,
    pairs=tuple(
        (f"{shift}-{how}", f"{shift}-start")
        for shift in shifted.SHIFTS
        for how in _HOW[1:]
    ),
)

"""Gram anchoring of a model whose patch features were damaged.

A pretrained model is damaged (`damage`) and trained on, heads included, for a quarter
of its steps: as before, or anchored to the model before the damage.
"""

import functools
import pathlib

from benchmarks.learning import damage, pretraining, study


def _damage(setting: study.Setting) -> pathlib.Path:
    start = pretraining.make_run(setting)
    return damage.write(setting.workdir("gram/damaged"), start.workdir, start.config)


def _pretrained(setting: study.Setting) -> study.Arm:
    return study.Arm((pretraining.make_run(setting),))


def _damaged(setting: study.Setting) -> study.Arm:
    start = pretraining.make_run(setting)
    return study.Arm((start,), weights=lambda: _damage(setting))


def _trained_on(setting: study.Setting, *, name: str, weight: float) -> study.Arm:
    start = pretraining.make_run(setting)
    steps = max(setting.steps // 4, 1)
    c = pretraining.make_config(setting.seed, steps)
    c.init.update(source=str(setting.workdir("gram/damaged")), heads="loaded")
    # The EMA, which is measured, averages a fifth of the steps: at the pretraining's
    # momentum a quarter of the damage would still be in it.
    momentum = 1 - 1 / max(steps / 5, 1)
    c.teacher.update(momentum_teacher=momentum, final_momentum_teacher=momentum)
    if weight:
        c.gram.update(loss_weight=weight, source=str(start.workdir), refreshes=0)
    workdir = setting.workdir(f"gram/{name}")
    return study.Arm((start, study.Run(workdir, c, lambda: _damage(setting))))


# Weights of the Gram loss; 2 is the paper's.
_WEIGHTS = {"plain": 0.0, "anchored": 2.0, "anchored-20": 20.0, "anchored-200": 200.0}

STUDY = study.Study(
    question="How much of a damaged model's matching does Gram anchoring bring back?",
    arms={
        "pretrained": _pretrained,
        "damaged": _damaged,
    }
    | {
        name: functools.partial(_trained_on, name=name, weight=weight)
        for name, weight in _WEIGHTS.items()
    },
    pairs=tuple((name, "plain") for name in _WEIGHTS if name != "plain"),
    shares={f"{name} regains": (name, "damaged", "pretrained") for name in _WEIGHTS},
)

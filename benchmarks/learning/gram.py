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


def _trained_on(setting: study.Setting, *, anchored: bool) -> study.Arm:
    start = pretraining.make_run(setting)
    c = pretraining.make_config(setting.seed, max(setting.steps // 4, 1))
    c.init.update(source=str(setting.workdir("gram/damaged")), heads="loaded")
    name = "plain"
    if anchored:
        name = "anchored"
        c.gram.update(loss_weight=2.0, source=str(start.workdir), refreshes=0)
    workdir = setting.workdir(f"gram/{name}")
    return study.Arm((start, study.Run(workdir, c, lambda: _damage(setting))))


STUDY = study.Study(
    question="How much of a damaged model's matching does Gram anchoring bring back?",
    arms={
        "pretrained": _pretrained,
        "damaged": _damaged,
        "plain": functools.partial(_trained_on, anchored=False),
        "anchored": functools.partial(_trained_on, anchored=True),
    },
    pairs=(("anchored", "plain"), ("anchored", "pretrained")),
    shares={
        "plain regains": ("plain", "damaged", "pretrained"),
        "anchored regains": ("anchored", "damaged", "pretrained"),
    },
)

"""SimDINO's objective against the default at equally many FLOPs.

`paper` has the values of the paper; `authors` those that give the authors' published
runs by this project's formulas (docs/small-batches.md).
"""

import functools

from benchmarks.learning import pretraining, study
from dinov2_jax.runtime import flops


def _default(setting: study.Setting) -> study.Arm:
    return study.Arm((pretraining.make_run(setting),))


def _coding_rate(
    setting: study.Setting, *, name: str, eps: float, weight: float
) -> study.Arm:
    def make(steps: int):
        c = pretraining.make_config(setting.seed, steps)
        c.train.objective = "coding_rate"
        c.dino.koleo_loss_weight = 0.0
        c.coding_rate.update(eps=eps, weight=weight)
        return c

    default = pretraining.make_run(setting).config
    wanted, needed = (
        flops.step_flops(flops.make_workload(config)).per_image
        for config in (default, make(setting.steps))
    )
    c = make(round(setting.steps * wanted / needed))
    return study.Arm((study.Run(setting.workdir(f"simdino/{name}"), c),))


STUDY = study.Study(
    question="Does SimDINO's objective learn as much as the default in as many FLOPs?",
    arms={
        "default": _default,
        "paper": functools.partial(_coding_rate, name="paper", eps=0.05, weight=1.0),
        "authors": functools.partial(
            _coding_rate, name="authors", eps=0.63, weight=0.3
        ),
    },
    pairs=(("paper", "default"), ("authors", "default")),
)

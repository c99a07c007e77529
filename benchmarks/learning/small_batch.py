"""Small batches at equally many images: the teacher's momentum and its targets.

Groups are whole batches. Lengths of schedules are the same in images, and the learning
rate follows the square root of the batch, as in every run.
"""

import functools

from benchmarks.learning import pretraining, study
from dinov2_jax.recipe import rules

BATCHES = (8, 16, 32, 64)
MOMENTA = ("fixed", "horizon")  # quickstart's | that of `rules.ema_momentum`
TARGETS = ("sinkhorn", "centering", "queue")
QUEUED = 256  # images whose rows the queue holds


def _name(batch: int, momentum: str, targets: str) -> str:
    return f"b{batch}-{momentum}-{targets}"


def _arm(
    setting: study.Setting, *, batch: int, momentum: str, targets: str
) -> study.Arm:
    if (batch, momentum, targets) == (64, "fixed", "sinkhorn"):
        return study.Arm((pretraining.make_run(setting),))
    images = 64 * setting.steps
    c = pretraining.make_config(setting.seed, max(images // batch, 1))
    c.train.update(batch_size=batch, group_size=batch)
    if momentum == "horizon":
        c.teacher.momentum_teacher = rules.ema_momentum(batch, images)
    if targets == "centering":
        c.train.centering = "centering"
    if targets == "queue":
        c.train.sinkhorn_queue = QUEUED // batch
    name = _name(batch, momentum, targets)
    return study.Arm((study.Run(setting.workdir(f"small_batch/{name}"), c),))


_ARMS = [(b, m, t) for b in BATCHES for m in MOMENTA for t in TARGETS]

STUDY = study.Study(
    question=(
        "Which momentum and which targets lose least at small batches, at equally many "
        "images?"
    ),
    arms={
        _name(*arm): functools.partial(
            _arm, batch=arm[0], momentum=arm[1], targets=arm[2]
        )
        for arm in _ARMS
    },
    # Each against the usual settings at the same batch, and those against batch 64.
    pairs=tuple(
        (_name(*arm), _name(arm[0], "fixed", "sinkhorn"))
        for arm in _ARMS
        if arm[1:] != ("fixed", "sinkhorn")
    )
    + tuple(
        (_name(*arm), _name(64, "fixed", "sinkhorn")) for arm in _ARMS if arm[0] < 64
    ),
)

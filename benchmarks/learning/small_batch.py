"""Small batches at equally many images: the teacher's momentum and its targets.

Groups are whole batches. Lengths of schedules are the same in images, and the learning
rate follows the square root of the batch, as in every run.
"""

import functools

from benchmarks.learning import pretraining, study

BATCHES = (8, 16, 32, 64)
# Share of the run's images that the teacher averages over; None: quickstart's momentum,
# 0.98, a horizon of 17 % of the images at batch 64 with half of the steps.
MOMENTA = {"fixed": None, "horizon": 0.05, "long": 0.15}
TARGETS = ("sinkhorn", "centering", "queue", "class-queue")
QUEUED = (
    256  # images whose rows the queue holds: class tokens, and masked patches or not
)


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
    if share := MOMENTA[momentum]:
        c.teacher.momentum_teacher = 1 - batch / (share * images)
    if targets == "centering":
        c.train.centering = "centering"
    if targets in ("queue", "class-queue"):
        c.dino.sinkhorn_queue = QUEUED // batch
    if targets == "queue":
        c.ibot.sinkhorn_queue = QUEUED // batch
    name = _name(batch, momentum, targets)
    return study.Arm((study.Run(setting.workdir(f"small_batch/{name}"), c),))


_ARMS = [
    (b, m, t)
    for b in BATCHES
    for m in MOMENTA
    for t in TARGETS
    if (m != "long" or (b < 64 and t in ("sinkhorn", "queue")))
    and (t != "class-queue" or b < 32)
]

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
    # Each against the usual settings at the same batch and at batch 64; longer horizons
    # against shorter ones, queues of class tokens against those of patches too.
    pairs=tuple(
        (_name(*arm), _name(arm[0], "fixed", "sinkhorn"))
        for arm in _ARMS
        if arm[1:] != ("fixed", "sinkhorn")
    )
    + tuple(
        (_name(*arm), _name(64, "fixed", "sinkhorn")) for arm in _ARMS if arm[0] < 64
    )
    + tuple(
        (_name(b, m, t), _name(b, "horizon", t)) for b, m, t in _ARMS if m == "long"
    )
    + tuple(
        (_name(b, m, t), _name(b, m, "queue"))
        for b, m, t in _ARMS
        if t == "class-queue"
    ),
)

"""The high-resolution stage: a tenth of the steps at 84 px after a run at 48 px.

All models are measured at 84 px. Local crops have 24 px throughout.
"""

from benchmarks.learning import pretraining, study
from configs import highres

SIZE = 84  # px


def _none(setting: study.Setting) -> study.Arm:
    return study.Arm((pretraining.make_run(setting),))


def _stage(setting: study.Setting) -> study.Arm:
    start = pretraining.make_run(setting)
    c = highres.get_config(f"quickstart:{max(setting.steps // 10, 1)}")
    c.seed, c.init.source = setting.seed, str(start.workdir)
    c.crops.global_crops_size = SIZE
    c.evaluation.update(image_size=SIZE, resize_size=SIZE, other_sizes=())
    pretraining.judge_quarterly(c)
    return study.Arm((start, study.Run(setting.workdir("highres/stage"), c)))


def _throughout(setting: study.Setting) -> study.Arm:
    c = pretraining.make_config(setting.seed, setting.steps)
    c.crops.global_crops_size = SIZE
    return study.Arm((study.Run(setting.workdir("highres/throughout"), c),))


STUDY = study.Study(
    question=(
        "Is a model better at 84 px after a short stage at that size, and as good as "
        "one trained at 84 px throughout?"
    ),
    arms={"none": _none, "stage": _stage, "throughout": _throughout},
    pairs=(("stage", "none"), ("stage", "throughout")),
)

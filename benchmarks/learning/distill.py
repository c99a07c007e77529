"""A 32-wide student of a quickstart teacher, against the same student from scratch.

All students take equally many steps. The teacher is a pretraining of twice as many.
"""

from typing import Any

from benchmarks.learning import pretraining, study


def _teacher(setting: study.Setting) -> study.Run:
    return pretraining.make_run(setting, 2 * setting.steps)


def _student(setting: study.Setting) -> Any:
    c = pretraining.make_config(setting.seed, setting.steps)
    c.model.update(embed_dim=32, num_heads=4)
    return c


def _scratch(setting: study.Setting) -> study.Arm:
    run = study.Run(setting.workdir("distill/scratch"), _student(setting))
    return study.Arm((run,))


def _distilled(setting: study.Setting, objective: str) -> study.Arm:
    teacher, c = _teacher(setting), _student(setting)
    c.distill.update(source=str(teacher.workdir), objective=objective)
    # As in configs/distill.py.
    c.ibot.mask_sample_probability = 0.0
    temp = c.teacher.teacher_temp
    c.teacher.update(warmup_teacher_temp=temp, warmup_teacher_temp_steps=0)
    c.optim.freeze_last_layer_steps = 0
    if objective == "features":
        c.crops.local_crops_number = 0
    return study.Arm(
        (teacher, study.Run(setting.workdir(f"distill/{objective}"), c)),
    )


STUDY = study.Study(
    question=(
        "Does a 32-wide student learn more from a frozen teacher than from itself in "
        "equally many steps?"
    ),
    arms={
        "teacher": lambda setting: study.Arm((_teacher(setting),)),
        "scratch": _scratch,
        "prototypes": lambda setting: _distilled(setting, "prototypes"),
        "features": lambda setting: _distilled(setting, "features"),
    },
    pairs=(("prototypes", "scratch"), ("features", "scratch")),
)

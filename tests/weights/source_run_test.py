"""What a stage at a higher resolution says about the run that it continues."""

import json

import pytest

from configs import highres, vitl
from dinov2_jax.weights import source_run


@pytest.fixture
def folder(tmp_path):
    """The folder of a run of `vitl`."""
    (tmp_path / "checkpoints/7").mkdir(parents=True)
    config = json.loads(vitl.get_config().to_json_best_effort())
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def stage(folder, base_lr=2e-5):
    c = highres.get_config("vitl")
    c.init.source = str(folder)
    c.optim.base_lr = base_lr
    return c


@pytest.mark.parametrize("part", ["", "checkpoints/7"])
def test_both_numbers_of_every_schedule(folder, part):
    (line,) = source_run.compare(stage(folder / part))
    assert line == (
        "schedules before and now: train.steps 625000 -> 10000, "
        "optim.freeze_last_layer_steps 1250 -> 20, optim.warmup_steps 100000 -> 1600, "
        "teacher.warmup_teacher_temp_steps 37500 -> 600"
    )


def test_warns_above_three_tenths_of_the_rate(folder):
    assert len(source_run.compare(stage(folder, 5.9e-5))) == 1
    _, warning = source_run.compare(stage(folder, 6.4e-5))
    assert "is 0.000111, 0.32 of that of" in warning and str(folder) in warning
    assert "--config.optim.base_lr=2e-05" in warning
    # The rate counts, which grows with the batch.
    c = stage(folder, 5.9e-5)
    c.train.batch_size *= 4
    _, warning = source_run.compare(c)
    assert "0.59 of" in warning and "--config.optim.base_lr=1e-05" in warning


def test_other_runs_are_not_compared(folder, tmp_path):
    same_size, fresh = stage(folder), stage(folder)
    same_size.crops.global_crops_size = 224
    fresh.init.heads = "fresh"
    other = [stage(source) for source in ("", "dinov2_vitl14", tmp_path / "none")]
    for c in (same_size, fresh, *other):
        assert source_run.compare(c) == []

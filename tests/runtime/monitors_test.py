"""Words for a run that is not learning."""

import math

import pytest

from dinov2_jax.runtime import monitors


def make(loss_weight=1.0, patience_steps=100):
    return monitors.UniformLossMonitor(
        4096, loss_weight=loss_weight, patience_steps=patience_steps
    )


def losses(total, local_share=16 / 18):
    return {
        "loss/dino_local": total * local_share,
        "loss/dino_global": total * (1 - local_share),
    }


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_speaks_at_the_uniform_value(weight):
    uniform = weight * math.log(4096)
    for total in (uniform, 0.995 * uniform, 1.005 * uniform):
        message = make(weight).message(100, losses(total))
        assert "step 100" in message and "ln 4096" in message
        assert f"{total:.3f}" in message and "learning rate" in message


@pytest.mark.parametrize("factor", [0.0, 0.5, 0.98, 1.02, 2.0, math.nan, math.inf])
def test_is_silent_elsewhere(factor):
    assert make().message(100, losses(factor * math.log(4096))) is None


def test_waits_until_its_step_and_between_two_warnings():
    words, stuck = make(), losses(math.log(4096))
    spoken = [step for step in range(0, 500, 10) if words.message(step, stuck)]
    assert spoken == [100, 200, 300, 400]


def test_learning_resets_nothing_but_is_not_warned_about():
    words, stuck = make(), losses(math.log(4096))
    assert words.message(150, losses(2.0)) is None
    assert words.message(160, stuck)


def test_each_of_several_students_is_looked_at():
    uniform = math.log(4096)
    rows = {f"a/{k}": v for k, v in losses(0.5 * uniform).items()}
    rows |= {f"b/{k}": v for k, v in losses(uniform).items()}
    assert "the DINO loss of b is" in make().message(100, rows)
    assert "b/loss/dino_local" in rows and make().message(99, rows) is None


def test_losses_of_features_are_compared_with_nothing():
    assert make().message(100, {"loss/cls": 8.3, "small/loss/patch": 8.3}) is None


def test_is_off_without_the_dino_loss():
    assert make(loss_weight=0.0).message(100, {}) is None


def hints(waits, **settings):
    settings = {"workers": 2, "cores": 8, "augmentation": "device"} | settings
    watch = monitors.DataWaitMonitor(**settings)
    return [watch.message(10 * i, wait) for i, wait in enumerate(waits, 1)]


def test_waiting_for_data_is_said_once_it_lasts():
    said = hints([0.5, 0.5, 0.05, 0.2, 0.2, 0.35, 0.9, 0.9])
    assert [bool(text) for text in said] == [False] * 5 + [True, False, False]
    assert said[5] == (
        "step 60: the devices wait for data 35% of the time: raise "
        "--config.data.workers, 2 of this machine's 8 cores, or store large images "
        "smaller, python -m dinov2_jax.data shard PATH DST --resize 512; python -m "
        "dinov2_jax.data bench PATH finds the bottleneck"
    )
    assert not any(hints([0.1] * 9))


def test_the_hint_names_what_helps():
    waits = [1.0, 1.0, 1.0]
    assert "--resize 512" in hints(waits, workers=8)[2]
    assert "--config.data.augmentation=device" in hints(waits, augmentation="host")[2]

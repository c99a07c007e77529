"""Schedules against the arrays that the reference builds with NumPy."""

import numpy as np
import pytest

from configs import default, vitg
from dinov2_jax import schedules


def array(base, final, total, warmup=0, start=0.0):
    """The reference's CosineScheduler: warm-up with both ends, then a half cosine."""
    head = np.linspace(start, base, warmup)
    steps = np.arange(total - warmup)
    tail = final + 0.5 * (base - final) * (1 + np.cos(np.pi * steps / len(steps)))
    return np.concatenate([head, tail])


@pytest.mark.parametrize(
    "base, final, total, warmup, start",
    [
        (4e-3, 1e-6, 50, 10, 0.0),
        (0.04, 0.4, 30, 0, 0.0),
        (0.992, 1.0, 30, 0, 0.0),
        (0.07, 0.07, 12, 12, 0.04),
        (1.0, 0.0, 5, 1, 0.5),
        (1.0, 0.0, 5, 2, 0.5),
    ],
)
def test_cosine(base, final, total, warmup, start):
    schedule = schedules.Cosine(base, final, total, warmup, start)
    expected = array(base, final, total, warmup, start)
    ours = [schedule(step) for step in range(total)]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-15)
    for step in (total, total + 1, 10 * total):
        assert schedule(step) == final


def test_base_appears_at_the_last_step_of_the_warmup_and_the_next():
    schedule = schedules.Cosine(0.3, 0.0, 100, 10)
    assert schedule(9) == schedule(10) == 0.3
    assert schedule(8) < 0.3 and schedule(11) < 0.3
    assert schedule(0) == 0.0


def test_square_root_rule():
    assert schedules.scaled_lr(0.004, 1024) == 0.004
    assert schedules.scaled_lr(0.004, 2048) == pytest.approx(0.005657, abs=5e-7)
    assert schedules.scaled_lr(2e-4, 3072) == pytest.approx(2e-4 * 3**0.5)


def test_schedules_of_the_default_config():
    """vitl16_short on 32 GPUs of 64 images, in units of 1250 steps."""
    ours, epoch = schedules.make_schedules(default.get_config()), 1250
    expected = {
        "lr": array(0.004 * 2**0.5, 1e-6, 100 * epoch, 10 * epoch),
        "weight_decay": array(0.04, 0.4, 100 * epoch),
        "momentum_teacher": array(0.992, 1.0, 100 * epoch),
        "teacher_temp": np.concatenate(
            [np.linspace(0.04, 0.07, 30 * epoch), np.full(70 * epoch, 0.07)]
        ),
    }
    expected["backbone_lr"] = expected["lr"]
    expected["last_layer_lr"] = expected["lr"].copy()
    expected["last_layer_lr"][:epoch] = 0.0
    steps = np.r_[0:100000:997, 1248:1252, 12498:12502, 37498:37502, 124_999]
    for step in steps.tolist():
        values = ours(step)
        assert values.keys() == expected.keys()
        for name, value in values.items():
            assert value == pytest.approx(expected[name][step], abs=1e-12), (name, step)


def test_schedules_of_vit_g():
    ours = schedules.make_schedules(vitg.get_config())
    peak = 2e-4 * np.sqrt(3072 / 1024)
    assert ours(100_000)["lr"] == pytest.approx(peak)
    assert ours(0)["momentum_teacher"] == 0.994
    assert ours(624_999)["weight_decay"] == pytest.approx(0.2, abs=1e-6)
    assert ours(625_000)["lr"] == 1e-6


def test_heads_only():
    c = default.get_config()
    c.init.heads_only_steps = 500
    ours = schedules.make_schedules(c)
    for step in (0, 499, 500, 501, 20_000):
        values = ours(step)
        assert values["backbone_lr"] == (0.0 if step < 500 else values["lr"])
        assert values["lr"] > 0 or step == 0


def test_without_warmups():
    c = default.get_config()
    c.optim.update(warmup_steps=0, freeze_last_layer_steps=0)
    c.teacher.warmup_teacher_temp_steps = 0
    first = schedules.make_schedules(c)(0)
    assert first["lr"] == first["last_layer_lr"] == pytest.approx(0.004 * 2**0.5)
    assert first["teacher_temp"] == 0.07

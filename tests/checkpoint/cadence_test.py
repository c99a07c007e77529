"""Checkpoints by the clock, on real runs."""

import processes
import pytest

from dinov2_jax.checkpoint import cadence

RARE = (*processes.DEBUG, "--config.checkpoint.every=1000")


@pytest.mark.slow
def test_save_is_due_after_the_interval(uninterrupted, in_process, tmp_path):
    """Saving after every step does not change the losses."""
    workdir = tmp_path / "run"
    finished = in_process.run(
        *RARE,
        f"--workdir={workdir}",
        "--config.checkpoint.minutes=1e-9",
        "--config.checkpoint.keep_last=3",
    )
    assert finished.code == 0, finished.output
    assert processes.saved_steps(workdir) == [18, 19, 20]
    assert processes.rows(workdir) == processes.rows(uninterrupted[0])


def test_each_save_restarts_the_clock():
    often, never = cadence.Cadence(1e-9, 10), cadence.Cadence(0, 10)
    seldom = cadence.Cadence(60, 10)
    for step in (1, 2, 10):
        assert often.due(step)
        assert not seldom.due(step) and not never.due(step)
    seldom._last -= 3601
    assert seldom.due(3)
    seldom.saved()
    assert not seldom.due(4)

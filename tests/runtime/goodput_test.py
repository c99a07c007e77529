"""Shares of a run's time, reckoned by hand."""

import datetime

import pytest

from dinov2_jax.runtime import goodput

BEGIN = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def at(second, event, **fields):
    return {"time": BEGIN + datetime.timedelta(seconds=second), "event": event} | fields


def shares(log, now):
    total, shares = goodput.goodput(log, BEGIN + datetime.timedelta(seconds=now))
    assert sum(shares.values()) == pytest.approx(1)
    return total, {k: round(v * total, 6) for k, v in shares.items() if v}


def test_one_process_that_ended():
    log = [
        at(10, "start", step=0, seconds={"start": 10.0}),
        at(15, "compiled", seconds=5.0),  # no account
        at(100, "end", step=85, code=0, seconds={"start": 15.0, "step": 85.0}),
    ]
    assert shares(log, now=1000) == (100, {"start": 15, "step": 85})


def test_killed_after_what_it_told_last():
    log = [
        at(10, "start", step=0, seconds={"start": 10.0}),
        at(70, "progress", step=60, seconds={"start": 10.0, "step": 60.0}),
        # Saved at 40, killed at 80, started again at 100.
        at(110, "start", step=40, seconds={"start": 10.0}),
        at(150, "progress", step=80, seconds={"start": 10.0, "step": 40.0}),
    ]
    assert shares(log, now=160) == (
        160,
        {"start": 20, "step": 80, "lost": 20, "down": 40},
    )


def test_skips_and_rollbacks():
    log = [
        at(0, "start", step=0, seconds={"start": 0.0}),
        at(10, "skip", step=10),
        at(30, "skip", step=30),
        at(40, "rollback", step=40, to=20),
        at(60, "end", step=40, code=0, seconds={"step": 60.0}),
    ]
    # Of 60 steps, 20 were thrown away, one of them skipped, and another was skipped.
    assert shares(log, now=60) == (60, {"step": 39, "lost": 21})
    # A later process that goes on before the rollback throws away more.
    log += [at(60, "start", step=10, seconds={"start": 0.0})]
    assert shares(log, now=60) == (60, {"step": 9, "lost": 51})

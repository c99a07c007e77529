"""Every moment is accounted for, once."""

import datetime
import time

import pytest

from dinov2_jax.runtime import timing

BEGIN = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def test_parts_add_up():
    begun = time.monotonic()
    account = timing.TimeAccount("start")
    made = time.monotonic()
    time.sleep(0.02)
    account.begin(timing.STEP)
    time.sleep(0.01)
    with account.during(timing.DATA_WAIT):
        time.sleep(0.03)
        with account.during("save"):
            time.sleep(0.01)
    with pytest.raises(ValueError), account.during("evaluate"):
        raise ValueError
    time.sleep(0.01)
    asked = time.monotonic()
    seconds = account.seconds()
    answered = time.monotonic()
    assert asked - made <= sum(seconds.values()) + 1e-6
    assert sum(seconds.values()) <= answered - begun + 1e-6
    for name, least in {
        "start": 0.02,
        timing.STEP: 0.02,
        timing.DATA_WAIT: 0.03,
        "save": 0.01,
        "evaluate": 0.0,
    }.items():
        assert least <= seconds[name]


def test_rates_leave_out_what_is_no_step():
    account = timing.TimeAccount("start")
    time.sleep(0.05)
    account.begin(timing.STEP)
    begun = time.monotonic()
    rates = timing.Rates(account, batch_size=10)
    made = time.monotonic()
    for _ in range(2):
        with account.during(timing.DATA_WAIT):
            time.sleep(0.02)
        rates.step_done()
    stepped = time.monotonic()
    with account.during("evaluate"):
        time.sleep(0.5)
    evaluated = time.monotonic()
    taken = rates.take()
    most = time.monotonic() - begun - 0.5  # beside the evaluation
    assert 20 / most <= taken["images_per_second"] * (1 + 1e-6)
    assert taken["images_per_second"] <= 20 / (stepped - made) * (1 + 1e-6)
    assert evaluated - stepped >= 0.5
    assert 0.04 / most <= taken["data_wait"] <= 1
    rates.step_done()
    time.sleep(0.01)
    taken = rates.take()
    assert taken["images_per_second"] <= 10 / 0.01 and taken["data_wait"] == 0


def test_mfu_is_the_rate_over_that_at_the_peak():
    account = timing.TimeAccount(timing.STEP)
    rates = timing.Rates(account, batch_size=10, peak_rate=4000.0)
    rates.step_done()
    time.sleep(0.01)
    taken = rates.take()
    assert 0 < taken["mfu"] == taken["images_per_second"] / 4000
    assert "mfu" not in timing.Rates(account, batch_size=10).take()


@pytest.mark.parametrize(
    "seconds, text",
    [(0, "0:00"), (59.6, "1:00"), (3725, "1:02:05"), (266_400, "3 d 02:00:00")],
)
def test_durations(seconds, text):
    assert timing.duration(seconds) == text


def at(second, event, **fields):
    return {"time": BEGIN + datetime.timedelta(seconds=second), "event": event} | fields


def shares(log, now):
    total, shares = timing.goodput(log, BEGIN + datetime.timedelta(seconds=now))
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

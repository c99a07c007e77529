"""A loss that blows up: back to a checkpoint, past the batches that did it."""

import json
import os
import signal
import subprocess
import sys
import time

import in_process
import jax.numpy as jnp
import numpy as np
import processes
import pytest
from PIL import Image

from configs import debug
from dinov2_jax import errors, ssl_meta_arch
from dinov2_jax.data import batch_builder
from dinov2_jax.data.sources import registry
from dinov2_jax.runtime import event_log, rollback

# Trains with a loss that is not finite wherever a crop shows one colour alone.
POISONED = """
from absl import app
from dinov2_jax import main, ssl_meta_arch
import rollback_test

ssl_meta_arch.SSLMetaArch.loss = rollback_test.poisoned_loss
app.run(main.main, flags_parser=main.parse_flags)
"""
# Where the program above finds this file and what it imports.
_TESTS = (str(processes.ROOT / "tests/runtime"), str(processes.ROOT / "tests"))
plain_loss = ssl_meta_arch.SSLMetaArch.loss


def poisoned_loss(self, params, targets, batch, key):
    total, terms = plain_loss(self, params, targets, batch, key)
    crops = batch["global_crops"]
    poison = (crops.max((2, 3)) == crops.min((2, 3))).any()
    return jnp.where(poison, jnp.nan, total), terms


POISON = 17  # the number of the image


def values(loss, skipped=0):
    return {"loss/total": loss, "skipped_in_a_row": skipped}


def test_guard_counts_what_is_not_sane():
    guard = rollback.LossGuard(uniform=10.0, patience=3)
    for step, loss in enumerate([16.0, 15.1, 14.9, 15.1, 15.1]):
        guard.check(step, values(loss))
    assert guard.in_a_row == 2
    with pytest.raises(rollback.BlownUp, match="a loss above 15, the last one 99"):
        guard.check(5, values(99.0))
    guard = rollback.LossGuard(uniform=10.0, patience=2)
    guard.check(0, values(9.0, skipped=1))  # a gradient was not finite
    with pytest.raises(rollback.BlownUp, match="loss/total = nan"):
        guard.check(1, values(float("nan"), skipped=2))
    guard = rollback.LossGuard(uniform=0.0, patience=1)  # KoLeo alone
    guard.check(0, values(1e9))


def test_no_student_blows_up_behind_the_others():
    guard = rollback.LossGuard(uniform=10.0, patience=2)
    few = {"small/loss/total": 45.0, "base/loss/total": 3.0}
    guard.check(0, values(48.0) | few)
    with pytest.raises(rollback.BlownUp, match="a loss above 15, the last one 45"):
        guard.check(1, values(48.0) | few)
    guard = rollback.LossGuard(uniform=10.0, patience=1)
    guard.check(0, values(24.0) | {"small/loss/total": 14.0, "base/loss/total": 10.0})


def test_uniform_loss_is_where_training_begins(uninterrupted):
    first = processes.rows(uninterrupted[0])[0]
    guard = rollback.make_loss_guard(debug.get_config())
    assert guard.uniform == pytest.approx(first["loss/total"], rel=0.1)


def test_uniform_loss_of_separate_heads():
    """Counted by hand: the cross-entropy of K equal probabilities is ln K."""
    config = debug.get_config()
    config.dino.update(loss_weight=0.5, head_n_prototypes=100)
    config.ibot.update(loss_weight=2.0, head_n_prototypes=10, separate_head=True)
    guard = rollback.make_loss_guard(config)
    assert guard.uniform == pytest.approx(0.5 * np.log(100) + 2 * np.log(10))
    config.ibot.separate_head = False
    guard = rollback.make_loss_guard(config)
    assert guard.uniform == pytest.approx(2.5 * np.log(100))
    # Two pairs of global crops and 2 L with local ones.
    pairs = 2 * config.crops.local_crops_number
    config.dino.local_loss_weight = 3.0
    guard = rollback.make_loss_guard(config)
    share = (2 + 3 * pairs) / (2 + pairs)
    assert guard.uniform == pytest.approx((0.5 * share + 2) * np.log(100))
    config.train.objective = "coding_rate"  # finite losses of any size
    assert rollback.make_loss_guard(config).uniform == 0


def test_further_back_where_the_newest_does_not_help(tmp_path):
    rollbacks = rollback.Rollbacks(tmp_path)
    assert rollbacks.target([]) == 0
    assert rollbacks.target([10, 20]) == 20
    rollbacks.add(rollback.Rollback(failed=25, to=20), write=True)
    assert rollbacks.target([10, 20]) == 10
    assert rollbacks.target([10, 20, 30]) == 30
    assert rollbacks.target([20]) == 0
    rollbacks.add(rollback.Rollback(failed=3, to=0), write=True)
    assert rollbacks.target([]) == 0
    assert len(rollback.Rollbacks(tmp_path)) == 2
    rollbacks.forget(write=True)
    assert len(rollback.Rollbacks(tmp_path)) == 0
    rollbacks.path.write_text("[{}]")
    with pytest.raises(errors.UserError, match="the batches that the run skips"):
        rollback.Rollbacks(tmp_path)


def test_no_batch_is_taken_twice(tmp_path):
    """Whatever the order of failures: to the newest, further back, and on again."""
    ends = ((25, 20), (27, 10), (13, 10), (40, 30), (38, 10), (14, 0), (50, None))
    rollbacks = rollback.Rollbacks(tmp_path)
    taken, step = [], 0
    for failed, to in ends:
        skips = rollbacks.skips()
        taken += [
            at + sum(n for start, n in skips if start <= at)
            for at in range(step, failed)
        ]
        if to is not None:
            rollbacks.add(rollback.Rollback(failed, to), write=True)
            step = to
    assert taken == list(range(len(taken)))
    assert rollback.Rollbacks(tmp_path).skips() == rollbacks.skips()


def test_batches_are_left_out():
    config = debug.get_config()
    source = registry.make_source(config)
    plain = batch_builder.make_batch_builder(config, source)
    skips = ((20, 5), (0, 3))
    skipping = batch_builder.make_batch_builder(config, source, skips=skips)
    for step, instead in ((0, 3), (19, 22), (20, 28)):
        for name, array in plain(instead).items():
            np.testing.assert_array_equal(skipping(step)[name], array)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """330 images, ten batches, one of which is poison."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(330):
        pixels = rng.integers(0, 256, (40, 40, 3), np.uint8)
        if number == POISON:
            pixels[:] = 128
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
    return folder


def flags(images, workdir, *more):
    return [
        "--config=configs/debug.py",
        f"--workdir={workdir}",
        f"--config.data.path={images}",
        "--config.data.source=folder",
        "--config.data.augmentation=host",  # less to compile
        "--config.model.depth=1",
        "--config.train.steps=24",
        "--config.train.max_nonfinite_steps=1",
        "--config.train.max_rollbacks=6",
        "--config.checkpoint.every=2",
        *more,
    ]


def start(trainer, *flags) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", POISONED, *flags],
        cwd=processes.ROOT,
        env=trainer.environment | {"PYTHONPATH": os.pathsep.join(_TESTS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def poisoned_steps(images):
    """At which the poison comes, where no batch is left out."""
    config = debug.get_config()
    config.data.update(source="folder", path=str(images))
    builder = batch_builder.make_batch_builder(config, registry.make_source(config))
    batch = config.train.batch_size
    return [
        place // batch + 1
        for place in range(60 * batch)
        if builder.image_index(*divmod(place, 330)) == POISON
    ]


@pytest.fixture(scope="module")
def poisoned():
    """The training program with the loss that fails."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl_meta_arch.SSLMetaArch, "loss", poisoned_loss)
        yield in_process.Trainer()


def test_goes_back_and_leaves_out(images, poisoned, tmp_path):
    workdir = tmp_path / "run"
    finished = poisoned.run(*flags(images, workdir))
    assert finished.code == 0, finished.output

    # What should have happened, on paper: saved every second step.
    left_out, step, expected = 0, 0, []
    poison = poisoned_steps(images)
    while step < 24:
        step += 1
        if step + left_out in poison:
            to = (step - 1) // 2 * 2
            assert (step, to) not in expected
            expected.append((step, to))
            left_out += step - to
            step = to
    assert len(expected) >= 2
    record = json.loads((workdir / "rollbacks.json").read_text())
    assert [(r["failed"], r["to"]) for r in record] == expected
    log = event_log.read(workdir)
    happened = [(e["step"], e["to"]) for e in log if e["event"] == "rollback"]
    assert happened == expected
    assert all("nan" in e["why"] for e in log if e["event"] == "rollback")
    failed, to = expected[0]
    assert (
        f"step {failed}: the loss blew up (loss/total = nan" in finished.output
        and f"leaving out the {failed - to} batches since" in finished.output
    )
    rows = processes.rows(workdir)
    assert [row["step"] for row in rows] == list(range(1, 25))
    assert all(np.isfinite(row["loss/total"]) for row in rows)
    state = processes.load(workdir, 24)
    assert state["/skipped"] == 0  # those steps were undone


@pytest.mark.slow
def test_asked_to_end_after_going_back(images, poisoned, tmp_path):
    workdir, again = tmp_path / "run", tmp_path / "again"
    assert poisoned.run(*flags(images, workdir)).code == 0
    ask = {
        f"step {poisoned_steps(images)[0]}: the loss blew up": lambda: (
            signal.raise_signal(signal.SIGTERM)
        )
    }
    finished = poisoned.run(*flags(images, again), when=ask)
    assert finished.code == errors.REQUEUE, finished.output
    assert len(json.loads((again / "rollbacks.json").read_text())) == 1
    finished = poisoned.run(*flags(images, again))
    assert finished.code == 0, finished.output
    assert processes.rows(again) == processes.rows(workdir)
    processes.assert_same_arrays(processes.load(again, 24), processes.load(workdir, 24))


@pytest.mark.slow
def test_killed_after_going_back(images, poisoned, trainer, tmp_path):
    workdir, again = tmp_path / "run", tmp_path / "again"
    assert poisoned.run(*flags(images, workdir)).code == 0
    process = start(trainer, *flags(images, again))
    while process.poll() is None and not (again / "rollbacks.json").exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    finished = poisoned.run(*flags(images, again))
    assert finished.code == 0, finished.output
    assert processes.rows(again) == processes.rows(workdir)
    processes.assert_same_arrays(processes.load(again, 24), processes.load(workdir, 24))

"""A disk that is full or read-only for a while, or for good, under a run."""

import json
import time

import disks
import jax
import jax.numpy as jnp
import numpy as np
import processes
import pytest
from tensorboard.backend.event_processing import event_file_loader

from dinov2_jax import errors
from dinov2_jax.checkpoint import (
    checkpointer,
    checksums,
    disk_space,
    orbax_logging,
)
from dinov2_jax.runtime import metric_writer

FULL = "No space left on device"


@pytest.fixture
def disk(tmp_path):
    """16 MB."""
    try:
        with disks.mounted(tmp_path / "disk", "16m") as disk:
            yield disk
    except disks.Unavailable as reason:
        pytest.skip(f"no disk can be mounted: {reason}")


@pytest.fixture(scope="module", autouse=True)
def silenced():
    """As the training program does when it starts."""
    orbax_logging.hush_threads()


@pytest.fixture(scope="module")
def states():
    """States of about a megabyte, which does not compress."""
    rng = np.random.default_rng(0)
    return [{"a": jnp.asarray(rng.normal(size=(2, 65536)), "float32")} for _ in "01234"]


def entries(path):
    return sorted(p.name for p in path.iterdir())


def assert_saved(path, step, state):
    assert checksums.problem(path / str(step)) is None
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    checkpoints = checkpointer.Checkpointer(path.parent)
    assert checkpoints.latest_step() == step
    np.testing.assert_array_equal(checkpoints.restore(abstract)["a"], state["a"])
    checkpoints.close()


def wait_for_failure(checkpoints):
    deadline = time.monotonic() + 200
    while not checkpoints.failed:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_saves_on_a_disk_that_is_full_for_a_while(disk, states, capfd):
    checkpoints = checkpointer.Checkpointer(disk.path, keep_last=2)
    path = checkpoints.path
    assert checkpoints.save(1, states[1]) == ""
    disk.fill()

    assert checkpoints.save(2, states[2], next_save=4) == ""
    wait_for_failure(checkpoints)
    line = checkpoints.save(3, states[3], next_save=4)
    assert line.startswith(f"cannot save step 2 ({FULL}): 0.5 MB needed, 0.0 MB free")
    assert f" at {path}; the last good checkpoint is {path / '1'}; " in line
    assert line.endswith("next save is at step 4 (1 of at most 3 failed in a row)")
    assert not checkpoints.failed
    assert checkpoints.latest_step() == 1
    assert entries(path) == ["1"]

    assert checkpoints.save(3, states[3], next_save=4) == ""  # the same step again
    wait_for_failure(checkpoints)
    disk.free()
    line = checkpoints.save(4, states[4], next_save=6)
    assert line == f"cannot save step 3 ({FULL}): saved step 4 at the second attempt"
    assert entries(path) == ["1", "4"]
    assert checkpoints.save(5, states[0], next_save=6) == ""
    checkpoints.close()
    assert entries(path) == ["4", "5"]
    assert_saved(path, 5, states[0])
    assert capfd.readouterr().err == ""  # orbax's threads print nothing


def test_saves_on_a_disk_that_is_read_only_for_a_while(disk, states, capfd):
    checkpoints = checkpointer.Checkpointer(disk.path)
    assert checkpoints.save(1, states[1]) == ""
    disk.make_read_only()
    line = checkpoints.save(2, states[2], next_save=4)
    path = checkpoints.path
    assert line.startswith(
        f"cannot save step 2 (Read-only file system): to {path}; the last good"
    )
    assert line.endswith("next save is at step 4 (1 of at most 3 failed in a row)")
    assert entries(checkpoints.path) == ["1"]
    disk.make_read_only(False)
    assert checkpoints.save(4, states[4], next_save=6) == ""
    checkpoints.close()
    assert entries(checkpoints.path) == ["1", "4"]
    assert_saved(checkpoints.path, 4, states[4])
    assert capfd.readouterr().err == ""


def test_third_failure_in_a_row_stops_the_run(disk, states):
    checkpoints = checkpointer.Checkpointer(disk.path)
    assert checkpoints.save(1, states[1]) == ""
    disk.fill()
    for attempt in (1, 2):
        assert checkpoints.save(2, states[2], next_save=3) == ""
        assert f"({attempt} of at most 3" in checkpoints.save(2, states[2], next_save=3)
    assert checkpoints.save(2, states[2], next_save=3) == ""
    with pytest.raises(errors.UserError, match="Free disk space") as ended:
        checkpoints.save(3, states[3], next_save=4)
    assert ended.value.exit_code == errors.TRY_AGAIN
    checkpoints.close()
    disk.free()
    assert entries(checkpoints.path) == ["1"]
    assert_saved(checkpoints.path, 1, states[1])


def test_the_last_save_must_not_fail(disk, states):
    checkpoints = checkpointer.Checkpointer(disk.path)
    disk.fill()
    with pytest.raises(errors.UserError, match="cannot save step 7") as ended:
        checkpoints.save(7, states[0])
    assert ended.value.exit_code == errors.TRY_AGAIN
    assert "the last good checkpoint is none" in str(ended.value)
    checkpoints.close()
    assert entries(checkpoints.path) == []


def test_unchecked_failed_save_is_raised_at_the_end(disk, states):
    checkpoints = checkpointer.Checkpointer(disk.path)
    disk.fill()
    assert checkpoints.save(7, states[0], next_save=8) == ""
    with pytest.raises(errors.UserError, match="cannot save step 7"):
        checkpoints.close()


def test_a_checkpoint_that_could_not_be_sealed_is_sealed_later(
    disk, states, monkeypatch
):
    checkpoints = checkpointer.Checkpointer(disk.path)
    digest = checksums._digest

    def fill_first(path):
        disk.fill()
        return digest(path)

    with monkeypatch.context() as patch:
        patch.setattr(checksums, "_digest", fill_first)
        assert checkpoints.save(1, states[0], next_save=2) == ""
        wait_for_failure(checkpoints)
    assert entries(checkpoints.path / "1").count(checksums.NAME) == 0
    assert "manifest.json.tmp" not in entries(checkpoints.path / "1")
    disk.free()
    line = checkpoints.save(1, states[0], next_save=2)
    assert line.endswith("saved step 1 at the second attempt")
    checkpoints.close()
    assert_saved(checkpoints.path, 1, states[0])


def test_rows_wait_for_disk_space(disk, caplog):
    """In metrics.jsonl and for TensorBoard alike; no half row is ever seen."""
    writer = metric_writer.MetricsWriter(disk.path)
    written = 0

    def write(count):
        nonlocal written
        for _ in range(count):
            written += 1
            writer.write(written, {"loss": written / 3, "text": "x" * 1000})

    def rows():
        content = (disk.path / "metrics.jsonl").read_bytes()
        assert not content or content.endswith(b"\n")
        return [json.loads(line)["step"] for line in content.splitlines()]

    write(3)
    disk.fill()
    write(20)  # the page that is begun has room for some
    assert rows() == list(range(1, len(rows()) + 1))
    assert 3 <= len(rows()) < 23
    writer.sync()
    disk.free()
    write(1)
    assert rows() == list(range(1, 25))
    writer.close()
    (events,) = (disk.path / "tensorboard").iterdir()
    assert steps_of(events) == list(range(1, 25))
    messages = [record.getMessage() for record in caplog.records]
    assert len([s for s in messages if "metrics.jsonl (No space left" in s]) == 1
    assert len(messages) <= 2  # once each


def steps_of(path):
    events = event_file_loader.LegacyEventFileLoader(str(path)).Load()
    return [event.step for event in events if event.summary.value]


def test_disk_space_is_checked_before_a_run(disk):
    each = {"needed": 2**20}
    assert disk_space.check(disk.path, **each, keep_last=14) == ""
    warning = disk_space.check(disk.path, **each, keep_last=19)
    assert "21.0 MB needed, 16.8 MB free" in warning
    assert "--config.checkpoint.keep_last=19" in warning
    for step in range(18):  # which take no more room
        (disk.path / str(step)).mkdir()
    assert disk_space.check(disk.path, **each, keep_last=19) == ""
    with pytest.raises(
        errors.UserError, match="not enough disk space for one checkpoint"
    ) as no:
        disk_space.check(disk.path, needed=17 * 2**20, keep_last=1)
    assert no.value.exit_code == errors.BAD_INPUT


FLAGS = (*processes.DEBUG, "--config.checkpoint.keep_last=2")


def fill_after_a_save(disk, workdir):
    """What is called at step 7, when the save of step 4 is or will be done."""
    sealed = workdir / "checkpoints/4" / checksums.NAME

    def fill():
        deadline = time.monotonic() + 200
        while not sealed.exists():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        disk.fill()

    return {"step 7/": fill}


def test_a_run_on_a_disk_that_is_full_for_a_while(uninterrupted, in_process, disk):
    expected, _ = uninterrupted
    workdir = disk.path / "run"
    when = fill_after_a_save(disk, workdir) | {"cannot save step ": disk.free}
    finished = in_process.run(*FLAGS, f"--workdir={workdir}", when=when)
    assert finished.code == 0, finished.output
    output = finished.output
    assert f"({FULL}): 2.0 MB needed" in output and "training continues" in output
    assert all(line.startswith("cannot ") for line in processes.noise(output))
    assert processes.rows(workdir) == processes.rows(expected)
    assert processes.saved_steps(workdir) == [16, 20]
    processes.assert_same_arrays(
        processes.load(workdir, 20), processes.load(expected, 20)
    )


def test_a_run_on_a_disk_that_stays_full(uninterrupted, in_process, disk):
    workdir = disk.path / "run"
    flags = (*FLAGS, f"--workdir={workdir}")
    when = fill_after_a_save(disk, workdir)
    finished = in_process.run(*flags, when=when)
    assert finished.code == errors.TRY_AGAIN, finished.output
    assert "cannot save step " in finished.error and "Free disk space" in finished.error
    assert finished.error.count(f"is {workdir / 'checkpoints/4'}. ") == 1
    assert not processes.unfinished_saves(workdir)
    again = in_process.run(*flags)
    assert again.code == errors.BAD_INPUT
    assert "not enough disk space for one checkpoint" in again.error

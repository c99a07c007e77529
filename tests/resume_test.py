"""A killed and restarted run equals an uninterrupted one."""

import random
import signal
import subprocess
import sys
import time

import processes
import pytest

from dinov2_jax.runtime import event_log

DEBUG = processes.DEBUG


def assert_same_run(workdir, uninterrupted):
    """Same rows, losses and accuracies to the bit, and the same last state."""
    assert processes.rows(workdir) == processes.rows(uninterrupted)
    last = processes.saved_steps(uninterrupted)[-1]
    assert processes.saved_steps(workdir)[-1] == last
    processes.assert_same_arrays(
        processes.load(workdir, last), processes.load(uninterrupted, last)
    )
    assert (workdir / "pca.png").read_bytes() == (
        uninterrupted / "pca.png"
    ).read_bytes()


def test_killed_at_a_random_moment(uninterrupted, trainer, in_process, tmp_path):
    expected, _ = uninterrupted
    workdir = tmp_path / "run"
    flags = [*DEBUG, f"--workdir={workdir}"]
    seed = time.time_ns()  # another moment every time; the assertion names it
    draw = random.Random(seed)
    in_a_step, delay = draw.randrange(5, 13), draw.uniform(0.0, 0.05)

    def logged():
        if processes.steps_logged(workdir) < in_a_step:
            return False
        time.sleep(delay)
        return True

    killed = trainer.kill_when(logged, *flags)
    assert killed.code == -signal.SIGKILL, (seed, killed.output)
    saved = processes.saved_steps(workdir)
    finished = in_process.run(*flags)
    assert finished.code == 0, (seed, finished.output)
    if saved:
        assert f"resumed from step {saved[-1]}" in finished.output
    assert not processes.unfinished_saves(workdir)
    assert_same_run(workdir, expected)


@pytest.mark.slow
def test_killed_at_random_moments_and_in_a_save(uninterrupted, trainer, tmp_path):
    expected, _ = uninterrupted
    workdir = tmp_path / "run"
    flags = [*DEBUG, f"--workdir={workdir}"]
    seed = time.time_ns()  # other moments every time; the assertion names them
    draw = random.Random(seed)

    in_a_step = draw.randrange(1, 9)
    delay = draw.uniform(0.0, 0.05)

    def logged():
        if processes.steps_logged(workdir) < in_a_step:
            return False
        time.sleep(delay)
        return True

    killed = trainer.kill_when(logged, *flags)
    assert killed.code == -signal.SIGKILL, (seed, killed.output)

    left = set(processes.unfinished_saves(workdir))
    pause = draw.uniform(0.0, 0.02)

    def saving():
        if not set(processes.unfinished_saves(workdir)) - left:
            return False
        time.sleep(pause)
        return True

    saved = processes.saved_steps(workdir)
    killed = trainer.kill_when(saving, *flags)
    assert killed.code == -signal.SIGKILL, (seed, killed.output)
    if saved:
        assert f"resumed from step {saved[-1]}" in killed.output

    saved = processes.saved_steps(workdir)
    finished = trainer.run(*flags)
    assert finished.code == 0, (seed, finished.output)
    if saved:
        assert f"resumed from step {saved[-1]}" in finished.output
    assert not processes.unfinished_saves(workdir)
    assert_same_run(workdir, expected)


@pytest.mark.slow
def test_killed_in_the_last_save(uninterrupted, trainer, in_process, tmp_path):
    expected, _ = uninterrupted
    workdir = tmp_path / "run"
    processes.branch(expected, workdir, step=16)
    flags = [*DEBUG, f"--workdir={workdir}"]
    killed = trainer.kill_when(lambda: processes.unfinished_saves(workdir), *flags)
    assert killed.code == -signal.SIGKILL
    # Every row that a checkpoint stands on was on the disk before it; the evaluation
    # comes after the save.
    *steps, evaluation = processes.rows(expected)
    assert processes.rows(workdir) == steps and "knn/top1" in evaluation
    assert in_process.run(*flags).code == 0
    assert_same_run(workdir, expected)


@pytest.mark.parametrize("workers", [0, 2])  # the run before had one
def test_with_another_number_of_worker_processes(
    workers, uninterrupted, in_process, tmp_path
):
    expected, _ = uninterrupted
    workdir = tmp_path / "run"
    processes.branch(expected, workdir, step=12)
    finished = in_process.run(
        *DEBUG, f"--workdir={workdir}", f"--config.data.workers={workers}"
    )
    assert finished.code == 0, finished.output
    assert "resumed from step 12" in finished.output
    assert not processes.noise(finished.output)
    assert_same_run(workdir, expected)


@pytest.mark.slow
def test_on_two_devices(uninterrupted, trainer, tmp_path):
    one, _ = uninterrupted
    two = tmp_path / "two"
    processes.branch(one, two, step=16)
    finished = trainer.run(*DEBUG, f"--workdir={two}", devices=2)
    assert finished.code == 0, finished.output
    assert "2 cpu, mesh replica 1 x fsdp 2" in finished.output
    assert "resumed from step 16" in finished.output
    processes.assert_close_losses(two, one)


@pytest.mark.slow
def test_on_eight_devices_then_on_four(uninterrupted, trainer, tmp_path):
    one, _ = uninterrupted
    eight, four = tmp_path / "eight", tmp_path / "four"
    finished = trainer.run(*DEBUG, f"--workdir={eight}", devices=8)
    assert finished.code == 0, finished.output
    assert "8 cpu, mesh replica 1 x fsdp 8" in finished.output
    processes.assert_close_losses(eight, one)

    processes.branch(eight, four, step=8)
    finished = trainer.run(*DEBUG, f"--workdir={four}", devices=4)
    assert finished.code == 0, finished.output
    assert "4 cpu, mesh replica 1 x fsdp 4" in finished.output
    assert "resumed from step 8" in finished.output
    processes.assert_close_losses(four, eight)


@pytest.mark.slow
def test_repeated_sigterm(uninterrupted, trainer, in_process, tmp_path):
    """Also in the save that follows."""
    expected, _ = uninterrupted
    workdir = tmp_path / "run"
    flags = [*DEBUG, f"--workdir={workdir}"]
    process = trainer.start(*flags)
    while processes.steps_logged(workdir) < 5 and process.poll() is None:
        time.sleep(0.001)
    while process.poll() is None:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.01)
    output, _ = process.communicate(timeout=60)
    assert_saved_for_a_restart(workdir, processes.Finished(process.returncode, output))
    finished = in_process.run(*flags)
    assert finished.code == 0, finished.output
    assert_same_run(workdir, expected)


def test_sigterm_saves_and_asks_for_a_restart(uninterrupted, in_process, tmp_path):
    expected, _ = uninterrupted
    workdir = tmp_path / "run"
    flags = [*DEBUG, f"--workdir={workdir}"]
    ask = {"step 5/": lambda: signal.raise_signal(signal.SIGTERM)}
    step = assert_saved_for_a_restart(workdir, in_process.run(*flags, when=ask))
    finished = in_process.run(*flags)
    assert finished.code == 0 and f"resumed from step {step}" in finished.output
    assert_same_run(workdir, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        ["--config.dino.sinkhorn_queue=3", "--config.ibot.sinkhorn_queue=2"],
        ["--config.train.objective=coding_rate", "--config.dino.koleo_loss_weight=0"],
    ],
)
def test_with_a_queue_and_without_prototypes(in_process, tmp_path, flags):
    whole, parts = ([*DEBUG, *flags, f"--workdir={tmp_path / n}"] for n in "ab")
    finished = in_process.run(*whole)
    assert finished.code == 0, finished.output
    ask = {"step 5/": lambda: signal.raise_signal(signal.SIGTERM)}
    assert_saved_for_a_restart(tmp_path / "b", in_process.run(*parts, when=ask))
    assert in_process.run(*parts).code == 0
    assert_same_run(tmp_path / "b", tmp_path / "a")


def assert_saved_for_a_restart(workdir, finished):
    """Checks that a run saved its last step and exited with 42; returns the step."""
    assert finished.code == 42, finished.output
    saved = processes.saved_steps(workdir)[-1]
    assert finished.output.splitlines()[-1] == (
        f"stopped on request: saved step {saved}; run the same command to resume"
    )
    assert processes.steps_logged(workdir) == saved >= 5  # nothing is lost
    return saved


@pytest.mark.slow
def test_a_terminal_that_closes(uninterrupted, trainer, tmp_path):
    """Nothing can be written to it any more, and SIGHUP comes."""
    with open("/dev/full", "w") as full:
        process = subprocess.Popen(
            [sys.executable, "-m", "dinov2_jax.main", *DEBUG, f"--workdir={tmp_path}"],
            cwd=processes.ROOT,
            env=trainer.environment,
            stderr=full,
        )
    while processes.steps_logged(tmp_path) < 5 and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=60) == 42
    saved = processes.saved_steps(tmp_path)[-1]
    assert processes.steps_logged(tmp_path) == saved >= 5
    events = event_log.read(tmp_path)
    (noted,) = [event for event in events if event["event"] == "console"]
    assert noted["why"] == "No space left on device"
    assert events[-1]["reason"].startswith(f"stopped on request: saved step {saved}")


def test_interrupted_from_the_keyboard(uninterrupted, in_process, tmp_path):
    expected, _ = uninterrupted
    workdir = tmp_path / "run"
    flags = [*DEBUG, f"--workdir={workdir}"]
    press = {"step 5/": lambda: signal.raise_signal(signal.SIGINT)}
    finished = in_process.run(*flags, when=press)
    assert_interrupted(workdir, finished)
    assert in_process.run(*flags).code == 0
    assert_same_run(workdir, expected)


@pytest.mark.slow
def test_interrupted_anywhere(trainer, tmp_path):
    """As above, but in whatever line the process is at."""
    process = trainer.start(*DEBUG, f"--workdir={tmp_path}")
    while processes.steps_logged(tmp_path) < 5 and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert_interrupted(tmp_path, processes.Finished(process.returncode, output))


def assert_interrupted(workdir, finished):
    assert finished.code == 130, finished.output
    assert finished.output.splitlines()[-1].startswith("interrupted: ")
    assert "Traceback" not in finished.output
    assert processes.saved_steps(workdir)
    assert not processes.unfinished_saves(workdir)

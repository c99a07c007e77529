"""Trackers that fail, hang or cannot be imported; none of them holds up a run."""

import fcntl
import json
import subprocess
import sys

import processes
import pytest

from configs import debug
from dinov2_jax import errors
from dinov2_jax.runtime import event_log, logger, timing
from dinov2_jax.trackers import __main__ as program
from dinov2_jax.trackers import backends, sender

RUN = {"project": "p", "name": "n", "config": {}, "images": {}, "pid": 1}


@pytest.fixture
def fake_wandb(tmp_path, monkeypatch):
    """Writes the package wandb that processes of trackers import."""

    def write(code):
        folder = tmp_path / "packages"
        folder.mkdir()
        (folder / "wandb.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(folder))

    return write


def test_a_tracker_that_fails(tmp_path, fake_wandb, capsys):
    """The run goes on; one warning and one event say so."""
    fake_wandb("raise OSError('the network is down')")
    c = debug.get_config()
    c.log.trackers = ("wandb",)
    account = timing.TimeAccount(timing.STEP)
    log = logger.make_run_log(c, tmp_path, 0, account, 1.0)
    log.start()
    log._trackers._processes[0]._process.wait()
    for step in range(1, 4):
        log.step(step, {"skipped_in_a_row": 0, "loss/total": 8.0}, {"lr": 0.1})
    log.end(None)
    printed = capsys.readouterr().err
    assert printed.count("wandb: OSError: the network is down (see ") == 1
    (failure,) = [e for e in event_log.read(tmp_path) if e["event"] == "tracker"]
    assert failure["name"] == "wandb" and "network is down" in failure["why"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
    assert "Traceback" in (tmp_path / "trackers/wandb.log").read_text()


def test_a_tracker_that_hangs(tmp_path, fake_wandb, monkeypatch):
    """Rows are left out when too many wait, and the end is not waited for."""
    fake_wandb("import time; time.sleep(3)")
    monkeypatch.setattr(sender, "_MOST_WAITING", 1000)
    trackers = sender.Trackers(["wandb"], tmp_path, RUN, new=False)
    for step in range(3000):  # more than a pipe holds
        trackers.log(step, {"loss/total": 1.0, "text": "left out"})
    _, ((name, why),) = trackers.news()
    assert name == "wandb" and "does not keep up" in why
    assert trackers.news() == ([], [])
    (line,) = trackers.end(0, "done", patience=0.0)
    assert line.startswith("wandb is still sending")


def test_two_processes_never_write_to_a_run(tmp_path, monkeypatch):
    assert program._LOCK_SECONDS > program._LAST_SECONDS  # the process before ends
    monkeypatch.setattr(program, "_LOCK_SECONDS", 0.0)
    with open(tmp_path / "wandb.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(TimeoutError, match="still holds"):
            program._lock(tmp_path / "wandb.lock")
    program._lock(tmp_path / "wandb.lock")


def test_a_call_that_hangs_ends_after_the_training(tmp_path, fake_wandb):
    """Lines that it did not read yet, or a hanging call, do not keep the lock."""
    fake_wandb("import time; time.sleep(1000)")
    code = (
        "from dinov2_jax.trackers import __main__ as program; "
        "program._LAST_SECONDS = 0.1; program.main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "wandb", str(tmp_path)],
        stdin=subprocess.PIPE,
        cwd=processes.ROOT,
    )
    try:
        process.stdin.write(json.dumps({"run": RUN, "new": False}).encode() + b"\n")
        process.stdin.close()
        assert process.wait(timeout=60) == 1
    finally:
        process.kill()


def test_a_package_that_is_missing(monkeypatch, tmp_path):
    backends.check_installed(())
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(errors.UserError, match=r"pip install 'dinov2-jax\[wandb\]'"):
        backends.check_installed(("wandb",))
    # The folder that the package leaves behind is not the package.
    monkeypatch.delitem(sys.modules, "wandb")
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(errors.UserError, match="wandb cannot be imported"):
        backends.check_installed(("wandb",))


def test_mlflow_is_told_where_to_write(monkeypatch, tmp_path):
    (tmp_path / "mlflow.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(errors.UserError, match="set the environment variable MLFLOW"):
        backends.check_installed(("mlflow",))


RECORDER = """
import json, pathlib
class Settings:
    def __init__(self, **_): pass
class Run:
    url, summary = "http://here", {}
    def __init__(self, id, dir):
        self.file = open(pathlib.Path(dir) / f"{id}.jsonl", "a", buffering=1)
    def log(self, row, step):
        self.file.write(json.dumps([step, row]) + "\\n")
    def finish(self, exit_code):
        self.file.write(json.dumps(["end", exit_code]) + "\\n")
def init(*, id, dir, **_):
    return Run(id, dir)
"""


def test_resumed_runs_write_no_step_twice(tmp_path, fake_wandb, monkeypatch):
    """A killed process, one that resumes from an earlier step, and another run."""
    monkeypatch.delenv("WANDB_DIR", raising=False)
    fake_wandb(RECORDER)

    def write(steps, *, killed=False, new=False):
        trackers = sender.Trackers(["wandb"], tmp_path, RUN, new=new)
        for step in steps:
            trackers.log(step, {"loss/total": 1.0 / step})
            if step % 5 == 0:
                trackers.log(step, {"knn/top1": 0.1 * step})
        if killed:
            (process,) = trackers._processes
            process._flush()
            process._process.stdin.close()
            process._process.wait()
        else:
            assert trackers.end(0, "done", patience=60) == ["wandb: http://here"]

    write(range(1, 10), killed=True)
    write(range(6, 12))  # one evaluation at step 10
    (file,) = (tmp_path / "trackers").glob("*.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    losses = [(s, row) for s, row in rows if s != "end" and "loss/total" in row]
    assert losses == [(s, {"loss/total": 1.0 / s}) for s in range(1, 12)]
    assert [s for s, row in rows if s != "end" and "knn/top1" in row] == [5, 10]
    assert [row for row in rows if row[0] == "end"] == [["end", 1], ["end", 0]]
    write(range(1, 3), new=True)
    assert len([*(tmp_path / "trackers").glob("*.jsonl")]) == 2

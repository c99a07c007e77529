"""Two runs in one folder."""

import json
import multiprocessing
import os
import pathlib
import signal
import socket
import tempfile
import time

import processes
import pytest

from dinov2_jax import errors
from dinov2_jax.runtime import workdir


def hold(folder, held):
    with workdir.lock(folder):
        held.put(os.getpid())
        time.sleep(1000)


def test_the_second_is_refused_until_the_first_is_gone(tmp_path):
    context = multiprocessing.get_context("spawn")
    held = context.Queue()
    holder = context.Process(target=hold, args=(tmp_path, held))
    holder.start()
    try:
        pid = held.get(timeout=300)
        with pytest.raises(errors.UserError) as refused:
            workdir.lock(tmp_path)
        assert refused.value.exit_code == errors.BAD_INPUT
        begin, end = str(refused.value).split(" since ")
        assert begin == f"{tmp_path} is in use by pid {pid} on {socket.gethostname()}"
        assert end.endswith(": end it or choose another --workdir")
    finally:
        os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with workdir.lock(tmp_path):  # the kernel let go of it
        assert f"pid {os.getpid()} " in (tmp_path / "run.lock").read_text()


def test_what_another_host_holds_is_waited_for(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(workdir, "_PATIENCE", 1)
    with workdir.lock(tmp_path):
        (tmp_path / "run.lock").write_text("pid 1 on elsewhere since noon\n")
        with pytest.raises(errors.UserError, match="pid 1 on elsewhere since noon"):
            workdir.lock(tmp_path)
    assert "waiting up to 1 s" in caplog.text


def test_a_second_run_of_the_same_folder(in_process, tmp_path):
    with workdir.lock(tmp_path):  # as a run takes it
        second = in_process.run(*processes.DEBUG, f"--workdir={tmp_path}")
    assert second.code == 2
    assert second.output == second.error + "\n"
    assert f"{tmp_path} is in use by pid {os.getpid()} on " in second.error


@pytest.mark.slow
def test_two_runs_of_one_folder(trainer, in_process, tmp_path):
    flags = [*processes.DEBUG, f"--workdir={tmp_path / 'run'}"]
    # Without an end: the second starts while it runs, however long that takes.
    first = trainer.start(*flags, "--config.train.steps=100000")
    try:
        lock = tmp_path / "run/run.lock"
        while not (lock.exists() and lock.stat().st_size) and first.poll() is None:
            time.sleep(0.01)
        second = in_process.run(*flags)
    finally:
        first.kill()
        first.communicate(timeout=60)
    assert second.code == 2
    assert f"run is in use by pid {first.pid} on " in second.error


class Images:
    def __init__(self, length, fingerprint):
        self._length, self.fingerprint = length, fingerprint

    def __len__(self):
        return self._length

    def describe(self):
        return f"{self._length} images"


def test_changes_are_said_once(tmp_path):
    def update(source, resumed=True):
        return workdir.update_data_record(source, tmp_path, resumed=resumed, write=True)

    assert update(Images(1000, "a")) == ""
    assert update(Images(1000, "a")) == ""
    said = update(Images(1234, "b"))
    assert "1,000 images then, 1,234 now" in said and "\n" not in said
    assert update(Images(1234, "b")) == ""
    assert "1,234 images then and now, but other names" in update(Images(1234, "c"))
    assert update(Images(7, "d"), resumed=False) == ""
    record = json.loads((tmp_path / "data.json").read_text())
    assert record == {"fingerprint": "d", "images": 7, "description": "7 images"}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"fingerprint": 1}'])
def test_a_damaged_record_is_replaced(tmp_path, content):
    (tmp_path / "data.json").write_text(content)
    source = Images(3, "a")
    assert not workdir.update_data_record(source, tmp_path, resumed=True, write=False)
    assert (tmp_path / "data.json").read_text() == content
    assert not workdir.update_data_record(source, tmp_path, resumed=True, write=True)
    assert json.loads((tmp_path / "data.json").read_text())["images"] == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("content", ["", "{}", "[1]"])
def test_a_damaged_record_of_the_teacher(tmp_path, content):
    (tmp_path / "teacher.json").write_text(content)
    now = {"source": "runs/large", "digest": "1f"}
    with pytest.raises(errors.UserError, match="cannot read .*teacher.json .*restore"):
        workdir.check_teacher(tmp_path, now)
    workdir.write_teacher(tmp_path, now)
    workdir.check_teacher(tmp_path, now)
    now["digest"] = "2e"
    with pytest.raises(errors.UserError, match="weights of runs/large are no longer"):
        workdir.check_teacher(tmp_path, now)
    now["source"] = "runs/other"
    with pytest.raises(errors.UserError, match=r"from runs/large .*, not from runs/o"):
        workdir.check_teacher(tmp_path, now)


def test_files_of_another_user():
    with tempfile.TemporaryDirectory() as name:  # others cannot look into tmp_path
        path = pathlib.Path(name) / "metrics.jsonl"
        path.write_text("")
        path.parent.chmod(0o777)
        os.seteuid(65534)
        try:
            with pytest.raises(errors.UserError) as caught:
                workdir.make_workdir(path.parent)
        finally:
            os.seteuid(0)
    assert str(caught.value).startswith(f"{path} belongs to root and cannot be written")

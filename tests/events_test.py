"""events.jsonl: appended to by whoever runs, readable whatever cut it."""

import datetime
import os
import subprocess

import pytest

from dinov2_jax import events


def test_written_and_read(tmp_path):
    assert events.read(tmp_path) == []
    before = datetime.datetime.now(datetime.UTC)
    events.Events(tmp_path).add("start", step=0, host="here")
    events.Events(tmp_path, enabled=False).add("start", step=0)
    events.Events(tmp_path).add("save", step=5)
    first, second = events.read(tmp_path)
    assert (first["event"], first["step"], first["host"]) == ("start", 0, "here")
    assert (second["event"], second["step"]) == ("save", 5)
    since = (first["time"] - before).total_seconds()
    assert -0.01 < since < 5 and first["time"] <= second["time"]


def test_half_a_line_costs_that_line(tmp_path):
    log = events.Events(tmp_path)
    log.add("start", step=0)
    log.add("save", step=5)
    path = tmp_path / "events.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-7] + b"\n[1]\n{}\n")
    path.write_bytes(whole[:-7])
    events.Events(tmp_path).add("start", step=5)  # the next process
    assert [(e["event"], e["step"]) for e in events.read(tmp_path)] == [
        ("start", 0),
        ("start", 5),
    ]


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system of its own needs the right to mount one")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_loses_events_alone(small_disk):
    log = events.Events(small_disk)
    for number in range(1000):
        log.add("save", step=number)
    kept = [e["step"] for e in events.read(small_disk)]
    assert 10 < len(kept) < 1000 and kept == list(range(len(kept)))
    (small_disk / "events.jsonl").write_bytes(b"")  # room again
    log.add("end", step=1000)
    assert [e["step"] for e in events.read(small_disk)] == [1000]

"""events.jsonl: appended to by whoever runs, readable whatever cut it."""

import datetime

from dinov2_jax.runtime import event_log


def test_written_and_read(tmp_path):
    assert event_log.read(tmp_path) == []
    before = datetime.datetime.now(datetime.UTC)
    event_log.Events(tmp_path).add("start", step=0, host="here")
    event_log.Events(tmp_path, enabled=False).add("start", step=0)
    event_log.Events(tmp_path).add("save", step=5)
    first, second = event_log.read(tmp_path)
    assert (first["event"], first["step"], first["host"]) == ("start", 0, "here")
    assert (second["event"], second["step"]) == ("save", 5)
    after = datetime.datetime.now(datetime.UTC)
    fine = datetime.timedelta(milliseconds=10)  # as the file has it
    assert before - fine <= first["time"] <= second["time"] <= after + fine


def test_half_a_line_costs_that_line(tmp_path):
    log = event_log.Events(tmp_path)
    log.add("start", step=0)
    log.add("save", step=5)
    path = tmp_path / "events.jsonl"
    whole = path.read_bytes()
    path.write_bytes(b"[1]\n{}\n" + whole[:-7])
    event_log.Events(tmp_path).add("start", step=5)  # the next process
    assert [(e["event"], e["step"]) for e in event_log.read(tmp_path)] == [
        ("start", 0),
        ("start", 5),
    ]

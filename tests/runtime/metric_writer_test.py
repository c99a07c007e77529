"""metrics.jsonl keeps every bit, survives kills and resumes; progress is readable."""

import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
from tensorboard.backend.event_processing import event_file_loader

from dinov2_jax.runtime import metric_writer


def _rows(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def _events(path):
    """As TensorBoard reads them."""
    return list(event_file_loader.LegacyEventFileLoader(str(path)).Load())


def test_floats_read_back_to_the_same_bits(tmp_path):
    writer = metric_writer.MetricsWriter(tmp_path, tensorboard=False)
    values = np.random.default_rng(0).normal(size=50).astype(np.float32) * 1e-9
    for step, value in enumerate(values, start=1):
        writer.write(step, {"numpy": value, "jax": jnp.asarray(value), "x": 0.1 + 0.2})
    writer.close()
    rows = _rows(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, 51))
    assert (np.array([row["numpy"] for row in rows], np.float32) == values).all()
    assert (np.array([row["jax"] for row in rows], np.float32) == values).all()
    assert all(row["x"] == 0.1 + 0.2 for row in rows)


def test_other_values(tmp_path):
    writer = metric_writer.MetricsWriter(tmp_path)
    written = {
        "count": np.int64(3),
        "half": jnp.asarray(0.5, jnp.bfloat16),
        "nan": float("nan"),
        "list": np.arange(3),
        "text": "a\nb",
        "none": None,
    }
    writer.write(7, written)
    writer.close()
    (row,) = _rows(tmp_path)
    assert row.pop("nan") != 0
    assert row == {
        "step": 7,
        "count": 3,
        "half": 0.5,
        "list": [0, 1, 2],
        "text": "a\nb",
        "none": None,
    }


def test_rows_are_on_disk_before_close(tmp_path):
    writer = metric_writer.MetricsWriter(tmp_path, tensorboard=False)
    writer.write(1, {"loss/total": 2.0})
    assert _rows(tmp_path) == [{"step": 1, "loss/total": 2.0}]
    writer.close()


def test_resume_drops_later_rows_and_a_torn_line(tmp_path):
    writer = metric_writer.MetricsWriter(tmp_path, tensorboard=False)
    for step in range(1, 6):
        writer.write(step, {"loss/total": step / 3})
    writer.close()
    kept = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)[:3]
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 2, "loss/to')
    writer = metric_writer.MetricsWriter(tmp_path, tensorboard=False, resume_step=3)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(kept)
    writer.write(4, {"loss/total": 9.0})
    writer.close()
    assert [row["step"] for row in _rows(tmp_path)] == [1, 2, 3, 4]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_whole_object_without_its_newline_is_torn(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"step": 2}')
    metric_writer.MetricsWriter(tmp_path, tensorboard=False, resume_step=5).close()
    assert _rows(tmp_path) == [{"step": 1}]


def test_a_new_run_starts_with_an_empty_file(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 0}\n{"step": 1}\n')
    metric_writer.MetricsWriter(tmp_path, tensorboard=False).close()
    assert _rows(tmp_path) == []


def test_tensorboard_holds_the_scalars_and_the_purge(tmp_path):
    writer = metric_writer.MetricsWriter(tmp_path)
    writer.write(1, {"loss/total": 2.5, "text": "left out"})
    writer.write(2, {"loss/total": 1.5})
    writer.close()
    writer = metric_writer.MetricsWriter(tmp_path, resume_step=1)
    writer.write(2, {"loss/total": 1.25})
    writer.close()
    first, second = sorted((tmp_path / "tensorboard").iterdir(), key=lambda p: p.name)
    scalars = [
        (event.step, value.tag, value.simple_value)
        for event in _events(first)
        for value in event.summary.value
    ]
    assert scalars == [(1, "loss/total", 2.5), (2, "loss/total", 1.5)]
    starts = [event for event in _events(second) if event.HasField("session_log")]
    assert [event.step for event in starts] == [2]


def test_tensorboard_brings_no_other_framework(tmp_path):
    """Seconds and memory of every run, where PyTorch is installed too."""
    program = """
import sys
from dinov2_jax.runtime import metric_writer
metric_writer.MetricsWriter(sys.argv[1]).close()
print("tensorboard" in sys.modules, {"torch", "tensorflow"} & set(sys.modules))
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "True set()\n"


def test_no_tensorboard_when_not_wanted(tmp_path):
    metric_writer.MetricsWriter(tmp_path, tensorboard=False).close()
    assert not (tmp_path / "tensorboard").exists()

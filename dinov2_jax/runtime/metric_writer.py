"""The metrics of a run: metrics.jsonl and TensorBoard event files.

`metrics.jsonl` holds one JSON object per logged step. Floats read back to the same
bits, so two runs can be compared for equality by their files. JSON has no non-finite
numbers: they are written as NaN and Infinity, which Python's `json.loads` accepts.
"""

import importlib.util
import json
import logging
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dinov2_jax import files
from dinov2_jax.runtime import append_file


def _plain(value):
    """Convert a NumPy or jax value to a Python number or list of the same value."""
    if isinstance(value, (bool, int, float, str)) or value is None:
        return value
    if np.ndim(value) == 0:
        return np.asarray(value).astype(np.float64).item()
    return np.asarray(value).tolist()


def plain(metrics: Mapping[str, object]) -> dict[str, object]:
    """Convert the values of a row to Python numbers and lists of the same values."""
    return {name: _plain(value) for name, value in metrics.items()}


def _kept_rows(data: bytes, resume_step: int) -> bytes:
    """Return the rows up to `resume_step`, without later and incomplete ones."""
    if resume_step == 0:
        return b""  # nothing was saved, so even step 0 is logged again
    kept = []
    for line in data.splitlines(keepends=True):
        try:
            row = json.loads(line)
            keep = line.endswith(b"\n") and row["step"] <= resume_step
        except (ValueError, KeyError, TypeError):
            keep = False
        if keep:
            kept.append(line)
    return b"".join(kept)


class MetricsWriter:
    """Appends metrics to WORKDIR/metrics.jsonl and WORKDIR/tensorboard.

    Args:
      workdir: The run's folder, created if it is missing.
      tensorboard: Also write TensorBoard event files, if it is installed.
      resume_step: The step of the checkpoint that the run resumes from, 0 for a new
        run. Rows of later steps (with 0, all rows) are dropped, since they will be
        written again.
      enabled: False writes nothing; for every process but the first.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        tensorboard: bool = True,
        resume_step: int = 0,
        enabled: bool = True,
    ):
        self._file = self._tensorboard = None
        if not enabled:
            return
        folder = Path(workdir)
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        if self.path.exists():
            data = self.path.read_bytes()
            kept = _kept_rows(data, resume_step)
            if kept != data:
                with files.whole(self.path) as file:
                    file.write(kept)
        self._file = append_file.RecordFile(self.path)
        if tensorboard and importlib.util.find_spec("tensorboard") is None:
            logging.info(
                "TensorBoard is not installed, so it gets no files (pip install "
                "tensorboard): metrics.jsonl has all numbers"
            )
        elif tensorboard:
            self._tensorboard = _EventFile(folder / "tensorboard", resume_step)

    def write(self, step: int, metrics: Mapping[str, object]) -> None:
        """Write one row.

        Args:
          step: Number of finished training steps.
          metrics: name -> number (Python, NumPy or jax scalar), string, list or None.
            TensorBoard gets only the numbers.
        """
        if self._file is None:
            return
        row = {"step": int(step), **plain(metrics)}
        self._file.write(json.dumps(row).encode() + b"\n")
        if self._tensorboard is not None:
            del row["step"]
            self._tensorboard.write(step, row)

    def sync(self) -> None:
        """Flush all rows to disk, as far as possible."""
        if self._file is not None:
            self._file.sync()

    def close(self) -> None:
        """Close the files; `write` may not be called afterwards."""
        if self._file is not None:
            self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


class _EventFile:
    """A TensorBoard event file of scalars.

    TensorBoard's own event writer is not used: its thread dies when the disk is full,
    and the run would then wait for it forever.
    """

    def __init__(self, folder: Path, resume_step: int):
        from tensorboard.compat.proto import event_pb2, summary_pb2  # optional
        from tensorboard.summary.writer import record_writer

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        folder.mkdir(exist_ok=True)
        now = int(time.time())
        name = f"events.out.tfevents.{now}.{socket.gethostname()}"
        self._file = append_file.RecordFile(folder / f"{name}.from_step_{resume_step}")
        self._records = record_writer.RecordWriter(self._file)
        self._append(file_version="brain.Event:2")
        # Makes TensorBoard ignore what an earlier process wrote from this step on.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._append(step=resume_step + 1 if resume_step else 0, session_log=start)

    def write(self, step: int, values: Mapping[str, object]) -> None:
        scalars = [
            self._summary.Value(tag=name, simple_value=value)
            for name, value in values.items()
            if isinstance(value, (int, float))
        ]
        self._append(step=step, summary=self._summary(value=scalars))

    def close(self) -> None:
        self._file.close()

    def _append(self, **fields) -> None:
        event = self._event(wall_time=time.time(), **fields)
        self._records.write(event.SerializeToString())

"""What a run measures, written down: metrics.jsonl and TensorBoard events.

`metrics.jsonl` holds one JSON object per logged step. Floats are written so that they
read back to the same bits, so two runs can be compared for equality by their files.
JSON has no non-finite numbers: they are written as Python's NaN and Infinity, which
`json.loads` reads back.
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
    """A NumPy or array scalar as the Python number of the same value."""
    if isinstance(value, (bool, int, float, str)) or value is None:
        return value
    if np.ndim(value) == 0:
        return np.asarray(value).astype(np.float64).item()
    return np.asarray(value).tolist()


def _kept_rows(data: bytes, resume_step: int) -> bytes:
    """The whole rows of a metrics file up to `resume_step`, later and torn ones cut."""
    if resume_step == 0:
        return b""  # nothing was saved, so even a row of step 0 comes again
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
      workdir: the run's folder, created when missing.
      tensorboard: also write TensorBoard event files, where it is installed.
      resume_step: the step of the checkpoint the run goes on from, 0 for a new run;
        rows of later steps are dropped, for they will be written again (with 0, all).
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
                "no files for TensorBoard, which is not installed (pip install "
                "tensorboard): metrics.jsonl has all numbers"
            )
        elif tensorboard:
            self._tensorboard = _EventFile(folder / "tensorboard", resume_step)

    def write(self, step: int, metrics: Mapping[str, object]) -> None:
        """Writes one row.

        Args:
          step: number of finished training steps.
          metrics: name -> number (Python, NumPy or array scalar), string or None; a
            list is written to the file alone.
        """
        if self._file is None:
            return
        row = {"step": int(step)}
        row |= {name: _plain(value) for name, value in metrics.items()}
        self._file.write(json.dumps(row).encode() + b"\n")
        if self._tensorboard is not None:
            del row["step"]
            self._tensorboard.write(step, row)

    def sync(self) -> None:
        """Returns once all rows are on the disk, or cannot be."""
        if self._file is not None:
            self._file.sync()

    def close(self) -> None:
        """Closes the files; `write` may not be called any more."""
        if self._file is not None:
            self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


class _EventFile:
    """Scalars for TensorBoard.

    Not by TensorBoard's own writer of events: its thread ends where the disk is full,
    and a run would wait for it for ever.
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
        # What an earlier process wrote from this step on does not count.
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

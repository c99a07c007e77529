"""What a run writes down and shows: metrics.jsonl, TensorBoard events, progress.

`metrics.jsonl` holds one JSON object per logged step. Floats are written so that they
read back to the same bits, so two runs can be compared for equality by their files.
JSON has no non-finite numbers: they are written as Python's NaN and Infinity, which
`json.loads` reads back.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

import numpy as np
import tqdm


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
      tensorboard: also write TensorBoard event files.
      resume_step: the step of the checkpoint the run goes on from, 0 for a new run;
        rows of later steps are dropped, for they will be written again (with 0, all).
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        tensorboard: bool = True,
        resume_step: int = 0,
    ):
        folder = Path(workdir)
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        if self.path.exists():
            data = self.path.read_bytes()
            kept = _kept_rows(data, resume_step)
            if kept != data:
                # Renamed into place: a kill in between leaves one whole file.
                temporary = self.path.with_suffix(".jsonl.tmp")
                temporary.write_bytes(kept)
                temporary.replace(self.path)
        # Unbuffered and in append mode, so that each row is a single write.
        self._file = open(self.path, "ab", buffering=0)
        self._tensorboard = None
        if tensorboard:
            import tensorboardX  # half a second, and not everyone wants it

            self._tensorboard = tensorboardX.SummaryWriter(
                str(folder / "tensorboard"),
                purge_step=resume_step + 1 if resume_step else 0,
                filename_suffix=f".from_step_{resume_step}",
            )

    def write(self, step: int, metrics: Mapping[str, object]) -> None:
        """Writes one row.

        Args:
          step: number of finished training steps.
          metrics: name -> number (Python, NumPy or array scalar), string or None; a
            list is written to the file alone.
        """
        row = {"step": int(step)}
        row |= {name: _plain(value) for name, value in metrics.items()}
        self._file.write(json.dumps(row).encode() + b"\n")
        if self._tensorboard is None:
            return
        for name, value in row.items():
            if name != "step" and isinstance(value, (int, float)):
                self._tensorboard.add_scalar(name, value, step)
        self._tensorboard.flush()

    def sync(self) -> None:
        """Returns once all rows are on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the files; `write` may not be called any more."""
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


def _duration(seconds: float) -> str:
    """Seconds as H:MM:SS or MM:SS."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02}"
    )


class Progress:
    """The console's view of a run: a bar on a terminal, else a line per update.

    Args:
      total_steps: steps of the whole run.
      start_step: finished steps when this process began, left out of the ETA.
      stream: where to write; standard error by default.
    """

    def __init__(
        self, total_steps: int, start_step: int = 0, *, stream: TextIO | None = None
    ):
        self._total, self._step = total_steps, start_step
        self._stream = stream or sys.stderr
        # The clock starts with the first update: before it lies the compilation.
        self._first: tuple[int, float] | None = None
        self._bar = None
        if self._stream.isatty():
            # Not tqdm's own guess, which shows nothing where a size reads 0.
            columns, rows = shutil.get_terminal_size()
            self._bar = tqdm.tqdm(
                total=total_steps,
                initial=start_step,
                file=self._stream,
                ncols=columns - 1,
                nrows=rows,
                # The bar last: it takes what room the numbers leave.
                bar_format="{percentage:3.0f}% {n_fmt}/{total_fmt} {desc} |{bar}|",
            )

    def update(
        self, step: int, *, loss: float, images_per_second: float, data_wait: float
    ) -> None:
        """Shows a logged step.

        Args:
          step: finished steps.
          loss: total loss of that step.
          images_per_second: rate since the last update.
          data_wait: share of the time spent waiting for data, in [0, 1].
        """
        now = time.monotonic()
        if self._first is None:
            self._first = (step, now)
        first_step, first_time = self._first
        eta = "--:--"
        if step > first_step:
            seconds_per_step = (now - first_time) / (step - first_step)
            eta = _duration(seconds_per_step * (self._total - step))
        text = (
            f"loss {loss:.4f}  {images_per_second:.1f} images/s  "
            f"data wait {data_wait:.0%}  ETA {eta}"
        )
        if self._bar is not None:
            self._bar.set_description_str(text, refresh=False)
            self._bar.update(step - self._step)
            self._bar.refresh()
        else:
            print(f"step {step}/{self._total}  {text}", file=self._stream, flush=True)
        self._step = step

    def message(self, text: str) -> None:
        """Prints a line without tearing the bar."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Leaves the bar where it is and ends its line."""
        if self._bar is not None:
            self._bar.close()

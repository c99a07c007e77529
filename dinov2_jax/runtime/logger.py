"""The log of a run: console, metrics.jsonl and events.jsonl."""

import importlib.metadata
import json
import os
import pathlib
import platform
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from dinov2_jax import errors
from dinov2_jax.config import flattening
from dinov2_jax.losses import dino as dino_loss
from dinov2_jax.runtime import (
    event_log,
    flops,
    metric_writer,
    monitors,
    progress,
    rollback,
    timing,
)
from dinov2_jax.runtime import workdir as workdir_lib
from dinov2_jax.trackers import backends, sender

_PROGRESS_EVERY = 60.0  # seconds between progress events
# Seconds that trackers get at the end of the process, and when it must end soon.
_PATIENCE, _LITTLE_PATIENCE = 30.0, 5.0


class RunLog:
    """Everything that a run logs; only the first of several processes writes.

    Args:
      workdir: The run's folder.
      start_step: Finished steps when this process started.
      account: The time account of this process.
      total_steps: Steps of the whole run.
      every: Steps from one logged step to the next; the last is always logged.
      tensorboard: Whether to write TensorBoard files too.
      rates: The rates of the steps to log.
      uniform_loss: Monitor that warns when a run learns nothing.
      data_wait: Monitor that warns when the devices wait for data.
      trackers: Function that starts the trackers of the run.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        start_step: int,
        account: timing.TimeAccount,
        *,
        total_steps: int,
        every: int,
        tensorboard: bool,
        rates: timing.Rates,
        uniform_loss: monitors.UniformLossMonitor,
        data_wait: monitors.DataWaitMonitor,
        trackers: Callable[[], sender.Trackers],
    ):
        self._workdir, self._account = workdir, account
        self._total_steps, self._every = total_steps, every
        self._tensorboard = tensorboard
        self._leads = jax.process_index() == 0
        self.events = event_log.Events(workdir, enabled=self._leads)
        self._last_progress = time.monotonic()
        self._step = start_step
        self._writer = self._make_writer(start_step)
        self._progress = progress.Progress(total_steps, start_step, enabled=self._leads)
        self.message = self._progress.message
        self.rates = rates
        self._uniform_loss, self._data_wait = uniform_loss, data_wait
        self.compilations = monitors.CompilationMonitor()
        self._started = self._console_failed = False
        self._start_trackers = trackers
        self._trackers: sender.Trackers | None = None

    def _make_writer(self, step: int) -> metric_writer.MetricsWriter:
        return metric_writer.MetricsWriter(
            self._workdir,
            tensorboard=self._tensorboard,
            resume_step=step,
            enabled=self._leads,
        )

    def start(self) -> None:
        """Log that this process starts or resumes training."""
        self._started = True
        device = jax.devices()[0]
        self.events.add(
            "start",
            step=self._step,
            host=socket.gethostname(),
            pid=os.getpid(),
            processes=jax.process_count(),
            devices=jax.device_count(),
            device=device.device_kind,
            jax=jax.__version__,
            python=platform.python_version(),
            dinov2_jax=_version(),
            seconds=self._seconds(),
        )
        if self._leads:
            self._trackers = self._start_trackers()

    def step(self, step: int, values: Mapping[str, float], scalars: Mapping) -> None:
        """Log a finished step.

        Args:
          step: Number of finished steps.
          values: Metrics of the step.
          scalars: Values of the schedules at the step, such as `lr`.
        """
        self._step = step
        self.rates.step_done()
        if values["skipped_in_a_row"]:
            self._skipped(step, values, scalars)
        if self.compilations.happened():
            self.events.add("recompiled", step=step)
            self.message(f"step {step}: something was compiled that had been before")
        if time.monotonic() - self._last_progress > _PROGRESS_EVERY:
            self._last_progress = time.monotonic()
            self.events.add("progress", step=step, seconds=self._seconds())
        self._note_console()
        if step % self._every and step != self._total_steps:
            return
        row = dict(values) | scalars | self.rates.take()
        self._write(step, row)
        self._progress.update(
            step,
            loss=row["loss/total"],
            images_per_second=row["images_per_second"],
            data_wait=row["data_wait"],
            mfu=row.get("mfu"),
        )
        for warning in (
            self._uniform_loss.message(step, row),
            self._data_wait.message(step, row["data_wait"]),
        ):
            if warning:
                self.message(warning)

    def _write(self, step: int, row: Mapping[str, object]) -> None:
        self._writer.write(step, row)
        if self._trackers:
            self._trackers.log(step, metric_writer.plain(row))
            self._note_trackers()

    def _note_trackers(self) -> None:
        """Log what the trackers report: where the run is seen, and failures."""
        lines, failures = self._trackers.news()
        for line in lines:
            self.message(line)
        for name, why in failures:
            self.events.add("tracker", step=self._step, name=name, why=why)
            self.message(f"warning: {name}: {why}; the run goes on")

    def _note_console(self) -> None:
        """Log once that messages to the console are lost."""
        if self._progress.failure and not self._console_failed:
            self._console_failed = True
            self.events.add("console", step=self._step, why=self._progress.failure)

    def _skipped(self, step, values, scalars) -> None:
        terms = ", ".join(rollback.not_finite(values))
        self.events.add("skip", step=step, terms=terms, lr=scalars["lr"])
        self.message(
            f"step {step}: skipped, not finite: {terms}; weights untouched "
            f"({int(values['skipped_in_a_row'])} in a row, {int(values['skipped'])} in "
            "all)"
        )

    def _seconds(self) -> dict[str, float]:
        return {what: round(s, 3) for what, s in self._account.seconds().items()}

    def evaluated(
        self, step: int, accuracies: Mapping[str, float], student: str = ""
    ) -> None:
        """Log an evaluation of the teacher's features.

        Args:
          step: Number of finished steps.
          accuracies: Metrics of the evaluation.
          student: Name of the student, if there are several.
        """
        prefix, of = (f"{student}/", f"{student}, ") if student else ("", "")
        named = {f"{prefix}{name}": value for name, value in accuracies.items()}
        self._write(step, named)
        self.events.add("evaluate", step=step, accuracies=named)
        self.message(of + progress.describe_evaluation(step, accuracies))

    def pictured(self, step: int, name: str, path: pathlib.Path) -> None:
        """Pass a picture that was written on to the trackers.

        Args:
          step: Number of finished steps.
          name: Name of the picture.
          path: The file.
        """
        if self._trackers:
            self._trackers.picture(step, name, path)

    def save_failed(self, step: int, how: str) -> None:
        """Log a failed save; training continues."""
        self.events.add("save failed", step=step, how=how)
        self.message(how)

    def profiled(self, step: int, path: str) -> None:
        """Log that a trace was written."""
        self.events.add("profile", step=step, path=path)
        self.message(f"step {step}: wrote a trace of steps and of memory to {path}")

    def sync(self) -> None:
        """Flush all rows of metrics to disk."""
        self._writer.sync()

    def rolled_back(self, failed: int, to: int, why: str) -> None:
        """Log a rollback, and drop the rows of metrics after step `to`."""
        self.events.add("rollback", step=failed, to=to, why=why)
        where = f"the checkpoint of step {to}" if to else "the start"
        self.message(
            f"step {failed}: the loss blew up ({why}): back to {where}, leaving out "
            f"the {failed - to} batches since"
        )
        self._writer.close()
        self._writer = self._make_writer(to)
        self._step = to

    def end(self, error: BaseException | None) -> None:
        """Log the end of the process, with or without an error, and close all files."""
        code, reason = 0, "done"
        if error is not None:
            code, reason = errors.CRASHED, repr(error)
        if isinstance(error, KeyboardInterrupt):
            code, reason = errors.INTERRUPTED, "interrupted"
        if isinstance(error, errors.UserError):
            code, reason = error.exit_code, str(error)
        if self._started:
            self._note_console()
            if self._trackers:
                self._note_trackers()
            self.events.add(
                "end",
                step=self._step,
                code=code,
                reason=reason,
                seconds=self._seconds(),
            )
        self.events.close()
        self.compilations.close()
        self._writer.close()
        if self._trackers:
            patience = _LITTLE_PATIENCE if code == errors.REQUEUE else _PATIENCE
            for line in self._trackers.end(code, reason, patience=patience):
                self.message(line)
        self._progress.close()


def _version() -> str:
    """Return the version of this package; "" if it is not installed."""
    try:
        return importlib.metadata.version("dinov2-jax")
    except importlib.metadata.PackageNotFoundError:
        return ""


def make_run_log(
    config: Any,
    workdir: pathlib.Path,
    start_step: int,
    account: timing.TimeAccount,
    per_image: float,
    *,
    new_run: bool = False,
) -> RunLog:
    """Return the log of a run.

    Args:
      config: The config of the run.
      workdir: The run's folder.
      start_step: Number of steps done.
      account: Where the time goes.
      per_image: Useful FLOPs per image of a step.
      new_run: Whether the folder has had another run before.
    """

    def start_trackers() -> sender.Trackers:
        about = {
            "project": config.log.project or backends.DEFAULT_PROJECT,
            "name": config.log.run_name or workdir.absolute().name,
            "config": flattening.flatten(json.loads(config.to_json_best_effort())),
            "images": workdir_lib.read_images_record(workdir),
            "pid": os.getpid(),
        }
        return sender.Trackers(config.log.trackers, workdir, about, new=new_run)

    device_kind = jax.devices()[0].device_kind
    peak_rate = flops.peak_rate(per_image, device_kind, jax.device_count())
    has_prototypes = config.train.objective == "prototypes"
    share = dino_loss.uniform_share(
        config.crops.local_crops_number,
        views=config.distill.views if config.distill.source else "other",
        local_loss_weight=config.dino.local_loss_weight,
    )
    return RunLog(
        workdir,
        start_step,
        account,
        total_steps=config.train.steps,
        every=config.log.every,
        tensorboard=config.log.tensorboard,
        rates=timing.Rates(account, config.train.batch_size, peak_rate),
        uniform_loss=monitors.UniformLossMonitor(
            config.dino.head_n_prototypes,
            loss_weight=config.dino.loss_weight * share * has_prototypes,
            patience_steps=max(2 * config.optim.warmup_steps, 1000),
        ),
        data_wait=monitors.DataWaitMonitor(
            workers=config.data.workers,
            cores=os.cpu_count() or 1,
            augmentation=config.data.augmentation,
        ),
        trackers=start_trackers,
    )

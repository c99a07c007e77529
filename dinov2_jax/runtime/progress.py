"""Console output of a run: the progress bar and the texts around it."""

import io
import pathlib
import shutil
import sys
import time
from typing import Any, TextIO

import jax.numpy as jnp
import tqdm

from dinov2_jax import schedules
from dinov2_jax.runtime import timing


class Progress:
    """A progress bar on a terminal; elsewhere one line per update.

    Args:
      total_steps: Steps of the whole run.
      start_step: Finished steps when this process started, left out of the ETA.
      stream: Where to write; standard error by default.
      enabled: False shows nothing; for every process but the first.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int = 0,
        *,
        stream: TextIO | None = None,
        enabled: bool = True,
    ):
        self._total, self._step = total_steps, start_step
        self._stream = stream or sys.stderr if enabled else io.StringIO()
        # The clock starts at the first update, so that compilation is not counted.
        self._first: tuple[int, float] | None = None
        self._bar = None
        if self._stream.isatty():
            # tqdm's own detection shows nothing if the terminal reports a size of 0.
            columns, rows = shutil.get_terminal_size()
            self._bar = tqdm.tqdm(
                total=total_steps,
                initial=start_step,
                file=self._stream,
                ncols=columns - 1,
                nrows=rows,
                # The bar comes last: it fills the room that is left.
                bar_format="{percentage:3.0f}% {n_fmt}/{total_fmt} {desc} |{bar}|",
            )

    def update(
        self,
        step: int,
        *,
        loss: float,
        images_per_second: float,
        data_wait: float,
        mfu: float | None = None,
    ) -> None:
        """Show a logged step.

        Args:
          step: Number of finished steps.
          loss: Total loss of that step.
          images_per_second: Rate since the last update.
          data_wait: Share of the time spent waiting for data, in [0, 1].
          mfu: Model FLOPs utilization, in [0, 1]; None if unknown (not shown).
        """
        now = time.monotonic()
        if self._first is None:
            self._first = (step, now)
        first_step, first_time = self._first
        eta = "--:--"
        if step > first_step:
            seconds_per_step = (now - first_time) / (step - first_step)
            eta = timing.duration(seconds_per_step * (self._total - step))
        share = "" if mfu is None else f"MFU {mfu:.1%}  "
        text = (
            f"loss {loss:.4f}  {images_per_second:.1f} images/s  {share}"
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
        """Print a line without breaking the bar."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Leave the bar as it stands and end its line."""
        if self._bar is not None:
            self._bar.close()


def banner(config: Any, trainer: Any, source: Any) -> str:
    """Return a summary of the run that is about to start.

    Args:
      config: The run's config.
      trainer: The run's `trainer.Trainer`.
      source: The images, a `data.sources.base.Source`.
    """
    batch, steps = config.train.batch_size, config.train.steps
    places = source.pass_length
    mesh = trainer.mesh
    device = mesh.devices.flat[0]
    lr = schedules.scaled_lr(config.optim.base_lr, batch)
    shape = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    return "\n".join(
        [
            f"devices     {mesh.size} {device.device_kind}, mesh {shape}",
            f"images      {source.describe()}",
            f"batch       {batch} in {batch // config.train.group_size} groups of "
            f"{config.train.group_size}",
            f"steps       {steps:,} = {steps * batch / places:.1f} passes",
            f"lr          {lr:.3g} = {config.optim.base_lr:.3g} x sqrt({batch} / 1024)",
            f"parameters  {trainer.num_params / 1e6:.1f} M ({config.model.arch}, heads "
            f"included), matmuls in {jnp.dtype(trainer.dtype).name}",
        ]
    )


def where_to_look(workdir: pathlib.Path) -> str:
    """List the files that a finished run leaves, with what is in them."""
    files = {
        "metrics.jsonl": "the losses and accuracies, a line a step",
        "tensorboard": "the same for tensorboard --logdir",
        "checkpoints": "the weights",
        "pca.png": "what the patches have learned to tell apart",
    }
    found = [(workdir / name, about) for name, about in files.items()]
    found = [f"  {path}: {about}" for path, about in found if path.exists()]
    return "\n".join(["done; look at", *found])


def describe_knn(step: int, accuracies: dict[str, float]) -> str:
    """Return the k-NN accuracies as one line."""
    names = {
        "knn/top1": "trained",
        "knn/top1_random_init": "random init",
        "knn/top1_pixels": "pixels",
        "knn/top1_pixels_mean_removed": "pixels less mean",
        "knn/top1_color_histogram": "colour histogram",
    }
    shown = ", ".join(
        f"{name} {accuracies[k]:.1%}" for k, name in names.items() if k in accuracies
    )
    return f"step {step}: k-NN top-1: {shown}"

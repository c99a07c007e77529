"""Console output of a run: the progress bar and the texts around it."""

import math
import pathlib
import time
from collections.abc import Mapping
from typing import TextIO

from dinov2_jax import progress_bar, schedules
from dinov2_jax.runtime import timing


class Progress:
    """The progress of training: a bar on a terminal; elsewhere a line per update.

    Args:
      total_steps: Steps of the whole run.
      start_step: Finished steps when this process started, left out of the ETA.
      stream: Where to write; standard error by default.
      enabled: False shows nothing; for every process but the first.

    Attributes:
      message: Function that prints a line without breaking the bar.
      close: Function that ends the line of the bar.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int = 0,
        *,
        stream: TextIO | None = None,
        enabled: bool = True,
    ):
        self._total = total_steps
        # The clock starts at the first update, so that compilation is not counted.
        self._first: tuple[int, float] | None = None
        self._bar = progress_bar.Bar(
            total_steps,
            what="step",
            done=start_step,
            stream=stream,
            enabled=enabled,
            # The bar comes last: it fills the room that is left.
            bar_format="{percentage:3.0f}% {n_fmt}/{total_fmt} {desc} |{bar}|",
        )
        self.message = self._bar.message
        self.close = self._bar.close

    @property
    def failure(self) -> str:
        """The reason why a line could not be written; "" if all were written."""
        return self._bar.failure

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
        self._bar.show(step, text)


def banner(
    *,
    device: str,
    mesh: Mapping[str, int],
    images: str,
    pass_length: int,
    batch_size: int,
    group_size: int,
    steps: int,
    base_lr: float,
    arch: str,
    num_params: int,
    dtype: str,
) -> str:
    """Return a summary of the run that is about to start.

    Args:
      device: Kind of the devices.
      mesh: Size of each axis of the mesh.
      images: Description of the images, in one line.
      pass_length: Number of images that a pass shows.
      batch_size: Images per step.
      group_size: Images per group.
      steps: Steps of the whole run.
      base_lr: Learning rate at batch 1024.
      arch: Name of the architecture.
      num_params: Number of the student's parameters, heads included.
      dtype: Name of the dtype of the matmuls.
    """
    lr = schedules.scaled_lr(base_lr, batch_size)
    shape = " x ".join(f"{name} {size}" for name, size in mesh.items())
    groups = batch_size // group_size
    return "\n".join(
        [
            f"devices     {math.prod(mesh.values())} {device}, mesh {shape}",
            f"images      {images}",
            f"batch       {batch_size} in {groups} groups of {group_size}",
            f"steps       {steps:,} = {steps * batch_size / pass_length:.1f} passes",
            f"lr          {lr:.3g} = {base_lr:.3g} x sqrt({batch_size} / 1024)",
            f"parameters  {num_params / 1e6:.1f} M ({arch}, heads included), matmuls "
            f"in {dtype}",
        ]
    )


def list_outputs(workdir: pathlib.Path) -> str:
    """List the files of a finished run and describe each."""
    files = {
        "metrics.jsonl": "losses and accuracies, one line per step",
        "report.html": "a page of curves and of what happened",
        "tensorboard": "the same for tensorboard --logdir",
        "checkpoints": "the weights",
        "best": "the weights of the best evaluation",
        "pca.png": "what the patch features distinguish",
    }
    found = [
        f"  {workdir / name}: {about}"
        for name, about in files.items()
        if name == "report.html" or (workdir / name).exists()  # the report comes last
    ]
    return "\n".join(["done; look at", *found])


# Titles of evaluations and the metrics that are printed, in the order to print.
_EVALUATIONS: Mapping[str, dict[str, str]] = {
    "k-NN top-1": {
        "knn/top1": "trained",
        "knn/top1_random_init": "random init",
        "knn/top1_pixels": "pixels",
        "knn/top1_pixels_mean_removed": "pixels less mean",
        "knn/top1_color_histogram": "colour histogram",
    },
    "logistic regression top-1": {
        "logreg/top1": "trained",
        "logreg/top1_random_init": "random init",
    },
    "patches matched": {
        "matching/accuracy": "trained",
        "matching/accuracy_random_init": "random init",
        "matching/chance": "chance",
    },
}
_COSINES = {
    "matching/cls_patch_cosine": "class token to patches",
    "matching/patch_cosine": "between patches",
}


def describe_evaluation(step: int, metrics: Mapping[str, float]) -> str:
    """Return the metrics of an evaluation as one line."""
    parts = []
    for title, names in _EVALUATIONS.items():
        first = f"{next(iter(names))}_at_"
        sizes = {
            name: f"at {name.removeprefix(first)} px"
            for name in metrics
            if name.startswith(first)
        }
        found = [
            f"{name} {metrics[k]:.1%}"
            for k, name in (*names.items(), *sizes.items())
            if k in metrics
        ]
        if found:
            parts.append(f"{title}: {', '.join(found)}")
    cosines = [f"{n} {metrics[k]:.3f}" for k, n in _COSINES.items() if k in metrics]
    if cosines:
        parts.append(f"cosines: {', '.join(cosines)}")
    return f"step {step}: " + "; ".join(parts)

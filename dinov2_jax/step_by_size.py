"""One compiled training step for each size of crops of a run."""

import concurrent.futures
from collections.abc import Mapping
from typing import Any

import jax

from dinov2_jax.augment import crop_sizes


class StepBySize:
    """Function like a compiled `train_step`, for batches of several sizes.

    Args:
      steps: The compiled step of each size.
    """

    def __init__(self, steps: Mapping[crop_sizes.Size, Any]):
        self.steps = dict(steps)

    def __call__(
        self, state: Any, batch: Mapping[str, jax.Array], *others: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Run the step of the batch's size and add that size to its metrics.

        Args:
          state: The state, which is donated.
          batch: The batch, see `data/batch_builder.py`.
          *others: The step's further arguments.

        Returns:
          The new state, and the metrics with `crops/global_size` and
          `crops/local_size`, in pixels.
        """
        size = crop_sizes.Size(
            batch["global_crops"].shape[2], batch["local_crops"].shape[2]
        )
        state, metrics = self.steps[size](state, batch, *others)
        return state, metrics | {f"crops/{k}": v for k, v in size._asdict().items()}


def compile_all(
    lowered: Mapping[crop_sizes.Size, jax.stages.Lowered],
) -> StepBySize:
    """Compile the step of each size, all at the same time."""
    with concurrent.futures.ThreadPoolExecutor(len(lowered)) as pool:
        steps = pool.map(lambda step: step.compile(), lowered.values())
        return StepBySize(dict(zip(lowered, steps)))

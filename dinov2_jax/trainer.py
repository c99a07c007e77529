"""Model, optimizer and step of a config, built for the available devices."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax import (
    optimizer,
    schedules,
    sharding,
    ssl_meta_arch,
    train_state,
    train_step,
)
from dinov2_jax.data import batch_spec
from dinov2_jax.weights import initial


class Program:
    """The program that a config describes, up to its compiled step; stateless.

    Args:
      config: A locked `ConfigDict`, see `configs/default.py`.

    Attributes:
      mesh: The mesh over all devices.
      dtype: Dtype of the matmuls.
      meta_arch: Student, teacher and losses.
      tx: The optimizer.
      state: Shapes, dtypes and shardings of the `TrainState`.
      num_params: Number of the student's parameters, heads included.
      schedules: Function of the step that returns the scalars, in float64.
    """

    def __init__(self, config: Any):
        self._config = config
        self.mesh = sharding.make_mesh(config.mesh.replica, config.mesh.fsdp)
        self.dtype = _compute_dtype(config)
        self.meta_arch = ssl_meta_arch.make_ssl_meta_arch(config, self.dtype)
        shapes = jax.eval_shape(self.meta_arch.student.init, jax.random.key(0))
        self.num_params = sum(x.size for x in jax.tree.leaves(shapes))
        self.tx = optimizer.make_optimizer(config, shapes)
        self.state = train_state.abstract_state(self.meta_arch, self.tx, self.mesh)
        self.schedules = schedules.make_schedules(config)

    def first_state(
        self, weights: initial.InitialWeights | None
    ) -> train_state.TrainState:
        """Create the state at step 0, from weights that were read or from the seed."""
        params = weights and weights.params
        return train_state.make_state(
            self._config.seed, self.meta_arch, self.tx, self.mesh, params
        )

    def scalars(self, step: int) -> dict[str, np.float32]:
        """Return the schedules' values at a step, as the compiled step takes them."""
        return {k: np.float32(v) for k, v in self.schedules(step).items()}

    def compile(self) -> Any:
        """Compile the step ahead of time; set `mesh` to compile and to call it.

        Returns:
          (state, batch, scalars) -> (state, metrics); the state is donated.
        """
        step = train_step.make_train_step(
            self.meta_arch, self.tx, self.state, self.mesh, seed=self._config.seed
        )
        batch_sharding = sharding.batch_sharding(self.mesh)
        batch = {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding)
            for name, (shape, dtype) in batch_spec.batch_spec(self._config).items()
        }
        return step.lower(self.state, batch, self.scalars(0)).compile()

    def place(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Turn this process's rows of a batch into global, sharded arrays."""
        batch_sharding = sharding.batch_sharding(self.mesh)
        return {
            name: jax.make_array_from_process_local_data(batch_sharding, rows)
            for name, rows in batch.items()
        }


def _compute_dtype(config: Any) -> Any:
    """Return the dtype of the matmuls: `model.dtype`, or by platform if "auto"."""
    if config.model.dtype == "auto":
        return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return jnp.dtype(config.model.dtype)

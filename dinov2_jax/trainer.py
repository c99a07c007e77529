"""What a config describes, built for the devices at hand: model, optimizer, step."""

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
    """Everything between a config and a compiled step; holds no state of a run.

    Args:
      config: A locked `ConfigDict`, see `configs/default.py`.

    Attributes:
      mesh: Over all devices.
      dtype: Of the matmuls.
      meta_arch: Student, teacher and losses.
      tx: The optimizer.
      state: Shapes, dtypes and shardings of the `TrainState`.
      num_params: Of the student, heads included.
      schedules: Step -> scalars, in float64.
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
        """The state at step 0: of weights that were read, or drawn from the seed."""
        params = weights and weights.params
        return train_state.make_state(
            self._config.seed, self.meta_arch, self.tx, self.mesh, params
        )

    def scalars(self, step: int) -> dict[str, np.float32]:
        """The schedules at a step, as the compiled step takes them."""
        return {k: np.float32(v) for k, v in self.schedules(step).items()}

    def compile(self) -> Any:
        """The step, ahead of its first use; for both, `mesh` is to be set.

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
        """This process's rows of a batch -> global arrays sharded over the mesh."""
        batch_sharding = sharding.batch_sharding(self.mesh)
        return {
            name: jax.make_array_from_process_local_data(batch_sharding, rows)
            for name, rows in batch.items()
        }


def _compute_dtype(config: Any) -> Any:
    """Of the matmuls: what `model.dtype` says, or by platform where it is "auto"."""
    if config.model.dtype == "auto":
        return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return jnp.dtype(config.model.dtype)

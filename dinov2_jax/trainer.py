"""What a config describes, built for the devices at hand: model, optimizer, step."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dinov2_jax import (
    optimizer,
    schedules,
    sharding,
    ssl_meta_arch,
    step_by_size,
    train_state,
    train_step,
)
from dinov2_jax.augment import crop_sizes
from dinov2_jax.data import batch_spec


class Trainer:
    """Everything between a config and a compiled step; holds no state of a run.

    Args:
      config: A locked `ConfigDict`, see `configs/default.py`.
      mesh: The mesh to train on; None: all devices, as `config.mesh` divides them.
      dtype: The dtype of the matmuls; None: what `config.model.dtype` says.

    Attributes:
      mesh: The mesh.
      dtype: The dtype of the matmuls.
      meta_arch: Student, teacher and losses.
      params: Shapes and dtypes of the student's parameters, heads included.
      tx: The optimizer.
      state: Shapes, dtypes and shardings of the `TrainState`.
      schedules: Step -> scalars, in float64.
    """

    def __init__(self, config: Any, *, mesh: Mesh | None = None, dtype: Any = None):
        self._config = config
        self.mesh = mesh or sharding.make_mesh(config.mesh.replica, config.mesh.fsdp)
        self.dtype = dtype or _compute_dtype(config)
        self.meta_arch = ssl_meta_arch.make_ssl_meta_arch(config, self.dtype)
        self.params = jax.eval_shape(self.meta_arch.student.init, jax.random.key(0))
        self.tx = optimizer.make_optimizer(config, self.params)
        self.state = train_state.abstract_state(self.meta_arch, self.tx, self.mesh)
        self.schedules = schedules.make_schedules(config)

    @property
    def num_params(self) -> int:
        """The number of the student's parameters, heads included."""
        return sum(x.size for x in jax.tree.leaves(self.params))

    def first_state(
        self, params: dict[str, Any] | None = None
    ) -> train_state.TrainState:
        """Return the state at step 0.

        Args:
          params: Submodules that were read, NumPy arrays; the rest is drawn from the
            seed.
        """
        return train_state.make_state(
            self._config.seed, self.meta_arch, self.tx, self.mesh, params
        )

    def scalars(self, step: int) -> dict[str, np.float32]:
        """Return the schedules at a step, as the compiled step takes them."""
        return {k: np.float32(v) for k, v in self.schedules(step).items()}

    def make_step(self) -> jax.stages.Wrapped:
        """Return the jitted step, to be called or lowered with `mesh` set.

        It maps (state, batch, scalars) to (state, metrics) and donates the state.
        """
        return train_step.make_train_step(
            self.meta_arch, self.tx, self.state, self.mesh, seed=self._config.seed
        )

    def lower(self, size: crop_sizes.Size | None = None) -> jax.stages.Lowered:
        """Trace the step for the batches of the config; nothing is allocated.

        Args:
          size: The sizes of the crops; None for the largest of the run.
        """
        batch_sharding = sharding.batch_sharding(self.mesh)
        spec = batch_spec.batch_spec(self._config, size)
        batch = {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding)
            for name, (shape, dtype) in spec.items()
        }
        with jax.set_mesh(self.mesh):
            return self.make_step().lower(self.state, batch, self.scalars(0))

    def compile(self) -> Any:
        """Compile the step ahead of its first use, once for each size of crops."""
        if not self._config.crops.sizes:
            return self.lower().compile()
        sizes = crop_sizes.make_crop_sizes(self._config).sizes
        return step_by_size.compile_all({size: self.lower(size) for size in sizes})

    def place(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Turn this process's rows of a batch into arrays sharded over the mesh."""
        batch_sharding = sharding.batch_sharding(self.mesh)
        return {
            name: jax.make_array_from_process_local_data(batch_sharding, rows)
            for name, rows in batch.items()
        }


def _compute_dtype(config: Any) -> Any:
    """Return the matmuls' dtype that a config names; "auto" depends on the platform."""
    if config.model.dtype == "auto":
        return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return jnp.dtype(config.model.dtype)

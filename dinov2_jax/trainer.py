"""What a config describes, built for the devices at hand: model, optimizer, step."""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dinov2_jax import (
    errors,
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
from dinov2_jax.distillation import frozen_teacher, workloads
from dinov2_jax.kernels import attention
from dinov2_jax.models import model_config
from dinov2_jax.objectives import coding_rate_arch, feature_regression
from dinov2_jax.runtime import flops

# `train.objective` -> function from a config and the dtype of the matmuls to student,
# teacher and losses.
OBJECTIVES: dict[str, Callable[[Any, Any], Any]] = {
    "prototypes": ssl_meta_arch.make_ssl_meta_arch,
    "coding_rate": coding_rate_arch.make_coding_rate_arch,
}


class Trainer:
    """Everything between a config and a compiled step; holds no state of a run.

    Args:
      config: A locked `ConfigDict`, see `configs/default.py`.
      mesh: The mesh to train on; None: all devices, as `config.mesh` divides them.
      dtype: The dtype of the matmuls; None: what `config.model.dtype` says.
      teacher: The frozen teacher; None if it is the student's EMA.

    Raises:
      UserError: The attention that the config names does not work on these devices.

    Attributes:
      mesh: The mesh.
      dtype: The dtype of the matmuls.
      meta_arch: Student, teacher and losses.
      params: Shapes and dtypes of the student's parameters, heads included.
      tx: The optimizer.
      state: Shapes, dtypes and shardings of the `TrainState`.
      schedules: Step -> scalars, in float64.
    """

    def __init__(
        self,
        config: Any,
        *,
        mesh: Mesh | None = None,
        dtype: Any = None,
        teacher: frozen_teacher.FrozenTeacher | None = None,
    ):
        self._config, self._teacher = config, teacher
        self.mesh = mesh or sharding.make_mesh(config.mesh.replica, config.mesh.fsdp)
        self.dtype = dtype or _compute_dtype(config)
        _check_attention(config, self.dtype, self.mesh.devices.flat[0], teacher)
        self.meta_arch = _make_meta_arch(config, self.dtype, teacher)
        self.params = jax.eval_shape(self.meta_arch.student.init, jax.random.key(0))
        self.tx = optimizer.make_optimizer(config, self.params)
        self.state = train_state.abstract_state(self.meta_arch, self.tx, self.mesh)
        self.schedules = schedules.make_schedules(config)

    @property
    def num_params(self) -> int:
        """The number of the parameters of all students, heads included."""
        return sum(x.size for x in jax.tree.leaves(self.params))

    @property
    def largest_student(self) -> int:
        """The number of the parameters of the largest student, heads included."""
        return self.num_params

    @property
    def flops_per_image(self) -> float:
        """The useful FLOPs per image, the mean over the sizes of crops."""
        return crop_sizes.make_crop_sizes(self._config).mean(self.flops_of_size)

    def flops_of_size(self, size: crop_sizes.Size | None = None) -> float:
        """Return the useful FLOPs per image of a step, as `runtime.flops` counts them.

        Args:
          size: The sizes of the crops; None for the largest of the run.
        """
        if self._teacher is None:
            return flops.step_flops(flops.make_workload(self._config, size)).per_image
        return workloads.flops_per_image(self._teacher, self._configs(), size)

    def _configs(self) -> list[Any]:
        return [self._config]

    def students(self, state: Any) -> dict[str, tuple["Trainer", Any]]:
        """Return trainer and state of each student, by name; "" is a lone one's."""
        return {"": (self, state)}

    def first_state(
        self, params: dict[str, Any] | None = None, gram: Any = None
    ) -> Any:
        """Return the `TrainState` at step 0.

        Args:
          params: Submodules that were read, NumPy arrays; the rest is drawn from the
            seed.
          gram: Backbone of the first Gram teacher that was read, NumPy arrays.
        """
        return train_state.make_state(
            self._config.seed, self.meta_arch, self.tx, self.mesh, params, gram
        )

    def scalars(self, step: int) -> dict[str, Any]:
        """Return the schedules at a step, as the compiled step takes them."""
        return {k: np.float32(v) for k, v in self.schedules(step).items()}

    def make_step(self) -> jax.stages.Wrapped:
        """Return the jitted step, to be called or lowered with `mesh` set.

        It maps (state, batch, scalars[, frozen]) to (state, metrics) and donates the
        state; `frozen` is what `place_teacher` returns.
        """
        return train_step.make_train_step(
            self.meta_arch,
            self.tx,
            self.state,
            self.mesh,
            seed=self._config.seed,
            num_micro_batches=self._config.train.micro_batches,
            frozen=self._teacher and self._teacher.abstract(self.mesh, self.dtype),
        )

    def place_teacher(self) -> tuple[Any, ...]:
        """Return (parameters,) of the frozen teacher on the devices, () without one."""
        if self._teacher is None:
            return ()
        return (self._teacher.place(self.mesh, self.dtype),)

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
        with jax.set_mesh(self.mesh), self._exact_products():
            frozen = ()
            if self._teacher is not None:
                frozen = (self._teacher.abstract(self.mesh, self.dtype),)
            return self.make_step().lower(self.state, batch, self.scalars(0), *frozen)

    def _exact_products(self) -> contextlib.AbstractContextManager:
        """Return a context in which float32 is multiplied in float32.

        Without it, GPUs and TPUs do so in lower precision.
        """
        if self.dtype != jnp.float32 or self.mesh.devices.flat[0].platform == "cpu":
            return contextlib.nullcontext()
        return jax.default_matmul_precision("highest")

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


def _check_attention(
    config: Any,
    dtype: Any,
    device: jax.Device,
    teacher: frozen_teacher.FrozenTeacher | None,
) -> None:
    """Raise `UserError` unless the attention that a config names can compute it."""
    seen = []  # (model, side of its crops in px)
    student = model_config.make_model_config(config)
    for size in crop_sizes.make_crop_sizes(config).sizes:
        sides = [*size[: 1 + bool(config.crops.local_crops_number)]]
        sides.append(batch_spec.gram_crops_size(config, size))
        seen += [(student, side) for side in sides if side]
        if teacher is not None:
            view = teacher.view(config)
            seen.append((teacher.model, view.size if view else size.global_size))
    for model, side in seen:
        reason = attention.problem(
            config.model.attention,
            device,
            dtype=dtype,
            length=1 + model.num_register_tokens + (side // model.patch_size) ** 2,
            num_heads=model.num_heads,
            head_dim=model.embed_dim // model.num_heads,
        )
        if reason:
            raise errors.UserError(
                f"model.attention = {config.model.attention!r}: {reason}; set "
                "--config.model.attention=auto"
            )


def _make_meta_arch(
    config: Any, dtype: Any, teacher: frozen_teacher.FrozenTeacher | None
) -> Any:
    """Return student, teacher and losses of a config."""
    if teacher is None:
        return OBJECTIVES[config.train.objective](config, dtype)
    network, view = teacher.make_network(config, dtype), teacher.view(config)
    if config.distill.objective == "features":
        make = feature_regression.make_feature_regression
    else:
        make = ssl_meta_arch.make_ssl_meta_arch
    return make(config, dtype, network, view)


def _compute_dtype(config: Any) -> Any:
    """Return the matmuls' dtype that a config names; "auto" depends on the platform."""
    if config.model.dtype == "auto":
        return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return jnp.dtype(config.model.dtype)

"""The whole state of a run as one tree, created already sharded."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from dinov2_jax import sharding, ssl_meta_arch


@flax.struct.dataclass
class TrainState:
    """Everything a step changes; saved and restored together.

    Attributes:
      step: int32 scalar, steps done; also the position in the data.
      params: The student's, float32.
      teacher_params: EMA of `params`, float32.
      opt_state: Of `optimizer.make_optimizer`.
      centers: Of the EMA centring; empty with Sinkhorn-Knopp.
      skipped_in_a_row: int32, non-finite steps up to now without a good one between.
      skipped: int32, all non-finite steps.
    """

    step: jax.Array
    params: Any
    teacher_params: Any
    opt_state: Any
    centers: Any
    skipped_in_a_row: jax.Array
    skipped: jax.Array


def init_state(
    key: jax.Array,
    meta_arch: ssl_meta_arch.SSLMetaArch,
    tx: optax.GradientTransformation,
) -> TrainState:
    """A fresh state with the reference's initialisation."""
    return state_from_params(meta_arch.student.init(key), meta_arch, tx)


def state_from_params(
    params: Any,
    meta_arch: ssl_meta_arch.SSLMetaArch,
    tx: optax.GradientTransformation,
) -> TrainState:
    """The state at step 0 for given weights; the teacher is a copy of the student."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        teacher_params=jax.tree.map(jnp.copy, params),
        opt_state=tx.init(params),
        centers=meta_arch.teacher.init_centers(),
        skipped_in_a_row=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
    )


def abstract_state(
    meta_arch: ssl_meta_arch.SSLMetaArch,
    tx: optax.GradientTransformation,
    mesh: Mesh,
) -> TrainState:
    """Shapes, dtypes and shardings of the state; nothing is allocated."""
    shapes = jax.eval_shape(
        lambda key: init_state(key, meta_arch, tx), jax.random.key(0)
    )
    return jax.tree.map(
        lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
        shapes,
        sharding.state_shardings(shapes, mesh),
    )


def make_state(
    seed: int,
    meta_arch: ssl_meta_arch.SSLMetaArch,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    loaded: dict[str, Any] | None = None,
) -> TrainState:
    """The state at step 0, created under one jit so that no device holds it whole.

    Args:
      seed: Of all that is not loaded.
      meta_arch: From `make_ssl_meta_arch`.
      tx: From `make_optimizer`.
      mesh: From `sharding.make_mesh`.
      loaded: Submodules of the parameters to start from, NumPy arrays, the same in
        every process; the teacher starts as their copy too.
    """
    abstract = abstract_state(meta_arch, tx, mesh)
    loaded = {
        name: jax.tree.map(_place, tree, abstract.params[name])
        for name, tree in (loaded or {}).items()
    }
    init = jax.jit(
        lambda key, loaded: state_from_params(
            meta_arch.student.init(key) | loaded, meta_arch, tx
        ),
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract),
        donate_argnums=1,
    )
    with jax.set_mesh(mesh):
        return init(jax.random.key(seed), loaded)


def _place(array: np.ndarray, wanted: jax.ShapeDtypeStruct) -> jax.Array:
    """An array of the host on the devices, each given its shard alone."""
    return jax.make_array_from_callback(
        array.shape, wanted.sharding, lambda index: array[index]
    )

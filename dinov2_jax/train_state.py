"""The whole state of a run as one tree, sharded from its creation."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from dinov2_jax import sharding, ssl_meta_arch
from dinov2_jax.objectives import gram_teacher


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes; saved and restored together.

    Attributes:
      step: Number of steps done, an int32 scalar; also the position in the data.
      params: The student's parameters, float32.
      teacher_params: EMA of `params`, adapters merged into the backbone, float32.
      opt_state: State of the optimizer.
      centers: What the targets keep from step to step: centres of the EMA centring, or
        the queue of Sinkhorn-Knopp, if any; with Gram anchoring also the Gram teacher's
        backbone, "gram", in the dtype of the matmuls.
      skipped_in_a_row: Number of non-finite steps since the last finite one, int32.
      skipped: Number of all non-finite steps, int32.
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
    """Return a state at step 0 with the reference's initialisation."""
    return state_from_params(meta_arch.student.init(key), meta_arch, tx)


def state_from_params(
    params: Any,
    meta_arch: ssl_meta_arch.SSLMetaArch,
    tx: optax.GradientTransformation,
) -> TrainState:
    """Return the state at step 0 for given weights, with a copy as the teacher."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        teacher_params=jax.tree.map(jnp.copy, meta_arch.student.merged(params)),
        opt_state=tx.init(params),
        centers=meta_arch.init_centers(params),
        skipped_in_a_row=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
    )


def abstract_state(
    meta_arch: ssl_meta_arch.SSLMetaArch,
    tx: optax.GradientTransformation,
    mesh: Mesh,
) -> TrainState:
    """Return shapes, dtypes and shardings of the state, allocating nothing."""
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
    gram: Any = None,
) -> TrainState:
    """Create the state at step 0 in one jit, so that no device holds it whole.

    Args:
      seed: Seed of all weights that are not loaded.
      meta_arch: Student, teacher and losses.
      tx: The optimizer, from `make_optimizer`.
      mesh: The mesh, from `sharding.make_mesh`.
      loaded: Submodules of the parameters to start from, NumPy arrays, the same in
        every process; the teacher starts as a copy of them too.
      gram: Backbone of the first Gram teacher, NumPy arrays likewise; None takes the
        EMA's.
    """
    abstract = abstract_state(meta_arch, tx, mesh)
    loaded = {
        name: jax.tree.map(place, tree, abstract.params[name])
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
        state = init(jax.random.key(seed), loaded)
    if gram is None:
        return state
    expected = abstract.centers[gram_teacher.KEY]
    params = jax.tree.map(lambda x, to: place(x.astype(to.dtype), to), gram, expected)
    return state.replace(centers={**state.centers, gram_teacher.KEY: params})


def place(array: np.ndarray, abstract: jax.ShapeDtypeStruct) -> jax.Array:
    """Place a host array on the devices, copying to each only its own shard."""
    return jax.make_array_from_callback(
        array.shape, abstract.sharding, lambda index: array[index]
    )

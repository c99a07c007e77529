"""One training step: loss, gradients, clip, update, EMA teacher.

Mirrors the body of the loop of the reference's `train/train.py:do_train`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dinov2_jax import (
    device_augmentation,
    optimizer,
    sharding,
    ssl_meta_arch,
    train_state,
)

TrainState = train_state.TrainState
Metrics = dict[str, jax.Array]


def train_step(
    state: TrainState,
    batch: ssl_meta_arch.Batch,
    scalars: dict[str, jax.Array],
    *,
    meta_arch: ssl_meta_arch.SSLMetaArch,
    tx: optimizer.Optimizer,
    seed: int,
) -> tuple[TrainState, Metrics]:
    """One step, pure.

    A step whose loss or gradients are not finite leaves parameters, moments, teacher
    and centres untouched; only `step` and the skip counters move.

    Args:
      state: At step n.
      batch: See `data/batch_builder.py`.
      scalars: `schedules.Schedules` at step n.
      meta_arch: From `make_ssl_meta_arch`.
      tx: From `make_optimizer`.
      seed: Of the run; stochastic depth at step n depends on (seed, n) alone.

    Returns:
      The state at step n + 1, and float32 metrics: `loss/...`, `grad_norm/...` (before
      clipping), `skipped_in_a_row`, `skipped`.
    """
    batch = device_augmentation.augment(batch, meta_arch.policy)
    targets, centers = meta_arch.teacher_targets(
        state.teacher_params, state.centers, batch, scalars["teacher_temp"]
    )
    drop_path_key = jax.random.fold_in(jax.random.key(seed), state.step)
    (loss, terms), grads = jax.value_and_grad(meta_arch.loss, has_aux=True)(
        state.params, jax.lax.stop_gradient(targets), batch, drop_path_key
    )
    grads = sharding.constrain_state(grads)
    norms = optimizer.submodule_norms(grads)
    finite = jnp.isfinite(loss)
    for norm in norms.values():
        finite &= jnp.isfinite(norm)

    opt_state, params, teacher_params = tx.update(
        grads,
        state.opt_state,
        state.params,
        state.teacher_params,
        scalars,
        norms=norms,
        finite=finite,
    )

    skip = (~finite).astype(jnp.int32)
    new_state = dataclasses.replace(
        state,
        step=state.step + 1,
        params=params,
        teacher_params=teacher_params,
        opt_state=opt_state,
        centers=jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), centers, state.centers
        ),
        skipped_in_a_row=(state.skipped_in_a_row + 1) * skip,
        skipped=state.skipped + skip,
    )
    metrics = {"loss/total": loss}
    metrics |= {f"loss/{name}": term for name, term in terms.items()}
    metrics |= {f"grad_norm/{name}": norm for name, norm in norms.items()}
    metrics["skipped_in_a_row"] = new_state.skipped_in_a_row
    metrics["skipped"] = new_state.skipped
    return new_state, metrics


def make_train_step(
    meta_arch: ssl_meta_arch.SSLMetaArch,
    tx: optimizer.Optimizer,
    state: TrainState,
    mesh: Mesh,
    *,
    seed: int,
) -> jax.stages.Wrapped:
    """`train_step` jitted over the mesh, the state donated.

    Args:
      meta_arch: From `make_ssl_meta_arch`.
      tx: From `make_optimizer`.
      state: Real or abstract; gives the shardings.
      mesh: From `sharding.make_mesh`.
      seed: Of the run.

    Returns:
      (state, batch, scalars) -> (state, metrics), to be called or lowered under
      `jax.set_mesh(mesh)`.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)

    def step(state, batch, scalars):
        return train_step(state, batch, scalars, meta_arch=meta_arch, tx=tx, seed=seed)

    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(
            shardings,
            sharding.batch_sharding(mesh),
            sharding.replicated(mesh),
        ),
        out_shardings=(shardings, sharding.replicated(mesh)),
    )

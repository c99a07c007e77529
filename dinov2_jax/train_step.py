"""One training step: loss, gradients, clip, update, EMA teacher.

Mirrors the loop body of the reference's `train/train.py:do_train`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from dinov2_jax import micro_batches, optimizer, sharding, ssl_meta_arch, train_state
from dinov2_jax.models import network
from dinov2_jax.objectives import gram_teacher

TrainState = train_state.TrainState
Metrics = dict[str, jax.Array]


def train_step(
    state: TrainState,
    batch: ssl_meta_arch.Batch,
    scalars: dict[str, jax.Array],
    frozen: network.Params | None = None,
    *,
    meta_arch: ssl_meta_arch.SSLMetaArch,
    tx: optax.GradientTransformationExtraArgs,
    seed: int,
    num_micro_batches: int = 1,
) -> tuple[TrainState, Metrics]:
    """Compute one training step, without side effects.

    If the loss or gradients are not finite, parameters, moments, teacher and centres
    stay as they are; only `step` and the skip counters change.

    Args:
      state: The state at step n.
      batch: The batch of step n, see `data/batch_builder.py`.
      scalars: The schedules' values at step n, see `schedules.Schedules`.
      frozen: Parameters of a frozen teacher; None if it is the student's EMA.
      meta_arch: Student, teacher and losses.
      tx: The optimizer, from `make_optimizer`.
      seed: Seed of the run; stochastic depth at step n depends only on (seed, n).
      num_micro_batches: Number of parts in which the batch is computed.

    Returns:
      The state at step n + 1, and float32 metrics: `loss/...`, `grad_norm/...` (before
      clipping), `skipped_in_a_row`, `skipped`.
    """
    if meta_arch.gram:  # before all else, so that a skipped step keeps it
        gram = meta_arch.gram
        state = dataclasses.replace(
            state,
            centers=gram.refresh(state.centers, state.teacher_params, state.step),
        )
    teacher_params = state.teacher_params if frozen is None else frozen
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    targets, centers, batch = compute_targets(
        meta_arch,
        teacher_params,
        state.centers,
        batch,
        scalars["teacher_temp"],
        key,
        num_micro_batches,
        state.step,
    )
    return update_student(
        state,
        targets,
        centers,
        batch,
        scalars,
        key,
        meta_arch=meta_arch,
        tx=tx,
        num_micro_batches=num_micro_batches,
    )


def compute_targets(
    meta_arch: ssl_meta_arch.SSLMetaArch,
    teacher_params: network.Params,
    centers: dict[str, jax.Array],
    batch: ssl_meta_arch.Batch,
    temp: jax.Array,
    key: jax.Array,
    num_micro_batches: int,
    step: jax.Array,
) -> tuple[dict[str, Any], dict[str, jax.Array], ssl_meta_arch.Batch]:
    """Return the targets, the centres after this step and the batch for the student.

    Args:
      meta_arch: Student, teacher and losses.
      teacher_params: The teacher's parameters.
      centers: The centres before this step.
      batch: The batch, see `data/batch_builder.py`.
      temp: The teacher's temperature.
      key: PRNG key of the step.
      num_micro_batches: Number of parts in which the batch is computed.
      step: Number of steps done.
    """
    if num_micro_batches > 1:  # the batch is prepared again for each part
        targets, centers = micro_batches.targets(
            meta_arch,
            teacher_params,
            centers,
            batch,
            temp,
            key,
            num_micro_batches,
            step,
        )
    else:
        batch = meta_arch.prepare(batch, key)
        targets, new_centers = meta_arch.teacher.targets(
            teacher_params, centers, batch, temp
        )
        if meta_arch.gram:
            targets[gram_teacher.KEY] = meta_arch.gram.target(centers, batch, step)
        centers = new_centers
    return jax.lax.stop_gradient(targets), centers, batch


def update_student(
    state: TrainState,
    targets: dict[str, Any],
    centers: dict[str, jax.Array],
    batch: ssl_meta_arch.Batch,
    scalars: dict[str, jax.Array],
    key: jax.Array,
    *,
    meta_arch: ssl_meta_arch.SSLMetaArch,
    tx: optax.GradientTransformationExtraArgs,
    num_micro_batches: int = 1,
) -> tuple[TrainState, Metrics]:
    """Compute loss and gradients, clip, and update the student and its EMA.

    Args:
      state: The state at step n.
      targets: The teacher's targets.
      centers: The centres after step n.
      batch: The batch, from `compute_targets`.
      scalars: The schedules' values at step n.
      key: PRNG key of the step.
      meta_arch: Student, teacher and losses.
      tx: The optimizer.
      num_micro_batches: Number of parts in which the batch is computed.

    Returns:
      The state at step n + 1 and metrics, as `train_step` does.
    """
    if num_micro_batches > 1:
        loss, terms, grads = micro_batches.value_and_grad(
            meta_arch, state.params, targets, batch, key, num_micro_batches
        )
    else:
        (loss, terms), grads = jax.value_and_grad(meta_arch.loss, has_aux=True)(
            state.params, targets, batch, key
        )
        grads = sharding.constrain_state(grads)
    norms = optimizer.submodule_norms(grads)
    finite = jnp.isfinite(loss)
    for norm in norms.values():
        finite &= jnp.isfinite(norm)

    updates, opt_state = tx.update(
        grads, state.opt_state, state.params, scalars=scalars, norms=norms
    )
    params = optax.apply_updates(state.params, updates)
    updated = {
        "params": params,
        "teacher_params": ema(
            state.teacher_params,
            meta_arch.student.merged(params),
            scalars["momentum_teacher"],
        ),
        "opt_state": opt_state,
        "centers": centers,
    }
    skip = (~finite).astype(jnp.int32)
    new_state = dataclasses.replace(
        state,
        step=state.step + 1,
        skipped_in_a_row=(state.skipped_in_a_row + 1) * skip,
        skipped=state.skipped + skip,
        **{
            name: jax.tree.map(
                lambda new, old: jnp.where(finite, new, old), tree, getattr(state, name)
            )
            for name, tree in updated.items()
        },
    )
    metrics = {"loss/total": loss}
    metrics |= {f"loss/{name}": term for name, term in terms.items()}
    metrics |= {f"grad_norm/{name}": norm for name, norm in norms.items()}
    metrics["skipped_in_a_row"] = new_state.skipped_in_a_row
    metrics["skipped"] = new_state.skipped
    return new_state, metrics


def ema(average: Any, params: Any, momentum: jax.Array | float) -> Any:
    """Update an exponential moving average of parameters.

    Like `optax.incremental_update` with step size 1 - momentum, but an average that
    equals the parameters stays bit-identical.
    """
    rate = 1.0 - momentum
    return jax.tree.map(lambda a, p: a + rate * (p - a), average, params)


def make_train_step(
    meta_arch: ssl_meta_arch.SSLMetaArch,
    tx: optax.GradientTransformationExtraArgs,
    state: TrainState,
    mesh: Mesh,
    *,
    seed: int,
    frozen: network.Params | None = None,
    num_micro_batches: int = 1,
) -> jax.stages.Wrapped:
    """Return `train_step` jitted over the mesh, with the state donated.

    Args:
      meta_arch: Student, teacher and losses.
      tx: The optimizer, from `make_optimizer`.
      state: A state with the shardings to use, real or abstract.
      mesh: The mesh, from `sharding.make_mesh`.
      seed: Seed of the run.
      frozen: Parameters of a frozen teacher with the shardings to use, real or
        abstract; None if the teacher is the student's EMA.
      num_micro_batches: Number of parts in which the batch is computed.

    Returns:
      (state, batch, scalars[, frozen]) -> (state, metrics), a `jax.jit` object to call
      or lower under `jax.set_mesh(mesh)`.
    """

    def step(*args):
        return train_step(
            *args,
            meta_arch=meta_arch,
            tx=tx,
            seed=seed,
            num_micro_batches=num_micro_batches,
        )

    return jit(step, state, mesh, frozen=frozen)


def jit(
    step: Callable[..., tuple[Any, Metrics]],
    state: Any,
    mesh: Mesh,
    *,
    frozen: network.Params | None,
) -> jax.stages.Wrapped:
    """Return a step jitted over the mesh, with the state donated.

    Args:
      step: Function (state, batch, scalars[, frozen]) -> (state, metrics).
      state: A state with the shardings to use, real or abstract.
      mesh: The mesh, from `sharding.make_mesh`.
      frozen: Parameters of a frozen teacher, likewise; None if there is none.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, (state, frozen))
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(
            shardings[0],
            sharding.batch_sharding(mesh),
            sharding.replicated(mesh),
            *(() if frozen is None else (shardings[1],)),
        ),
        out_shardings=(shardings[0], sharding.replicated(mesh)),
    )

"""A frozen teacher of another size, and the student's EMA as the special case."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dinov2_jax import (
    optimizer,
    schedules,
    sharding,
    ssl_meta_arch,
    train_state,
    train_step,
)
from dinov2_jax.models import network
from dinov2_jax.objectives import teacher


def run(c, meta_arch, *teachers, steps=2):
    """The state and metrics after some steps, with each frozen teacher or with none."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    shapes = jax.eval_shape(meta_arch.student.init, jax.random.key(0))
    tx = optimizer.make_optimizer(c, shapes)
    placed = [
        (jax.device_put(frozen, sharding.state_shardings(frozen, mesh)),)
        for frozen in teachers
    ]
    state = train_state.make_state(c.seed, meta_arch, tx, mesh)
    step = train_step.make_train_step(
        meta_arch, tx, state, mesh, seed=c.seed, frozen=placed[0][0] if placed else None
    )
    schedule, found = schedules.make_schedules(c), []
    with jax.set_mesh(mesh):
        for extra in placed or [()]:
            of_teacher = jax.tree.map(jnp.copy, state)
            for n in range(steps):
                scalars = {k: np.float32(v) for k, v in schedule(n).items()}
                batch = tiny.batch(c, seed=n)
                of_teacher, metrics = step(of_teacher, batch, scalars, *extra)
            found.append((of_teacher, metrics))
    return found


@pytest.fixture(scope="module")
def other():
    """A teacher wider than the student, with another patch embedding and bottleneck."""
    c = tiny.config(model={"embed_dim": 72, "depth": 1, "num_heads": 3})
    c.dino.head_bottleneck_dim = c.ibot.head_bottleneck_dim = 24
    return network.make_network(c, jnp.float32)


def small(other):
    """The config and the parts of a student whose teacher is `other`."""
    c = tiny.config(model={"depth": 1})
    arch = ssl_meta_arch.make_ssl_meta_arch(c, jnp.float32)
    made = teacher.Teacher(other, "sinkhorn_knopp")
    return c, dataclasses.replace(arch, teacher=made)


def test_the_targets_have_the_shapes_of_a_frozen_teacher(other):
    """Traced alone: the student's EMA, which is narrower, would not pass through it."""
    c, arch = small(other)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    shapes = jax.eval_shape(arch.student.init, jax.random.key(0))
    tx = optimizer.make_optimizer(c, shapes)
    state = train_state.abstract_state(arch, tx, mesh)
    frozen = jax.eval_shape(other.init, jax.random.key(1))
    step = train_step.make_train_step(arch, tx, state, mesh, seed=0, frozen=frozen)
    scalars = {k: np.float32(v) for k, v in schedules.make_schedules(c)(0).items()}
    with jax.set_mesh(mesh):
        after, metrics = jax.eval_shape(step, state, tiny.batch(c), scalars, frozen)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert metrics["loss/total"].shape == ()


@pytest.mark.slow
def test_a_frozen_teacher_of_another_size_sets_the_targets(other):
    c, arch = small(other)
    frozen = [other.init(jax.random.key(seed)) for seed in (1, 2)]
    kept = jax.tree.map(np.array, frozen[0])
    (state, metrics), (_, others) = run(c, arch, *frozen)
    jax.tree.map(np.testing.assert_array_equal, frozen[0], kept)
    assert np.isfinite(metrics["loss/total"]) and int(state.skipped) == 0
    # No part of the state has the teacher's width; its EMA is the student's.
    assert not any(72 in leaf.shape for leaf in jax.tree.leaves(state))
    shapes = jax.tree.map(jnp.shape, (state.params, state.teacher_params))
    assert shapes[0] == shapes[1]
    # Another teacher gives another student.
    assert float(others["loss/total"]) != float(metrics["loss/total"])


@pytest.mark.slow
def test_the_ema_given_as_a_frozen_teacher_changes_nothing():
    """A single step: the EMA moves after it, a frozen teacher does not."""
    c = tiny.config(train={"centering": "centering"})
    arch = ssl_meta_arch.make_ssl_meta_arch(c, jnp.float32)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    tx = optimizer.make_optimizer(
        c, jax.eval_shape(arch.student.init, jax.random.key(0))
    )
    start = train_state.make_state(c.seed, arch, tx, mesh).teacher_params
    (as_ema,) = run(c, arch, steps=1)
    (as_frozen,) = run(c, arch, start, steps=1)
    jax.tree.map(np.testing.assert_array_equal, as_ema, as_frozen)

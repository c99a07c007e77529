"""Several students in one program learn what each learns alone."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dinov2_jax import errors, several_students, sharding
from dinov2_jax.config import checking
from dinov2_jax.distillation import frozen_teacher, students
from dinov2_jax.models import network

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 2


@pytest.fixture(scope="module")
def teacher():
    return make_teacher()


def make_teacher():
    """A teacher of width 48 that no file holds."""
    c = tiny.config(model={"embed_dim": 48, "depth": 1, "num_heads": 3})
    made = network.make_network(c, jnp.float32)
    params = jax.tree.map(np.array, made.init(jax.random.key(9)))
    return frozen_teacher.FrozenTeacher(made.backbone.config, params, "teacher: tiny")


def config(*entries, **train):
    c = tiny.config(distill={"source": "teacher", "students": entries}, train=train)
    c.ibot.mask_sample_probability = 0.0
    c.model.update(depth=1, drop_path_rate=0.0)
    return c


def run(c, teacher, poison=None, devices=1):
    """State and metrics after some steps; `poison` is a student whose loss is NaN."""
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    made = several_students.make_trainer(c, teacher, mesh=mesh)
    state = made.first_state()
    if poison:
        broken = jax.tree.map(lambda x: x * jnp.nan, state[poison].params)
        state[poison] = dataclasses.replace(state[poison], params=broken)
    step = made.make_step()
    (frozen,) = made.place_teacher()
    before = jax.tree.map(np.array, frozen)
    with jax.set_mesh(mesh):
        for n in range(STEPS):
            batch = made.place(tiny.batch(c, seed=n))
            state, metrics = step(state, batch, made.scalars(n), frozen)
    jax.tree.map(np.testing.assert_array_equal, frozen, before)
    return state, metrics


NARROW = ("narrow", "model.embed_dim=24 optim.base_lr=1e-3")
DEEP = ("deep", "model.depth=2")


def same(found, expected):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6),
        (found.params, found.teacher_params),
        (expected.params, expected.teacher_params),
    )


@pytest.fixture(scope="module")
def alone(teacher):
    own = students.configs(config(NARROW, DEEP))
    assert own["narrow"].model.embed_dim == 24 and own["deep"].model.embed_dim == 32
    return {name: run(c, teacher) for name, c in own.items()}


@pytest.mark.slow
def test_together_is_alone(teacher, alone):
    state, metrics = run(config(NARROW, DEEP), teacher)
    for name, (expected, values) in alone.items():
        same(state[name], expected)
        for key, value in values.items():
            assert float(metrics[f"{name}/{key}"]) == pytest.approx(
                float(value), rel=1e-5
            )
    losses = [float(values["loss/total"]) for _, values in alone.values()]
    assert float(metrics["loss/total"]) == pytest.approx(sum(losses), rel=1e-6)
    assert int(metrics["skipped"]) == 0


@pytest.mark.slow
def test_one_that_is_not_finite_is_skipped_alone(teacher, alone):
    state, metrics = run(config(NARROW, DEEP), teacher, poison="narrow")
    same(state["deep"], alone["deep"][0])
    assert int(state["narrow"].skipped) == STEPS and int(state["deep"].skipped) == 0
    assert int(metrics["skipped_in_a_row"]) == STEPS


@pytest.mark.slow
def test_in_micro_batches(teacher, alone):
    c = config(NARROW, DEEP, micro_batches=2)
    state, _ = run(c, teacher)
    for name, (expected, _) in alone.items():
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5),
            state[name].params,
            expected.params,
        )


@pytest.mark.slow
def test_the_ema_is_the_average_of_the_students_steps(teacher):
    """With momenta m_k: sum of (1 - m_k) prod_{j>k} m_j p_k, and the start."""
    c = config()
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    made = several_students.make_trainer(c, teacher, mesh=mesh)
    state, step, (frozen,) = made.first_state(), made.make_step(), made.place_teacher()
    passed, momenta = [jax.tree.map(np.float64, state.params)], []
    with jax.set_mesh(mesh):
        for n in range(4):
            scalars = made.scalars(n)
            state, _ = step(state, tiny.batch(c, seed=n), scalars, frozen)
            passed.append(jax.tree.map(np.float64, state.params))
            momenta.append(float(scalars["momentum_teacher"]))
    weights = [np.prod(momenta)]
    weights += [(1 - m) * np.prod(momenta[k + 1 :]) for k, m in enumerate(momenta)]
    jax.tree.map(
        lambda found, *steps: np.testing.assert_allclose(
            found, sum(w * p for w, p in zip(weights, steps)), rtol=1e-5, atol=1e-6
        ),
        state.teacher_params,
        *passed,
    )


@pytest.mark.parametrize(
    "entries, message",
    [
        (("small",), "each entry is a name and settings"),
        ((2,), "distill.students has 2: each entry is a name and settings"),
        ((("a b", "model.depth=2"),), "must be a name of letters"),
        ((NARROW, NARROW), "different for each student"),
        ((("s", "train.steps=3"),), "s sets train.steps, which all students share"),
        ((("s", "model.dtype=float32"),), "model.dtype, which all students share"),
        ((("s", "model.patch_size=8"),), "model.patch_size, which all students share"),
        ((("s", "ibot.loss_weight=0"),), "ibot.loss_weight, which all students share"),
        ((("s", "ibot.separate_head=True"),), "which all students share"),
        ((("s", "distill.features.standardize=none"),), "which all students share"),
        ((("checkpoints", "model.depth=2"),), "'checkpoints' is a folder of every run"),
        ((("s", "model.depht=3"),), "students: s: .*did you mean --config.model.depth"),
        ((("s", "model.embed_dim=30 model.num_heads=4"),), "s: model.arch = 'custom'"),
    ],
)
def test_entries_that_are_wrong(entries, message):
    with pytest.raises(errors.UserError, match=message):
        students.configs(config(*entries))


def test_students_share_targets_so_they_need_sinkhorn():
    c = config(NARROW, DEEP, centering="centering")
    with pytest.raises(errors.UserError, match="centering=sinkhorn_knopp"):
        checking.check(c)
    c.distill.objective = "features"
    c.crops.local_crops_number = 0
    checking.check(c)


def test_a_teacher_is_compared_with_the_largest_student(teacher):
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    made = several_students.make_trainer(config(NARROW, DEEP), teacher, mesh=mesh)
    sizes = [own.num_params for own, _ in made.students(made.state).values()]
    assert made.largest_student == max(sizes) < made.num_params == sum(sizes)
    assert not teacher.warnings(made.largest_student)


def test_statistics_of_a_batch_that_is_not_finite_are_not_kept():
    old = {"mean": jnp.zeros(3), "images": jnp.ones(())}
    new = {"mean": jnp.array([1.0, jnp.nan, 2.0]), "images": jnp.array(5.0)}
    kept = several_students._if_finite(new, old)
    jax.tree.map(np.testing.assert_array_equal, kept, old)
    new["mean"] = jnp.arange(3.0)
    jax.tree.map(
        np.testing.assert_array_equal, several_students._if_finite(new, old), new
    )


@pytest.mark.slow
def test_one_device_equals_eight():
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests"))),
    }
    found = []
    for devices in ("1", "8"):
        done = subprocess.run(
            [sys.executable, __file__, devices],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout.splitlines()[-1]))
    one, eight = found
    assert one.keys() == eight.keys() and len(one) > 20
    assert eight == pytest.approx(one, rel=1e-5)


def main(devices):
    """Norms of all parameters and all metrics after two steps, as JSON."""
    c = config(NARROW, DEEP, batch_size=32, group_size=4)
    state, metrics = run(c, make_teacher(), devices=devices)
    facts = {name: float(value) for name, value in metrics.items()}
    for name, of_student in state.items():
        for path, x in jax.tree_util.tree_leaves_with_path(of_student.params):
            norm = float(np.linalg.norm(np.asarray(jax.device_get(x)).ravel()))
            facts[f"{name} {jax.tree_util.keystr(path)}"] = norm
    print(json.dumps(facts))


if __name__ == "__main__":
    main(int(sys.argv[1]))

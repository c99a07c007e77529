"""The training step: non-finite values, the EMA, donation, and eight devices as one.

Run as a program, this file trains one config on meshes of 1, 8 or 2 x 4 devices and
prints what came out; a test starts it with eight CPU devices.
"""

import functools
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

from dinov2_jax import optimizer, sharding, train_state, train_step
from dinov2_jax import trainer as trainer_lib

ROOT = pathlib.Path(__file__).parents[1]


class Trainer(trainer_lib.Trainer):
    """A config's first state and jitted step on some devices.

    Made with `start`, it moves that state there; otherwise it initialises its own.
    """

    def __init__(self, c, mesh, start=None):
        super().__init__(c, mesh=mesh, dtype=jnp.float32)
        self.c = c
        if start is None:
            start = self.first_state()
        else:
            start = jax.device_put(start, sharding.state_shardings(start, mesh))
        self.start, self.step_fn = start, self.make_step()

    def copy(self, state=None):
        """A state of its own, for a step to consume."""
        return jax.tree.map(jnp.copy, self.start if state is None else state)

    def step(self, state, batch, number):
        with jax.set_mesh(self.mesh):
            return self.step_fn(state, batch, self.scalars(number))


@pytest.fixture(
    scope="module",
    params=[
        {"train": {"centering": "centering"}},
        pytest.param(
            {"dino": {"sinkhorn_queue": 2}, "ibot": {"sinkhorn_queue": 1}},
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)
def trainer(request):
    ibot = {"separate_head": True} | request.param.get("ibot", {})
    c = tiny.config(**request.param | {"ibot": ibot})
    return Trainer(c, sharding.make_mesh(devices=jax.devices()[:1]))


def to_numpy(tree):
    return jax.tree.map(np.array, tree)


def same_bits(a, b):
    jax.tree.map(lambda x, y: x.tobytes() == y.tobytes() or pytest.fail("differ"), a, b)


def learned(state):
    """All that a skipped step must leave alone."""
    return to_numpy(
        (state.params, state.teacher_params, state.opt_state, state.centers)
    )


def test_three_steps(trainer):
    state, batch = trainer.copy(), tiny.batch(trainer.c)
    for number in range(3):
        before = to_numpy(state)
        donated = state
        state, metrics = trainer.step(state, batch, number)
        assert int(state.step) == number + 1
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(donated.params))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(donated.opt_state))
        after = to_numpy(state)

        momentum = np.float64(trainer.scalars(number)["momentum_teacher"])
        assert momentum < 1

        def ema(old, student, new, momentum=momentum):
            expected = momentum * np.float64(old) + (1 - momentum) * student
            np.testing.assert_allclose(new, expected, rtol=1e-6, atol=1e-9)

        jax.tree.map(ema, before.teacher_params, after.params, after.teacher_params)
        assert int(metrics["skipped"]) == int(metrics["skipped_in_a_row"]) == 0
        terms = [float(v) for k, v in metrics.items() if k.startswith("loss/")]
        total = float(metrics["loss/total"])
        assert total == pytest.approx(sum(terms) - total, rel=1e-6)
    start = to_numpy(trainer.start.params)
    for old, new in zip(jax.tree.leaves(start), jax.tree.leaves(after.params)):
        assert np.any(old != new)
    assert set(metrics) == {
        "loss/total",
        "loss/dino_local",
        "loss/dino_global",
        "loss/koleo",
        "loss/ibot",
        "grad_norm/backbone",
        "grad_norm/dino_head",
        "grad_norm/ibot_head",
        "skipped",
        "skipped_in_a_row",
    }
    assert trainer.step_fn._cache_size() == 1  # compiled once


@pytest.mark.parametrize(
    "where, poison",
    [
        ("global_crops", np.nan),
        ("local_crops", np.inf),
        pytest.param("global_crops", -np.inf, marks=pytest.mark.slow),
        pytest.param("local_crops", np.nan, marks=pytest.mark.slow),
    ],
)
def test_a_non_finite_step_changes_nothing(trainer, where, poison):
    good, bad = tiny.batch(trainer.c, seed=1), tiny.batch(trainer.c, seed=2)
    bad[where][1, 3, 2, 5, 0] = poison
    # A step first, so that moments, centres and teacher are not at their start.
    state, _ = trainer.step(trainer.copy(), tiny.batch(trainer.c), 0)
    kept = learned(state)
    clean, clean_metrics = trainer.step(trainer.copy(state), good, 1)

    for count in (1, 2):
        state, metrics = trainer.step(state, bad, 1)
        same_bits(learned(state), kept)
        assert int(state.step) == 1 + count
        assert int(state.skipped) == int(metrics["skipped"]) == count
        assert int(state.skipped_in_a_row) == int(metrics["skipped_in_a_row"]) == count
        assert not np.isfinite(metrics["loss/total"])

    state, metrics = trainer.step(state, good, 1)
    assert int(state.skipped_in_a_row) == int(metrics["skipped_in_a_row"]) == 0
    assert int(state.skipped) == 2 and int(state.step) == 4
    # ... and what follows is as if nothing had happened.
    same_bits(learned(state), learned(clean))
    assert float(metrics["loss/total"]) == float(clean_metrics["loss/total"])


class Rootful:
    """A stand-in for the architecture: a finite loss with an infinite gradient at 0."""

    policy = None
    gram = None

    @property
    def teacher(self):
        return self

    @property
    def student(self):
        return self

    def merged(self, params):
        return params

    def targets(self, teacher_params, centers, batch, temp):
        return {}, jax.tree.map(lambda c: c + 1.0, centers)

    def prepare(self, batch, key):
        return batch

    def loss(self, params, targets, batch, key):
        x = params["backbone"]["blocks"]["gamma"] * batch["x"]
        loss = jnp.sqrt(jnp.sum(x * x)) + jnp.sum(params["dino_head"]["kernel"])
        return loss, {"root": loss}


def test_a_finite_loss_with_a_non_finite_gradient_is_skipped():
    params = {
        "backbone": {"blocks": {"gamma": jnp.ones((2, 3))}},
        "dino_head": {"kernel": jnp.ones((3, 2))},
    }
    tx = optimizer.make_optimizer(tiny.config(), params)
    state = train_state.TrainState(
        step=jnp.int32(0),
        params=params,
        teacher_params=params,
        opt_state=tx.init(params),
        centers={"dino": jnp.zeros(4)},
        skipped_in_a_row=jnp.int32(0),
        skipped=jnp.int32(0),
    )
    scalars = dict(
        lr=0.1,
        backbone_lr=0.1,
        last_layer_lr=0.1,
        weight_decay=0.1,
        momentum_teacher=0.9,
        teacher_temp=0.1,
    )
    step = jax.jit(
        lambda *args: train_step.train_step(*args, meta_arch=Rootful(), tx=tx, seed=0)
    )
    for factor, skipped in ((0.0, 1), (1.0, 0)):
        batch = {"x": jnp.full((2, 3), factor)}
        after, metrics = step(state, batch, scalars)
        assert np.isfinite(metrics["loss/total"]) and int(after.skipped) == skipped
        assert np.isfinite(metrics["grad_norm/backbone"]) == (not skipped)
        if skipped:
            same_bits(learned(after), learned(state))
        else:
            for old, new in zip(
                jax.tree.leaves(learned(state)), jax.tree.leaves(learned(after))
            ):
                assert np.all(old != new)


def test_the_teacher_averages_merged_matrices_of_lora():
    c = tiny.config(
        optim={"trainable": "lora", "lora_rank": 2, "warmup_steps": 0},
        teacher={"momentum_teacher": 0.5},
    )
    trainer = Trainer(c, sharding.make_mesh(devices=jax.devices()[:1]))
    state, start = trainer.copy(), to_numpy(trainer.start)
    same_bits(
        start.teacher_params, {k: v for k, v in start.params.items() if k != "lora"}
    )
    for number in range(2):
        before = to_numpy(state)
        state, metrics = trainer.step(state, tiny.batch(c), number)
        after = to_numpy(state)
        same_bits(after.params["backbone"], start.params["backbone"])
        momentum = np.float64(trainer.scalars(number)["momentum_teacher"])
        kept, old, new = (
            tree["backbone"]["blocks"]["attn"]
            for tree in (start.params, before.teacher_params, after.teacher_params)
        )
        for name, pair in after.params["lora"]["blocks"]["attn"].items():
            a, b = (np.float64(pair[k]) for k in "ab")
            assert (b != 0).any()
            student = kept[name]["kernel"] + 8.0 * a @ b  # alpha / rank = 16 / 2
            expected = momentum * old[name]["kernel"] + (1 - momentum) * student
            np.testing.assert_allclose(new[name]["kernel"], expected, atol=1e-6)
            assert (new[name]["kernel"] != kept[name]["kernel"]).any()
    assert metrics["grad_norm/backbone"] == 0 and metrics["grad_norm/lora"] > 0
    assert "backbone" not in after.opt_state.mu


# --- eight devices --------------------------------------------------------------


def main(names):
    """Ten steps on each of the meshes; facts of each as JSON."""
    c = tiny.config(
        ibot={"separate_head": True},
        model={"drop_path_rate": 0.3},
        train={"batch_size": 64 if "micro" in " ".join(names) else 32},
        optim={"trainable": "lora" if "lora" in " ".join(names) else "all"},
    )
    devices, results, start = jax.devices(), {}, None
    meshes = {
        "1": sharding.make_mesh(devices=devices[:1]),
        "8": sharding.make_mesh(devices=devices),
        "2x4": sharding.make_mesh(replica=2, devices=devices),
    }
    for name in names:
        mesh = meshes[name.split()[0]]
        c.train.micro_batches = 2 if "micro" in name else 1
        # One and eight devices initialise by themselves.
        trainer = Trainer(c, mesh, start if name == "2x4" else None)
        start = jax.device_get(trainer.start)
        state, losses = trainer.start, []
        for number in range(10):
            batch = jax.device_put(
                tiny.batch(c, seed=number), sharding.batch_sharding(mesh)
            )
            state, metrics = trainer.step(state, batch, number)
            losses.append({k: float(v) for k, v in jax.device_get(metrics).items()})
        trees = {
            "params": state.params,
            "teacher": state.teacher_params,
            "mu": state.opt_state.mu,
            "nu": state.opt_state.nu,
        }
        results[name] = {
            "devices": mesh.size,
            "losses": losses,
            "norms": {
                k: [
                    float(np.linalg.norm(x.ravel()))
                    for x in jax.tree.leaves(jax.device_get(tree))
                ]
                for k, tree in trees.items()
            },
            "leaves": [
                [
                    jax.tree_util.keystr(path),
                    leaf.shape,
                    sorted({s.data.shape for s in leaf.addressable_shards}),
                    len({str(s.index) for s in leaf.addressable_shards}),
                ]
                for path, leaf in jax.tree_util.tree_leaves_with_path(trees)
            ],
        }
    print(json.dumps(results))


@pytest.fixture(scope="module")
def trained_on():
    """A function: facts of runs on the named meshes, each made once."""

    @functools.cache
    def trained_on(*names):
        environment = os.environ | {
            "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(ROOT),
        }
        done = subprocess.run(
            [sys.executable, __file__, *names],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return trained_on


OF_EIGHT = ["8", pytest.param("2x4", marks=pytest.mark.slow)]


@pytest.mark.parametrize(
    "name",
    [
        *OF_EIGHT,
        pytest.param("8 lora", marks=pytest.mark.slow),
        pytest.param("8 micro", marks=pytest.mark.slow),
    ],
)
def test_one_device_equals_eight(trained_on, name):
    meshes = trained_on("1", name)
    one, many = meshes["1"], meshes[name]
    assert (one["devices"], many["devices"]) == (1, 8)
    for step, (a, b) in enumerate(zip(one["losses"], many["losses"], strict=True)):
        assert a.keys() == b.keys() and a["skipped"] == b["skipped"] == 0
        for metric in a:
            # A norm after the first steps carries the differences of the weights.
            rel = 1e-5 if metric.startswith("loss/") else 1e-4
            assert a[metric] == pytest.approx(b[metric], rel=rel), (step, metric)
    first, last = one["losses"][0]["loss/total"], one["losses"][-1]["loss/total"]
    assert abs(first - last) > 1e-2  # something was learned
    for tree, norms in one["norms"].items():
        np.testing.assert_allclose(many["norms"][tree], norms, rtol=1e-3, err_msg=tree)


@pytest.mark.parametrize("name", OF_EIGHT)
def test_the_state_is_really_sharded(trained_on, name):
    meshes = trained_on("1", name)
    assert_sharded(meshes["1"]["leaves"], 1)
    assert_sharded(meshes[name]["leaves"], {"8": 8, "2x4": 4}[name])


def assert_sharded(leaves, fsdp):
    seen = set()
    for path, shape, shards, distinct in leaves:
        stacked = "['blocks']" in path
        divisible = [n for n in shape[stacked:] if n % fsdp == 0]
        size = int(np.prod(shape))
        of_block = int(np.prod(shape[stacked:]))
        expected = size
        vector = len(shape[stacked:]) < 2
        if of_block >= sharding.MIN_SHARDED_SIZE and divisible and not vector:
            expected = size // fsdp
            seen.add(path.split("'")[1])
            assert distinct == fsdp, path
        assert [int(np.prod(s)) for s in shards] == [expected], path
        if stacked:
            assert shards[0][0] == shape[0], path  # the layer axis is whole
    assert seen == {"params", "teacher", "mu", "nu"}


if __name__ == "__main__":
    main(sys.argv[1:])

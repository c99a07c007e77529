"""The Gram teacher: when it is replaced, what it sees, and that runs resume with it.

The loss is tested in `losses/gram_test.py`.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import processes
import pytest
import tiny
from peers import torch

from dinov2_jax import sharding, ssl_meta_arch
from dinov2_jax import trainer as trainer_lib
from dinov2_jax.checkpoint import checkpointer
from dinov2_jax.losses import gram as gram_loss
from dinov2_jax.models import network
from dinov2_jax.objectives import gram_teacher

GRAM = {"loss_weight": 2.0, "start": 2, "refresh_every": 2, "refreshes": 1}


def make_config(**gram):
    c = tiny.config(
        gram=GRAM | gram,
        train={"batch_size": 4, "group_size": 2},
        # Quicker to compile.
        crops={"local_crops_number": 0, "jitter_probability": 0.0, "blur": "none"},
    )
    c.crops.update(grayscale_probability=0.0, solarize_probability=0.0)
    c.model.depth = c.dino.head_nlayers = 1
    c.dino.koleo_loss_weight = 0.0
    c.data.augmentation = "device"
    return c


def make_batch(c, seed):
    """A batch of bytes for the device to augment, with larger crops if there are."""
    rng = np.random.default_rng(seed)
    batch = tiny.batch(c, seed)
    for name in ("global_crops", "local_crops"):
        batch[name] = rng.integers(0, 256, batch[name].shape, np.uint8)
    keys = (len(batch["masks"]), c.train.group_size, 2)
    batch["augmentation_keys"] = rng.integers(0, 2**32, keys, np.uint32)
    if c.gram.scale != 1:
        batch["gram_crops"] = batch["global_crops"].repeat(2, axis=2).repeat(2, axis=3)
    return batch


class Run:
    """A compiled step and what happens in it."""

    def __init__(self, c):
        mesh = sharding.make_mesh(devices=jax.devices()[:1])
        self.trainer = trainer_lib.Trainer(c, mesh=mesh, dtype=jnp.float32)
        self.config, self.step_fn = c, self.trainer.make_step()

    def step(self, state, **scalars):
        """The state and metrics after the step that the state is at."""
        number = int(state.step)
        with jax.set_mesh(self.trainer.mesh):
            return self.step_fn(
                jax.tree.map(jnp.copy, state),
                make_batch(self.config, number),
                self.trainer.scalars(number) | scalars,
            )


@pytest.fixture(scope="module")
def run():
    c = make_config(scale=2.0)
    c.ibot.loss_weight = 0.0
    return Run(c)


@pytest.fixture(scope="module")
def states(run):
    """The states before each of seven steps and the one after, and all metrics."""
    found, metrics = [run.trainer.first_state()], []
    for _ in range(7):
        state, values = run.step(found[-1])
        found.append(state)
        metrics.append({k: float(v) for k, v in values.items()})
    return found, metrics


def same(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


@pytest.mark.parametrize(
    "from_ema, start, refreshes, expected",
    [
        (True, 3, 2, [3, 7, 11]),
        (False, 3, 2, [7, 11]),
        (True, 0, 0, [0]),
        (False, 0, 0, []),
    ],
)
def test_steps_with_a_refresh(from_ema, start, refreshes, expected):
    teacher = gram_teacher.GramTeacher(
        *(None, 1.0, start, 4, refreshes), from_ema=from_ema
    )
    assert [n for n in range(40) if teacher.is_refreshed(n)] == expected


def test_the_ema_becomes_the_gram_teacher_at_these_steps_alone(states):
    found, metrics = states
    for n, (before, after) in enumerate(zip(found, found[1:])):
        kept, ema = before.centers["gram"], before.teacher_params["backbone"]
        if n:  # the first step of the warm-up has no rate
            assert not same(ema, after.teacher_params["backbone"])
        assert same(after.centers["gram"], ema if n in (2, 4) else kept), n
    losses = [values["loss/gram"] for values in metrics]
    assert losses[:2] == [0.0, 0.0] and min(losses[2:]) > 1e-6
    assert all(
        values["loss/total"]
        == pytest.approx(sum(v for k, v in values.items() if "loss/" in k) / 2)
        for values in metrics
    )


def test_a_run_resumes_to_the_bit_across_a_refresh(run, states, tmp_path):
    found, metrics = states
    saves = checkpointer.Checkpointer(tmp_path, keep_last=1)
    for saved_step in (4, 5):  # the refresh at 4 comes after and before the save
        saves.save(saved_step, found[saved_step])
        saves.finish()
        state = saves.restore(run.trainer.state)
        while int(state.step) < 7:
            state, values = run.step(state)
            assert (
                float(values["loss/gram"]) == metrics[int(state.step) - 1]["loss/gram"]
            )
        assert same(state, found[7])
    saves.close()


def test_a_skipped_step_keeps_its_refresh(run, states):
    found, _ = states
    after, metrics = run.step(found[4], teacher_temp=np.float32(np.nan))
    assert int(metrics["skipped"]) == 1
    assert same(after.params, found[4].params)
    assert same(after.centers["gram"], found[4].teacher_params["backbone"])


@functools.cache
def with_weights():
    """Student and Gram teacher without other losses, and random parameters."""
    c = make_config(scale=2.0, start=0)
    c.dino.loss_weight = c.ibot.loss_weight = c.ibot.mask_sample_probability = 0.0
    arch = ssl_meta_arch.make_ssl_meta_arch(c, jnp.float32)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(arch.student.init, jax.random.key(0))
    params = jax.tree.map(
        lambda x: rng.standard_normal(x.shape).astype(np.float32) / 4, shapes
    )
    return c, arch, params


def test_larger_crops_are_shrunk_as_torch_does():
    c, arch, params = with_weights()
    batch = make_batch(c, 0)
    crops = batch["gram_crops"]
    assert crops.shape == (2, 4, 32, 32, 3)

    @jax.jit
    def both(backbone, images):
        features = arch.student.backbone.apply({"params": backbone}, images)
        return arch.gram.target({"gram": backbone}, batch, 0), features.patches

    images = network.normalize(crops.reshape(-1, 32, 32, 3))
    target, maps = both(params["backbone"], images)
    expected = torch.nn.functional.interpolate(
        torch.tensor(np.array(maps)).permute(0, 3, 1, 2),
        scale_factor=0.5,
        mode="bicubic",
    )
    expected = expected.permute(0, 2, 3, 1).reshape(2, 4, 16, -1)
    np.testing.assert_allclose(target.patches, expected, atol=2e-5)
    np.testing.assert_array_equal(target.weights, [2.0, 2.0])


def test_nothing_to_learn_where_student_and_gram_teacher_are_equal():
    c, arch, params = with_weights()
    arch = dataclasses.replace(
        arch, gram=dataclasses.replace(arch.gram, undistorted=False)
    )
    batch = make_batch(c, 0)

    @jax.jit
    def loss_and_grads(params, other):
        target = arch.gram.target({"gram": other["backbone"]}, batch, 0)
        return jax.value_and_grad(arch.loss, has_aux=True)(
            params, {"gram": target}, batch, jax.random.key(0)
        )

    def largest(grads):
        return max(float(np.abs(x).max()) for x in jax.tree.leaves(grads))

    (loss, parts), grads = loss_and_grads(params, params)
    assert set(parts) == {"gram"} and float(loss) < 1e-11
    other = jax.tree.map(lambda x: 1.1 * x + 0.05, params)
    (worse, _), others = loss_and_grads(params, other)
    assert float(worse) > 1e-4 and largest(grads) < 1e-4 * largest(others)


def test_the_loss_is_the_mean_over_crops_and_the_masked_patches_are_those():
    """The student's patches come from one pass; iBOT still sees its masked ones."""
    c = make_config(start=0, undistorted=False)
    c.dino.loss_weight = 0.0
    arch = ssl_meta_arch.make_ssl_meta_arch(c, jnp.float32)
    off = dataclasses.replace(arch, gram=None)
    _, _, params = with_weights()
    batch = tiny.batch(c)
    other = jax.tree.map(lambda x: 1.1 * x + 0.05, params)

    @functools.partial(jax.jit, static_argnums=0)
    def parts(arch):
        targets, _ = arch.teacher.targets(other, {}, batch, 0.05)
        if arch.gram:
            targets["gram"] = arch.gram.target({"gram": other["backbone"]}, batch, 0)
        return arch.loss(params, targets, batch, jax.random.key(0))[1]

    found, expected = parts(arch), parts(off)
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(float(value), rel=1e-5)

    @functools.partial(jax.jit, static_argnums=1)
    def features(params, masked):
        x = arch.student.backbone.apply(
            {"params": params["backbone"]},
            [batch["global_crops"]],
            [batch["masks"] if masked else None],
            method="forward_crops",
        )[0].patches
        return x.reshape(*x.shape[:2], 16, -1)

    by_crop = gram_loss.gram_loss(features(params, True), features(other, False))
    assert float(found["gram"]) == pytest.approx(2 * float(by_crop.mean()), rel=1e-5)


def test_without_weight_the_other_fields_change_nothing():
    """Neither the program nor the state nor the batch."""

    def texts(**gram):
        c = make_config(**gram, loss_weight=0.0)
        made = trainer_lib.Trainer(c, mesh=sharding.make_mesh(1, 1, jax.devices()[:1]))
        return made.lower().as_text(), str(jax.tree.structure(made.state))

    assert texts() == texts(
        start=5, refresh_every=7, refreshes=1, scale=2.0, undistorted=False
    )


def test_it_is_kept_in_the_dtype_of_the_matmuls():
    made = trainer_lib.Trainer(make_config(), dtype=jnp.bfloat16)
    kept = made.state.centers["gram"]
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype("bfloat16")}
    ema = made.state.teacher_params["backbone"]
    shardings = [jax.tree.map(lambda x: x.sharding, tree) for tree in (kept, ema)]
    assert shardings[0] == shardings[1]


FLAGS = (
    *processes.DEBUG,
    "--config.gram.loss_weight=2",
    "--config.gram.start=3",
    "--config.gram.refresh_every=4",
    "--config.gram.refreshes=2",
)


@pytest.mark.slow
def test_whole_runs_resume_and_eight_devices_equal_one(trainer, tmp_path):
    one, resumed, eight = (tmp_path / name for name in ("one", "resumed", "eight"))
    finished = trainer.run(*FLAGS, f"--workdir={one}")
    assert finished.code == 0, finished.output
    processes.branch(one, resumed, step=8)  # the second refresh is at 11
    finished = trainer.run(*FLAGS, f"--workdir={resumed}")
    assert "resumed from step 8" in finished.output
    assert processes.rows(one) == processes.rows(resumed)
    processes.assert_same_arrays(processes.load(resumed, 20), processes.load(one, 20))
    finished = trainer.run(*FLAGS, f"--workdir={eight}", devices=8)
    assert finished.code == 0, finished.output
    for row, other in zip(processes.rows(one)[:20], processes.rows(eight)[:20]):
        losses = {k: v for k, v in row.items() if k.startswith("loss/")}
        assert "loss/gram" in losses
        for name, value in losses.items():
            assert other[name] == pytest.approx(value, rel=1e-5, abs=1e-9), name


@pytest.mark.slow
def test_a_gram_teacher_from_another_run_and_larger_crops(trainer, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert trainer.run(*processes.DEBUG, f"--workdir={first}").code == 0
    finished = trainer.run(
        *FLAGS,
        f"--workdir={second}",
        f"--config.gram.source={first}",
        "--config.gram.scale=2",
        "--config.gram.refreshes=0",
        "--config.gram.start=0",
    )
    assert finished.code == 0, finished.output
    assert f"Gram teacher read from {first}" in finished.output
    saved = processes.load(second, 20), processes.load(first, 20)
    for name, value in saved[1].items():
        if name.startswith("/teacher_params/backbone/"):
            kept = name.replace("/teacher_params/backbone/", "/centers/gram/")
            np.testing.assert_array_equal(saved[0][kept], value)

import json
import os
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
from peers import torch

from dinov2_jax.eval.dense import dense_schedules, dense_training
from dinov2_jax.eval.segmentation import segmentation_head


def test_steps_equal_torch_with_changing_rate_and_beta():
    rng = np.random.default_rng(0)
    start = {"a": rng.standard_normal((3, 4)), "b": rng.standard_normal(5)}
    recipe = dense_training.Recipe(
        steps=6,
        batch_size=2,
        lr=lambda step: 0.1 / (step + 1),
        beta1=lambda step: dense_schedules.depth_beta1(step, steps=6),
        weight_decay=0.01,
        clip=0.7,
    )
    mine = {k: jnp.asarray(v, jnp.float32) for k, v in start.items()}
    theirs = {k: torch.tensor(v, requires_grad=True) for k, v in start.items()}
    tx = dense_training.make_optimizer(recipe)
    reference = torch.optim.AdamW(theirs.values(), lr=1.0, weight_decay=0.01)

    def loss(params, statistics, taps, targets, step):
        value = (jnp.sin(params["a"]) ** 2).sum() + (params["b"] ** 4).sum()
        return value * targets.mean(), statistics

    step_fn = dense_training.make_train_step(lambda backbone, x: x, loss, tx)
    state = {"params": mine, "statistics": {}, "optimizer": tx.init(mine)}
    for step in range(6):
        scale = 0.5 + step
        scalars = {
            "lr": np.float32(recipe.lr(step)),
            "beta1": np.float32(recipe.beta1(step)),
            "step": np.int32(step),
        }
        targets = np.full((2, 1), scale, np.float32)
        state, value = step_fn(state, {}, targets, targets, scalars)
        group = reference.param_groups[0]
        group["lr"], group["betas"] = recipe.lr(step), (recipe.beta1(step), 0.999)
        reference.zero_grad()
        wanted = (theirs["a"].sin() ** 2).sum() + (theirs["b"] ** 4).sum()
        (wanted * scale).backward()
        torch.nn.utils.clip_grad_norm_(theirs.values(), 0.7)
        reference.step()
        np.testing.assert_allclose(value, wanted.item() * scale, rtol=1e-4)
    for name, parameter in theirs.items():
        wanted = parameter.detach().numpy()
        np.testing.assert_allclose(state["params"][name], wanted, atol=2e-5)


def test_batches_do_not_depend_on_threads_or_the_start():
    recipe = dense_training.Recipe(steps=5, batch_size=3, lr=lambda step: 0.0, seed=4)

    def sample(index, rng):
        return np.array([index, rng.random()]), np.array([index])

    def all_batches(start, workers):
        found = dense_training.batches(sample, 7, recipe, start=start, workers=workers)
        return [images for images, _ in found]

    whole = np.stack(all_batches(0, 1))
    np.testing.assert_array_equal(whole, all_batches(0, 4))
    np.testing.assert_array_equal(whole[3:], all_batches(3, 2))
    # Every pass of seven images has each of them once.
    indices = whole[..., 0].ravel()
    assert sorted(indices[:7]) == sorted(indices[7:14]) == list(range(7))
    assert list(indices[:7]) != list(indices[7:14])


def results():
    """Losses and weights of a segmentation head, trained on a divided batch."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((8, 3, 4, 6)).astype(np.float32)
    labels = rng.integers(0, 3, (8, 12, 16))
    params = segmentation_head.init(0, 6, 3)

    def loss(trained, statistics, x, targets, step):
        logits, changed = segmentation_head.train_logits(trained | statistics, x)
        return segmentation_head.cross_entropy(logits, targets), changed

    recipe = dense_training.Recipe(steps=3, batch_size=8, lr=lambda step: 0.05)
    params, losses = dense_training.fit(
        segmentation_head.trainable(params),
        {name: params[name] for name in segmentation_head.STATISTICS},
        loss,
        lambda backbone, x: x * backbone,
        jnp.float32(2.0),
        lambda index, rng: (images[index], labels[index]),
        8,
        recipe,
    )
    return losses + [float(x) for name in sorted(params) for x in params[name].ravel()]


PROGRAM = """
import json, sys
sys.path[:0] = ["tests/eval/dense", "tests", "."]
import jax, dense_training_test
assert len(jax.devices()) == 8
print(json.dumps(dense_training_test.results()))
"""


def test_eight_devices_train_the_head_of_one():
    eight = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ
        | {
            "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
            "JAX_PLATFORMS": "cpu",
        },
        cwd=pathlib.Path(__file__).parents[3],
        capture_output=True,
        text=True,
    )
    assert eight.returncode == 0, eight.stderr
    found = json.loads(eight.stdout.splitlines()[-1])
    np.testing.assert_allclose(found, results(), rtol=1e-5, atol=1e-6)

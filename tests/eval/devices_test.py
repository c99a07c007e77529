"""The number of devices changes no result."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax import sharding
from dinov2_jax.eval.classification import knn, linear_probe

RESULTS = """
import json, sys
sys.path.insert(0, "tests/eval")
import devices_test, jax
assert len(jax.devices()) == 8
print(json.dumps(devices_test.results()))
"""


def results():
    """Accuracies of k-NN, and weights of a probe trained on a divided batch."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(5, 8))
    labels = rng.integers(0, 5, 403)  # which 8 does not divide
    features = centres[labels] + rng.normal(size=(403, 8))
    accuracies = knn.knn_accuracy(
        features[:300], labels[:300], features[300:], labels[300:], num_classes=5
    )
    mesh = sharding.make_mesh(devices=jax.devices())
    probe = linear_probe.Probe((0.1, 1.0), 5, 4)
    state = jax.device_put(probe.init(jax.random.key(0), 8), sharding.replicated(mesh))
    for step in range(4):
        batch = (
            rng.normal(size=(16, 4, 8)).astype(np.float32),
            rng.normal(size=(16, 8)).astype(np.float32),
            rng.integers(0, 5, 16),
        )
        batch = jax.device_put(batch, sharding.batch_sharding(mesh))
        state, losses = linear_probe.train_step(
            probe, state, *batch, probe.lr_factor(step)
        )
    norms = [float(jnp.linalg.norm(kernel)) for kernel in state.kernels]
    return [*accuracies.values(), *map(float, losses), *norms]


def test_eight_devices_give_the_results_of_one():
    eight = subprocess.run(
        [sys.executable, "-c", RESULTS],
        env=os.environ
        | {
            "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
            "JAX_PLATFORMS": "cpu",
        },
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert eight.returncode == 0, eight.stderr
    np.testing.assert_allclose(json.loads(eight.stdout), results(), atol=1e-5)

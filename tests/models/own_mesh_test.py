"""A model inside another program, which has a mesh, a training loop and threads.

Every way to run it gives the features, and the gradients, that it gives alone.
"""

import concurrent.futures
import contextlib
import functools
import json
import os
import pathlib
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import vits
from jax.sharding import AxisType, NamedSharding, PartitionSpec

ROOT = pathlib.Path(__file__).parents[2]
BATCH = PartitionSpec("data")
MODULE = vits.make(
    embed_dim=32,
    depth=2,
    num_heads=2,
    patch_size=4,
    image_size=16,
    layerscale=1.0,
    num_register_tokens=1,
)
WANTED = dict(layers=(0, -1), attention=(1,))


class Classifier(nn.Module):
    """Somebody's own module around a backbone."""

    backbone: nn.Module

    @nn.compact
    def __call__(self, images):
        return nn.Dense(3)(self.backbone(images).cls)


def features(variables, images):
    return MODULE.apply(variables, images, **WANTED)


def loss(variables, images):
    out = features(variables, images)
    return jnp.mean(out.cls**2) + jnp.mean(out.layers[0].patches[:, :, 0] ** 3)


gradients = jax.grad(loss)


def mapped_gradients(variables, images):
    return jax.lax.pmean(gradients(variables, images), "data")


def trained(images, put=lambda variables: variables):
    """The weights of a classifier after three steps of gradient descent."""
    classifier, tx = Classifier(MODULE), optax.sgd(0.1, momentum=0.9)
    labels = np.arange(len(images)) % 3
    variables = put(classifier.init(jax.random.key(0), np.asarray(images)))
    state = tx.init(variables)

    @jax.jit
    def step(variables, state, images):
        def loss(variables):
            logits = classifier.apply(variables, images)
            wanted = jax.nn.one_hot(labels, 3)
            return optax.softmax_cross_entropy(logits, wanted).mean()

        updates, state = tx.update(jax.grad(loss)(variables), state)
        return optax.apply_updates(variables, updates), state

    for _ in range(3):
        variables, state = step(variables, state, images)
    return variables


def ways(variables, images):
    """Name -> mesh in context or None, and a function that runs the model this way."""
    auto, explicit = (
        jax.make_mesh((2,), ("data",), axis_types=(kind,))
        for kind in (AxisType.Auto, AxisType.Explicit)
    )
    our_names = jax.make_mesh(
        (1, 2), ("replica", "fsdp"), axis_types=(AxisType.Explicit,) * 2
    )
    two_axes = jax.make_mesh(
        (2, 1), ("data", "model"), axis_types=(AxisType.Explicit, AxisType.Auto)
    )

    def put(x, mesh, spec=BATCH):
        return jax.device_put(x, NamedSharding(mesh, spec))

    def jitted(function, mesh, spec=BATCH):
        return lambda: jax.jit(function)(variables, put(images, mesh, spec))

    def in_shard_map(function, mesh, out_specs=BATCH, **settings):
        specs = dict(in_specs=(PartitionSpec(), BATCH), out_specs=out_specs)
        mapped = jax.shard_map(function, mesh=mesh, **specs, **settings)
        return lambda: jax.jit(mapped)(variables, put(images, mesh))

    def by_pmap(function):
        stacked = images.reshape(2, -1, *images.shape[1:])
        return jax.pmap(function, axis_name="data", in_axes=(None, 0))(
            variables, stacked
        )

    def one(image):
        return jax.tree.map(lambda x: x[0], features(variables, image[None]))

    def in_threads():
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            halves = [images[:2], images[2:]]
            done = pool.map(lambda x: jax.jit(features)(variables, x), halves)
        return jax.tree.map(lambda *parts: np.concatenate(parts), *done)

    def flat(tree):
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)

    def train_on(mesh):
        whole = PartitionSpec()
        return lambda: trained(put(images, mesh), lambda v: put(v, mesh, whole))

    def sharded_weights():
        spec = jax.tree.map(
            lambda x: PartitionSpec(*[None] * (x.ndim - 1), "data"), variables
        )
        shardings = jax.tree.map(lambda s: NamedSharding(explicit, s), spec)
        return jax.jit(gradients)(
            jax.device_put(variables, shardings), put(images, explicit)
        )

    whole = PartitionSpec()
    return {
        "features auto": (auto, jitted(features, auto)),
        "features auto, no context": (None, jitted(features, auto)),
        "features auto eager": (auto, lambda: features(variables, put(images, auto))),
        "gradients auto": (auto, jitted(gradients, auto)),
        "trained auto": (auto, train_on(auto)),
        "features explicit": (explicit, jitted(features, explicit)),
        "features explicit, no context": (None, jitted(features, explicit)),
        "features explicit, whole images": (
            explicit,
            jitted(features, explicit, whole),
        ),
        "features explicit eager": (
            explicit,
            lambda: features(variables, put(images, explicit)),
        ),
        "features explicit vmap": (
            explicit,
            lambda: jax.jit(jax.vmap(one))(put(images, explicit)),
        ),
        "features explicit, images of NumPy": (
            explicit,
            lambda: jax.jit(features)(variables, images),
        ),
        "features explicit, our names": (
            our_names,
            jitted(features, our_names, PartitionSpec("fsdp")),
        ),
        "features explicit and auto": (two_axes, jitted(features, two_axes)),
        "gradients explicit": (explicit, jitted(gradients, explicit)),
        "gradients explicit, sharded weights": (explicit, sharded_weights),
        "trained explicit": (explicit, train_on(explicit)),
        "features shard_map": (explicit, in_shard_map(features, explicit)),
        "features shard_map, auto": (None, in_shard_map(features, auto)),
        "features shard_map unchecked": (
            explicit,
            in_shard_map(features, explicit, check_vma=False),
        ),
        "gradients shard_map": (
            explicit,
            in_shard_map(mapped_gradients, explicit, whole, check_vma=False),
        ),
        "features pmap": (None, lambda: flat(by_pmap(features))),
        "gradients pmap": (
            None,
            lambda: jax.tree.map(lambda x: x[0], by_pmap(mapped_gradients)),
        ),
        "features threads": (auto, in_threads),
    }


QUICK = ("features auto", "features explicit", "features pmap")


def main(which):
    """Print the largest difference of each way from the same without a mesh."""
    images = np.random.default_rng(0).standard_normal((4, 16, 16, 3), np.float32)
    variables = MODULE.init(jax.random.key(0), images)
    expected = {
        "features": lambda: jax.jit(features)(variables, images),
        "gradients": lambda: jax.jit(gradients)(variables, images),
        "trained": lambda: trained(images),
    }
    expected = {kind: functools.cache(make) for kind, make in expected.items()}
    differences = {}
    for name, (mesh, run) in ways(variables, images).items():
        if (name in QUICK) != (which == "quick"):
            continue
        with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
            found = jax.device_get(run())
        differences[name] = max(
            float(np.max(np.abs(a - b)))
            for a, b in zip(
                jax.tree.leaves(found),
                jax.tree.leaves(expected[name.split()[0]]()),
                strict=True,
            )
        )
    print(json.dumps(differences))


@pytest.mark.parametrize(
    "which", ["quick", pytest.param("rest", marks=pytest.mark.slow)]
)
def test_equals_the_model_without_a_mesh(which):
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests"))),
    }
    done = subprocess.run(
        [sys.executable, __file__, which],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    differences = json.loads(done.stdout.splitlines()[-1])
    assert len(differences) >= len(QUICK)
    assert max(differences.values()) < 1e-5, differences


if __name__ == "__main__":
    main(*sys.argv[1:])

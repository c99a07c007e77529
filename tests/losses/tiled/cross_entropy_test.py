"""The tiled losses against the plain ones, however the columns are divided."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov2_jax import sharding
from dinov2_jax.losses import dino, teacher_targets
from dinov2_jax.losses.tiled import cross_entropy, tiles
from dinov2_jax.losses.tiled import targets as targets_lib

HERE = pathlib.Path(__file__).parent
GROUPS, ITEMS, CHANNELS, K = 2, 5, 6, 24
TEMP = 0.05


def draw(*shape, seed=0, unit=True):
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True) if unit else x


def logits(features, weights):
    return jnp.einsum("...c,kc->...k", features, weights, precision="highest")


@pytest.fixture(
    params=["whole", "tiles", "tiles, nothing kept", "tiles, computed again"],
    autouse=True,
)
def memory(request, monkeypatch):
    if request.param != "whole":
        # Tiles of 4 columns for 10 rows (of 8 where they are computed again).
        monkeypatch.setattr(tiles, "_TILE", {True: 45, False: 45})
        monkeypatch.setattr(tiles, "_MIN_COLUMNS", 2)
    if request.param.endswith(("nothing kept", "computed again")):
        monkeypatch.setattr(tiles, "_MAX_KEPT_LOGITS", 0)
    if request.param.endswith("computed again"):  # as on TPUs
        monkeypatch.setattr(tiles, "recomputes_logits", lambda: True)


TEACHER = draw(GROUPS, ITEMS, 1, CHANNELS), 3 * draw(K, CHANNELS, seed=1)
VALID = np.random.default_rng(2).random((GROUPS, ITEMS)) < 0.7


@pytest.mark.parametrize("valid, iterations", [(None, 1), (VALID, 2), (VALID, 3)])
def test_sinkhorn_knopp(valid, iterations):
    ours = targets_lib.sinkhorn_knopp(
        *TEACHER, TEMP, valid=valid, num_iterations=iterations
    )
    expected = teacher_targets.sinkhorn_knopp(
        logits(*TEACHER)[:, :, 0], TEMP, valid=valid, num_iterations=iterations
    )
    mask = np.ones((GROUPS, ITEMS), bool) if valid is None else valid
    found = ours.probabilities()[:, :, 0]
    np.testing.assert_allclose(found[mask], expected[mask], rtol=2e-5, atol=1e-9)


def test_rows_without_any_valid_and_extreme_logits():
    features, weights = TEACHER
    none = targets_lib.sinkhorn_knopp(
        *TEACHER, TEMP, valid=np.zeros((GROUPS, ITEMS), bool)
    )
    assert np.isfinite(none.probabilities()).all()
    # exp(120 / 0.05) overflows by far; invalid rows may be larger still.
    large = np.where(VALID[..., None, None], 40, 4000) * features
    ours = targets_lib.sinkhorn_knopp(large, weights, TEMP, valid=VALID)
    # The plain form underflows here, to rows of zeros; float32 resolves 2400 to 2e-4.
    rows = np.asarray(ours.probabilities())[VALID]
    np.testing.assert_allclose(rows.sum(-1), 1.0, rtol=5e-4)
    scale = VALID.astype(np.float32)
    student = draw(GROUPS, ITEMS, 1, CHANNELS, seed=4), draw(K, CHANNELS, seed=5)
    total, pull = jax.vjp(
        lambda *s: cross_entropy.cross_entropy(*s, ours, scale, pairs=((0,),))[0],
        *student,
    )
    for x in (total, *pull(jnp.float32(1.0))):
        assert np.isfinite(x).all()


def test_centering():
    center = draw(K, seed=3, unit=False)
    ours = targets_lib.centered(*TEACHER, TEMP, center)
    expected = teacher_targets.centered_softmax(logits(*TEACHER), center, TEMP)
    np.testing.assert_allclose(ours.probabilities(), expected, rtol=2e-5, atol=1e-9)
    for valid in (None, VALID):
        moved = targets_lib.update_center(center, ours, valid)
        wanted = teacher_targets.update_center(center, logits(*TEACHER)[:, :, 0], valid)
        np.testing.assert_allclose(moved, wanted, rtol=1e-5, atol=1e-6)


def ibot(student, weights, scale):
    """Ours: total and gradients."""
    targets = targets_lib.sinkhorn_knopp(*TEACHER, TEMP, valid=VALID)

    def loss(student, weights):
        total, parts = cross_entropy.cross_entropy(
            student, weights, targets, scale * VALID, pairs=((0,),)
        )
        return 3.0 * total, parts

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(student, weights)


def test_ibot():
    student, weights = (
        draw(GROUPS, ITEMS, 1, CHANNELS, seed=4),
        draw(K, CHANNELS, seed=5),
    )
    scale = np.random.default_rng(6).random((GROUPS, ITEMS)).astype(np.float32)
    plain = teacher_targets.sinkhorn_knopp(logits(*TEACHER)[:, :, 0], TEMP, valid=VALID)

    def definition(student, weights):
        x = logits(student, weights)[:, :, 0]
        # Mean over 7 crops a group, as many as the denominator says.
        return 3.0 * 7 * GROUPS * dino.ibot_loss(x, plain, scale * VALID, 7)

    expected = jax.value_and_grad(definition, argnums=(0, 1))(student, weights)
    # A function of this test: that of another would be as another `memory` divides it.
    (total, parts), grads = jax.jit(lambda *a: ibot(*a))(student, weights, scale)
    np.testing.assert_allclose(total, expected[0], rtol=1e-6)
    np.testing.assert_allclose(3.0 * parts.sum(), total, rtol=1e-6)
    for ours, wanted in zip(grads, expected[1]):
        np.testing.assert_allclose(ours, wanted, atol=1e-5 * np.abs(wanted).max())
    without = cross_entropy.cross_entropy(
        student,
        weights,
        targets_lib.sinkhorn_knopp(*TEACHER, TEMP, valid=VALID),
        scale * VALID,
        pairs=((0,),),
    )[0]
    np.testing.assert_allclose(3.0 * without, total, rtol=1e-6)


@pytest.mark.parametrize("num_local, factor", [(0, 1.0), (3, 1.0), (3, 0.5)])
def test_dino(num_local, factor):
    images = 5
    features = draw(GROUPS, images, 2, CHANNELS)
    # Cosines: the last bit of a logit of 3 is already 5e-6 of a probability at 0.05.
    prototypes = draw(K, CHANNELS, seed=1)
    targets = targets_lib.sinkhorn_knopp(features, prototypes, TEMP)
    student = draw(GROUPS, images, 2 + num_local, CHANNELS, seed=4)
    weights = draw(K, CHANNELS, seed=5)
    pairs, normaliser = dino.crop_pairs(num_local)
    scale = jnp.full((GROUPS, images), 1.0 / (GROUPS * images * normaliser))

    def ours(student, weights):
        return cross_entropy.cross_entropy(
            student,
            weights,
            targets,
            scale,
            pairs=pairs,
            factors=() if factor == 1 else (1.0, 1.0, *[factor] * num_local),
        )

    def definition(student, weights):
        crops = logits(student, weights).swapaxes(1, 2)  # [G, 2 + L, b, K]
        major = lambda x: x.reshape(GROUPS, -1, K)  # noqa: E731
        teacher = targets.probabilities().swapaxes(1, 2)
        terms = dino.dino_loss(major(crops[:, :2]), major(crops[:, 2:]), major(teacher))
        terms = terms[0], factor * terms[1]
        return sum(terms), jnp.stack(terms)

    results = [
        jax.jit(jax.value_and_grad(f, argnums=(0, 1), has_aux=True))(student, weights)
        for f in (ours, definition)
    ]
    (total, parts), grads = results[0]
    (wanted, terms), wanted_grads = results[1]
    np.testing.assert_allclose(total, wanted, rtol=1e-6)
    np.testing.assert_allclose([parts[:2].sum(), parts[2:].sum()], terms, rtol=2e-6)
    for a, b in zip(grads, wanted_grads):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


def test_bfloat16_is_as_exact_as_its_matmuls():
    scale = np.ones((GROUPS, ITEMS), np.float32)
    student, weights = (
        draw(GROUPS, ITEMS, 1, CHANNELS, seed=4),
        draw(K, CHANNELS, seed=5),
    )
    exact, _ = ibot(student, weights, scale)[0]
    half = [x.astype(jnp.bfloat16) for x in (student, weights)]
    (total, _), grads = ibot(*half, scale)
    assert total.dtype == jnp.float32 and grads[0].dtype == jnp.bfloat16
    np.testing.assert_allclose(total, exact, rtol=1e-2)


def eight_devices():
    """Run in a process that has them."""
    mesh = sharding.make_mesh(replica=2)
    assert mesh.size == 8
    groups = 8
    valid = np.random.default_rng(2).random((groups, 5)) < 0.7
    valid[3] = False  # a device without any
    for k, sign in ((24, 1), (27, 1), (24, -1)):  # 27 cannot be scattered over 4
        teacher = draw(groups, 5, 1, CHANNELS), 3 * draw(k, CHANNELS, seed=1)
        if sign < 0:  # all logits far below 0
            teacher = np.abs(teacher[0]), -4 * np.abs(teacher[1])
        student = draw(groups, 5, 1, CHANNELS, seed=4), draw(k, CHANNELS, seed=5)

        def step(teacher, student):
            targets = targets_lib.sinkhorn_knopp(*teacher, TEMP, valid=valid)

            def loss(student):
                scale = valid.astype(np.float32)
                return cross_entropy.cross_entropy(
                    *student, targets, scale, pairs=((0,),)
                )

            return jax.value_and_grad(loss, has_aux=True)(student), targets.bias

        one = jax.jit(step)(teacher, student)
        with jax.set_mesh(mesh):
            lowered = jax.jit(lambda *args: step(*args)).lower(teacher, student)  # noqa: B023
            many = lowered.compile()(teacher, student)
        assert ("reduce_scatter" in lowered.as_text()) == (k == 24)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max()),
            many,
            one,
        )


def test_devices_change_nothing(memory, request):
    if "[whole]" not in request.node.name:
        pytest.skip("once is enough")
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[2])]),
    }
    subprocess.run(
        [sys.executable, "-c", "import cross_entropy_test as t; t.eight_devices()"],
        env=environment,
        check=True,
    )


def test_no_whole_array_of_logits_is_stored(memory, full_compilation, request):
    if not request.node.name.endswith(("nothing kept]", "computed again]")):
        pytest.skip("keeps them")
    rows, k = 4096, 512
    features, weights = draw(1, rows, 1, CHANNELS), draw(k, CHANNELS, seed=1)
    teacher = draw(k, CHANNELS, seed=2)

    def loss(student, weights):
        targets = targets_lib.sinkhorn_knopp(features, teacher, TEMP)
        scale = jnp.ones((1, rows))
        return cross_entropy.cross_entropy(
            student, weights, targets, scale, pairs=((0,),)
        )[0]

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(features, weights)
    used = compiled.compile().memory_analysis().temp_size_in_bytes
    assert used < 0.2 * rows * k * 4

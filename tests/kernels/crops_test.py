"""Taking crops and adding to them, plain and by the TPU kernels, against loops."""

import functools
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from dinov2_jax.kernels import crops, crops_tpu, layer_norm
from dinov2_jax.models import layers, model_config, vision_transformer

# Fresh vector memory and rows beyond the end of an array are not numbers; copies end at
# once, or when they are waited for.
POISONED = {
    mode: pltpu.InterpretParams(uninitialized_memory="nan", dma_execution_mode=mode)
    for mode in ("eager", "on_wait")
}
# Groups, crops, tokens, width, kept: a block with fewer crops than it could have, more
# blocks than are in memory of which the last is not full, all crops, a single one.
SHAPES = [(2, 6, 5, 128, 3), (1, 20, 6, 256, 17), (2, 7, 8, 128, 7), (1, 3, 50, 128, 1)]
# With the tolerance of each.
DTYPES = {"float32": 1e-6, "bfloat16": 1e-2}


@pytest.fixture
def interpreted(monkeypatch):
    """The kernels, interpreted, in blocks of few crops, as if the devices were TPUs."""
    monkeypatch.setattr(crops_tpu, "_ROWS", 40)
    kernels = types.SimpleNamespace(
        take=functools.partial(crops_tpu.take, interpret=True),
        add=functools.partial(crops_tpu.add, interpret=True),
    )
    monkeypatch.setattr(crops, "_kernels", lambda x: kernels)


def random(groups, batch, length, width, num_kept, dtype=np.float32):
    """Stream, chosen crops, rows for them, and a bias."""
    rng = np.random.default_rng(0)
    kept = [rng.permutation(batch)[:num_kept] for _ in range(groups)]
    x = 3 + rng.standard_normal((groups, batch, length, width))
    rows = rng.standard_normal((groups, num_kept * length, width))
    bias = rng.standard_normal(width)
    x, rows, bias = (jnp.asarray(array, dtype) for array in (x, rows, bias))
    return x, jnp.asarray(kept, jnp.int32), rows, bias


def slow_take(x, kept):
    x = np.asarray(x, np.float64)
    return np.stack(
        [np.concatenate([x[g, i] for i in chosen]) for g, chosen in enumerate(kept)]
    )


def slow_add(x, kept, rows):
    out, rows = np.array(x, np.float64), np.asarray(rows, np.float64)
    length = out.shape[2]
    for g, chosen in enumerate(kept):
        for n, i in enumerate(chosen):
            out[g, i] += rows[g, n * length : (n + 1) * length]
    return out


# Every shape, dtype and mode, and every dtype in every mode.
QUICK = list(
    zip(SHAPES, ("bfloat16", "float32") * 2, ("eager", "on_wait", "on_wait", "eager"))
)


@pytest.mark.parametrize(
    "shape, dtype, mode",
    QUICK
    + [
        pytest.param(*case, marks=pytest.mark.slow)
        for case in itertools.product(SHAPES, DTYPES, POISONED)
        if case not in QUICK
    ],
)
def test_kernels_equal_loops(monkeypatch, shape, dtype, mode):
    tolerance, interpret = DTYPES[dtype], POISONED[mode]
    monkeypatch.setattr(crops_tpu, "_ROWS", 40)
    x, kept, rows, _ = random(*shape, dtype=dtype)
    tokens, mean, inverse, sums = crops_tpu.take(
        x, kept, scale=1.5, epsilon=1e-6, sums=True, interpret=interpret
    )
    expected = slow_take(x, kept)
    assert tokens.dtype == dtype
    np.testing.assert_allclose(tokens, 1.5 * expected, rtol=tolerance)
    np.testing.assert_allclose(mean[..., 0], expected.mean(-1), rtol=1e-5)
    deviation = np.sqrt(expected.var(-1) + 1e-6)
    np.testing.assert_allclose(inverse[..., 0], 1 / deviation, rtol=1e-4)
    np.testing.assert_allclose(sums, 1.5 * expected.sum(1), rtol=1e-5)
    added = crops_tpu.add(x, kept, rows, scale=1.5, interpret=interpret)
    assert added.dtype == dtype
    expected = slow_add(x, kept, 1.5 * np.asarray(rows, np.float64))
    np.testing.assert_allclose(added, expected, rtol=tolerance, atol=tolerance)


def through(x, kept, weight, bias):
    """A branch with a norm, a matmul and a bias, on the kept crops."""
    x, tokens, statistics = crops.leave(x, kept)
    (residual,) = layer_norm.project(tokens, (weight,), statistics)
    return crops.rejoin(x, kept, residual, bias)


def plain(x, kept, weight, bias):
    """The same, left to automatic differentiation, in float64 where that is on."""
    tokens = jnp.take_along_axis(x, kept[:, :, None, None], axis=1)
    mean = tokens.mean(-1, keepdims=True)
    variance = tokens.var(-1, keepdims=True)
    residual = (tokens - mean) / jnp.sqrt(variance + 1e-6) @ weight + bias
    scale = x.shape[1] / kept.shape[1]
    return x.at[jnp.arange(len(x))[:, None], kept].add(residual * scale)


def centred(rng, width):
    """Kernel of a linear layer as `models.folded_block` makes them behind a norm."""
    weight = rng.standard_normal((width, width)) * width**-0.5
    return weight - weight.mean(0)


def check_gradients(shape, tolerance):
    x, kept, _, bias = random(*shape)
    rng = np.random.default_rng(1)
    weight = jnp.asarray(centred(rng, x.shape[-1]), jnp.float32)
    grad = rng.standard_normal(x.shape)

    def with_gradients(function, dtype):
        @jax.jit
        def compute(x, weight, bias, grad):
            branch = lambda *a: function(a[0], kept, *a[1:])  # noqa: E731
            out, pull = jax.vjp(branch, x, weight, bias)
            return out, *pull(grad)

        return compute(*(np.asarray(a, dtype) for a in (x, weight, bias, grad)))

    found = with_gradients(through, np.float32)
    with jax.enable_x64(True):
        expected = with_gradients(plain, np.float64)
    for ours, theirs in zip(found, expected):
        theirs = np.asarray(theirs)
        assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_automatic_differentiation(shape):
    check_gradients(shape, 2e-6)


@pytest.mark.parametrize(
    "shape",
    SHAPES[:2] + [pytest.param(s, marks=pytest.mark.slow) for s in SHAPES[2:]],
)
def test_gradients_by_the_kernels(interpreted, shape):
    check_gradients(shape, 1e-5)


@pytest.mark.parametrize(
    "dtype, folded",
    [
        ("float32", False),
        pytest.param("bfloat16", True, marks=pytest.mark.slow),
        pytest.param("bfloat16", False, marks=pytest.mark.slow),
        pytest.param("float32", True, marks=pytest.mark.slow),
    ],
)
def test_a_block_is_the_same_by_the_kernels(interpreted, monkeypatch, dtype, folded):
    """Statistics and biases arrive where they belong, of two crop groups."""
    config = model_config.ModelConfig(embed_dim=128, depth=1, num_heads=2)
    block = layers.Block(config, dtype=jnp.dtype(dtype))
    sequences = ((7, 5), (9, 4))
    rng = np.random.default_rng(2)
    x = 3 + rng.standard_normal((2, 7 * 5 + 9 * 4, 128))
    x = jnp.asarray(x, jnp.bfloat16)
    params = block.init(jax.random.key(0), x, sequences)["params"]
    params = jax.tree.map(
        lambda p: p + jnp.asarray(rng.standard_normal(p.shape) * 0.1, p.dtype), params
    )
    kept = [
        tuple(
            jnp.asarray([rng.permutation(count)[:4] for _ in range(2)])
            for count, _ in sequences
        )
        for _ in range(2)
    ]

    def loss(params, x):
        form = vision_transformer.BLOCKS["folded" if folded else "plain"]
        weights = form.prepare(params, block.dtype)
        function = form.bind(weights, config, kernel="auto", dtype=block.dtype)
        out = function(x, sequences, tuple(kept))
        assert out.dtype == x.dtype
        return jnp.sum(jnp.sin(out.astype(jnp.float32)))

    def loss_and_gradients(by_kernels):
        step = jax.jit(jax.value_and_grad(lambda *a: loss(*a), (0, 1)))
        traced = step.trace(params, x)
        assert ("take_crops" in str(traced.jaxpr)) == by_kernels
        return traced.lower().compile()(params, x)

    by_kernels = loss_and_gradients(True)
    monkeypatch.setattr(crops, "_kernels", lambda x: None)
    by_xla = loss_and_gradients(False)
    for ours, theirs in zip(jax.tree.leaves(by_kernels), jax.tree.leaves(by_xla)):
        assert ours.dtype == theirs.dtype
        ours, theirs = np.asarray(ours, np.float32), np.asarray(theirs, np.float32)
        assert np.linalg.norm(ours - theirs) <= 2e-2 * np.linalg.norm(theirs)


def test_where_the_kernels_are_used(monkeypatch):
    x = jnp.zeros((2, 3, 50, 128), jnp.bfloat16)
    assert crops._kernels(x) is None  # on a CPU
    kind = "TPU v6 lite"
    monkeypatch.setattr(crops.sharding, "device_kind", lambda: kind)
    assert crops._kernels(x) is crops_tpu
    assert crops._kernels(x[..., :100]) is None
    monkeypatch.setattr(crops.sharding, "devices_divide", lambda groups: groups != 2)
    assert crops._kernels(x) is None
    assert crops._kernels(x[:1]) is crops_tpu
    kind = "TPU v4"
    assert crops._kernels(x[:1]) is None


def test_what_the_kernels_take():
    takes = functools.partial(crops_tpu.supports, dtype=jnp.bfloat16)
    for width in (384, 768, 1024, 1536):
        for length in (37, 50, 197, 257, 261):
            assert takes(length=length, width=width)
    assert not takes(length=50, width=100)
    assert takes(length=505, width=1024) and not takes(length=511, width=1024)
    assert takes(length=1370, width=384) and not takes(length=1370, width=768)
    assert not crops_tpu.supports(dtype=jnp.float16, length=50, width=384)

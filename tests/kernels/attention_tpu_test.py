"""The TPU kernels, interpreted, against float64 attention and its gradient."""

import functools
import os
import pathlib
import subprocess
import sys
import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P

from dinov2_jax import sharding
from dinov2_jax.kernels import attention, attention_tpu

ROOT = pathlib.Path(__file__).parents[2]
HEADS = 2
WIDTH = 64 * HEADS
# Fresh vector memory and rows beyond the end of an array are not numbers.
POISONED = pltpu.InterpretParams(uninitialized_memory="nan")


@pytest.fixture
def two_crops_a_block(monkeypatch):
    """The smallest blocks of more than one crop; a TPU needs whole tiles of rows."""
    monkeypatch.setattr(
        attention_tpu, "_crops_per_block", lambda count, length: min(count, 2)
    )


def random(groups, count, length, dtype=np.float32, seed=0):
    """[G, T, 3 * D] projections, [3 * D] bias, [G, T, D] gradient of the output."""
    rng = np.random.default_rng(seed)
    shape = (groups, count * length)
    qkv = rng.standard_normal((*shape, 3 * WIDTH)) * 1.5
    dout, bias = rng.standard_normal((*shape, WIDTH)), rng.standard_normal(3 * WIDTH)
    return tuple(jnp.asarray(x, dtype) for x in (qkv, bias, dout))


def slow(qkv, bias, dout, length):
    """Output and gradients in float64, every crop and head by itself."""
    qkv, bias, dout = (np.asarray(x, np.float64) for x in (qkv, bias, dout))
    qkv = qkv + bias
    crops = qkv.reshape(-1, length, 3, HEADS, 64)
    out, dqkv = np.zeros_like(crops[:, :, 0]), np.zeros_like(crops)
    for b, crop in enumerate(crops):
        for h in range(HEADS):
            q, k, v = crop[:, 0, h], crop[:, 1, h], crop[:, 2, h]
            dy = dout.reshape(-1, length, HEADS, 64)[b, :, h]
            scores = q @ k.T / 8
            weights = np.exp(scores - scores.max(1, keepdims=True))
            weights /= weights.sum(1, keepdims=True)
            out[b, :, h] = weights @ v
            dweights = dy @ v.T
            dscores = weights * (dweights - (weights * dweights).sum(1, keepdims=True))
            dqkv[b, :, 0, h] = dscores @ k / 8
            dqkv[b, :, 1, h] = dscores.T @ q / 8
            dqkv[b, :, 2, h] = weights.T @ dy
    dqkv = dqkv.reshape(qkv.shape)
    return out.reshape(dout.shape), dqkv, dqkv.sum((0, 1))


def kernel(length, interpret=True, num_heads=HEADS):
    def attention(qkv, bias=None):
        return attention_tpu.attention(
            qkv,
            bias,
            count=qkv.shape[1] // length,
            length=length,
            num_heads=num_heads,
            interpret=interpret,
        )

    return attention


def output_and_gradients(function, qkv, bias, dout):
    out, pullback = jax.vjp(function, qkv, bias)
    return out, *pullback(dout)


def assert_close(actual, expected, tolerance):
    actual = np.asarray(actual, np.float64)
    assert np.isfinite(actual).all()
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


def check(length, groups, count, dtype, tolerance, interpret):
    qkv, bias, dout = random(groups, count, length, dtype)
    out, dqkv, dbias = output_and_gradients(kernel(length, interpret), qkv, bias, dout)
    assert out.dtype == dqkv.dtype == dbias.dtype == dtype
    expected_out, expected_dqkv, expected_dbias = slow(qkv, bias, dout, length)
    assert_close(out, expected_out, tolerance)
    assert_close(dbias, expected_dbias, tolerance)
    for part, expected in zip(
        jnp.split(dqkv, 3, axis=-1), np.split(expected_dqkv, 3, axis=-1)
    ):
        assert_close(part, expected, tolerance)


@pytest.mark.parametrize(
    "length, groups, count",
    [(37, 2, 3), (50, 1, 5), (54, 1, 3), (197, 1, 3), (257, 2, 3), (261, 1, 3)],
)
def test_float32_equals_float64(two_crops_a_block, length, groups, count):
    check(length, groups, count, jnp.float32, 1e-5, interpret=True)


@pytest.mark.parametrize("length, count", [(50, 3), (257, 1)])
def test_bfloat16_is_close_to_float64(two_crops_a_block, length, count):
    check(length, 1, count, jnp.bfloat16, 2e-2, interpret=True)


@pytest.mark.parametrize("length, count", [(50, 3), (257, 3)])
def test_nothing_leaks_from_memory_not_written(two_crops_a_block, length, count):
    check(length, 1, count, jnp.float32, 1e-5, interpret=POISONED)


def test_long_crops_are_walked_in_tiles(two_crops_a_block, monkeypatch):
    monkeypatch.setattr(attention_tpu, "LONGEST_UNROLLED", 100)
    check(150, 1, 3, jnp.float32, 1e-5, interpret=POISONED)


def test_crops_of_518_pixels():
    check(1370, 1, 1, jnp.float32, 1e-5, interpret=True)


def test_scores_that_would_overflow(two_crops_a_block):
    qkv, bias, dout = random(1, 2, 37)
    out = kernel(37)(qkv * 30)
    assert_close(out, slow(qkv * 30, 0 * bias, dout, 37)[0], 1e-4)


def test_under_scan_checkpoint_vmap_and_jit(two_crops_a_block):
    qkv, _, dout = random(2, 2, 37)
    layers = jnp.stack([jnp.eye(WIDTH, 3 * WIDTH), jnp.eye(WIDTH, 3 * WIDTH)[::-1]])

    def loss(attention, x):
        def block(x, weights):
            return x + attention(x @ weights), None

        out, _ = jax.lax.scan(jax.checkpoint(block), x, layers)
        return jnp.sum(out * dout)

    x = qkv[..., :WIDTH]
    by_group = jax.vmap(lambda x: kernel(37)(x[None])[0])
    expected = jax.grad(lambda x: loss(dense, x))(x)
    for function in (kernel(37), by_group):
        actual = jax.jit(jax.grad(lambda x, f=function: loss(f, x)))(x)
        assert_close(actual, np.asarray(expected, np.float64), 1e-5)


def dense(qkv):
    """Attention of crops of 37 by XLA."""
    q, k, v = (x.reshape(-1, 37, HEADS, 64) for x in jnp.split(qkv, 3, axis=-1))
    return jax.nn.dot_product_attention(q, k, v).reshape(*qkv.shape[:2], WIDTH)


def main():
    """Checks the kernels on each of two devices; the other test starts this."""
    qkv, bias, dout = random(2, 2, 37)
    mesh = jax.make_mesh((2,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    expected = slow(qkv, bias, dout, 37)

    def on_both(qkv, bias, dout, check_vma):
        mapped = jax.shard_map(
            kernel(37),
            mesh=mesh,
            in_specs=(P("fsdp"), P()),
            out_specs=P("fsdp"),
            check_vma=check_vma,
        )
        return output_and_gradients(mapped, qkv, bias, dout)

    both = jax.jit(on_both, static_argnums=3)(qkv, bias, dout, False)
    for actual, wanted in zip(both, expected):
        assert_close(actual, wanted, 1e-5)
    # As the model calls it: a mesh in context, a bias or none.
    interpreted = functools.partial(attention_tpu.attention, interpret=True)
    with unittest.mock.patch.object(attention_tpu, "attention", interpreted):
        mesh = sharding.make_mesh()
        with jax.set_mesh(mesh):
            through = functools.partial(
                attention.attention,
                sequences=((2, 37),),
                num_heads=HEADS,
                implementation="pallas_tpu",
            )
            found = jax.jit(lambda *xs: output_and_gradients(through, *xs))(
                qkv, bias, dout
            )
            without = jax.jit(through)(qkv + bias)
    for actual, wanted in zip((*found, without), (*expected, expected[0])):
        assert_close(actual, wanted, 1e-5)
    # The interpreter itself is not written for types that vary; the kernels are.
    jax.eval_shape(lambda *xs: on_both(*xs, True), qkv, bias, dout)


def test_inside_shard_map():
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "width, num_heads, length",
    [(192, 3, 37), (256, 2, 37), (128, 2, 200_000)],
)
def test_says_what_it_does_not_take(width, num_heads, length):
    shape = dict(dtype=jnp.bfloat16, length=length, num_heads=num_heads)
    assert not attention_tpu.supports(**shape, head_dim=width // num_heads)
    with pytest.raises(ValueError, match="no kernel for"):
        jax.eval_shape(
            kernel(length, num_heads=num_heads),
            jax.ShapeDtypeStruct((1, length, 3 * width), jnp.bfloat16),
        )


@pytest.mark.parametrize("length", [37, 50, 54, 197, 257, 261, 1370, 1374])
@pytest.mark.parametrize("count", [1, 7, 38, 64, 153])
def test_blocks_are_legal_and_waste_little(length, count):
    crops = attention_tpu._crops_per_block(count, length)
    assert crops == count or crops * length % 8 == 0
    computed = -(-count // crops) * crops
    assert computed <= max(1.06 * count, count + crops - 1)
    for dtype in (jnp.bfloat16, jnp.float32):
        assert attention_tpu.supports(
            dtype=dtype, length=length, num_heads=16, head_dim=64
        )


if __name__ == "__main__":
    main()

"""The Hopper kernels without a GPU: interpreted against float64, and lowered.

The interpreter knows the barriers, the copies and the blocks of a launch. What it does
not know (`_Interpreter` in the kernel's file) only the lowering sees.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks

from dinov2_jax.kernels import attention_gpu

CHANNELS = 64
LENGTHS = (37, 50, 54, 197, 257, 261, 1370, 1374)


@pytest.fixture
def one_warpgroup(monkeypatch):
    """Blocks of one warpgroup: those of two cost the interpreter ten times the time."""
    monkeypatch.setattr(attention_gpu, "TEAM", 1)


def draw(shape, seed=0, dtype=jnp.bfloat16):
    values = np.random.default_rng(seed).standard_normal(shape)
    return jnp.asarray(values, dtype)


def ours(qkv, dout, **shape):
    """The output and the gradient of qkv."""
    out, pullback = jax.vjp(
        lambda x: attention_gpu.attention(x, **shape, interpret=True), qkv
    )
    return out, pullback(dout)[0]


def slow(qkv, dout, *, count, length, num_heads):
    """Attention and its gradient in float64, by the formulas."""
    shape = (-1, count, length, 3, num_heads, CHANNELS)
    q, k, v = np.moveaxis(np.asarray(qkv, np.float64).reshape(shape), 3, 0)
    dout = np.asarray(dout, np.float64).reshape(v.shape)
    scores = np.einsum("gbqhc,gbkhc->gbhqk", q, k) / np.sqrt(CHANNELS)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    out = np.einsum("gbhqk,gbkhc->gbqhc", weights, v)
    dweights = np.einsum("gbqhc,gbkhc->gbhqk", dout, v)
    dscores = weights * (dweights - (weights * dweights).sum(-1, keepdims=True))
    dscores /= np.sqrt(CHANNELS)
    dqkv = [
        np.einsum("gbhqk,gbkhc->gbqhc", dscores, k),
        np.einsum("gbhqk,gbqhc->gbkhc", dscores, q),
        np.einsum("gbhqk,gbqhc->gbkhc", weights, dout),
    ]
    return out.reshape(*qkv.shape[:2], -1), np.stack(dqkv, 3).reshape(qkv.shape)


def assert_near(actual, expected, bound=1e-2):
    """The largest difference over the largest value, for each third of the channels."""
    assert actual.shape == expected.shape
    for part, truth in zip(
        np.split(np.asarray(actual, np.float64), 3, -1), np.split(expected, 3, -1)
    ):
        assert np.max(np.abs(part - truth)) <= bound * np.max(np.abs(truth))


@pytest.mark.parametrize(
    ("length", "groups", "count", "num_heads"),
    [
        (37, 1, 3, 1),
        (50, 2, 1, 1),
        (64, 1, 1, 1),
        pytest.param(54, 1, 1, 2, marks=pytest.mark.slow),
        pytest.param(197, 1, 1, 2, marks=pytest.mark.slow),
        pytest.param(257, 1, 1, 1, marks=pytest.mark.slow),
        pytest.param(261, 1, 1, 1, marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("one_warpgroup")
def test_equals_float64(length, groups, count, num_heads):
    check(length, groups, count, num_heads)


@pytest.mark.usefixtures("one_warpgroup")
def test_more_tiles_than_are_in_memory(monkeypatch):
    """As 257 tokens and more, of which the last tile has one."""
    monkeypatch.setattr(attention_gpu, "STAGES", 2)
    monkeypatch.setattr(attention_gpu, "BACKWARD_STAGES", 2)
    check(length=129, groups=1, count=1, num_heads=2)


def check(length, groups, count, num_heads):
    shape = {"count": count, "length": length, "num_heads": num_heads}
    width = CHANNELS * num_heads
    qkv = draw((groups, count * length, 3 * width))
    dout = draw((groups, count * length, width), seed=1)
    out, dqkv = ours(qkv, dout, **shape)
    assert out.dtype == dqkv.dtype == jnp.bfloat16
    true_out, true_dqkv = slow(qkv, dout, **shape)
    assert_near(np.tile(out, 3), np.tile(true_out, 3))
    assert_near(dqkv, true_dqkv)
    assert not gpu_callbacks.get_races().races_found


# Of 130 tokens the third tile has two: the second warpgroup of its block has none.
@pytest.mark.parametrize("stages", [3, 2], ids=["leaves", "works_on_zeros"])
def test_two_warpgroups_share_keys(stages, monkeypatch):
    monkeypatch.setattr(attention_gpu, "STAGES", stages)
    shape = {"count": 1, "length": 130, "num_heads": 1}
    qkv = draw((1, 130, 3 * CHANNELS))
    out = attention_gpu.attention(qkv, **shape, interpret=True)
    true_out, _ = slow(qkv, out, **shape)
    assert_near(np.tile(out, 3), np.tile(true_out, 3))
    assert not gpu_callbacks.get_races().races_found


def test_float16():
    shape = {"count": 1, "length": 20, "num_heads": 1}
    qkv = draw((1, 20, 3 * CHANNELS), dtype=jnp.float16)
    dout = draw((1, 20, CHANNELS), seed=1, dtype=jnp.float16)
    out, dqkv = ours(qkv, dout, **shape)
    assert out.dtype == dqkv.dtype == jnp.float16
    true_out, true_dqkv = slow(qkv, dout, **shape)
    assert_near(np.tile(out, 3), np.tile(true_out, 3), bound=2e-3)
    assert_near(dqkv, true_dqkv, bound=2e-3)


def test_a_nan_stays_in_its_crop_and_head():
    shape = {"count": 3, "length": 37, "num_heads": 2}
    qkv = np.array(draw((1, 111, 6 * CHANNELS)))
    dout = draw((1, 111, 2 * CHANNELS), seed=1)
    clean = ours(jnp.asarray(qkv), dout, **shape)
    hit = np.zeros((3, 37, 2, CHANNELS), bool)
    hit[1, :, 1] = True
    qkv.reshape(3, 37, 3, 2, CHANNELS)[1, :, :, 1] = np.nan
    for before, after in zip(clean, ours(jnp.asarray(qkv), dout, **shape)):
        parts = (3, 37, -1, 2, CHANNELS)
        before, after = (np.asarray(x).reshape(parts) for x in (before, after))
        for part in range(before.shape[2]):
            assert np.all(np.isnan(after[:, :, part][hit]))
            assert np.array_equal(after[:, :, part][~hit], before[:, :, part][~hit])


def test_keys_past_the_crop_weigh_nothing_where_scores_are_low():
    """Every score is near -2000: a key of zeros would have all the weight."""
    shape = {"count": 1, "length": 37, "num_heads": 1}
    qkv = draw((1, 37, 3, CHANNELS))
    qkv = qkv.at[..., 0, 0].set(128).at[..., 1, 0].set(-128).reshape(1, 37, -1)
    out, dqkv = ours(qkv, draw((1, 37, CHANNELS), seed=1), **shape)
    true_out, _ = slow(qkv, out, **shape)
    assert_near(np.tile(out, 3), np.tile(true_out, 3))
    assert np.all(np.isfinite(dqkv))


def lowered(length, function=lambda attend: attend):
    """The program for a GPU, of crops of two heads."""

    def attend(qkv):
        return attention_gpu.attention(qkv, count=2, length=length, num_heads=2)

    qkv = jax.ShapeDtypeStruct((1, 2 * length, 6 * CHANNELS), jnp.bfloat16)
    exported = export.export(jax.jit(function(attend)), platforms=["cuda"])(qkv)
    return str(exported.mlir_module())


def loss_gradient(attend):
    return jax.grad(lambda x: jnp.sum(attend(x).astype(jnp.float32)))


@pytest.mark.parametrize(
    "length",
    [50, 257]
    + [pytest.param(n, marks=pytest.mark.slow) for n in LENGTHS if n not in (50, 257)],
)
def test_lowers_for_hopper(length):
    assert lowered(length).count("@mosaic_gpu") == 1
    assert lowered(length, loss_gradient).count("@mosaic_gpu") == 2


def test_forward_leaves_main_memory_alone():
    operations = set(re.findall(r"stablehlo\.(\w+)", lowered(257)))
    assert operations == {"reshape", "custom_call"}


def test_lowers_inside_scan_and_checkpoint():
    def layers(attend):
        @jax.checkpoint
        def layer(x, _):
            return x + jnp.tile(attend(x), 3), None

        return loss_gradient(lambda x: jax.lax.scan(layer, x, length=3)[0])

    assert lowered(50, layers).count("@mosaic_gpu") == 3


def test_lowers_inside_shard_map():
    mesh = jax.sharding.AbstractMesh((2,), ("fsdp",))
    spec = jax.sharding.PartitionSpec("fsdp")

    def attend(qkv):
        return attention_gpu.attention(qkv, count=2, length=50, num_heads=2)

    sharded = jax.shard_map(
        attend, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
    )
    qkv = jax.ShapeDtypeStruct(
        (2, 100, 6 * CHANNELS),
        jnp.bfloat16,
        sharding=jax.sharding.NamedSharding(mesh, spec),
    )
    gradient = jax.jit(loss_gradient(sharded))
    exported = export.export(gradient, platforms=["cuda"])(qkv)
    assert str(exported.mlir_module()).count("@mosaic_gpu") == 2


@pytest.mark.parametrize(
    ("shape", "dtype", "sizes"),
    [
        ((1, 50, 192), jnp.float32, (1, 50, 1)),
        ((1, 50, 384), jnp.bfloat16, (1, 50, 1)),
        ((1, 50, 192), jnp.bfloat16, (1, 49, 1)),
        ((1, 2**16, 192), jnp.bfloat16, (2**16, 1, 1)),
    ],
    ids=["dtype", "head_dim", "length", "crops"],
)
def test_refuses(shape, dtype, sizes):
    sizes = dict(zip(("count", "length", "num_heads"), sizes))
    with pytest.raises(ValueError, match="the GPU kernel takes"):
        jax.eval_shape(
            lambda x: attention_gpu.attention(x, **sizes),
            jax.ShapeDtypeStruct(shape, dtype),
        )

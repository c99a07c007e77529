"""Attention against a float64 loop, and against one dense block-diagonal attention."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov2_jax import sharding
from dinov2_jax.kernels import attention, attention_cudnn

HEADS = 2
SEQUENCES = ((3, 5), (4, 2), (1, 7))  # 15 + 8 + 7 tokens
TOKENS = 30


def packed(seed=0, groups=2, width=12):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((groups, TOKENS, 3 * width)).astype(np.float32)


def bounds(sequences):
    """(start, stop) of every sequence of the stream."""
    spans, start = [], 0
    for count, length in sequences:
        for _ in range(count):
            spans.append((start, start + length))
            start += length
    return spans


def slow(qkv, sequences, num_heads):
    """One sequence, one head, one query at a time, in float64."""
    qkv = np.asarray(qkv, np.float64)
    groups, tokens, width = qkv.shape
    dim = width // 3
    channels = dim // num_heads
    out = np.zeros((groups, tokens, dim))
    for g in range(groups):
        for start, stop in bounds(sequences):
            for h in range(num_heads):
                cols = slice(h * channels, (h + 1) * channels)
                q = qkv[g, start:stop, :dim][:, cols]
                k = qkv[g, start:stop, dim : 2 * dim][:, cols]
                v = qkv[g, start:stop, 2 * dim :][:, cols]
                for i in range(stop - start):
                    scores = k @ q[i] / np.sqrt(channels)
                    weights = np.exp(scores - scores.max())
                    out[g, start + i, cols] = weights / weights.sum() @ v
    return out


def block_diagonal(qkv, sequences, num_heads):
    """One attention over the whole stream under a mask."""
    groups, tokens, width = qkv.shape
    lengths = [stop - start for start, stop in bounds(sequences)]
    owner = np.repeat(np.arange(len(lengths)), lengths)
    mask = owner[:, None] == owner[None]
    q, k, v = (
        x.reshape(groups, tokens, num_heads, -1) for x in jnp.split(qkv, 3, axis=-1)
    )
    out = jax.nn.dot_product_attention(q, k, v, mask=jnp.asarray(mask)[None, None])
    return out.reshape(groups, tokens, width // 3)


@pytest.mark.parametrize("implementation", ["auto", "xla"])
def test_equals_a_float64_loop(implementation):
    qkv = packed()
    out = attention.attention(
        qkv,
        sequences=SEQUENCES,
        num_heads=HEADS,
        implementation=implementation,
    )
    assert out.shape == (2, TOKENS, 12) and out.dtype == jnp.float32
    np.testing.assert_allclose(out, slow(qkv, SEQUENCES, HEADS), atol=2e-6)


LONG = ((2, 700), (1, 301))  # several blocks of queries, the last one not full


def long_stream():
    rng = np.random.default_rng(2)
    return jnp.asarray(rng.standard_normal((2, 1701, 36)), jnp.float32)


def test_long_crops_go_in_blocks_on_the_cpu():
    """A float64 loop is the plain twin of the forward pass."""
    qkv = long_stream()[:1, :700]
    shape = dict(sequences=((1, 700),), num_heads=HEADS)
    traced = str(jax.make_jaxpr(lambda x: attention.attention(x, **shape))(qkv))
    assert "700,700" not in traced  # all scores of a crop are never formed
    out = attention.attention(qkv, **shape)
    np.testing.assert_allclose(out, slow(qkv, shape["sequences"], HEADS), atol=3e-6)


def test_gradient_of_long_crops():
    """Of several groups and crops, against the plain form."""
    qkv = long_stream()
    direction = np.random.default_rng(1).standard_normal((2, 1701, 12))

    def gradient(implementation):
        def product(x):
            out = attention.attention(
                x, sequences=LONG, num_heads=HEADS, implementation=implementation
            )
            return jnp.sum(out * direction), out

        return jax.jit(jax.grad(product, has_aux=True))(qkv)

    for found, plain in zip(gradient("by_block"), gradient("xla")):
        np.testing.assert_allclose(found, plain, atol=2e-5)


@pytest.mark.parametrize("implementation", ["xla", "by_image", "by_block"])
def test_gradient_inside_shard_map(implementation):
    """The types of values that vary over a mesh are right."""
    shape = dict(sequences=LONG, num_heads=HEADS, implementation=implementation)

    def gradient(qkv):
        return jax.grad(lambda x: jnp.sum(attention.attention(x, **shape)))(qkv)

    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    batch = jax.sharding.PartitionSpec("data")
    mapped = jax.shard_map(gradient, mesh=mesh, in_specs=batch, out_specs=batch)
    assert jax.eval_shape(mapped, long_stream()).shape == (2, 1701, 36)


def test_memory_is_linear_in_the_length():
    """Of forward and backward pass, as the compiler plans it."""

    def planned(length):
        shape = dict(sequences=((1, length),), num_heads=HEADS)
        function = jax.grad(lambda x: jnp.sum(attention.attention(x, **shape) ** 2))
        x = jax.ShapeDtypeStruct((1, length, 36), jnp.float32)
        compiled = jax.jit(function).lower(x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert planned(16384) < 2.5 * planned(8192)


def test_gradient_equals_block_diagonal_attention():
    qkv = jnp.asarray(packed())
    direction = np.random.default_rng(1).standard_normal((2, TOKENS, 12))
    direction = jnp.asarray(direction, jnp.float32)

    def gradient(function):
        return jax.grad(lambda x: jnp.sum(function(x) * direction))(qkv)

    ours = gradient(
        lambda x: attention.attention(x, sequences=SEQUENCES, num_heads=HEADS)
    )
    dense = gradient(lambda x: block_diagonal(x, SEQUENCES, HEADS))
    np.testing.assert_allclose(ours, dense, atol=1e-5)


@pytest.mark.parametrize("implementation", ["xla", "by_image", "by_block"])
def test_the_bias_of_the_projection(implementation):
    shape = dict(sequences=SEQUENCES, num_heads=HEADS, implementation=implementation)
    qkv = jnp.asarray(packed())
    bias, direction = (
        jnp.asarray(np.random.default_rng(1).standard_normal(s), jnp.float32)
        for s in ((36,), (2, TOKENS, 12))
    )
    out, pull = jax.vjp(lambda *a: attention.attention(*a, **shape), qkv, bias)
    added, plain = jax.vjp(lambda a: attention.attention(a, **shape), qkv + bias)
    np.testing.assert_allclose(out, added, atol=2e-6)
    d_qkv, d_bias = pull(direction)
    np.testing.assert_allclose(d_qkv, plain(direction)[0], atol=1e-5)
    np.testing.assert_allclose(d_bias, d_qkv.sum((0, 1)), atol=1e-5)


@pytest.mark.parametrize("bad", range(len(bounds(SEQUENCES))))
def test_a_nan_stays_in_its_sequence(bad):
    qkv = packed()
    clean = attention.attention(qkv, sequences=SEQUENCES, num_heads=HEADS)
    start, stop = bounds(SEQUENCES)[bad]
    qkv[0, start] = np.nan
    out = attention.attention(qkv, sequences=SEQUENCES, num_heads=HEADS)
    hit = np.zeros((2, TOKENS), bool)
    hit[0, start:stop] = True
    assert np.all(np.isnan(out[hit]))
    assert np.array_equal(out[~hit], clean[~hit])


def test_scores_and_softmax_of_bfloat16_are_float32():
    qkv = jnp.asarray(packed()).astype(jnp.bfloat16)
    out = attention.attention(qkv, sequences=SEQUENCES, num_heads=HEADS)
    assert out.dtype == jnp.bfloat16
    exact = slow(qkv.astype(jnp.float32), SEQUENCES, HEADS)
    np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.04)
    # Scores near 200 that differ by 0.25: bfloat16 steps are 1.0 there.
    q, k, v = np.zeros((3, 1, 2, 4), np.float32)
    q[0, :, 0], k[0, :, 0] = 400.0, 1.0
    q[0, :, 1], k[0, 1, 1] = 0.5, 1.0
    v[0, 1] = 1.0
    one_head = jnp.asarray(np.concatenate([q, k, v], axis=-1), jnp.bfloat16)
    out = attention.attention(one_head, sequences=((1, 2),), num_heads=1)
    expected = 1 / (1 + np.exp(-0.25))
    np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=4e-3)


def test_large_scores_do_not_overflow():
    qkv = 300 * packed()
    out = attention.attention(qkv, sequences=SEQUENCES, num_heads=HEADS)
    np.testing.assert_allclose(out, slow(qkv, SEQUENCES, HEADS), rtol=1e-3, atol=1e-2)


def test_sequences_must_fill_the_stream():
    with pytest.raises(ValueError, match="30 tokens"):
        attention.attention(packed(), sequences=((3, 5),), num_heads=HEADS)


@pytest.mark.parametrize("kind", ["TPU v2", "TPU v3", "TPU v4"])
def test_old_tpus_get_the_plain_form(monkeypatch, kind):
    monkeypatch.setattr(sharding, "device_kind", lambda: kind)
    qkv = jax.ShapeDtypeStruct((1, 2 * 50, 3 * 384), jnp.bfloat16)
    assert attention._fastest(qkv, 50, 6) == "xla"
    monkeypatch.setattr(sharding, "device_kind", lambda: "TPU v5 lite")
    assert attention._fastest(qkv, 50, 6) == "pallas_tpu"


@pytest.mark.parametrize(
    "platform, capability, fused",
    [
        ("gpu", "9.0", True),
        ("gpu", "8.0", True),
        ("gpu", "12.0", True),
        ("gpu", "7.5", False),
        ("gpu", "gfx942", False),
        ("cpu", None, True),  # ahead of time
    ],
)
def test_gpus_with_fused_attention(platform, capability, fused):
    device = types.SimpleNamespace(platform=platform, compute_capability=capability)
    assert attention_cudnn.is_for(device) == fused


@pytest.mark.parametrize(
    "name, device, dtype, head_dim, words",
    [
        ("auto", "cpu cpu", "float32", 7, ""),
        ("by_image", "gpu H100", "float32", 7, ""),
        ("pallas_tpu", "tpu TPU v6 lite", "bfloat16", 64, ""),
        ("pallas_tpu", "tpu TPU v5", "bfloat16", 32, "50 tokens in bfloat16 with 6"),
        ("pallas_tpu", "tpu TPU v4", "bfloat16", 64, "does not run on TPU v4"),
        ("pallas_tpu", "gpu H100", "bfloat16", 64, "does not run on H100"),
        ("pallas_gpu", "cuda H200", "float32", 64, "in float32"),
        ("cudnn", "gpu H100", "bfloat16", 64, ""),
        ("cudnn", "gpu T4", "bfloat16", 64, "does not run on T4"),
        ("cudnn", "cpu cpu", "bfloat16", 64, "does not run on cpu"),
    ],
)
def test_what_an_implementation_does_not_take(name, device, dtype, head_dim, words):
    platform, _, kind = device.partition(" ")
    capability = {"H100": "9.0", "T4": "7.5"}.get(kind)
    device = types.SimpleNamespace(
        platform=platform, device_kind=kind, compute_capability=capability
    )
    shape = dict(dtype=dtype, length=50, num_heads=6, head_dim=head_dim)
    found = attention.problem(name, device, **shape)
    assert words in found and bool(words) == bool(found)


@pytest.mark.parametrize(
    "side, patch, kernel",
    [
        (518, 14, "pallas_tpu"),  # 1370 tokens, which 2 divides
        (98, 14, "pallas_tpu"),
        (416, 16, "pallas_tpu"),
        (512, 16, "pallas_tpu"),  # 1025
        (756, 14, "xla"),  # 2917, too long for an odd length
        (768, 16, "xla"),  # 2305
    ],
)
def test_kernels_of_high_resolution(side, patch, kernel):
    length = 1 + (side // patch) ** 2
    for num_heads in (6, 12, 16, 24):
        shape = dict(length=length, num_heads=num_heads, head_dim=64)
        found = attention.on_accelerator("tpu", dtype=jnp.bfloat16, **shape)
        assert found == kernel
        assert attention.on_accelerator("cuda", dtype="bfloat16", **shape) == "cudnn"

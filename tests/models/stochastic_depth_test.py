"""Stochastic depth against a loop over samples, and by what is computed."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov2_jax.models import layers, model_config, stochastic_depth

SEQUENCES = ((4, 3), (6, 2))
GROUPS, DIM = 2, 5
TOKENS = 4 * 3 + 6 * 2


def stream(seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((GROUPS, TOKENS, DIM)).astype(np.float32)


def branch(x, sequences, _=None):
    """Knows its sequences: adds to each token the first token of its sample."""
    parts, start = [], 0
    for count, length in sequences:
        part = x[:, start : start + count * length]
        part = part.reshape(x.shape[0], count, length, -1)
        part = jnp.tanh(part) + part[:, :, :1]
        parts.append(part.reshape(x.shape[0], count * length, -1))
        start += count * length
    return jnp.concatenate(parts, axis=1), None


def slow(x, kept):
    """One kept sample at a time."""
    out = np.array(x, np.float64)
    for g in range(len(x)):
        start = 0
        for (count, length), indices in zip(SEQUENCES, kept):
            for i in indices[g]:
                rows = slice(start + i * length, start + (i + 1) * length)
                sample = np.asarray(x[g, rows], np.float64)
                residual = np.tanh(sample) + sample[:1]
                out[g, rows] += residual * count / len(indices[g])
            start += count * length
    return out


@pytest.mark.parametrize(
    "batch, rate, kept",
    [(128, 0.3, 89), (24, 0.4, 14), (96, 0.4, 57), (4, 0.0, 4), (3, 0.9, 1)],
)
def test_number_of_kept_samples(batch, rate, kept):
    assert stochastic_depth.num_kept(batch, rate) == kept


def draw(rate=0.4, depth=3, batches=(4, 6), seed=0, groups=GROUPS):
    return stochastic_depth.draw_kept(
        jax.random.key(seed),
        rate=rate,
        num_groups=groups,
        depth=depth,
        batches=batches,
    )


def test_equals_a_loop():
    for kept in draw():
        kept = [np.asarray(k[0]) for k in kept]
        x = stream()
        ours = stochastic_depth.add_residual(x, branch, SEQUENCES, kept)
        np.testing.assert_allclose(ours, slow(x, kept), atol=1e-6)
        assert [k.shape[1] for k in kept] == [2, 3]


def test_all_samples_without_subset():
    x = stream()
    everyone = [np.tile(np.arange(n), (GROUPS, 1)) for n, _ in SEQUENCES]
    ours = stochastic_depth.add_residual(x, branch, SEQUENCES, None)
    np.testing.assert_allclose(ours, slow(x, everyone), atol=1e-6)


def test_mean_over_all_subsets_is_the_full_residual():
    x = stream()
    second = np.tile(np.arange(6), (GROUPS, 1))
    outputs = [
        stochastic_depth.add_residual(
            x, branch, SEQUENCES, (np.tile(pair, (GROUPS, 1)), second)
        )
        for pair in itertools.combinations(range(4), 2)
    ]
    full = stochastic_depth.add_residual(x, branch, SEQUENCES, None)
    np.testing.assert_allclose(np.mean(outputs, axis=0), full, atol=1e-5)


def test_draws_are_subsets_without_repetition():
    for branch_kept in draw(depth=20, batches=(24, 96)):
        for kept, batch, k in zip(branch_kept, (24, 96), (14, 57)):
            assert kept.shape == (20, GROUPS, k)
            ordered = np.sort(kept, axis=-1)
            assert ordered.min() >= 0 and ordered.max() < batch
            assert np.all(np.diff(ordered, axis=-1) > 0)


def test_draws_are_independent():
    """Branches, blocks, groups and crop groups of equal size share no subset."""
    draws = draw(depth=6, batches=(32, 32), groups=3)
    subsets = [
        frozenset(kept[block, group].tolist())
        for branch_kept in draws
        for kept in branch_kept
        for block in range(6)
        for group in range(3)
    ]
    assert len(subsets) == len(set(subsets)) == 72
    # Two independent subsets of 19 of 32 share 19 * 19 / 32 = 11.3 on average.
    shared = [len(a & b) for a, b in itertools.combinations(subsets, 2)]
    assert abs(np.mean(shared) - 19 * 19 / 32) < 0.2
    other = draw(depth=6, batches=(32, 32), groups=3, seed=1)
    assert not np.array_equal(draws[0][0], other[0][0])


def test_every_sample_is_drawn_equally_often():
    kept = draw(depth=4000, batches=(10,), rate=0.3)[0][0]  # 8000 subsets of 7
    counts = np.bincount(np.asarray(kept).ravel(), minlength=10)
    sigma = np.sqrt(8000 * 0.7 * 0.3)
    assert np.all(np.abs(counts - 5600) < 5 * sigma)


def test_dropped_samples_get_no_gradient_through_the_branch():
    x = stream()
    kept = [np.array([[0, 2], [1, 3]]), np.array([[5], [0]])]

    def loss(x):
        out = stochastic_depth.add_residual(x, branch, SEQUENCES, kept)
        return jnp.sum(out - x)

    touched = np.any(jax.grad(loss)(x) != 0, axis=-1)
    expected = np.zeros((GROUPS, TOKENS), bool)
    for g in range(GROUPS):
        for i in kept[0][g]:
            expected[g, 3 * i : 3 * i + 3] = True
        for i in kept[1][g]:
            expected[g, 12 + 2 * i : 12 + 2 * i + 2] = True
    assert np.array_equal(touched, expected)


def test_dropped_samples_are_not_computed():
    block = layers.Block(model_config.ModelConfig(embed_dim=64, depth=1, num_heads=4))
    x = jnp.zeros((1, 10 * 16, 64))
    sequences = ((10, 16),)
    params = block.init(jax.random.key(0), x, sequences)

    def flops(kept):
        step = jax.jit(lambda p, x: block.apply(p, x, sequences, kept))
        return step.lower(params, x).compile().cost_analysis()["flops"]

    six_of_ten = tuple((k[0][0],) for k in draw(groups=1, batches=(10,)))
    assert six_of_ten[0][0].shape == (1, 6)
    assert flops(six_of_ten) < 0.65 * flops(None)

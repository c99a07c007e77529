"""Rows at a time give what the whole arrays give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov2_jax import by_rows


@pytest.mark.parametrize("shape", [(12, 7, 5), (6,), (13, 3), (1, 40)])
def test_equals_the_whole(shape, monkeypatch):
    rng = np.random.default_rng(0)
    a, x, y = (rng.standard_normal(shape).astype(np.float32) for _ in range(3))
    rows = rng.standard_normal(shape[0]).astype(np.float32)

    def function(read, updated):
        (a, rows, scalar), (x, y) = read, updated
        rows = rows.reshape(rows.shape + (1,) * (x.ndim - 1))
        new = x + scalar * rows * a
        return new, y + new

    read, updated = (a, rows, jnp.float32(0.5)), (x, y)
    expected = jax.jit(function)(read, updated)
    assert by_rows.by_rows(function, read, updated)[0].shape == shape
    monkeypatch.setattr(by_rows, "_LARGE", 0)
    for elements in (1, 30, 10**6):
        monkeypatch.setattr(by_rows, "_ELEMENTS", elements)
        ours = jax.jit(lambda r, u: by_rows.by_rows(function, r, u))(read, updated)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, expected
        )

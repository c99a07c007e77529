"""Interpolated position embeddings against torch, called as the reference calls it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peers import torch

from dinov2_jax.models import pos_embed

# side of the stored grid, wanted height and width
SIZES = [
    (16, 7, 7),  # local crops of patch 14: 224 -> 98 px
    (14, 6, 6),  # local crops of patch 16
    (37, 16, 16),  # released weights at 224 px
    (37, 7, 7),
    (16, 37, 37),
    (16, 32, 32),
    (16, 16, 9),  # one axis keeps its length
    (16, 8, 32),  # as many patches as stored, but not square
    (16, 23, 10),
    (5, 1, 40),
]
MODES = {"offset": (0.1, False), "antialias": (0.0, True), "size": (0.0, False)}


def stored(side, dim=8, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((1, 1 + side * side, dim)).astype(np.float32)


def with_torch(table, height, width, offset, antialias):
    side = round((table.shape[1] - 1) ** 0.5)
    grid = table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    if offset:
        scale = (height + offset) / side, (width + offset) / side
        how = {"scale_factor": scale}
    else:
        how = {"size": (height, width)}
    out = torch.nn.functional.interpolate(
        grid, mode="bicubic", antialias=antialias, **how
    )
    assert out.shape[-2:] == (height, width)
    out = out.permute(0, 2, 3, 1).reshape(1, height * width, -1)
    return torch.cat([table[:, :1], out], dim=1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("side, height, width", SIZES)
def test_equals_torch(side, height, width, mode):
    offset, antialias = MODES[mode]
    table = stored(side)
    ours = pos_embed.interpolate_pos_embed(
        jnp.asarray(table), height, width, offset=offset, antialias=antialias
    )
    theirs = with_torch(torch.from_numpy(table), height, width, offset, antialias)
    theirs = theirs.numpy()
    assert ours.shape == theirs.shape and ours.dtype == jnp.float32
    error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    assert error <= 1e-5


@pytest.mark.parametrize("mode", ["offset", "antialias"])
def test_gradient_equals_torch(mode):
    offset, antialias = MODES[mode]
    table = stored(16)
    weights = np.random.default_rng(1).standard_normal((1, 1 + 7 * 9, 8))
    weights = weights.astype(np.float32)

    def loss(p):
        out = pos_embed.interpolate_pos_embed(
            p, 7, 9, offset=offset, antialias=antialias
        )
        return jnp.sum(out * weights)

    ours = jax.grad(loss)(jnp.asarray(table))
    theirs = torch.from_numpy(table).requires_grad_()
    out = with_torch(theirs, 7, 9, offset, antialias)
    (out * torch.from_numpy(weights)).sum().backward()
    theirs = theirs.grad.numpy()
    assert np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) <= 1e-5
    if mode == "antialias":  # every stored patch takes part
        assert np.all(np.any(ours[0] != 0, axis=-1))


@pytest.mark.parametrize("mode", MODES)
def test_stored_grid_is_untouched(mode):
    offset, antialias = MODES[mode]
    table = jnp.asarray(stored(16))
    out = pos_embed.interpolate_pos_embed(
        table, 16, 16, offset=offset, antialias=antialias
    )
    assert np.array_equal(out, table)


def test_the_modes_differ_and_only_antialias_is_jax_image_resize():
    table = jnp.asarray(stored(37))
    outputs = {
        mode: pos_embed.interpolate_pos_embed(
            table, 16, 16, offset=offset, antialias=antialias
        )
        for mode, (offset, antialias) in MODES.items()
    }
    grid = table[0, 1:].reshape(37, 37, -1)
    resized = jax.image.resize(grid, (16, 16, 8), "bicubic").reshape(256, 8)

    def error(mode):
        return np.linalg.norm(outputs[mode][0, 1:] - resized) / np.linalg.norm(resized)

    assert error("antialias") < 1e-5
    assert error("offset") > 0.1 and error("size") > 0.1
    assert np.abs(outputs["offset"] - outputs["size"]).max() > 1e-2


def test_low_precision_is_interpolated_in_float32():
    table = jnp.asarray(stored(16)).astype(jnp.bfloat16)
    out = pos_embed.interpolate_pos_embed(table, 7, 7, offset=0.1, antialias=False)
    exact = pos_embed.interpolate_pos_embed(
        table.astype(jnp.float32), 7, 7, offset=0.1, antialias=False
    )
    assert out.dtype == jnp.bfloat16
    assert np.array_equal(out, exact.astype(jnp.bfloat16))


@pytest.mark.parametrize("offset, antialias", MODES.values())
def test_rows_sum_to_one(offset, antialias):
    for n_in, n_out in ((16, 7), (7, 16), (37, 5), (3, 3)):
        matrix = pos_embed.resize_matrix(
            n_in, n_out, offset=offset, antialias=antialias
        )
        assert matrix.shape == (n_out, n_in)
        np.testing.assert_allclose(matrix.sum(axis=1), 1.0, rtol=1e-12)

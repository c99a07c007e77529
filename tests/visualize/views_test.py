"""Views against the output of the whole model."""

import dataclasses

import jax
import numpy as np
import pytest
import random_weights
import vits
from PIL import Image

import dinov2_jax
from dinov2_jax import errors
from dinov2_jax.data import preprocessing
from dinov2_jax.visualize import views
from dinov2_jax.weights import torch_writer


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """128 wide, 2 blocks, 2 heads, 4 registers, patches of 14 px."""
    path = tmp_path_factory.mktemp("views") / "tiny.pth"
    shapes = random_weights.small_shapes("vits14_reg4")
    torch_writer.write(path, random_weights.tensors(shapes))
    return dinov2_jax.load(path, num_heads=2)


@pytest.fixture(scope="module")
def photograph():
    return np.random.default_rng(0).integers(0, 256, (40, 100, 3), np.uint8)


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (451, 300, (518, 350)),  # 344.6 is nearer to 25 patches than to 24
        (300, 451, (350, 518)),
        (10, 10, (518, 518)),
        (4000, 3000, (518, 392)),
        (2000, 10, (518, 14)),  # at least one patch
    ],
)
def test_sizes_keep_the_shape(width, height, expected):
    assert preprocessing.size_in_patches(width, height, 518, 14) == expected


@pytest.mark.parametrize("patch_size", [12, 14, 16])
def test_sizes_are_the_nearest_multiples(patch_size):
    rng = np.random.default_rng(1)
    for width, height, size in rng.integers(patch_size, 900, (300, 3)):
        found = preprocessing.size_in_patches(width, height, size, patch_size)
        assert all(n % patch_size == 0 and n >= patch_size for n in found)
        longer = max(found)
        assert abs(longer - size) <= patch_size / 2
        ideal = np.array([width, height]) * longer / max(width, height)
        off = np.abs(np.array(found) - ideal)
        assert (off <= np.maximum(patch_size / 2, patch_size - ideal) + 1e-9).all()


@pytest.mark.parametrize("block", [-1, 0])
def test_tokens_are_split_correctly(model, photograph, block):
    view = views.make_view(model, photograph, "x", size=70, block=block)
    resized = np.asarray(
        Image.fromarray(photograph).resize((70, 28), Image.Resampling.BICUBIC)
    )
    np.testing.assert_array_equal(view.pixels, resized)
    assert view.grid == (2, 5)
    whole = model.module.apply(
        {"params": model.params},
        model.preprocessing.normalize(resized)[None],
        layers=[0, 1],
        attention=[0, 1],
    )
    number = block % 2
    tokens = np.asarray(whole.layers[number].prenorm[0])
    np.testing.assert_allclose(
        view.norms, np.sqrt((tokens.astype(np.float64) ** 2).sum(-1)), rtol=1e-5
    )
    np.testing.assert_allclose(
        view.attention, whole.attention[number][0, :, :5], atol=1e-6
    )
    np.testing.assert_allclose(view.attention.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(view.patches, whole.layers[number].patches[0], atol=1e-4)
    if block == -1:
        np.testing.assert_allclose(view.patches, whole.patches[0], atol=1e-4)


def test_registers_do_not_leak_into_the_grid(model, photograph):
    """In the first block's map only columns 1 to 4 belong to the registers."""
    usual = views.make_view(model, photograph, "x", size=70, block=0)
    params = dict(model.params)
    params["register_tokens"] = -params["register_tokens"]
    changed = dataclasses.replace(model, params=params)
    other = views.make_view(changed, photograph, "x", size=70, block=0)
    # Attention to patches relative to each other knows nothing of the registers.
    share = usual.attention[:, 0, 5:] / usual.attention[:, 0, 5:].sum(-1, keepdims=True)
    again = other.attention[:, 0, 5:] / other.attention[:, 0, 5:].sum(-1, keepdims=True)
    np.testing.assert_allclose(again, share, atol=1e-5)
    assert np.abs(other.attention[:, 0, 1:5] - usual.attention[:, 0, 1:5]).max() > 1e-3


def test_attention_only_if_requested(model, photograph):
    assert (
        views.make_view(model, photograph, "x", size=28, attention=False).attention
        is None
    )


def test_refusals(model, photograph):
    with pytest.raises(
        errors.UserError, match="--size=13 is smaller than one patch.*14 px"
    ):
        views.make_view(model, photograph, "x", size=13)
    for block in (2, -3):
        with pytest.raises(errors.UserError, match=f"no block {block}: .* 0 to 1"):
            views.make_view(model, photograph, "x", size=28, block=block)
    shape = jax.eval_shape(lambda: model.params)
    other = dataclasses.replace(
        model, module=vits.changed(model.module, in_chans=4), params=shape
    )
    with pytest.raises(errors.UserError, match="4 channels"):
        views.make_view(other, photograph, "x", size=28)

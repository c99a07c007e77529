"""The reference's names and layouts, judged by torch modules that load them."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import vits
from peers import torch

from dinov2_jax.models import dino_head, patch_embed
from dinov2_jax.weights import state_dict

RELEASED = pathlib.Path(__file__).parents[1] / "reference" / "state_dicts"


def random_state_dict(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}


def small(name, dim=384, to=6):
    """A released key -> shape list with every width divided by 64."""
    shapes = json.loads((RELEASED / f"dinov2_{name}.json").read_text())
    scale = dim // to

    def shrink(n):
        return n // scale if n >= dim and n % scale == 0 else n

    shapes["pos_embed"] = [1, 10, dim]
    return {k: tuple(shrink(n) for n in s) for k, s in shapes.items()}


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].shape == b[key].shape and a[key].dtype == b[key].dtype, key
        assert np.array_equal(a[key], b[key]), key


@pytest.mark.parametrize("name", ["vits14", "vits14_reg4"])
def test_there_and_back(name):
    weights = random_state_dict(small(name))
    params = state_dict.params_from_state_dict(weights)
    same(state_dict.state_dict_from_params(params, patch_size=14), weights)
    model = vits.make(
        embed_dim=6,
        depth=12,
        num_heads=2,
        image_size=42,
        num_register_tokens=4 if "reg4" in name else 0,
    )
    image = jnp.zeros((1, 42, 42, 3))
    expected = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), (params, dict(expected)))
    assert shapes[0] == shapes[1]


def test_blocks_are_stacked_in_the_order_of_their_numbers():
    weights = {f"blocks.{i}.ls1.gamma": np.float32([i]) for i in range(12)}
    shuffled = {k: weights[k] for k in sorted(weights)}  # 0, 1, 10, 11, 2, ...
    params = state_dict.params_from_state_dict(shuffled)
    assert params["blocks"]["ls1"]["gamma"].ravel().tolist() == list(range(12))


@pytest.mark.parametrize("chunks", [1, 4])
def test_chunks_of_blocks_do_not_matter(chunks):
    weights = random_state_dict(small("vits14"))

    def chunked(key):
        parts = key.split(".")
        if parts[0] == "blocks":
            parts.insert(1, str(int(parts[1]) // (12 // chunks)))
        return ".".join(parts)

    renamed = {chunked(key): value for key, value in weights.items()}
    assert f"blocks.{chunks - 1}.11.norm1.weight" in renamed
    same({state_dict.unchunked(k): v for k, v in renamed.items()}, weights)
    plain, other = (state_dict.params_from_state_dict(w) for w in (weights, renamed))
    jax.tree.map(np.testing.assert_array_equal, plain, other)


def test_a_missing_block_is_an_error():
    weights = {f"blocks.{i}.ls1.gamma": np.float32([i]) for i in (0, 2)}
    with pytest.raises((KeyError, ValueError)):
        state_dict.params_from_state_dict(weights)


@pytest.mark.parametrize("chans", [1, 3, 4])
def test_patch_embedding_is_torch_convolution(chans):
    patch, dim = 7, 5
    conv = torch.nn.Conv2d(chans, dim, kernel_size=patch, stride=patch)
    weights = {
        f"patch_embed.proj.{k}": v.detach().numpy()
        for k, v in conv.state_dict().items()
    }
    params = state_dict.params_from_state_dict(weights)["patch_embed"]
    images = np.random.default_rng(0).standard_normal((2, 14, 21, chans))
    images = images.astype(np.float32)
    module = patch_embed.PatchEmbed(patch, dim, jnp.float32)
    ours = module.apply({"params": params}, images)
    theirs = conv(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    theirs = theirs.flatten(2).transpose(1, 2).detach().numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_the_layouts_of_linear_layers_and_norms():
    rng = np.random.default_rng(0)
    linear, norm = torch.nn.Linear(3, 5), torch.nn.LayerNorm(3)
    with torch.no_grad():
        norm.weight.copy_(torch.from_numpy(rng.standard_normal(3)))
    modules = {"blocks.0.mlp.fc1": linear, "blocks.0.norm2": norm, "norm": norm}
    weights = {
        f"{name}.{k}": v.detach().numpy()
        for name, module in modules.items()
        for k, v in module.state_dict().items()
    }
    params = state_dict.params_from_state_dict(weights)
    x = rng.standard_normal((4, 3)).astype(np.float32)
    dense = params["blocks"]["mlp"]["fc1"]
    ours = x @ dense["kernel"][0] + dense["bias"][0]
    np.testing.assert_allclose(
        ours, linear(torch.from_numpy(x)).detach().numpy(), atol=1e-6
    )
    assert set(params["norm"]) == {"scale", "bias"}
    assert params["blocks"]["norm2"]["scale"].shape == (1, 3)
    assert np.array_equal(params["norm"]["scale"], norm.weight.detach().numpy())


@pytest.mark.parametrize("num_layers", [1, 3])
def test_heads(num_layers):
    head = dino_head.DINOHead(11, hidden_dim=7, bottleneck_dim=5, num_layers=num_layers)
    shapes = jax.eval_shape(head.init, jax.random.key(0), jnp.zeros((1, 3)))["params"]
    linears = {
        1: [("mlp", 5, 3)],
        3: [("mlp.0", 7, 3), ("mlp.2", 7, 7), ("mlp.4", 5, 7)],
    }
    names = {f"{n}.weight": (out, d) for n, out, d in linears[num_layers]}
    names |= {f"{n}.bias": (out,) for n, out, _ in linears[num_layers]}
    names |= {"last_layer.weight_g": (11, 1), "last_layer.weight_v": (11, 5)}
    weights = random_state_dict(names)
    params = state_dict.params_from_state_dict(weights)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda x: x.shape, shapes)
    same(state_dict.state_dict_from_params(params), weights)

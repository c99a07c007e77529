"""Layers against torch modules that carry the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peers import torch

from dinov2_jax.models import layers, model_config


def random_like(tree, seed=0, scale=0.5):
    leaves, treedef = jax.tree.flatten(tree)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(
        treedef,
        [scale * rng.standard_normal(x.shape).astype(np.float32) for x in leaves],
    )


def inputs(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def linear(params):
    """A torch Linear with our kernel and bias."""
    d_in, d_out = params["kernel"].shape
    module = torch.nn.Linear(d_in, d_out, bias="bias" in params)
    with torch.no_grad():
        module.weight.copy_(torch.tensor(params["kernel"].T))
        if "bias" in params:
            module.bias.copy_(torch.tensor(params["bias"]))
    return module


def norm(params):
    module = torch.nn.LayerNorm(len(params["scale"]), eps=1e-6)
    with torch.no_grad():
        module.weight.copy_(torch.tensor(params["scale"]))
        module.bias.copy_(torch.tensor(params["bias"]))
    return module


def config(width, **options):
    return model_config.ModelConfig(embed_dim=width, depth=1, num_heads=2, **options)


def weights_of(module, *args):
    shapes = jax.eval_shape(lambda k: module.init(k, *args), jax.random.key(0))
    return random_like(shapes)["params"]


def torch_mlp(params, x):
    x = torch.nn.functional.gelu(linear(params["fc1"])(x))  # exact, by erf
    return linear(params["fc2"])(x)


def torch_swiglu(params, x):
    gate, value = linear(params["w12"])(x).chunk(2, dim=-1)
    return linear(params["w3"])(torch.nn.functional.silu(gate) * value)


@pytest.mark.parametrize("use_bias", [True, False])
def test_mlp(use_bias):
    module = layers.Mlp(config(8, ffn_ratio=2.5, ffn_bias=use_bias))
    x = inputs(3, 4, 8)
    params = weights_of(module, x)
    ours = module.apply({"params": params}, x)
    theirs = torch_mlp(params, torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_gelu_is_not_the_tanh_approximation():
    module = layers.Mlp(config(1, ffn_ratio=1.0, ffn_bias=False))
    one = {"fc1": {"kernel": np.ones((1, 1))}, "fc2": {"kernel": np.ones((1, 1))}}
    x = np.linspace(-4, 4, 81, dtype=np.float32)[:, None]
    ours = module.apply({"params": one}, x)
    theirs = {
        kind: torch.nn.functional.gelu(torch.from_numpy(x), approximate=kind).numpy()
        for kind in ("none", "tanh")
    }
    assert np.abs(ours - theirs["none"]).max() < 1e-6
    assert np.abs(ours - theirs["tanh"]).max() > 1e-4


@pytest.mark.parametrize("use_bias", [True, False])
def test_swiglu(use_bias):
    module = layers.SwiGLU(config(8, ffn_ratio=3.0, ffn_bias=use_bias))
    x = inputs(3, 4, 8)
    params = weights_of(module, x)
    assert params["w12"]["kernel"].shape == (8, 32)
    ours = module.apply({"params": params}, x)
    theirs = torch_swiglu(params, torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


@pytest.mark.parametrize(
    "dim, hidden", [(384, 1024), (768, 2048), (1024, 2736), (1536, 4096)]
)
def test_swiglu_hidden_sizes(dim, hidden):
    module = layers.SwiGLU(config(dim))
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, dim)))
    assert shapes["params"]["w12"]["kernel"].shape == (dim, 2 * hidden)
    assert shapes["params"]["w3"]["kernel"].shape == (hidden, dim)


def test_layer_norm_has_the_reference_epsilon():
    module = layers.LayerNorm(jnp.float32)
    x = 1e-3 * inputs(5, 16)  # variance 1e-6: the epsilon halves the result
    params = weights_of(module, x)
    ours = module.apply({"params": params}, x)
    theirs = norm(params)(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    for eps in (1e-5, 1e-12):
        other = torch.nn.functional.layer_norm(
            torch.from_numpy(x),
            (16,),
            torch.tensor(params["scale"]),
            torch.tensor(params["bias"]),
            eps,
        ).numpy()
        assert np.abs(ours - other).max() > 0.05


def test_layer_norm_far_from_zero():
    # E[x^2] - E[x]^2 would leave nothing of a variance of 1 around 3000.
    module = layers.LayerNorm(jnp.float32)
    x = inputs(5, 64) + 3000
    params = weights_of(module, x)
    exact = np.asarray(x, np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / exact.std(-1, keepdims=True)
    exact = exact * params["scale"] + params["bias"]
    np.testing.assert_allclose(module.apply({"params": params}, x), exact, atol=2e-3)


@pytest.mark.parametrize("ffn_layer", ["mlp", "swiglufused"])
@pytest.mark.parametrize("layerscale", [0.0, 1e-5])
def test_block(ffn_layer, layerscale):
    heads, dim, sequences = 2, 12, ((2, 5), (3, 2))
    block = layers.Block(config(dim, ffn_layer=ffn_layer, layerscale=layerscale))
    x = inputs(1, 16, dim)
    shapes = jax.eval_shape(lambda k: block.init(k, x, sequences), jax.random.key(0))
    params = random_like(shapes["params"])
    assert ("ls1" in params) == ("ls2" in params) == bool(layerscale)
    ours = block.apply({"params": params}, x, sequences)

    def scaled(name, y):
        return y * torch.tensor(params[name]["gamma"]) if name in params else y

    def attention(y):  # one sequence [N, D]
        qkv = linear(params["attn"]["qkv"])(y).reshape(len(y), 3, heads, -1)
        q, k, v = qkv.permute(1, 2, 0, 3)
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return linear(params["attn"]["proj"])(y.transpose(0, 1).reshape(-1, dim))

    ffn = {"mlp": torch_mlp, "swiglufused": torch_swiglu}[ffn_layer]
    start, outputs = 0, []
    for count, length in sequences:
        for _ in range(count):
            y = torch.from_numpy(x[0, start : start + length])
            y = y + scaled("ls1", attention(norm(params["norm1"])(y)))
            y = y + scaled("ls2", ffn(params["mlp"], norm(params["norm2"])(y)))
            outputs.append(y.detach().numpy())
            start += length
    np.testing.assert_allclose(ours[0], np.concatenate(outputs), atol=2e-5)


def test_block_without_biases():
    no_bias = dict(qkv_bias=False, proj_bias=False, ffn_bias=False)
    block = layers.Block(config(8, ffn_ratio=3.0, **no_bias))
    shapes = jax.eval_shape(
        lambda k: block.init(k, jnp.zeros((1, 4, 8)), ((1, 4),)), jax.random.key(0)
    )["params"]
    for name in ("qkv", "proj"):
        assert set(shapes["attn"][name]) == {"kernel"}
    for name in ("fc1", "fc2"):
        assert set(shapes["mlp"][name]) == {"kernel"}
    assert shapes["mlp"]["fc1"]["kernel"].shape == (8, 24)


def test_layer_scale_starts_at_its_value():
    params = layers.LayerScale(1e-5).init(jax.random.key(0), jnp.ones((2, 3)))
    np.testing.assert_array_equal(params["params"]["gamma"], np.float32([1e-5] * 3))

"""The head against torch's Linear, GELU, normalize and weight_norm."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peers import torch

from dinov2_jax.models import dino_head
from dinov2_jax.weights import state_dict

DIM, HIDDEN, BOTTLENECK, PROTOTYPES = 12, 20, 8, 30


def make(num_layers=3, **changes):
    settings = dict(hidden_dim=HIDDEN, bottleneck_dim=BOTTLENECK)
    return dino_head.DINOHead(PROTOTYPES, num_layers=num_layers, **settings | changes)


def random_params(head, seed=0):
    shapes = jax.eval_shape(head.init, jax.random.key(0), jnp.zeros((1, DIM)))
    leaves, treedef = jax.tree.flatten(shapes["params"])
    rng = np.random.default_rng(seed)
    leaves = [rng.standard_normal(x.shape).astype(np.float32) for x in leaves]
    return jax.tree.unflatten(treedef, leaves)


class TorchHead(torch.nn.Module):
    """The reference's head, written from its facts."""

    def __init__(self, num_layers):
        super().__init__()
        sizes = [DIM] + [HIDDEN] * (num_layers - 1) + [BOTTLENECK]
        linears = [torch.nn.Linear(a, b) for a, b in zip(sizes, sizes[1:])]
        if num_layers == 1:
            self.mlp = linears[0]
        else:
            layers = [linears[0]]
            for linear in linears[1:]:
                layers += [torch.nn.GELU(), linear]
            self.mlp = torch.nn.Sequential(*layers)
        last = torch.nn.Linear(BOTTLENECK, PROTOTYPES, bias=False)
        self.last_layer = torch.nn.utils.parametrizations.weight_norm(last)

    def forward(self, x):
        x = torch.nn.functional.normalize(self.mlp(x), dim=-1, p=2, eps=1e-12)
        return self.last_layer(x)

    def load(self, params):
        weights = state_dict.state_dict_from_params(params)
        # torch now calls weight_g and weight_v so.
        for ours, theirs in (("weight_g", "original0"), ("weight_v", "original1")):
            name = f"last_layer.parametrizations.weight.{theirs}"
            weights[name] = weights.pop(f"last_layer.{ours}")
        self.load_state_dict({k: torch.tensor(v) for k, v in weights.items()})

    def gradients(self):
        grads = {name: p.grad.numpy() for name, p in self.named_parameters()}
        return {
            name.replace("parametrizations.weight.original0", "weight_g").replace(
                "parametrizations.weight.original1", "weight_v"
            ): grad
            for name, grad in grads.items()
        }


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_logits_and_gradients_equal_torch(num_layers):
    head, theirs = make(num_layers), TorchHead(num_layers)
    params = random_params(head)
    theirs.load(params)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 5, DIM)).astype(np.float32)
    direction = rng.standard_normal((2, 5, PROTOTYPES)).astype(np.float32)

    def loss(params, x):
        logits = head.apply({"params": params}, x)
        return jnp.sum(logits * direction), logits

    grads, logits = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x)
    torch_x = torch.from_numpy(x).requires_grad_()
    torch_logits = theirs(torch_x)
    (torch_logits * torch.from_numpy(direction)).sum().backward()

    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, torch_logits.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(grads[1], torch_x.grad.numpy(), atol=2e-5)
    ours = state_dict.state_dict_from_params(grads[0])
    expected = theirs.gradients()
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        np.testing.assert_allclose(ours[name], gradient, atol=2e-5, err_msg=name)
    assert np.abs(ours["last_layer.weight_g"]).min() > 0  # g is trained


def test_scale_of_the_prototypes_is_g_alone():
    head = make()
    params = random_params(head)
    x = np.random.default_rng(1).standard_normal((4, DIM)).astype(np.float32)
    before = head.apply({"params": params}, x)
    params["last_layer"]["weight_v"] = 7 * params["last_layer"]["weight_v"]
    np.testing.assert_allclose(head.apply({"params": params}, x), before, atol=1e-5)
    params["last_layer"]["weight_g"] = 2 * params["last_layer"]["weight_g"]
    np.testing.assert_allclose(head.apply({"params": params}, x), 2 * before, atol=1e-5)


def test_a_zero_row_has_finite_logits_and_gradients():
    head = make()
    params = jax.jit(head.init)(jax.random.key(0), jnp.zeros((1, DIM)))["params"]
    x = np.zeros((3, DIM), np.float32)
    x[1] = 1.0

    def loss(params, x):
        return jnp.sum(head.apply({"params": params}, x) ** 2)

    logits = head.apply({"params": params}, x)
    assert not np.any(logits[0]) and np.any(logits[1])
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, x)
    for gradient in jax.tree.leaves(gradients):
        assert np.all(np.isfinite(gradient))


def test_initialisation():
    head = make(hidden_dim=128, bottleneck_dim=64)
    params = jax.jit(head.init)(jax.random.key(0), jnp.zeros((1, DIM)))["params"]
    for layer in params["mlp"].values():
        assert abs(float(layer["kernel"].std()) / 0.02 - 1) < 0.1
        assert not np.any(layer["bias"])
    assert np.all(params["last_layer"]["weight_g"] == 1)
    v = np.asarray(params["last_layer"]["weight_v"])
    assert v.shape == (PROTOTYPES, 64)
    assert 0.95 / 8 < np.abs(v).max() <= 1 / 8  # uniform in +-1/sqrt(64)
    assert abs(v.std() / (1 / 8 / np.sqrt(3)) - 1) < 0.1


def test_matmuls_in_bfloat16_return_float32():
    head, exact = make(dtype=jnp.bfloat16), make()
    params = random_params(exact)
    x = np.random.default_rng(1).standard_normal((4, DIM)).astype(np.float32)
    logits = head.apply({"params": params}, x)
    assert logits.dtype == jnp.float32
    full = exact.apply({"params": params}, x)
    error = np.linalg.norm(logits - full) / np.linalg.norm(full)
    assert 1e-5 < error < 0.03


def test_without_prototypes_it_ends_at_the_bottleneck():
    whole, head = make(), dino_head.DINOHead(0, HIDDEN, BOTTLENECK)
    params = random_params(whole)
    shapes = jax.eval_shape(head.init, jax.random.key(0), jnp.zeros((1, DIM)))
    assert set(shapes["params"]) == {"mlp"}
    x = np.random.default_rng(1).standard_normal((4, DIM)).astype(np.float32)
    found = head.apply({"params": {"mlp": params["mlp"]}}, x)
    expected = whole.apply({"params": params}, x, method="bottleneck")
    np.testing.assert_array_equal(found, expected)


def test_made_from_a_config_section():
    section = types.SimpleNamespace(
        head_n_prototypes=131_072,
        head_hidden_dim=2048,
        head_bottleneck_dim=384,
        head_nlayers=3,
    )
    assert not dino_head.make_dino_head(
        section, jnp.bfloat16, prototypes=False
    ).num_prototypes
    head = dino_head.make_dino_head(section, jnp.bfloat16)
    shapes = jax.eval_shape(head.init, jax.random.key(0), jnp.zeros((1, 1536)))
    zeros = jax.tree.map(
        lambda x: np.broadcast_to(np.float32(0), x.shape), shapes["params"]
    )
    names = state_dict.state_dict_from_params(zeros)
    assert {k: v.shape for k, v in names.items()} == {
        "mlp.0.weight": (2048, 1536),
        "mlp.0.bias": (2048,),
        "mlp.2.weight": (2048, 2048),
        "mlp.2.bias": (2048,),
        "mlp.4.weight": (384, 2048),
        "mlp.4.bias": (384,),
        "last_layer.weight_g": (131_072, 1),
        "last_layer.weight_v": (131_072, 384),
    }

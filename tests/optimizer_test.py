"""The optimizer against torch's AdamW and clipping, and its multipliers by name."""

import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import vits
from peers import torch

from configs import default
from dinov2_jax import optimizer
from dinov2_jax.weights import state_dict

STATE_DICTS = pathlib.Path(__file__).parent / "reference" / "state_dicts"
DEPTH = 3
SHAPES = {
    "backbone": {
        "cls_token": (1, 1, 4),
        "pos_embed": (1, 5, 4),
        "mask_token": (1, 4),
        "register_tokens": (1, 2, 4),
        "patch_embed": {"proj": {"kernel": (6, 4), "bias": (4,)}},
        "blocks": {
            "norm1": {"scale": (DEPTH, 4), "bias": (DEPTH, 4)},
            "attn": {"qkv": {"kernel": (DEPTH, 4, 12), "bias": (DEPTH, 12)}},
            "ls1": {"gamma": (DEPTH, 4)},
        },
        "norm": {"scale": (4,), "bias": (4,)},
    },
    "dino_head": {
        "mlp": {"0": {"kernel": (4, 3), "bias": (3,)}},
        "last_layer": {"weight_g": (7, 1), "weight_v": (7, 3)},
    },
    "ibot_head": {"last_layer": {"weight_g": (6, 1), "weight_v": (6, 3)}},
}


def random_tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: scale * rng.standard_normal(shape).astype(np.float32),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def expected_multipliers(name, depth, decay, patch_mult):
    """The reference's rules, on its own parameter names: lr, weight decay, last."""
    lr = 1.0
    if name.startswith("backbone."):
        layer = depth + 1
        if re.search(
            r"cls_token|pos_embed|mask_token|register_tokens|patch_embed", name
        ):
            layer = 0
        elif match := re.search(r"blocks\.(\d+)\.", name):
            layer = int(match[1]) + 1
        lr = decay ** (depth + 1 - layer)
    if "patch_embed" in name:
        lr *= patch_mult
    decayed = not (name.endswith(".bias") or "norm" in name or "gamma" in name)
    return lr, float(decayed), "last_layer" in name


def flat(tree, patch_size=1):
    """Reference names, blocks unstacked."""
    return {
        f"{module}.{key}": value
        for module, params in tree.items()
        for key, value in state_dict.state_dict_from_params(
            params, patch_size=patch_size
        ).items()
    }


def make(params, **changes):
    c = default.get_config()
    c.optim.update(layerwise_decay=0.8, patch_embed_lr_mult=0.3, **changes)
    return optimizer.make_optimizer(c, params)


SCALARS = [  # lr, last_layer_lr, backbone_lr, weight_decay of every step
    (1e-2, 0.0, 1e-2, 0.04),
    (2e-2, 0.0, 0.0, 0.1),
    (3e-2, 3e-2, 0.0, 0.2),
    (2e-2, 2e-2, 2e-2, 0.3),
    (5e-3, 5e-3, 5e-3, 0.4),
]


def run(clip_grad, gradient_scale):
    params = random_tree(0)
    tx = make(params, clip_grad=clip_grad)
    opt_state, history = tx.init(params), []
    update = jax.jit(tx.update)
    for step, values in enumerate(SCALARS):
        names = ("lr", "last_layer_lr", "backbone_lr", "weight_decay")
        scalars = dict(zip(names, values))
        grads = random_tree(step + 1, gradient_scale)
        updates, opt_state = update(
            grads,
            opt_state,
            params,
            scalars=scalars,
            norms=optimizer.submodule_norms(grads),
        )
        params = optax.apply_updates(params, updates)
        history.append(flat(params))
    return history


def run_torch(clip_grad, gradient_scale):
    params = {
        name: torch.nn.Parameter(torch.tensor(np.array(value)))
        for name, value in flat(random_tree(0)).items()
    }
    rules = {n: expected_multipliers(n, DEPTH, 0.8, 0.3) for n in params}
    groups = [{"params": [p], "name": name} for name, p in params.items()]
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8)
    history = []
    for step, (lr, last_layer_lr, backbone_lr, weight_decay) in enumerate(SCALARS):
        for name, grad in flat(random_tree(step + 1, gradient_scale)).items():
            params[name].grad = torch.tensor(np.array(grad))
        if clip_grad:
            for module in SHAPES:
                own = [p for n, p in params.items() if n.startswith(module + ".")]
                torch.nn.utils.clip_grad_norm_(own, clip_grad)
        for group in adam.param_groups:
            lr_multiplier, wd_multiplier, is_last = rules[group["name"]]
            rate = backbone_lr if group["name"].startswith("backbone.") else lr
            group["lr"] = (last_layer_lr if is_last else rate) * lr_multiplier
            group["weight_decay"] = weight_decay * wd_multiplier
        adam.step()
        history.append({n: p.detach().numpy().copy() for n, p in params.items()})
    return history


@pytest.mark.parametrize("clip_grad, gradient_scale", [(0.5, 1.0), (3.0, 0.01), (0, 5)])
def test_five_steps_equal_torch(clip_grad, gradient_scale):
    ours, theirs = run(clip_grad, gradient_scale), run_torch(clip_grad, gradient_scale)
    for step, (mine, other) in enumerate(zip(ours, theirs)):
        assert mine.keys() == other.keys()
        for name in other:
            np.testing.assert_allclose(
                mine[name],
                other[name],
                rtol=1e-5,
                atol=2e-6,
                err_msg=f"{name} after step {step}",
            )


@pytest.mark.parametrize(
    "rate, part", [("last_layer_lr", "last_layer"), ("backbone_lr", "backbone.")]
)
def test_frozen_parameters_still_update_their_moments(rate, part):
    params, grads, start = random_tree(0), random_tree(1), flat(random_tree(0))
    tx = make(params)
    update = jax.jit(tx.update)
    states = []
    for frozen in (True, False):
        scalars = dict(lr=1.0, backbone_lr=1.0, last_layer_lr=1.0, weight_decay=0.1)
        if frozen:
            scalars[rate] = 0.0
        updates, state = update(
            grads,
            tx.init(params),
            params,
            scalars=scalars,
            norms=optimizer.submodule_norms(grads),
        )
        moved_params = optax.apply_updates(params, updates)
        states.append(state)
        for name, value in flat(moved_params).items():
            moved = np.any(value != start[name])
            assert moved == (not (frozen and part in name)), name
    # The moments are those of a run that was never frozen.
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert all(np.any(x != 0) for x in jax.tree.leaves(states[0]))


@pytest.mark.parametrize("scale", [1e-7, 1e-6, 1.0])
def test_clip_factor_has_the_1e_6(scale):
    grads = {"backbone": {"a": np.float32([3, 0])}, "dino_head": {"b": np.float32([4])}}
    grads = jax.tree.map(lambda g: g * np.float32(scale), grads)
    max_norm = scale
    factors = optimizer.clip_factors(optimizer.submodule_norms(grads), max_norm)
    for module, norm in (("backbone", 3 * scale), ("dino_head", 4 * scale)):
        # Each submodule by its own norm.
        np.testing.assert_allclose(factors[module], max_norm / (norm + 1e-6), 1e-5)


def test_small_gradients_are_not_scaled_up():
    norms = {"backbone": jnp.float32(0.5), "dino_head": jnp.float32(0.0)}
    assert optimizer.clip_factors(norms, 3.0) == {"backbone": 1.0, "dino_head": 1.0}
    assert optimizer.clip_factors(norms, 0.0) == {"backbone": 1.0, "dino_head": 1.0}


def test_norms_of_submodules():
    grads = random_tree(1)
    norms = optimizer.submodule_norms(grads)
    assert norms.keys() == grads.keys()
    for module, norm in norms.items():
        values = [x.ravel() for x in jax.tree.leaves(grads[module])]
        expected = np.linalg.norm(np.concatenate(values).astype(np.float64))
        assert float(norm) == pytest.approx(expected, rel=1e-6)


def spread(params, patch_size=1, **settings):
    """The multipliers of every parameter under the reference's names."""
    groups = optimizer.param_groups(params, **settings)
    is_group = lambda x: isinstance(x, optimizer.ParamGroup)  # noqa: E731

    def fill(field):
        def one(group, p):
            value = np.asarray(getattr(group, field), np.float64)
            value = value.reshape(value.shape + (1,) * (len(p.shape) - value.ndim))
            return np.broadcast_to(value, p.shape)

        tree = jax.tree.map(one, groups, params, is_leaf=is_group)
        return flat(tree, patch_size)

    return [fill(f) for f in ("lr_multiplier", "wd_multiplier", "is_last_layer")]


def test_multipliers_of_vit_large_by_released_names():
    # 24 blocks; names and multipliers do not depend on the width.
    model = vits.make(embed_dim=8, depth=24, num_heads=2)
    image = jnp.zeros((1, 224, 224, 3))
    backbone = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    lr, wd, last = spread(
        {"backbone": backbone}, 14, layerwise_decay=0.9, patch_embed_lr_mult=0.2
    )
    names = json.loads((STATE_DICTS / "dinov2_vitl14.json").read_text())
    assert lr.keys() == {f"backbone.{name}" for name in names}
    for name in lr:
        expected = expected_multipliers(name, 24, 0.9, 0.2)
        for ours, value in zip((lr, wd, last), expected):
            np.testing.assert_allclose(ours[name], value, rtol=1e-12, err_msg=name)

    def one(name):
        return float(lr[f"backbone.{name}"].flat[0])

    assert one("pos_embed") == pytest.approx(0.0718, abs=5e-5)  # 0.9 ** 25
    assert one("patch_embed.proj.weight") == pytest.approx(0.01436, abs=5e-6)
    assert one("blocks.0.ls1.gamma") == pytest.approx(0.9**24)
    assert one("blocks.23.ls1.gamma") == pytest.approx(0.9)
    assert one("norm.weight") == 1.0


def test_multipliers_of_tokens_and_heads():
    lr, wd, last = spread(random_tree(0), layerwise_decay=0.5, patch_embed_lr_mult=0.2)
    for name in ("cls_token", "pos_embed", "mask_token", "register_tokens"):
        assert np.all(lr[f"backbone.{name}"] == 0.5**4)
        assert np.all(wd[f"backbone.{name}"] == 1)  # tokens are decayed
    for head in ("dino_head", "ibot_head"):
        for name in ("weight_g", "weight_v"):
            key = f"{head}.last_layer.{name}"
            assert np.all(lr[key] == 1) and np.all(wd[key] == 1) and np.all(last[key])
    assert np.all(wd["dino_head.mlp.0.bias"] == 0) and not np.any(
        last["dino_head.mlp.0.weight"]
    )
    assert np.all(wd["backbone.patch_embed.proj.bias"] == 0)


def test_only_a_part_learns():
    """The last two of three blocks have the rates they have among all."""
    params, settings = random_tree(0), dict(layerwise_decay=0.5, patch_embed_lr_mult=1)
    every, wd, _ = spread(params, **settings)
    last, last_wd, _ = spread(params, trainable="last", last_blocks=2, **settings)
    learning = re.compile(r"backbone\.(blocks\.[12]|norm)\.|(dino|ibot)_head\.")
    assert sum(learning.match(name) is not None for name in every) > 3
    for name in every:
        expected = every[name] * (learning.match(name) is not None)
        np.testing.assert_array_equal(last[name], expected, err_msg=name)
        np.testing.assert_array_equal(last_wd[name], wd[name])
    lora, _, _ = spread(params, trainable="lora", **settings)
    for name in every:
        np.testing.assert_array_equal(lora[name], every[name] * ("_head." in name))


def test_a_submodule_that_never_learns_has_no_moments():
    params = random_tree(0)
    params["lora"] = {"blocks": {"a": np.ones((3, 4, 2), np.float32)}}
    tx = make(params, trainable="lora")
    state = tx.init(params)
    assert state.mu.keys() == state.nu.keys() == params.keys() - {"backbone"}
    scalars = dict(lr=0.0, last_layer_lr=0.0, backbone_lr=0.1, weight_decay=0.1)
    updates, state = tx.update(
        params, state, params, scalars=scalars, norms=optimizer.submodule_norms(params)
    )
    after = optax.apply_updates(params, updates)
    assert state.mu.keys() == params.keys() - {"backbone"}
    for name, tree in after.items():
        same = [
            np.array_equal(*pair)
            for pair in zip(*map(jax.tree.leaves, (tree, params[name])))
        ]
        assert set(same) == {name != "lora"}, name  # which has the backbone's rate

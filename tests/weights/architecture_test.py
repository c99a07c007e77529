"""Architectures from recorded shapes, and the table of a mismatch."""

import math

import jax
import jax.numpy as jnp
import pytest
import random_weights

from dinov2_jax import errors
from dinov2_jax.models import model_config, vision_transformer
from dinov2_jax.weights import architecture, official, state_dict

CONFIG = model_config.ModelConfig(embed_dim=128, depth=2, num_heads=2, image_size=56)


def infer(shapes, **settings):
    return architecture.infer_backbone(shapes, "FILE", settings)


@pytest.mark.parametrize("name", official.NAMES)
def test_recorded_shapes_are_those_of_the_released_modules(name):
    file = name.replace("_reg", "_reg4")
    recorded = random_weights.shapes(file)
    config = official.config(name)
    assert list(architecture.backbone_shapes(config).items()) == list(recorded.items())
    assert infer(recorded) == config


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_register_tokens": 3},
        {"ffn_layer": "swiglufused"},
        {"ffn_layer": "swiglufused", "ffn_ratio": 3.0},
        {"ffn_ratio": 2.5},
        {"embed_dim": 88, "ffn_ratio": math.nextafter(120 / 88, 2)},
        {"embed_dim": 88, "ffn_ratio": 1.7, "ffn_layer": "swiglufused"},
        {"layerscale": 0.0},
        {"qkv_bias": False},
        {"proj_bias": False},
        {"ffn_bias": False, "ffn_layer": "swiglufused"},
        {"in_chans": 5, "patch_size": 8, "image_size": 64},
        {"depth": 12},
    ],
)
def test_any_module_is_inferred_from_its_own_parameters(fields):
    config = CONFIG.replace(**fields)
    params = params_of(config)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), dict(params))
    arrays = state_dict.state_dict_from_params(zeros, patch_size=config.patch_size)
    shapes = {key: array.shape for key, array in arrays.items()}
    assert architecture.backbone_shapes(config) == shapes
    assert params_of(infer(shapes, num_heads=2)) == params


def params_of(config):
    image = jnp.zeros((1, 16 * config.patch_size, config.patch_size, config.in_chans))
    module = vision_transformer.VisionTransformer(config)
    return jax.eval_shape(module.init, jax.random.key(0), image)["params"]


def test_settings_override_defaults():
    shapes = architecture.backbone_shapes(CONFIG)
    assert not infer(shapes, num_heads=4).interpolate_antialias
    found = infer(shapes, num_heads=4, interpolate_antialias=True)
    assert found.num_heads == 4 and found.interpolate_antialias


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({}, "not a DINOv2 backbone: it has no cls_token"),
        ({"fc.weight": (10, 5)}, "1 tensors such as fc.weight"),
        (
            architecture.backbone_shapes(CONFIG) | {"pos_embed": (1, 12, 128)},
            "not 1 + a square grid",
        ),
        (
            architecture.backbone_shapes(CONFIG) | {"pos_embed": (17, 128)},
            "expected [D, C, p, p]",
        ),
        (architecture.backbone_shapes(CONFIG), "pass num_heads"),
    ],
)
def test_invalid_backbone_or_unknown_heads_are_refused(shapes, words):
    with pytest.raises(errors.UserError) as caught:
        infer(shapes)
    assert words in str(caught.value) and "FILE" in str(caught.value)


def changed(**fields):
    return architecture.backbone_shapes(CONFIG.replace(**fields))


def without(name):
    shapes = architecture.backbone_shapes(CONFIG)
    del shapes[name]
    return shapes


@pytest.mark.parametrize(
    ("found", "cause", "row"),
    [
        (
            changed(num_register_tokens=4),
            "it has 4 register tokens, not 0: set num_register_tokens=4",
            "register_tokens none [1, 4, 128]",
        ),
        (
            changed(ffn_layer="swiglufused"),
            "its FFN is swiglufused, not mlp",
            "blocks.0.mlp.fc1.weight [512, 128] none",
        ),
        (
            changed(embed_dim=64),
            "its width is 64, not 128",
            "mask_token [1, 128] [1, 64]",
        ),
        (changed(depth=3), "it has 3 blocks, not 2", "blocks.2.ls1.gamma none [128]"),
        (
            changed() | {"norm.bias": (127,)},
            "unexpected shapes",
            "norm.bias [128] [127]",
        ),
        (changed(layerscale=0.0), "no LayerScale", "blocks.0.ls1.gamma [128] none"),
        (
            changed(patch_size=7, image_size=28),
            "patches of 7 px and 3 channels",
            "patch_embed.proj.weight [128, 3, 14, 14] [128, 3, 7, 7]",
        ),
        (
            changed(image_size=70),
            "a 5x5 grid, not 4x4: it was made for a different image size",
            "pos_embed [1, 17, 128] [1, 26, 128]",
        ),
        (without("norm.bias"), "1 tensors are missing", "norm.bias [128] none"),
        (
            changed() | {"head.weight": (10, 128)},
            "pass ignore=('head.',)",
            "head.weight none [10, 128]",
        ),
    ],
)
def test_a_mismatch_is_a_table_with_its_likely_cause(found, cause, row):
    expected = architecture.backbone_shapes(CONFIG)
    with pytest.raises(errors.UserError) as caught:
        architecture.check(found, expected, "FILE", "the config")
    first, head, *rows = str(caught.value).splitlines()
    assert first.startswith("FILE does not match the config: ") and cause in first
    assert head.split() == ["tensor", "expected", "found"]
    assert row in [" ".join(line.split()) for line in rows]
    assert len(rows) <= 13


@pytest.mark.parametrize("missing", ["gamma", "attn.qkv.bias", "mlp.fc1.bias"])
def test_a_released_size_has_every_tensor(missing):
    """A file without one kind of tensor is damaged, not another model."""
    recorded = random_weights.shapes("dinov2_vits14")
    damaged = {k: s for k, s in recorded.items() if not k.endswith(missing)}
    assert len(recorded) - len(damaged) >= 12
    module = infer(damaged)
    with pytest.raises(errors.UserError):
        architecture.check(damaged, architecture.backbone_shapes(module), "FILE")
    architecture.check(
        damaged, architecture.backbone_shapes(infer(damaged, num_heads=6)), "FILE"
    ) if missing != "mlp.fc1.bias" else None


def test_missing_blocks_are_not_a_smaller_model():
    recorded = random_weights.shapes("dinov2_vits14")
    for lost, words in ((11, "and 11 blocks"), (3, "has no blocks.3")):
        damaged = {k: s for k, s in recorded.items() if f"blocks.{lost}." not in k}
        with pytest.raises(errors.UserError, match=words):
            infer(damaged)
    far = recorded | {f"blocks.{10**9}.norm1.weight": (384,)}
    with pytest.raises(errors.UserError, match="has no blocks.12"):
        infer(far)


HEAD = {
    "mlp.0.weight": (64, 128),
    "mlp.0.bias": (64,),
    "mlp.2.weight": (16, 64),
    "mlp.2.bias": (16,),
    "last_layer.weight_g": (32, 1),
    "last_layer.weight_v": (32, 16),
}


def test_heads_are_checked():
    architecture.check_head(HEAD, "FILE", "dino_head", 128)
    single = {"mlp.weight": (16, 128), "mlp.bias": (16,)}
    last = {k: s for k, s in HEAD.items() if "last" in k}
    architecture.check_head(single | last, "FILE", "dino_head", 128)
    architecture.check_head(single, "FILE", "dino_head", 128)  # SimDINO's
    for damaged in (
        {k: s for k, s in HEAD.items() if k != "last_layer.weight_v"},
        {k: s for k, s in HEAD.items() if k != "mlp.0.bias"},
        HEAD | {"weight": (3,)},
        HEAD | {"blocks.7.x": (3,)},
        HEAD | {"mlp.2.weight": (16, 63)},
        {},
    ):
        with pytest.raises(errors.UserError, match="dino_head of FILE does not match"):
            architecture.check_head(damaged, "FILE", "dino_head", 128)


def test_matching_shapes_pass():
    architecture.check(changed(), architecture.backbone_shapes(CONFIG), "FILE")

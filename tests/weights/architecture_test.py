"""Architectures from recorded shapes, and the table of a mismatch."""

import jax
import jax.numpy as jnp
import pytest
import random_weights

from dinov2_jax import errors
from dinov2_jax.models import vision_transformer
from dinov2_jax.weights import architecture, official, state_dict

MODULE = vision_transformer.VisionTransformer(
    embed_dim=128, depth=2, num_heads=2, image_size=56
)


def infer(shapes, **settings):
    return architecture.infer_backbone(shapes, "FILE", settings)


@pytest.mark.parametrize("name", official.NAMES)
def test_recorded_shapes_are_those_of_the_released_modules(name):
    file = name.replace("_reg", "_reg4")
    recorded = random_weights.shapes(file)
    module = official.module(name)
    assert list(architecture.backbone_shapes(module).items()) == list(recorded.items())
    found = infer(recorded)
    assert architecture.describe(found) == architecture.describe(module)
    assert architecture.from_description(architecture.describe(module)) == found


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_register_tokens": 3},
        {"ffn_layer": "swiglufused"},
        {"ffn_layer": "swiglufused", "ffn_ratio": 3.0},
        {"ffn_ratio": 2.5},
        {"layerscale": 0.0},
        {"qkv_bias": False},
        {"proj_bias": False},
        {"ffn_bias": False, "ffn_layer": "swiglufused"},
        {"in_chans": 5, "patch_size": 8, "image_size": 64},
        {"depth": 12},
    ],
)
def test_any_module_is_inferred_from_its_own_parameters(fields):
    module = MODULE.clone(**fields)
    image = jnp.zeros((1, 16 * module.patch_size, module.patch_size, module.in_chans))
    params = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), dict(params))
    arrays = state_dict.state_dict_from_params(zeros, patch_size=module.patch_size)
    shapes = {key: array.shape for key, array in arrays.items()}
    assert architecture.backbone_shapes(module) == shapes
    found = infer(shapes, num_heads=2)
    image = jnp.zeros((1, found.image_size, found.image_size, found.in_chans))
    again = jax.eval_shape(found.init, jax.random.key(0), image)["params"]
    assert again == params


def test_settings_go_before_what_is_usual():
    shapes = architecture.backbone_shapes(MODULE)
    assert not infer(shapes, num_heads=4).interpolate_antialias
    found = infer(shapes, num_heads=4, interpolate_antialias=True)
    assert found.num_heads == 4 and found.interpolate_antialias


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({}, "not a DINOv2 backbone: it lacks cls_token"),
        ({"fc.weight": (10, 5)}, "holds 1 tensors such as fc.weight"),
        (
            architecture.backbone_shapes(MODULE) | {"pos_embed": (1, 12, 128)},
            "not 1 + a square grid",
        ),
        (
            architecture.backbone_shapes(MODULE) | {"pos_embed": (17, 128)},
            "expected [D, C, p, p]",
        ),
        (architecture.backbone_shapes(MODULE), "pass num_heads"),
    ],
)
def test_what_is_no_backbone_or_lacks_heads_is_refused(shapes, words):
    with pytest.raises(errors.UserError) as caught:
        infer(shapes)
    assert words in str(caught.value) and "FILE" in str(caught.value)


def changed(**fields):
    return architecture.backbone_shapes(MODULE.clone(**fields))


def without(name):
    shapes = architecture.backbone_shapes(MODULE)
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
            "it is 64 wide, not 128",
            "mask_token [1, 128] [1, 64]",
        ),
        (changed(depth=3), "it has 3 blocks, not 2", "blocks.2.ls1.gamma none [128]"),
        (changed(layerscale=0.0), "no LayerScale", "blocks.0.ls1.gamma [128] none"),
        (
            changed(patch_size=7, image_size=28),
            "patches of 7 px and 3 channels",
            "patch_embed.proj.weight [128, 3, 14, 14] [128, 3, 7, 7]",
        ),
        (
            changed(image_size=70),
            "a 5x5 grid, not 4x4: ask for them to be resampled",
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
    expected = architecture.backbone_shapes(MODULE)
    with pytest.raises(errors.UserError) as caught:
        architecture.check(found, expected, "FILE", "the config")
    first, head, *rows = str(caught.value).splitlines()
    assert first.startswith("FILE does not fit the config: ") and cause in first
    assert head.split() == ["tensor", "expected", "found"]
    assert row in [" ".join(line.split()) for line in rows]
    assert len(rows) <= 13


def test_what_fits_passes():
    architecture.check(changed(), architecture.backbone_shapes(MODULE), "FILE")

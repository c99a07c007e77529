"""Names against recorded key lists of every library; values round-trip."""

import numpy as np
import pytest
import random_weights

from dinov2_jax import errors
from dinov2_jax.weights import lazy_tensor, naming

SIZES = {"s": "small", "b": "base", "l": "large", "g": "giant"}


def lazily(arrays):
    return {
        key: lazy_tensor.LazyTensor(a.shape, a.dtype, lambda a=a: a)
        for key, a in arrays.items()
    }


def shapes_of(tensors):
    return {key: tensor.shape for key, tensor in tensors.items()}


def unread(shapes):
    """Tensors of which only the shapes may be looked at."""
    return {
        key: lazy_tensor.LazyTensor(shape, np.dtype(np.float32), None)
        for key, shape in shapes.items()
    }


def recorded(world, name):
    if world == "timm":
        registers = "_reg4" if "reg4" in name else ""
        file = f"timm_vit_{SIZES[name[3]]}_patch14{registers}_dinov2"
    else:
        file = f"{world}_{name}"
    return random_weights.shapes(file)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key].read(), array, err_msg=key)
        assert found[key].shape == array.shape


@pytest.mark.parametrize("name", random_weights.HUB_NAMES)
@pytest.mark.parametrize("world", ["hf_transformers4", "hf_transformers5", "timm"])
def test_recorded_names_and_shapes_become_the_references(world, name):
    hub = random_weights.shapes(f"dinov2_{name}")
    found = naming.to_hub(unread(recorded(world, name)))
    assert shapes_of(found) == hub


@pytest.mark.parametrize("name", random_weights.HUB_NAMES)
@pytest.mark.parametrize("world", ["hf_transformers4", "timm"])
def test_written_names_and_shapes_are_the_recorded(world, name):
    hub = random_weights.shapes(f"dinov2_{name}")
    target = naming.TIMM if world == "timm" else naming.HUGGINGFACE
    assert shapes_of(naming.from_hub(unread(hub), target)) == recorded(world, name)


@pytest.mark.parametrize("name", ["vits14", "vits14_reg4", "vitg14", "vitg14_reg4"])
def test_values_survive_hugging_face(name):
    weights = random_weights.tensors(random_weights.small_shapes(name))
    converted = naming.from_hub(lazily(weights), naming.HUGGINGFACE)
    assert naming.detect(converted) == naming.HUGGINGFACE
    assert_same(naming.to_hub(converted), weights)
    prefixed = {f"dinov2.{key}": tensor for key, tensor in converted.items()}
    assert_same(naming.to_hub(prefixed), weights)


def test_packed_projections_are_split_in_the_right_order():
    rows = np.arange(6, dtype=np.float32)
    hub = lazily({"blocks.3.attn.qkv.bias": rows})
    converted = naming.from_hub(hub, naming.HUGGINGFACE)
    prefix = "encoder.layer.3.attention.attention"
    parts = [converted[f"{prefix}.{n}.bias"].read() for n in ("query", "key", "value")]
    np.testing.assert_array_equal(np.concatenate(parts), rows)
    gate, up = rows[:2], rows[2:4]
    five = {
        "encoder.layer.3.mlp.up_proj.bias": up,
        "encoder.layer.3.mlp.gate_proj.bias": gate,
        "embeddings.patch_embeddings.projection.bias": gate,
    }
    packed = naming.to_hub(lazily(five))["blocks.3.mlp.w12.bias"].read()
    np.testing.assert_array_equal(packed, rows[:4])


@pytest.mark.parametrize("name", ["vits14", "vitg14"])
def test_timm_without_registers_drops_only_the_mask_token(name):
    weights = random_weights.tensors(random_weights.small_shapes(name))
    converted = naming.from_hub(lazily(weights), naming.TIMM)
    assert naming.detect(converted) == naming.TIMM
    weights["mask_token"] = np.zeros_like(weights["mask_token"])
    assert_same(naming.to_hub(converted), weights)


def test_timm_with_registers_folds_the_class_position():
    weights = random_weights.tensors(random_weights.small_shapes("vits14_reg4"))
    converted = naming.from_hub(lazily(weights), naming.TIMM)
    folded = weights["cls_token"] + weights["pos_embed"][:, :1]
    np.testing.assert_array_equal(converted["cls_token"].read(), folded)
    back = {key: tensor.read() for key, tensor in naming.to_hub(converted).items()}
    np.testing.assert_array_equal(back["cls_token"], folded)
    assert not back["pos_embed"][:, 0].any()
    # What the network sees, class token plus its position, is the same.
    np.testing.assert_array_equal(back["pos_embed"][:, 1:], weights["pos_embed"][:, 1:])


def test_unknown_names_are_kept():
    weights = random_weights.tensors(random_weights.small_shapes("vits14"))
    converted = naming.from_hub(lazily(weights), naming.HUGGINGFACE)
    converted["classifier.weight"] = converted.pop("layernorm.weight")
    found = naming.to_hub(converted)
    assert "classifier.weight" in found and "norm.weight" not in found


def test_a_missing_part_leaves_the_packed_tensor_missing():
    weights = random_weights.tensors(random_weights.small_shapes("vits14"))
    converted = naming.from_hub(lazily(weights), naming.HUGGINGFACE)
    del converted["encoder.layer.1.attention.attention.key.weight"]
    found = naming.to_hub(converted)
    assert weights.keys() - found.keys() == {"blocks.1.attn.qkv.weight"}
    assert "encoder.layer.1.attention.attention.query.weight" in found


def test_duplicate_tensors_are_refused():
    weights = random_weights.tensors(random_weights.small_shapes("vits14"))
    for other, name in (
        ("dinov2.embeddings.cls_token", "embeddings.cls_token"),
        (
            "encoder.layer.0.attention.o_proj.bias",
            "encoder.layer.0.attention.output.dense.bias",
        ),
    ):
        converted = naming.from_hub(lazily(weights), naming.HUGGINGFACE)
        converted[other] = converted[name]
        with pytest.raises(errors.UserError, match="two tensors map to"):
            naming.to_hub(converted)
    converted = naming.from_hub(lazily(weights), naming.HUGGINGFACE)
    old = "encoder.layer.0.attention.attention.query.bias"
    converted["encoder.layer.0.attention.q_proj.bias"] = converted[old]
    assert "blocks.0.attn.qkv.bias" not in naming.to_hub(converted)

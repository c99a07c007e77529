"""Owners of the weights in training checkpoints, in every wrapping."""

import json

import numpy as np
import pytest
import random_weights

from dinov2_jax import errors
from dinov2_jax.weights import architecture, checkpoint_tree, lazy_tensor

BACKBONE = random_weights.tensors(random_weights.small_shapes("vits14_reg4"))
HEAD = random_weights.head_tensors()


def lazily(tree):
    if isinstance(tree, dict):
        return {key: lazily(value) for key, value in tree.items()}
    return lazy_tensor.LazyTensor(tree.shape, tree.dtype, lambda: tree)


def prefixed(tensors, prefix):
    return {f"{prefix}{key}": tensor for key, tensor in tensors.items()}


def chunked(tensors, per_chunk=1):
    def rename(key):
        parts = key.split(".")
        if parts[0] == "blocks":
            parts.insert(1, str(int(parts[1]) // per_chunk))
        return ".".join(parts)

    return {rename(key): tensor for key, tensor in tensors.items()}


def whole(backbone=BACKBONE, prefix=""):
    tensors = prefixed(backbone, "backbone.") | prefixed(HEAD, "dino_head.")
    return prefixed(tensors, prefix)


def moved(tensors):
    """Other values, to tell the student from the teacher."""
    return {key: tensor + 1 for key, tensor in tensors.items()}


def found(tree, which=None):
    submodules, owner = checkpoint_tree.submodules(lazily(tree), which, "FILE")
    assert which in (None, owner)
    return {
        name: {key: tensor.read() for key, tensor in tensors.items()}
        for name, tensors in submodules.items()
    }


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for key in expected:
        np.testing.assert_array_equal(actual[key], expected[key], err_msg=key)


@pytest.mark.parametrize(
    "tree",
    [
        whole(),
        {"teacher": whole()},
        {"model": whole()},
        {"teacher": whole(chunked(BACKBONE))},
        {"teacher": prefixed(whole(), "module.")},
        {"teacher": prefixed(whole(), "module.module.")},
        {"teacher": prefixed(whole(), "module._orig_mod.module.")},
        {"model": prefixed(whole(prefix="teacher.module.module."), "module.module.")},
        {"state_dict": prefixed(whole(), "teacher.")},
        {"model": prefixed(whole(), "teacher.") | moved(whole(prefix="student."))},
        {"student": moved(whole()), "teacher": whole(), "epoch": {}},
        {"teacher": prefixed(whole(), "_orig_mod.module.")},
        {"model": whole(prefix="teacher."), "iteration": np.zeros(())},
        {"model": whole(prefix="teacher.") | {"dino_loss.center": np.zeros((1, 32))}},
        {"model": {f"teacher.backbone._fsdp_wrapped_module.{k}": v
                   for k, v in BACKBONE.items()}
         | prefixed(HEAD, "teacher.dino_head._fsdp_wrapped_module.")},
    ],
)  # fmt: skip
def test_the_teacher_is_found_in_every_wrapping(tree):
    submodules = found(tree)
    assert submodules.keys() == {"backbone", "dino_head"}
    assert_same(submodules["backbone"], BACKBONE)
    assert_same(submodules["dino_head"], HEAD)


@pytest.mark.parametrize(
    "tree",
    [
        {"student": whole(), "teacher": moved(whole())},
        {"model": whole(prefix="student.") | moved(whole(prefix="teacher."))},
        {"student": prefixed(whole(), "module.")},
    ],
)
def test_student_if_requested(tree):
    assert_same(found(tree, "student")["backbone"], BACKBONE)


def test_a_plain_backbone_and_parametrized_heads():
    assert_same(found(BACKBONE)["backbone"], BACKBONE)
    new = {
        "last_layer.weight_g": "last_layer.parametrizations.weight.original0",
        "last_layer.weight_v": "last_layer.parametrizations.weight.original1",
    }
    tree = {f"dino_head.{new.get(key, key)}": value for key, value in HEAD.items()}
    assert_same(found(tree)["dino_head"], HEAD)


def test_the_recorded_training_checkpoint():
    file = "teacher_checkpoint_vitl14_train_config_chunked4"
    recorded = random_weights.shapes(file)
    tensors = {
        key: lazy_tensor.LazyTensor(shape, np.dtype(np.float32), None)
        for key, shape in recorded.items()
    }
    submodules, owner = checkpoint_tree.submodules({"teacher": tensors}, None, "FILE")
    assert owner == "teacher"
    shapes = {key: t.shape for key, t in submodules["backbone"].items()}
    config = architecture.infer_backbone(shapes, "FILE", {})
    assert architecture.backbone_shapes(config) == shapes
    assert (config.depth, config.ffn_layer) == (24, "swiglufused")
    assert (config.embed_dim, config.image_size) == (1024, 224)
    assert "last_layer.weight_v" in submodules["dino_head"]


@pytest.mark.parametrize(
    ("tree", "which", "words"),
    [
        ({"teacher": whole()}, "student", "has no student, only the teacher"),
        ({"model": whole(prefix="teacher.")}, "student", "which='teacher'"),
        ({"optimizer": {"step": {}}, "epoch": {}}, None, "holds no weights"),
        ({}, None, "holds no weights"),
        (whole(), "teacher", "does not say whether"),
        (whole() | {"blocks.0.0.ls1.gamma": np.zeros(1),
                    "backbone.blocks.0.0.ls1.gamma": np.zeros(1)},
         None, "backbone.blocks.0.ls1.gamma twice"),
    ],
)  # fmt: skip
def test_missing_parts_are_reported(tree, which, words):
    with pytest.raises(errors.UserError) as caught:
        found(tree, which)
    assert words in str(caught.value) and "FILE" in str(caught.value)


def test_unknown_names_are_kept():
    submodules = found(whole() | {"predictor.weight": np.zeros(3)})
    assert "predictor.weight" in submodules["backbone"]
    assert json.dumps(sorted(submodules)) == '["backbone", "dino_head"]'

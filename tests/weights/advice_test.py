"""Files of other projects: the advice in the error is followed, and then they load."""

import ast
import logging
import re

import numpy as np
import pytest
import random_weights
import safetensors.torch
from peers import torch

from dinov2_jax import errors
from dinov2_jax.convert import __main__ as convert
from dinov2_jax.weights import reading, state_dict

BACKBONE = random_weights.tensors(random_weights.small_shapes("vits14_reg4"))
MOVED = {name: tensor + 1 for name, tensor in BACKBONE.items()}
EXTRA = np.ones(3, np.float32)


def prefixed(prefix, tensors=BACKBONE):
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def save(path, tree):
    def as_torch(tree):
        if isinstance(tree, dict):
            return {key: as_torch(value) for key, value in tree.items()}
        return torch.from_numpy(tree)

    torch.save(as_torch(tree), path)
    return path


def read(path, **settings):
    return reading.read(path, num_heads=2, **settings)


def refusal(path, **settings):
    with pytest.raises(errors.UserError) as caught:
        read(path, **settings)
    return str(caught.value)


def advice(message):
    """The arguments that a message says to pass, the first of several ways."""
    name, value = re.search(r"pass (\w+)=(\(.*?\)|'.*?')", message).groups()
    return {name: ast.literal_eval(value)}


def assert_holds(found, tensors=BACKBONE):
    named = state_dict.state_dict_from_params(found.params["backbone"], patch_size=14)
    assert named.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(named[name], tensor)


@pytest.mark.parametrize(
    "prefix",
    [
        "model.backbone.",
        "encoder.",
        "backbone.backbone.",
        "module.net.",
        "student.encoder.",
        "teacher_embedding_model.wrapped_model._model.",
    ],
)
def test_prefixes(tmp_path, prefix):
    tree = prefixed(prefix) | {"head.weight": EXTRA}
    path = save(tmp_path / "a.pth", {"model": tree, "epoch": {}})
    message = refusal(path)
    assert "\n" not in message and str(path) in message
    assert_holds(read(path, **advice(message)))
    assert_holds(read(path, prefix=prefix))
    message = refusal(path, prefix="decoder.")
    assert "no tensor that begins with prefix='decoder.'" in message


def test_two_backbones_under_unknown_prefixes(tmp_path):
    tree = prefixed("a.") | prefixed("b.c.", MOVED)
    path = save(tmp_path / "a.pth", tree)
    assert "pass prefix='a.' or prefix='b.c.'" in refusal(path)
    assert_holds(read(path, prefix="b.c."), MOVED)


def test_prefixes_of_huggingface_names(tmp_path):
    names = {
        "cls_token": "cls_token",
        "patch_embeddings.projection.weight": "patch_embed.proj.weight",
    }
    tree = {f"vit.embeddings.{new}": BACKBONE[old] for new, old in names.items()}
    assert "pass prefix='vit.'" in refusal(save(tmp_path / "a.pth", tree))


@pytest.mark.parametrize(
    "tree",
    [
        {"net": BACKBONE},
        {"ema": BACKBONE, "epoch": {}},
        {"model_state_dict": BACKBONE, "optimizer": {"step": {}}},
        {"net": BACKBONE, "center": EXTRA},
        {"state": {"weights": BACKBONE}, "optimizer": {"a": {"exp_avg": EXTRA}}},
    ],
)
def test_entries_of_a_file(tmp_path, tree):
    path = save(tmp_path / "a.pth", tree)
    message = refusal(path)
    assert "\n" not in message
    assert_holds(read(path, **advice(message)))
    assert "no entry 'other'" in refusal(path, key="other")


def test_an_entry_and_a_prefix(tmp_path):
    path = save(tmp_path / "a.pth", {"net": prefixed("encoder.")})
    first = advice(refusal(path))
    second = advice(refusal(path, **first))
    assert_holds(read(path, **first, **second))


def test_the_moving_average_beside_the_weights(tmp_path, caplog):
    tree = {"state_dict": BACKBONE, "state_dict_ema": MOVED}
    path = save(tmp_path / "a.pth", tree)
    with caplog.at_level(logging.WARNING):
        assert_holds(read(path))
    (said,) = caplog.messages
    assert "read state_dict, not its moving average state_dict_ema" in said
    assert_holds(read(path, **advice(said)), MOVED)
    alone = save(tmp_path / "b.pth", BACKBONE)
    assert "holds no moving average" in refusal(alone, which="ema")


@pytest.mark.parametrize(
    "extra",
    [
        ("logit_scale",),
        ("logit_scale", "head.weight", "head.bias"),
        ("blocks.0.adapter.weight", "blocks.1.adapter.weight"),
        ("norm.running", "cls_token_old"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "module.", "teacher.backbone."])
def test_tensors_to_ignore(tmp_path, extra, prefix):
    tree = prefixed(prefix) | dict.fromkeys([prefix + name for name in extra], EXTRA)
    path = save(tmp_path / "a.pth", tree)
    assert_holds(read(path, **advice(refusal(path))))


FEW_BITS = {
    "float8": lambda x: x.to(torch.float8_e4m3fn),
    "quantised": lambda x: torch.quantize_per_tensor(x, 0.05, 0, torch.qint8),
}


@pytest.mark.filterwarnings("ignore:.*deprecated:UserWarning")
@pytest.mark.parametrize("kind", FEW_BITS)
def test_weights_of_few_bits(tmp_path, kind):
    """What the message says to run gives a file that loads."""
    path, name = tmp_path / "a.pth", "blocks.0.attn.qkv.weight"
    few = {k: torch.from_numpy(v) for k, v in BACKBONE.items()}
    few[name] = FEW_BITS[kind](few[name])
    wide = few[name].float() if kind == "float8" else few[name].dequantize()
    torch.save(few, path)
    message = refusal(path)
    assert "refused, nothing was executed" in message and "\n" not in message
    program = re.search(r"torch\.save\(.*\)", message)[0]
    loaded = torch.load(path, weights_only=False)
    exec(program, {"torch": torch, "state_dict": loaded, "path": path})
    assert_holds(read(path), BACKBONE | {name: wide.numpy()})


def test_float8_in_safetensors(tmp_path):
    path = tmp_path / "a.safetensors"
    few = {k: torch.from_numpy(v) for k, v in BACKBONE.items()}
    few["norm.weight"] = few["norm.weight"].to(torch.float8_e4m3fn)
    safetensors.torch.save_file(few, path)
    message = refusal(path)
    program = re.search(r"safetensors\.torch\.save_file\(.*\)", message)[0]
    names = {"safetensors": safetensors, "state_dict": few, "path": path}
    exec(program, names)
    assert_holds(
        read(path), BACKBONE | {"norm.weight": few["norm.weight"].float().numpy()}
    )


def test_the_converter_takes_them_too(tmp_path):
    path = save(tmp_path / "a.pth", {"net": prefixed("encoder.")})
    flags = ["--to=torch-hub", "--num-heads=2", "--no-verify"]
    flags += ["--key=net", "--prefix=encoder."]
    assert convert.main([str(path), str(tmp_path / "b.pth"), *flags]) == 0
    assert_holds(read(tmp_path / "b.pth"))


def test_own_folders_take_none_of_it(tmp_path):
    (tmp_path / "model.json").write_text("{}")
    words = "leave out ignore, prefix, key and which='ema'"
    for settings in ({"prefix": "a."}, {"key": "a"}, {"which": "ema"}):
        assert words in refusal(tmp_path, **settings)

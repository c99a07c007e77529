"""Real files of every library, and files that must be refused."""

import dataclasses
import functools
import hashlib
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import textwrap
import zipfile

import jax
import numpy as np
import processes
import pytest
import random_weights
from peers import torch, transformers

from dinov2_jax import errors
from dinov2_jax.convert import __main__ as convert
from dinov2_jax.convert import destination, export, targets
from dinov2_jax.data import preprocessing
from dinov2_jax.weights import (
    architecture,
    naming,
    reading,
    safetensors_file,
    state_dict,
)

ROOT = pathlib.Path(__file__).parents[2]
NAMES = ["vits14", "vits14_reg4", "vitg14", "vitg14_reg4"]


def weights(name="vits14_reg4", seed=0):
    return random_weights.tensors(random_weights.small_shapes(name), seed)


def as_torch(tree):
    if isinstance(tree, dict):
        return {key: as_torch(value) for key, value in tree.items()}
    return torch.from_numpy(tree)


def save(path, tree):
    torch.save(as_torch(tree), path)
    return path


def transformers_model(name):
    """A tiny model of transformers itself."""
    registers = "reg4" in name
    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=56,
        patch_size=14,
        use_swiglu_ffn="vitg" in name,
        **({"num_register_tokens": 4} if registers else {}),
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def read(path, **kwargs):
    return reading.read(path, **({"num_heads": 4} | kwargs))


def assert_holds(found, expected):
    """Every tensor bit for bit, back under the reference's names."""
    arrays = state_dict.state_dict_from_params(
        found.params["backbone"], patch_size=found.module.config.patch_size
    )
    assert arrays.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(arrays[key], array, err_msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_hub_files(tmp_path, name):
    found = read(save(tmp_path / "a.pth", weights(name)))
    assert_holds(found, weights(name))
    assert found.module.config.num_register_tokens == (4 if "reg4" in name else 0)
    assert found.module.config.ffn_layer == ("swiglufused" if "vitg" in name else "mlp")
    assert found.module.config.interpolate_antialias == ("reg4" in name)
    assert found.module.config.interpolate_offset == (0.0 if "reg4" in name else 0.1)
    assert found.module.config.image_size == 56 and found.module.config.layerscale


def test_training_checkpoints_with_heads_of_both(tmp_path):
    def branch(name, seed):
        backbone, head = weights(seed=seed), random_weights.head_tensors(seed)
        tensors = {f"backbone.{k}": v for k, v in backbone.items()}
        tensors |= {f"dino_head.{k}": v for k, v in head.items()}
        return {f"{name}.{key}": tensor for key, tensor in tensors.items()}

    tree = {"model": branch("student", 1) | branch("teacher", 2), "iteration": {}}
    path = save(tmp_path / "a.pth", tree)
    for which, seed in (("student", 1), ("teacher", 2), (None, 2)):
        found = read(path, which=which, heads=True)
        assert_holds(found, weights(seed=seed))
        head = state_dict.state_dict_from_params(found.params["dino_head"])
        expected = random_weights.head_tensors(seed)
        assert head.keys() == expected.keys()
        for key in expected:
            np.testing.assert_array_equal(head[key], expected[key])
    assert read(path).params.keys() == {"backbone"}


def test_mixed_precision_rounds_nothing(tmp_path):
    tensors = as_torch(weights())
    for name in tensors:
        if name.startswith("blocks.0."):
            tensors[name] = tensors[name].to(torch.bfloat16)
    torch.save(tensors, tmp_path / "a.pth")
    expected = {k: v.to(torch.float32).numpy() for k, v in tensors.items()}
    assert_holds(read(tmp_path / "a.pth"), expected)


def test_values_that_are_not_finite_are_refused(tmp_path):
    tensors = weights()
    tensors["blocks.1.mlp.fc1.bias"][3] = np.nan
    assert "non-finite" in refusal(save(tmp_path / "a.pth", tensors))


def test_report_beside_a_file_gives_the_heads(tmp_path):
    path = save(tmp_path / "a.pth", weights())
    out = tmp_path / "out.pth"
    flags = ["--to", "torch-hub", "--no-verify", "--num-heads=8"]
    assert convert.main([str(path), str(out), *flags]) == 0
    assert reading.read(out).module.config.num_heads == 8
    save(out, weights(seed=5))  # the same size in bytes, and not that file
    assert "pass num_heads" in refusal(out, num_heads=None)


def test_report_gives_the_preprocessing_under_any_name(tmp_path, caplog):
    path = save(tmp_path / "a.pth", weights())
    found = read(path)
    prepare = preprocessing.Preprocessing(60, 56, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    heads = found.module.clone(config=found.module.config.replace(num_heads=8))
    other = dataclasses.replace(found, module=heads, preprocessing=prepare)
    for name, target in (("b.pth", "torch-hub"), ("b.safetensors", "safetensors")):
        out = destination.Destination(tmp_path / name, is_file=True, target=target)
        export.export({None: other}, out, source="a", skip="a test")
        for folder, new in (("same", name), ("new", f"renamed-{name}")):
            (tmp_path / folder).mkdir(exist_ok=True)
            for end in ("", ".json"):
                shutil.copy(
                    tmp_path / f"{name}{end}", tmp_path / folder / f"{new}{end}"
                )
            copied = reading.read(tmp_path / folder / new)
            assert copied.preprocessing == prepare
            assert copied.module.config.num_heads == 8
    assert not caplog.messages
    shutil.copy(tmp_path / "b.pth.json", tmp_path / "a.pth.json")
    assert read(path).preprocessing == preprocessing.Preprocessing()
    (said,) = caplog.messages
    assert "a.pth.json is the report on another file" in said


def test_half_precision_files_become_float32(tmp_path):
    halves = {k: v.astype(np.float16) for k, v in weights().items()}
    found = read(save(tmp_path / "a.pth", halves))
    leaves = jax.tree.leaves(found.params)
    assert all(leaf.dtype == np.float32 for leaf in leaves)
    assert_holds(found, {k: v.astype(np.float32) for k, v in halves.items()})


@pytest.mark.parametrize("name", NAMES)
def test_folders_that_transformers_saved(tmp_path, name):
    model = transformers_model(name)
    model.save_pretrained(tmp_path / "hf")
    found = reading.read(tmp_path / "hf")
    assert found.module.config.num_heads == 4
    arrays = state_dict.state_dict_from_params(found.params["backbone"], patch_size=14)
    hub = naming.to_hub(safetensors_file.read(tmp_path / "hf/model.safetensors"))
    for key, tensor in hub.items():
        np.testing.assert_array_equal(arrays[key], tensor.read())
    # The names inside transformers 5, which its own files do not use.
    raw = {k: v.detach().numpy().copy() for k, v in model.state_dict().items()}
    again = read(save(tmp_path / "raw.pth", raw))
    assert_holds(again, arrays)


def test_a_folder_in_several_files_and_its_preprocessing(tmp_path, caplog):
    folder = tmp_path / "hf"
    model = transformers_model("vits14")
    model.save_pretrained(folder, max_shard_size="300KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    processor = {
        "crop_size": {"height": 98, "width": 98},
        "size": {"shortest_edge": 112},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.25, 0.25, 0.25],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    found = reading.read(folder)
    assert found.preprocessing.resize_size == 112
    assert found.preprocessing.crop_size == 98
    assert found.preprocessing.mean == (0.5, 0.5, 0.5)
    same = {"rescale_factor": 0.00392156862745098, "resample": 3}
    for fields, said in (
        (same, None),
        ({"rescale_factor": 0.00784}, "rescale_factor = 0.00784; Model.preprocess"),
        ({"resample": 2}, "preprocessor_config.json has resample = 2"),
    ):
        caplog.clear()
        text = json.dumps(processor | fields)
        (folder / "preprocessor_config.json").write_text(text)
        reading.read(folder)
        assert said in caplog.text if said else not caplog.messages
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"x": "../../secret.safetensors"}})
    )
    with pytest.raises(errors.UserError, match="points outside its folder"):
        reading.read(folder)


def test_an_own_export_with_heads(tmp_path):
    tensors = {f"backbone.{k}": v for k, v in weights().items()}
    head = random_weights.head_tensors()
    tensors |= {f"dino_head.{k}": v for k, v in head.items()}
    found = read(save(tmp_path / "a.pth", {"teacher": tensors}), heads=True)
    write = targets.WRITERS["orbax"]
    assert found.which == "teacher"
    write(tmp_path / "own", {"teacher": found}, (56, 56), True)
    again = reading.read(tmp_path / "own", heads=True)
    assert again.module == found.module and again.which == "teacher"
    assert again.preprocessing == found.preprocessing
    jax.tree.map(np.testing.assert_array_equal, again.params, found.params)
    with pytest.raises(errors.UserError, match="has no student, only the teacher"):
        reading.read(tmp_path / "own", which="student")


def test_a_run_of_this_project(uninterrupted):
    """Its workdir gives the newest checkpoint, a checkpoint's folder that one."""
    workdir, _ = uninterrupted
    for source, step in ((workdir, 20), (workdir / "checkpoints" / "8", 8)):
        arrays = processes.load(workdir, step)
        for which, branch in (("teacher", "teacher_params"), ("student", "params")):
            found = reading.read(source, which=which, heads=True)
            assert found.params.keys() == {"backbone", "dino_head"}
            leaves = jax.tree_util.tree_leaves_with_path(found.params)
            for path, leaf in leaves:
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                np.testing.assert_array_equal(leaf, arrays[f"/{branch}/{name}"])
    config = json.loads((workdir / "config.json").read_text())
    assert found.module.config.num_heads == config["model"]["num_heads"]
    assert found.module.config.image_size == config["crops"]["global_crops_size"]
    size = config["evaluation"]["image_size"]
    assert found.preprocessing.crop_size == size == 32  # that of its own evaluations
    assert found.preprocessing.resize_size == config["evaluation"]["resize_size"]


@pytest.mark.parametrize("name", ["vits14", "vits14_reg4"])
def test_position_embeddings_are_resampled_when_asked(tmp_path, name):
    path = save(tmp_path / "a.pth", weights(name))
    plain, resampled = read(path), read(path, image_size=98)
    assert resampled.module.config.image_size == 98
    expected = plain.module.apply(
        {"params": plain.params["backbone"]}, 98, 98, method="position_embeddings"
    )
    found = resampled.params["backbone"]["pos_embed"]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    with pytest.raises(errors.UserError, match="use 7\\*14 = 98"):
        read(path, image_size=100)


def test_images_are_prepared_for_the_size_that_is_asked_for(tmp_path):
    path = save(tmp_path / "a.pth", weights())
    assert read(path, image_size=98).preprocessing == preprocessing.Preprocessing(
        112, 98
    )
    assert read(path, image_size=56).preprocessing.crop_size == 56  # its own


def test_numbers_of_another_type(tmp_path):
    path = save(tmp_path / "a.pth", weights())
    for name in ("num_heads", "image_size"):
        for value in ("2", 2.0, 0, -1, True):
            with pytest.raises(errors.UserError) as caught:
                read(path, **{name: value})
            words = f"{name}={value!r}: pass a whole number above 0"
            assert words in str(caught.value)
    assert read(path, num_heads=np.int64(4)).module.config.num_heads == 4


def test_other_heads_than_a_released_model_of_that_size(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(architecture._RELEASED, (128, 2), 2)
    path = save(tmp_path / "a.pth", weights())
    reading.read(path)
    read(path, num_heads=2)
    assert not caplog.messages
    assert read(path, num_heads=4).module.config.num_heads == 4
    (said,) = caplog.messages
    assert "a released model, which has 2 heads: it is read with num_heads=4" in said


def test_reading_inside_a_compiled_function(tmp_path):
    path = save(tmp_path / "a.pth", weights())
    own = tmp_path / "own"
    targets.WRITERS["orbax"](own, {None: read(path)}, (56, 56), False)
    for source in (path, own):
        found = []

        def summed(source, found):
            found.append(read(source, image_size=98).params)
            return found[0]["backbone"]["cls_token"].sum()

        jax.jit(functools.partial(summed, source, found))()
        expected = read(source, image_size=98).params
        jax.tree.map(np.testing.assert_array_equal, found[0], expected)


def test_own_folders_whatever_lies_in_them(tmp_path, uninterrupted, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(uninterrupted[0], run)
    (run / "teacher.safetensors").write_bytes(b"")
    expected = reading.read(uninterrupted[0]).params
    monkeypatch.chdir(run / "checkpoints")
    for source in (run, ".", ".."):
        found = reading.read(source).params
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert "leave out ignore" in refusal(run, num_heads=None, ignore=("head.",))


def test_a_folder_of_transformers_with_checkpoints_in_it(tmp_path):
    transformers_model("vits14").save_pretrained(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    assert reading.read(tmp_path).params.keys() == {"backbone"}


def refusal(path, **kwargs):
    with pytest.raises(errors.UserError) as caught:
        read(path, **kwargs)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_missing_and_extra_keys(tmp_path):
    tensors = weights()
    del tensors["blocks.1.attn.qkv.bias"], tensors["norm.weight"]
    message = refusal(save(tmp_path / "a.pth", tensors))
    assert "2 tensors are missing" in message
    assert "blocks.1.attn.qkv.bias" in message and "[384]" in message
    tensors = weights() | {"head.weight": np.zeros((10, 128), np.float32)}
    path = save(tmp_path / "b.pth", tensors)
    assert "pass ignore=('head.',)" in refusal(path)
    assert_holds(read(path, ignore=("head.",)), weights())


def test_config_json_that_contradicts_the_tensors(tmp_path):
    folder = tmp_path / "hf"
    transformers_model("vits14_reg4").save_pretrained(folder)
    with pytest.raises(errors.UserError, match="num_heads=2, but .* has 4"):
        reading.read(folder, num_heads=2)
    original = json.loads((folder / "config.json").read_text())
    for field, value, words in (
        ("num_register_tokens", 8, "it has 4 register tokens, not 8"),
        ("use_swiglu_ffn", True, "its FFN is mlp, not swiglufused"),
        ("num_hidden_layers", 3, "it has 2 blocks, not 3"),
        ("layer_norm_eps", 1e-5, "layer_norm_eps = 1e-05"),
        ("hidden_act", "relu", "hidden_act = 'relu'"),
        ("num_attention_heads", 3, "not a multiple of 3 heads"),
        ("model_type", "vit", "model_type 'vit'"),
    ):
        changed = json.dumps(original | {field: value})
        (folder / "config.json").write_text(changed)
        assert words in refusal(folder), field


def test_a_tensor_of_another_shape(tmp_path):
    tensors = weights()
    tensors["blocks.0.mlp.fc2.weight"] = np.zeros((128, 500), np.float32)
    message = refusal(save(tmp_path / "a.pth", tensors))
    assert "[128, 512]" in message and "[128, 500]" in message


def test_scalars_integers_and_heads_that_do_not_divide(tmp_path):
    for name in weights():
        path = save(tmp_path / "a.pth", weights() | {name: np.float32([[1.0]])[0, 0:1]})
        assert name in refusal(path) or "dimensions" in refusal(path), name
        path = save(tmp_path / "a.pth", weights() | {name: np.zeros((), np.float32)})
        refusal(path)
    integers = weights() | {"norm.bias": np.zeros(128, np.int64)}
    assert "norm.bias has dtype int64" in refusal(save(tmp_path / "b.pth", integers))
    path = save(tmp_path / "c.pth", weights())
    assert "not a multiple of 3 heads" in refusal(path, num_heads=3)


def test_damaged_json_files(tmp_path):
    folder = tmp_path / "hf"
    transformers_model("vits14").save_pretrained(folder, max_shard_size="300KB")
    config = (folder / "config.json").read_text()
    for content, words in (
        ("[1]", "not an object"),
        ("{", "cannot read"),
        ("[" * 100_000, "nested too deeply"),
        (config.replace("hidden_size", "hidden"), "hidden_size = nothing: expected"),
        (
            config.replace('"patch_size": 14', '"patch_size": "14"'),
            "patch_size = '14': expected a whole number",
        ),
    ):
        (folder / "config.json").write_text(content)
        assert words in refusal(folder)
    (folder / "config.json").write_text(config)
    next(folder.glob("model-*")).unlink()
    assert "model-" in refusal(folder)


def test_wrong_values_in_the_files_of_a_folder(tmp_path):
    """Wrong values give a one-line error."""
    source, folder = save(tmp_path / "a.pth", weights()), tmp_path / "hf"
    flags = ["--to", "huggingface", "--no-verify", "--num-heads=4"]
    assert convert.main([str(source), str(folder), *flags]) == 0
    for file, field, bad in (
        ("config.json", "patch_size", (0, "14", None, 10**400)),
        ("config.json", "hidden_size", (0, -128, 128.0, True)),
        ("config.json", "num_hidden_layers", (0, 300_000, "2")),
        ("config.json", "num_attention_heads", (0, "4", 3)),
        ("config.json", "mlp_ratio", (None, "4", 0, math.nan, 10**400)),
        ("config.json", "image_size", (0, 13, -56, [56])),
        ("config.json", "num_channels", (None, "3", 0)),
        ("config.json", "use_swiglu_ffn", ("no", None, 1)),
        ("config.json", "qkv_bias", (None, "yes")),
        ("config.json", "num_register_tokens", ("4", -1, None)),
        ("preprocessor_config.json", "crop_size", (100, 0, -5, "x", {}, math.inf)),
        ("preprocessor_config.json", "size", ({"longest_edge": 3}, None, [])),
        ("preprocessor_config.json", "image_mean", (None, ["a"] * 3, [0.5] * 2, 0.5)),
        ("preprocessor_config.json", "image_std", ([0, 0, 0], [math.nan] * 3, [])),
    ):
        original = (folder / file).read_text()
        for value in bad:
            changed = json.loads(original) | {field: value}
            (folder / file).write_text(json.dumps(changed))
            message = refusal(folder, num_heads=None)
            assert "\n" not in message, message
        (folder / file).write_text(original)
    read(folder, num_heads=None)


def test_wrong_values_in_a_folder_of_timm(tmp_path, caplog):
    source, folder = save(tmp_path / "a.pth", weights()), tmp_path / "timm"
    folder.mkdir()
    model = folder / "model.safetensors"
    flags = ["--to", "timm", "--no-verify", "--num-heads=4"]
    assert convert.main([str(source), str(model), *flags]) == 0
    good = {"input_size": [3, 56, 56], "mean": [0.5] * 3, "std": [0.5] * 3}

    def write(given):
        config = {"architecture": "vit_small_patch14_dinov2", "pretrained_cfg": given}
        (folder / "config.json").write_text(json.dumps(config))

    write(good)
    assert read(folder).preprocessing.crop_size == 56
    for field, bad in (
        ("input_size", ([3, 0, 0], [3, 60, 60], [], 56, "x", [3, 56, math.inf])),
        ("mean", ("abc", 0.5, [0.5] * 2, [None] * 3)),
        ("std", ([0.0] * 3, [math.nan] * 3, None)),
    ):
        for value in bad:
            write(good | {field: value})
            assert "\n" not in refusal(folder), (field, value)
    for bad in (0, "x", math.nan):
        write(good | {"crop_pct": bad})
        assert "cannot read pretrained_cfg" in refusal(folder)
    write(good | {"crop_pct": 0.875})
    assert read(folder).preprocessing.resize_size == 64  # 56 / 0.875
    caplog.clear()
    write(good | {"interpolation": "bilinear"})
    read(folder)
    assert "config.json has interpolation = 'bilinear'" in caplog.text
    write([1])
    assert "cannot read pretrained_cfg" in refusal(folder)


def test_wrong_values_in_an_export_and_in_a_run(tmp_path, uninterrupted):
    own = tmp_path / "own"
    write = targets.WRITERS["orbax"]
    found = read(save(tmp_path / "a.pth", weights()))
    write(own, {None: found}, (56, 56), False)
    described = json.loads((own / "model.json").read_text())
    for part, field, bad in (
        ("model", "embed_dim", ("x", 0, 129)),
        ("model", "patch_size", (0, None, 7, 13)),
        ("model", "num_heads", (0, "2", 3)),
        ("model", "depth", (200_000,)),
        ("model", "ffn_layer", ("gelu", None)),
        ("model", "interpolate_offset", ("0.1", math.nan)),
        ("model", "interpolate_antialias", (0, None)),
        ("preprocessing", "crop_size", (0, 100, "224", None)),
        ("preprocessing", "resize_size", (0, None)),
        ("preprocessing", "std", ([0.0], [], None, "abc")),
    ):
        for value in bad:
            changed = described | {part: described[part] | {field: value}}
            (own / "model.json").write_text(json.dumps(changed))
            assert "\n" not in refusal(own, num_heads=None), (field, value)
    for changed in ({"which": "me"}, {"model": 3}, {"preprocessing": None}):
        (own / "model.json").write_text(json.dumps(described | changed))
        assert "expected" in refusal(own, num_heads=None)
    (own / "model.json").write_text("[" * 100_000)
    assert "nested too deeply" in refusal(own, num_heads=None)

    run = tmp_path / "run"
    shutil.copytree(uninterrupted[0], run)
    config = json.loads((run / "config.json").read_text())
    for field, value in (("patch_size", 0), ("ffn_layer", "x"), ("layerscale", "1")):
        changed = config | {"model": config["model"] | {field: value}}
        (run / "config.json").write_text(json.dumps(changed))
        with pytest.raises(errors.UserError, match=f"config.json has {field} = "):
            reading.read(run)
    for section, field, value in (("model", "patch_size", 2), ("data", "mean", 3)):
        changed = config | {section: config[section] | {field: value}}
        (run / "config.json").write_text(json.dumps(changed))
        assert "\n" not in refusal(run, num_heads=None)


def test_report_with_wrong_values_is_refused_and_of_other_bytes_ignored(tmp_path):
    path = save(tmp_path / "a.pth", weights())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    good = {
        "num_heads": 4,
        "interpolate_offset": 0.1,
        "interpolate_antialias": False,
    }

    def write(model, digest=digest, **more):
        report = {"sha256": {"a.pth": digest}, "model": model} | more
        (tmp_path / "a.pth.json").write_text(json.dumps(report))

    write(good)
    assert read(path, num_heads=None).module.config.interpolate_offset == 0.1
    for field, bad in (
        ("num_heads", ("4", 0, 4.0, None)),
        ("interpolate_offset", ("x", [1])),
        ("interpolate_antialias", (1, "no")),
    ):
        for value in bad:
            write(good | {field: value})
            assert f"a.pth.json has {field} = " in refusal(path, num_heads=None)
    for prepare, words in (
        (3, "expected an object"),
        ({"resize_size": 60, "crop_size": 57, "mean": [0.5], "std": [1]}, "crop_size"),
        ({"resize_size": 60, "crop_size": 56, "mean": [0.5], "std": [0]}, "std"),
    ):
        write(good, preprocessing=prepare)
        assert words in refusal(path, num_heads=None)
    write(3)
    assert "expected an object" in refusal(path, num_heads=None)
    write(good | {"num_heads": "4"}, digest="0" * 64)
    assert read(path).module.config.interpolate_offset == 0.0
    (tmp_path / "a.pth.json").write_text("[" * 100_000)
    assert read(path).module.config.interpolate_offset == 0.0


def test_a_string_of_names_to_ignore(tmp_path):
    path = save(tmp_path / "a.pth", weights())
    with pytest.raises(ValueError, match=r"pass a tuple, \('head.',\)"):
        read(path, ignore="head.")


def test_format_does_not_depend_on_the_file_name(tmp_path):
    path = save(tmp_path / "torch.safetensors", weights())
    assert_holds(read(path), weights())
    folder = tmp_path / "hf"
    transformers_model("vits14").save_pretrained(folder)
    expected = read(folder).params
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    jax.tree.map(np.testing.assert_array_equal, read(folder).params, expected)


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "a"])
def test_other_formats_are_named(tmp_path, name):
    path = tmp_path / name
    for content, word in (
        (b"\xff\xd8\xff\xe0" + bytes(1000), "JPEG"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "LFS"),
        (b"", "empty"),
    ):
        path.write_bytes(content)
        message = refusal(path)
        assert word.lower() in message.lower() and "\n" not in message


def test_folders_without_weights(tmp_path):
    message = refusal(tmp_path)
    assert "contains no weights" in message and "pass the file" not in message
    path = save(tmp_path / "epoch_3.pth", weights())
    assert f"pass the file itself: {path}" in refusal(tmp_path)


def test_missing_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.UserError) as caught:
        reading.read("weights")
    assert f"no file or folder weights in {tmp_path}" in str(caught.value)
    with pytest.raises(errors.UserError, match="did you mean dinov2_vits14?"):
        reading.read("dinov2_vits15")


def test_a_truncated_file(tmp_path):
    path = save(tmp_path / "a.pth", weights())
    content = path.read_bytes()
    for share in (0.1, 0.5, 0.99):
        path.write_bytes(content[: int(len(content) * share)])
        assert "\n" not in refusal(path)


class Evil:
    def __init__(self, path):
        self.command = f"touch {path}"

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_pickle_that_runs_a_program_is_refused(tmp_path):
    sentinel = tmp_path / "ran"
    torch.save({"teacher": Evil(sentinel)}, tmp_path / "a.pth")
    message = refusal(tmp_path / "a.pth")
    assert "system" in message and "refused" in message and "\n" not in message
    assert not sentinel.exists()


def test_special_files_do_not_hang(tmp_path):
    os.mkfifo(tmp_path / "a.pth")
    assert "neither a file nor a folder" in refusal(tmp_path / "a.pth")


def test_a_zip_bomb_is_refused(tmp_path):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\0" * 100_000_000)
    assert "\n" not in refusal(path)


def test_no_heads_and_unknown_owner(tmp_path):
    path = save(tmp_path / "a.pth", weights())
    assert "has no projection heads" in refusal(path, heads=True)
    with pytest.raises(errors.UserError, match="use 'teacher' or 'student', or 'ema'"):
        read(path, which="both")


@pytest.mark.parametrize(
    "kind",
    [
        "b.pth",
        *(pytest.param(k, marks=pytest.mark.slow) for k in ("b.safetensors", "hf")),
    ],
)
def test_memory_stays_below_one_and_a_third_of_the_weights(tmp_path, kind):
    """Of a large file in a process of its own, beyond what the imports take."""
    shapes = random_weights.shapes("dinov2_vitb14")
    path = save(
        tmp_path / "b.pth", {k: np.ones(s, np.float32) for k, s in shapes.items()}
    )
    target = {".safetensors": "safetensors", "": "huggingface"}.get(
        pathlib.Path(kind).suffix
    )
    if target:
        flags = ["--to", target, "--no-verify"]
        path = tmp_path / kind
        assert convert.main([str(tmp_path / "b.pth"), str(path), *flags]) == 0
    program = textwrap.dedent(r"""
        import re, sys
        import jax, jax.numpy as jnp
        from dinov2_jax.weights import reading
        def peak():
            # Not ru_maxrss, which begins with that of the tests' own process.
            status = open("/proc/self/status").read()
            return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024
        jnp.ones(8).block_until_ready()
        before = peak()
        weights = reading.read(sys.argv[1])
        size = sum(x.nbytes for x in jax.tree.leaves(weights.params))
        print((peak() - before) / size, size)
    """)
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    ratio, size = (float(x) for x in done.stdout.split())
    assert size == 4 * 86_580_480
    assert 0.95 < ratio < 1.3

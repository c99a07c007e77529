"""The ONNX graph, judged by onnx's checker and by onnxruntime against the module."""

import collections
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
import small_backbones

from dinov2_jax import errors
from dinov2_jax.convert import onnx_graph
from dinov2_jax.data import preprocessing
from dinov2_jax.models import model_config

ROOT = pathlib.Path(__file__).parents[2]


def write_small(path, kind="mlp", **kwargs):
    settings, size = small_backbones.KINDS[kind]
    module = small_backbones.make(**settings)
    params = small_backbones.random_params(module)
    onnx_graph.write(path, module, params, image_size=size, **kwargs)
    return module, params, size


def assert_same_features(path, module, params, size, batches):
    for batch in batches:
        images = small_backbones.random_images(module, size, batch)
        expected = jax.jit(module.apply)({"params": params}, images)
        found = onnx_graph.run(path, images)
        names = {"cls", "patches"}
        assert set(found) == names | (
            {"registers"} if module.config.num_register_tokens else set()
        )
        for name, value in found.items():
            error = small_backbones.relative_error(value, getattr(expected, name))
            assert error <= 1e-5, (name, batch, error)


@pytest.mark.parametrize("kind", small_backbones.KINDS)
def test_features_equal_the_module(tmp_path, kind):
    path = tmp_path / "model.onnx"
    module, params, size = write_small(path, kind)
    assert_same_features(path, module, params, size, [1, 5])
    onnx.checker.check_model(str(path), full_check=True)


@pytest.mark.slow
def test_features_of_a_released_size(tmp_path):
    dim, depth, heads = model_config.ARCHS["vit_small"]
    module = small_backbones.make(
        embed_dim=dim, depth=depth, num_heads=heads, patch_size=14, image_size=518
    )
    params = small_backbones.random_params(module, scale=0.05)
    path = tmp_path / "model.onnx"
    onnx_graph.write(path, module, params, image_size=(224, 224))
    assert_same_features(path, module, params, (224, 224), [1, 5])


def test_weights_of_other_types_become_float32(tmp_path):
    module = small_backbones.make(dtype=jnp.bfloat16, num_register_tokens=2)
    params = small_backbones.random_params(module)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    onnx_graph.write(tmp_path / "model.onnx", module, half, image_size=(16, 16))
    rounded = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    assert_same_features(
        tmp_path / "model.onnx", module.clone(dtype=jnp.float32), rounded, (16, 16), [2]
    )


def test_metadata_of_the_model(tmp_path):
    path = tmp_path / "model.onnx"
    prepare = preprocessing.Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))
    write_small(path, "swiglu_registers", prepare=prepare)
    model = onnx.load(path)
    # What onnxruntime 1.12 of 2022 reads.
    assert model.ir_version <= 8
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
    properties = {p.key: p.value for p in model.metadata_props}
    assert json.loads(properties["image_size"]) == [24, 12]
    assert json.loads(properties["image_mean"]) == [0.5, 0.4, 0.3]
    assert json.loads(properties["image_std"]) == [0.1, 0.2, 0.3]
    assert "[batch, 3, 24, 12] (NCHW)" in model.doc_string
    shapes = {
        value.name: [
            d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim
        ]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        "images": ["batch", 3, 24, 12],
        "cls": ["batch", 24],
        "registers": ["batch", 4, 24],
        "patches": ["batch", 6, 3, 24],
    }
    write_small(path, "bare")  # four channels: nobody knows their mean
    assert "image_mean" not in {p.key for p in onnx.load(path).metadata_props}
    prepare = preprocessing.Preprocessing(mean=(0.1, 0.2, 0.3, 0.4), std=(0.5,))
    write_small(path, "bare", prepare=prepare)
    model = onnx.load(path)
    properties = {p.key: json.loads(p.value) for p in model.metadata_props}
    assert properties["image_mean"] == [0.1, 0.2, 0.3, 0.4]
    assert properties["image_std"] == [0.5]
    assert "values in 0..1 minus image_mean" in model.doc_string


def test_weights_have_the_references_names(tmp_path):
    module, params, _ = write_small(tmp_path / "model.onnx")
    tensors = {
        t.name: onnx.numpy_helper.to_array(t)
        for t in onnx.load(tmp_path / "model.onnx").graph.initializer
    }
    np.testing.assert_array_equal(
        tensors["blocks.2.mlp.fc1.weight.T"],
        params["blocks"]["mlp"]["fc1"]["kernel"][2],
    )
    np.testing.assert_array_equal(
        tensors["blocks.1.ls2.gamma"], params["blocks"]["ls2"]["gamma"][1]
    )
    assert tensors["patch_embed.proj.weight"].shape == (24, 3, 4, 4)


def test_onnxruntime_fuses_the_gelu(tmp_path):
    write_small(tmp_path / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.graph_optimization_level = (
        onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    )
    onnxruntime.InferenceSession(
        tmp_path / "model.onnx", options, providers=["CPUExecutionProvider"]
    )
    nodes = onnx.load(tmp_path / "fused.onnx").graph.node
    kinds = collections.Counter(node.op_type for node in nodes)
    assert kinds["BiasGelu"] + kinds["Gelu"] == 3 and not kinds["Erf"], kinds


def test_large_models_store_weights_in_a_separate_file(tmp_path, monkeypatch):
    inline, path = tmp_path / "inline.onnx", tmp_path / "model.onnx"
    module, params, size = write_small(inline)
    monkeypatch.setattr(onnx_graph, "MAX_INLINE", 0)
    write_small(path)
    data = tmp_path / "model.onnx.data"
    sizes = [p.stat().st_size for p in (inline, path, data)]
    assert sizes[1] < sizes[0] / 2 and sizes[2] > sizes[0] / 2
    before = path.read_bytes(), data.read_bytes()
    graph = onnx.load(path, load_external_data=False).graph
    places = [{e.key: e.value for e in t.external_data} for t in graph.initializer]
    assert {p["location"] for p in places if p} == {"model.onnx.data"}
    assert all(int(p["offset"]) % 4096 == 0 for p in places if p)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for file in (path, data):
        file.rename(moved / file.name)
    assert_same_features(moved / path.name, module, params, size, [1, 5])
    write_small(path)
    assert (path.read_bytes(), data.read_bytes()) == before
    # A smaller model in its place takes the old weights away.
    monkeypatch.undo()
    write_small(path)
    assert not data.exists() and len(list(tmp_path.iterdir())) == 3


def test_the_same_weights_give_the_same_bytes(tmp_path):
    script = (
        "import sys; sys.path[:0] = "
        f"{[str(ROOT / folder) for folder in ('', 'tests', 'tests/convert')]}\n"
        "import onnx_graph_test\n"
        "onnx_graph_test.write_small('model.onnx', 'swiglu_registers')"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    write_small(tmp_path / "other.onnx", "swiglu_registers")
    first, second = (
        (tmp_path / name).read_bytes() for name in ("model.onnx", "other.onnx")
    )
    assert first == second


@pytest.mark.parametrize("max_inline", [0, onnx_graph.MAX_INLINE])
def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch, max_inline):
    monkeypatch.setattr(onnx_graph, "MAX_INLINE", max_inline)
    path = tmp_path / "model.onnx"
    write_small(path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx.checker, "check_model", fail)
    with pytest.raises(errors.UserError, match=r"model\.onnx \(No space left"):
        write_small(path, "bare")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_an_odd_size_is_refused(tmp_path):
    module = small_backbones.make()
    params = small_backbones.random_params(module)
    with pytest.raises(errors.UserError, match=r"patch size 4: use \(16, 4\)"):
        onnx_graph.write(tmp_path / "m.onnx", module, params, image_size=(18, 3))
    assert not list(tmp_path.iterdir())


def test_missing_packages(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(errors.UserError, match="pip install onnx"):
        write_small(tmp_path / "model.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError):
        onnx_graph.run(tmp_path / "model.onnx", np.zeros((1, 16, 16, 3)))

"""The exported directory, judged by a process that does not know this package."""

import pathlib
import re
import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import small_backbones
from safetensors import numpy as safetensors_numpy

from dinov2_jax import errors
from dinov2_jax.convert import stablehlo
from dinov2_jax.data import preprocessing
from dinov2_jax.weights import safetensors_file, state_dict

ROOT = pathlib.Path(__file__).parents[2]
BATCHES = (1, 3)
# Runs several directories' examples in one process, to import jax once.
STRANGER = """
import runpy, sys
for job in sys.argv[1:]:
    sys.argv = job.split("|")
    runpy.run_path(sys.argv[0])
print(sorted(sys.modules))
"""


def write_small(directory, kind="mlp", seed=0, **kwargs):
    settings, size = small_backbones.KINDS[kind]
    module = small_backbones.make(**settings)
    params = small_backbones.random_params(module, seed)
    stablehlo.write(directory, module, params, image_size=size, **kwargs)
    return module, params, size


def contents(directory):
    return {p.name: p.read_bytes() for p in directory.iterdir()}


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """kind -> (directory, module, params, size, {batch: features})."""
    root = tmp_path_factory.mktemp("exports")
    exports, jobs = {}, []
    for kind in small_backbones.KINDS:
        module, params, size = write_small(root / kind, kind)
        for batch in BATCHES:
            images = root / f"{kind}{batch}.npy"
            np.save(images, small_backbones.random_images(module, size, batch))
            jobs.append(f"{root / kind}/example.py|{images}|{images}.npz")
        exports[kind] = root / kind, module, params, size
    done = subprocess.run(
        [sys.executable, "-I", "-c", STRANGER, *jobs],
        capture_output=True,
        text=True,
        check=True,
        cwd=root,
    )
    assert "'jax.export'" in done.stdout and "'safetensors.numpy'" in done.stdout
    for package in ("dinov2_jax", "flax", "optax", "torch"):
        assert f"'{package}" not in done.stdout
    return {
        kind: (*rest, {b: dict(np.load(root / f"{kind}{b}.npy.npz")) for b in BATCHES})
        for kind, rest in exports.items()
    }


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("kind", small_backbones.KINDS)
def test_features_in_a_process_without_this_package(exports, kind, batch):
    _, module, params, size, features = exports[kind]
    images = small_backbones.random_images(module, size, batch)
    expected = jax.jit(module.apply)({"params": params}, images)
    assert set(features[batch]) == {"cls", "registers", "patches", "prenorm"}
    for name, value in features[batch].items():
        if not module.config.num_register_tokens and name == "registers":
            assert value.shape == (batch, 0, module.config.embed_dim)
            continue
        error = small_backbones.relative_error(value, getattr(expected, name))
        assert error <= 1e-5, (name, error)


def test_run_equals_the_example(exports):
    directory, module, _, size, features = exports["bare"]
    images = small_backbones.random_images(module, size, 3)
    found = stablehlo.run(directory, images)
    assert set(found) == {"cls", "patches", "registers"}
    for name, value in found.items():
        np.testing.assert_array_equal(value, features[3][name])
    with pytest.raises(RuntimeError, match="example.py failed"):
        stablehlo.run(directory, images[:, :-1])


@pytest.mark.parametrize("kind", small_backbones.KINDS)
def test_the_weights_are_the_references_state_dict(exports, kind):
    directory, _, params, *_ = exports[kind]
    weights = safetensors_numpy.load_file(directory / "weights.safetensors")
    loaded = state_dict.params_from_state_dict(weights)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_the_program_is_plain_and_for_all_platforms(exports):
    directory, *_ = exports["swiglu_registers"]
    program = jax.export.deserialize(
        bytearray((directory / "model.stablehlo").read_bytes())
    )
    assert program.platforms == ("cpu", "cuda", "tpu") and program.nr_devices == 1
    text = program.mlir_module()
    # No kernel of one platform; the one call checks the shapes of the arguments.
    assert set(re.findall(r"custom_call @([\w.]+)", text)) == {"shape_assertion"}
    products = re.findall(r"dot_general .*", text)
    assert len(products) > 7
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)


def test_a_bfloat16_module_gives_a_bfloat16_program(tmp_path):
    module = small_backbones.make(dtype=jnp.bfloat16, num_register_tokens=2)
    params = small_backbones.random_params(module, scale=0.1)
    stablehlo.write(tmp_path / "x", module, params, image_size=(16, 16))
    program = (tmp_path / "x" / "model.stablehlo").read_bytes()
    text = jax.export.deserialize(bytearray(program)).mlir_module()
    assert "xbf16>" in text and "HIGHEST" not in text
    images = small_backbones.random_images(module, (16, 16), 2)
    expected = jax.jit(module.apply)({"params": params}, images)
    for name, value in stablehlo.run(tmp_path / "x", images).items():
        full = getattr(expected, name).astype(jnp.float32)
        assert small_backbones.relative_error(value, full) <= 0.03


def test_the_same_weights_give_the_same_bytes(tmp_path, exports):
    script = (
        "import sys; sys.path[:0] = "
        f"{[str(ROOT / folder) for folder in ('', 'tests', 'tests/convert')]}\n"
        "import stablehlo_test\n"
        "(lambda: stablehlo_test.write_small('x', 'swiglu_registers'))()"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    directory, *_ = exports["swiglu_registers"]
    first, second = contents(directory), contents(tmp_path / "x")
    assert first == second
    # Nor do they tell where this package or Python are, or who called.
    for word in (str(ROOT), "site-packages", "stablehlo_test", "write_small"):
        assert word.encode() not in first["model.stablehlo"]
    assert jax.config.jax_traceback_in_locations_limit > 0


def test_the_readme(tmp_path):
    prepare = preprocessing.Preprocessing(mean=(0.5, 0.4, 0.3))
    write_small(tmp_path / "x", "swiglu_registers", prepare=prepare)
    text = (tmp_path / "x" / "README.md").read_text()
    assert f"jax {jax.__version__}" in text
    assert "[b, 24, 12, 3]" in text and "`patches` [b, 6, 3, 24]" in text
    assert "[0.5, 0.4, 0.3]" in text
    write_small(tmp_path / "x", "bare")
    text = (tmp_path / "x" / "README.md").read_text()
    assert "divided by" not in text and "[b, 10, 20, 4]" in text
    prepare = preprocessing.Preprocessing(mean=(0.1, 0.2, 0.3, 0.4), std=(0.5,) * 4)
    write_small(tmp_path / "x", "bare", prepare=prepare)
    text = (tmp_path / "x" / "README.md").read_text()
    assert "Values in 0..1 minus [0.1, 0.2, 0.3, 0.4]" in text


def test_only_an_export_is_replaced(tmp_path):
    directory = tmp_path / "x"
    directory.mkdir()  # empty is as good as new
    write_small(directory)
    before = contents(directory)
    write_small(directory, seed=1)
    after = contents(directory)
    assert {name for name in after if after[name] != before[name]} == {
        "weights.safetensors"
    }
    (tmp_path / "file").write_text("")
    for occupied in (tmp_path, tmp_path / "file"):
        with pytest.raises(errors.UserError, match="choose a new directory"):
            write_small(occupied)
    assert {p.name for p in tmp_path.iterdir()} == {"x", "file"}


@pytest.mark.parametrize("exists", [True, False])
def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch, exists):
    if exists:
        write_small(tmp_path / "x")
    before = {p: contents(p) for p in tmp_path.iterdir()}

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors_file, "write", fail)
    with pytest.raises(errors.UserError, match=r"/x \(No space left"):
        write_small(tmp_path / "x", "bare")
    assert {p: contents(p) for p in tmp_path.iterdir()} == before


def test_an_odd_size_is_refused(tmp_path):
    module = small_backbones.make()
    params = small_backbones.random_params(module)
    with pytest.raises(errors.UserError, match=r"patch size 4: use \(16, 4\)"):
        stablehlo.write(tmp_path / "x", module, params, image_size=(18, 3))
    assert not list(tmp_path.iterdir())


def test_missing_flatbuffers(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(errors.UserError, match="pip install flatbuffers"):
        write_small(tmp_path / "x")
    assert not list(tmp_path.iterdir())

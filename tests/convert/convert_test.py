"""`python -m dinov2_jax.convert`: every target, judged by its own packages."""

import dataclasses
import hashlib
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import random_weights
import safetensors.numpy
import torch
import transformers

import dinov2_jax
from dinov2_jax import errors
from dinov2_jax.convert import __main__ as convert
from dinov2_jax.convert import targets, verify
from dinov2_jax.weights import reading, state_dict

ROOT = pathlib.Path(__file__).parents[2]
TARGETS = {
    "torch-hub": "a.pth",
    "safetensors": "a.safetensors",
    "huggingface": "hf",
    "timm": "timm.safetensors",
    "onnx": "a.onnx",
    "stablehlo": "stablehlo",
    "orbax": "own",
}
KINDS = ["vits14", "vits14_reg4", "vitg14_reg4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Hub files of tiny backbones, and a training checkpoint."""
    folder = tmp_path_factory.mktemp("sources")
    for name in KINDS:
        save(folder / f"{name}.pth", backbone(name))
    save(
        folder / "training.pth", {"model": branch("student", 1) | branch("teacher", 2)}
    )
    return folder


def backbone(name="vits14_reg4", seed=0):
    return random_weights.tensors(random_weights.small_shapes(name), seed)


def branch(owner, seed):
    head = random_weights.head_tensors(seed)
    tensors = {f"backbone.{k}": v for k, v in backbone(seed=seed).items()}
    tensors |= {f"dino_head.{k}": v for k, v in head.items()}
    return {f"{owner}.{key}": tensor for key, tensor in tensors.items()}


def save(path, tree):
    def as_torch(tree):
        if isinstance(tree, dict):
            return {key: as_torch(value) for key, value in tree.items()}
        return torch.from_numpy(tree)

    torch.save(as_torch(tree), path)


def run(*flags):
    """In this process; the heads' number is that of a 128-wide model."""
    return convert.main([*map(str, flags), "--num-heads=2"])


def digests(path):
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*"))
    return {
        str(p.relative_to(path.parent)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in files
        if p.is_file() and p.name != "conversion.json"
    }


def report(path):
    beside = path.with_name(f"{path.name}.json")
    return json.loads(
        (beside if path.is_file() else path / "conversion.json").read_text()
    )


def assert_torch_holds(tensors, expected):
    assert list(tensors) == list(expected)
    for key, array in expected.items():
        assert tensors[key].dtype == torch.float32
        np.testing.assert_array_equal(tensors[key].numpy(), array, err_msg=key)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", TARGETS)
def test_every_target_is_written_checked_and_reported(folder, tmp_path, target, kind):
    path = tmp_path / TARGETS[target]
    assert run(folder / f"{kind}.pth", path, "--to", target) == 0
    written = report(path)
    assert written["target"] == target
    assert written["model"]["num_heads"] == 2
    assert written["sha256"].items() == digests(path).items()
    if target == "timm":  # needs torchvision, which the tests do without
        assert "timm" in written["verified"]["skipped"]
    else:
        if target in ("torch-hub", "safetensors", "huggingface", "orbax"):
            assert written["verified"]["tensors"] == "bit-identical"
        checked = written["verified"]["relative_error"]
        assert {"cls", "patches"} <= checked.keys()
        assert ("registers" in checked) == ("reg4" in kind)
        assert max(checked.values()) < 1e-5
    assert [p.name for p in tmp_path.glob(".*")] == []
    if target not in ("onnx", "stablehlo"):  # no place for weights to come back from
        model = dinov2_jax.load(path, num_heads=2)
        source = dinov2_jax.load(folder / f"{kind}.pth", num_heads=2)
        assert model.module == source.module
        images = verify.photographs(56, 56, reading.read(path, num_heads=2))
        np.testing.assert_allclose(
            model(images).cls, source(images).cls, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize(
    "target", sorted(TARGETS.keys() - {"orbax"})
)  # which dates its files
def test_the_same_weights_give_the_same_bytes(folder, tmp_path, target):
    found = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        path = tmp_path / name / TARGETS[target]
        flags = ["--to", target, "--no-verify"]
        assert run(folder / "vits14_reg4.pth", path, *flags) == 0
        found.append(digests(path))
    assert found[0] == found[1]


def test_hub_there_and_back_is_bit_identical(folder, tmp_path):
    for kind in KINDS:
        path = tmp_path / f"{kind}.pth"
        assert (
            run(folder / f"{kind}.pth", path, "--to", "torch-hub", "--no-verify") == 0
        )
        assert_torch_holds(torch.load(path), backbone(kind))
        # Through Hugging Face's names too.
        hf, back = tmp_path / f"hf_{kind}", tmp_path / f"back_{kind}.pth"
        assert run(path, hf, "--to", "huggingface", "--no-verify") == 0
        assert run(hf, back, "--to", "torch-hub", "--no-verify") == 0
        assert back.read_bytes() == path.read_bytes()


def test_real_sizes_are_bit_identical_too(tmp_path):
    for name in ("vits14_reg4", "vitb14"):
        tensors = random_weights.tensors(random_weights.shapes(f"dinov2_{name}"))
        save(tmp_path / "a.pth", tensors)
        back = tmp_path / "b.pth"
        flags = ["--to", "torch-hub", "--no-verify", "--overwrite"]
        assert convert.main([str(tmp_path / "a.pth"), str(back), *flags]) == 0
        assert_torch_holds(torch.load(back), tensors)
        hf = tmp_path / "hf"
        flags = ["--to", "huggingface", "--no-verify", "--overwrite"]
        assert convert.main([str(back), str(hf), *flags]) == 0
        found = reading.read(hf).params["backbone"]
        arrays = state_dict.state_dict_from_params(found, patch_size=14)
        for key, array in tensors.items():
            np.testing.assert_array_equal(arrays[key], array)


def test_transformers_loads_the_folder_without_a_word(folder, tmp_path):
    path = tmp_path / "hf"
    assert run(folder / "vits14_reg4.pth", path, "--to", "huggingface") == 0
    model, info = transformers.AutoModel.from_pretrained(path, output_loading_info=True)
    assert type(model).__name__ == "Dinov2WithRegistersModel"
    assert not any(info.values())
    names = safetensors.numpy.load_file(path / "model.safetensors")
    assert "encoder.layer.0.attention.attention.query.weight" in names  # those of 4.x
    processor = transformers.AutoImageProcessor.from_pretrained(path, backend="pil")
    image = np.zeros((300, 400, 3), np.uint8)
    pixels = processor(image, return_tensors="np")["pixel_values"]
    assert pixels.shape == (1, 3, 224, 224)
    np.testing.assert_allclose(pixels[0, 0], -0.485 / 0.229, rtol=1e-5)


def test_training_checkpoints_go_out_and_come_back(folder, tmp_path):
    source = folder / "training.pth"
    for target, name in (("torch-hub", "both.pth"), ("safetensors", "b.safetensors")):
        path = tmp_path / name
        assert run(source, path, "--to", target, "--which=both") == 0
        for which, seed in (("student", 1), ("teacher", 2)):
            found = reading.read(path, which=which, heads=True, num_heads=2)
            arrays = state_dict.state_dict_from_params(
                found.params["backbone"], patch_size=14
            )
            for key, array in backbone(seed=seed).items():
                np.testing.assert_array_equal(arrays[key], array)
            head = state_dict.state_dict_from_params(found.params["dino_head"])
            for key, array in random_weights.head_tensors(seed).items():
                np.testing.assert_array_equal(head[key], array)
    flat = torch.load(tmp_path / "both.pth")["model"]
    assert flat.keys() == (branch("student", 1) | branch("teacher", 2)).keys()


@pytest.mark.parametrize("which", ["student", "teacher"])
def test_one_owner_with_heads_as_the_reference_saves_it(folder, tmp_path, which):
    path = tmp_path / "a.pth"
    flags = ["--to", "torch-hub", f"--which={which}", "--heads"]
    assert run(folder / "training.pth", path, *flags) == 0
    tree = torch.load(path)
    assert list(tree) == [which]
    expected = branch(which, {"student": 1, "teacher": 2}[which])
    assert {f"{which}.{key}" for key in tree[which]} == expected.keys()


def test_a_size_resamples_or_is_baked(folder, tmp_path):
    source = folder / "vits14_reg4.pth"
    path = tmp_path / "a.pth"
    assert run(source, path, "--to", "torch-hub", "--size=98x98") == 0
    assert torch.load(path)["pos_embed"].shape == (1, 50, 128)
    path = tmp_path / "a.onnx"
    assert run(source, path, "--to", "onnx", "--size=56x84") == 0
    assert report(path)["verified"]["images"] == [2, 56, 84, 3]


def test_what_gives_other_features_is_refused(folder, tmp_path, monkeypatch, capsys):
    """A writer that swaps two tensors: nothing is kept."""

    def swapped(weights):
        tensors = original(weights)
        a, b = "blocks.0.norm1.weight", "blocks.1.norm1.weight"
        return tensors | {a: tensors[b], b: tensors[a]}

    original = targets.backbone_tensors
    monkeypatch.setattr(targets, "backbone_tensors", swapped)
    for target in ("torch-hub", "safetensors", "huggingface"):
        path = tmp_path / TARGETS[target]
        assert run(folder / "vits14.pth", path, "--to", target) == errors.BAD_INPUT
        assert "gives other features: relative error" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_heads_that_come_back_otherwise_are_refused(
    folder, tmp_path, monkeypatch, capsys
):
    def zeroed(params, patch_size):
        tensors = original(params, patch_size)
        name = "last_layer.weight_v"
        if name in tensors:
            zeros = np.zeros(tensors[name].shape, np.float32)
            tensors[name] = dataclasses.replace(tensors[name], read=lambda: zeros)
        return tensors

    original = targets._tensors
    monkeypatch.setattr(targets, "_tensors", zeroed)
    for flags in (["--heads"], ["--which=both"]):
        flags = ["--to", "torch-hub", *flags]
        assert run(folder / "training.pth", tmp_path / "a.pth", *flags) == 2
        assert "holds other values" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_bad_flags_are_one_line_and_write_nothing(folder, tmp_path, capsys):
    source = folder / "vits14.pth"
    (tmp_path / "there.pth").write_bytes(b"mine")
    (tmp_path / "x.onnx.data").write_bytes(b"mine")
    (tmp_path / "y.pth.json").write_bytes(b"mine")
    training = folder / "training.pth"
    for flags, words in (
        (
            [source, tmp_path / "a.bin", "--to", "torch-hub"],
            "should end in .pth or .pt",
        ),
        ([source, tmp_path / "a.pth", "--to", "huggingface"], "writes a folder"),
        ([source, tmp_path / "hf", "--to", "huggingface", "--heads"], "no place for"),
        ([source, tmp_path / "there.pth", "--to", "torch-hub"], "add --overwrite"),
        ([source, tmp_path / "no/a.pth", "--to", "torch-hub"], "there is no folder"),
        ([source, tmp_path / "x.onnx", "--to", "onnx"], "x.onnx.data exists"),
        ([source, tmp_path / "y.pth", "--to", "torch-hub"], "y.pth.json exists"),
        ([source, tmp_path / "a.pth", "--to", "torch-hub", "--size=0x0"], "positive"),
        (
            [source, tmp_path / "a.pth", "--to", "torch-hub", "--which=teacher"],
            "does not say whose",
        ),
        (
            [training, tmp_path / "a.pth", "--to", "timm", "--which=both"],
            "no place for projection heads",
        ),
        ([source, tmp_path / "a.pth", "--to", "torch-hub", "--size=5"], "as HxW"),
        (
            [source, tmp_path / "a.pth", "--to", "torch-hub", "--size=56x70"],
            "stored for a square",
        ),
        ([source, tmp_path / "a.onnx", "--to", "onnx", "--size=50x50"], "42, 42"),
        ([source, tmp_path / "a", "--to", "orbax", "--which=both"], "convert twice"),
        (["none.pth", tmp_path / "a.pth", "--to", "torch-hub"], "no file or folder"),
        ([source, tmp_path / "a.pth", "--to", "torch-hub", "--heads"], "no projection"),
    ):
        assert run(*flags) == errors.BAD_INPUT, flags
        message = capsys.readouterr().err
        assert message.startswith("error: ") and message.count("\n") == 1, message
        assert words in message
    names = {"there.pth", "x.onnx.data", "y.pth.json"}
    assert {p.name for p in tmp_path.iterdir()} == names
    assert (tmp_path / "there.pth").read_bytes() == b"mine"


def test_a_folder_of_somebody_is_never_replaced(folder, tmp_path, capsys):
    path = tmp_path / "photographs"
    path.mkdir()
    (path / "mine.txt").write_text("mine")
    for target in ("huggingface", "stablehlo", "orbax"):
        flags = ["--to", target, "--overwrite", "--no-verify"]
        assert run(folder / "vits14.pth", path, *flags) == errors.BAD_INPUT
        assert "no conversion wrote" in capsys.readouterr().err
        assert (path / "mine.txt").read_text() == "mine"
        assert run(folder / "vits14.pth", folder, *flags) == errors.BAD_INPUT
        assert run(folder / "vits14.pth", "a.pth", *flags) == errors.BAD_INPUT
        capsys.readouterr()
        again = tmp_path / target  # what a conversion wrote is
        assert [run(folder / "vits14.pth", again, *flags) for _ in range(2)] == [0, 0]


def test_a_real_process(folder, tmp_path):
    command = [sys.executable, "-m", "dinov2_jax.convert", str(folder / "vits14.pth")]
    command += [str(tmp_path / "a.pth"), "--to", "torch-hub", "--num-heads=2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "written and verified with torch" in done.stdout
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == errors.BAD_INPUT
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1

"""`python -m dinov2_jax.convert`: every target, judged by its own packages."""

import dataclasses
import pathlib
import subprocess
import sys

import conversions
import jax
import numpy as np
import pytest
import random_weights
import safetensors.numpy
from peers import torch, transformers

import dinov2_jax
from dinov2_jax import errors
from dinov2_jax.checkpoint import checksums
from dinov2_jax.convert import __main__ as convert
from dinov2_jax.convert import targets, verify
from dinov2_jax.weights import reading, state_dict

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return conversions.make_sources(tmp_path_factory.mktemp("sources"))


def assert_torch_holds(tensors, expected):
    assert list(tensors) == list(expected)
    for key, array in expected.items():
        assert tensors[key].dtype == torch.float32
        np.testing.assert_array_equal(tensors[key].numpy(), array, err_msg=key)


def test_a_damaged_export_of_this_project_is_refused(tmp_path):
    """Orbax itself reads flipped bits silently; older exports have no checksums."""
    folder = conversions.own_export(tmp_path / "own")
    assert checksums.problem(folder / "weights") is None
    files = [path for path in (folder / "weights").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with pytest.raises(errors.UserError, match="is damaged .* write an export again"):
        dinov2_jax.load(folder)
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    (folder / "weights" / checksums.NAME).unlink()
    dinov2_jax.load(folder)


# Heads, registers and SwiGLU at once, and none of them; the third repeats the first.
@pytest.mark.parametrize(
    "kind",
    ["vits14", "vitg14_reg4", pytest.param("vits14_reg4", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("target", conversions.TARGETS)
def test_every_target_is_written_checked_and_reported(folder, tmp_path, target, kind):
    path = tmp_path / conversions.TARGETS[target]
    assert conversions.run(folder / f"{kind}.pth", path, "--to", target) == 0
    written = conversions.report(path)
    assert written["target"] == target
    assert written["model"]["num_heads"] == 2
    assert written["sha256"].items() == conversions.digests(path).items()
    if target == "timm":  # needs torchvision, which the tests do without
        assert "timm" in written["verified"]["skipped"]
    else:
        if target in ("torch-hub", "safetensors", "huggingface", "orbax"):
            assert written["verified"]["tensors"] == "bit-identical"
        checked = written["verified"]["relative_error"]
        assert {"cls", "patches"} <= checked.keys()
        assert ("registers" in checked) == ("reg4" in kind)
        assert max(checked.values()) < 1e-5
        # At an oblong size too, where the target can, unless it says otherwise.
        lost = target == "huggingface" and "reg4" not in kind
        assert ("warning" in written) == lost
        assert ("other_size" in written["verified"]) == (
            target in ("torch-hub", "safetensors", "huggingface", "orbax")
        )
        if "other_size" in written["verified"]:
            other = written["verified"]["other_size"]
            assert other["images"] == [2, 28, 70, 3]
            assert (max(other["relative_error"].values()) > 1e-3) == lost
            assert lost or max(other["relative_error"].values()) < 1e-5
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
    "target", sorted(conversions.TARGETS.keys() - {"orbax"})
)  # which dates its files
def test_the_same_weights_give_the_same_bytes(folder, tmp_path, target):
    found = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        path = tmp_path / name / conversions.TARGETS[target]
        flags = ["--to", target, "--no-verify"]
        assert conversions.run(folder / "vits14_reg4.pth", path, *flags) == 0
        found.append(conversions.digests(path))
    assert found[0] == found[1]


def test_hub_round_trip_is_bit_identical(folder, tmp_path):
    for kind in conversions.KINDS:
        path = tmp_path / f"{kind}.pth"
        assert (
            conversions.run(
                folder / f"{kind}.pth", path, "--to", "torch-hub", "--no-verify"
            )
            == 0
        )
        assert_torch_holds(torch.load(path), conversions.backbone(kind))
        # Through Hugging Face's names too.
        hf, back = tmp_path / f"hf_{kind}", tmp_path / f"back_{kind}.pth"
        assert conversions.run(path, hf, "--to", "huggingface", "--no-verify") == 0
        assert conversions.run(hf, back, "--to", "torch-hub", "--no-verify") == 0
        assert back.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    "name", ["vits14_reg4", pytest.param("vitb14", marks=pytest.mark.slow)]
)
def test_real_sizes_are_bit_identical_too(tmp_path, name):
    tensors = random_weights.tensors(random_weights.shapes(f"dinov2_{name}"))
    conversions.save(tmp_path / "a.pth", tensors)
    back = tmp_path / "b.pth"
    flags = ["--to", "torch-hub", "--no-verify"]
    assert convert.main([str(tmp_path / "a.pth"), str(back), *flags]) == 0
    assert_torch_holds(torch.load(back), tensors)
    hf = tmp_path / "hf"
    flags = ["--to", "huggingface", "--no-verify"]
    assert convert.main([str(back), str(hf), *flags]) == 0
    found = reading.read(hf).params["backbone"]
    arrays = state_dict.state_dict_from_params(found, patch_size=14)
    for key, array in tensors.items():
        np.testing.assert_array_equal(arrays[key], array)


def test_transformers_loads_the_folder_without_warnings(folder, tmp_path):
    path = tmp_path / "hf"
    assert conversions.run(folder / "vits14_reg4.pth", path, "--to", "huggingface") == 0
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


def test_training_checkpoints_round_trip(folder, tmp_path):
    source = folder / "training.pth"
    for target, name in (("torch-hub", "both.pth"), ("safetensors", "b.safetensors")):
        path = tmp_path / name
        assert conversions.run(source, path, "--to", target, "--which=both") == 0
        for which, seed in (("student", 1), ("teacher", 2)):
            found = reading.read(path, which=which, heads=True, num_heads=2)
            arrays = state_dict.state_dict_from_params(
                found.params["backbone"], patch_size=14
            )
            for key, array in conversions.backbone(seed=seed).items():
                np.testing.assert_array_equal(arrays[key], array)
            head = state_dict.state_dict_from_params(found.params["dino_head"])
            for key, array in random_weights.head_tensors(seed).items():
                np.testing.assert_array_equal(head[key], array)
    flat = torch.load(tmp_path / "both.pth")["model"]
    assert (
        flat.keys()
        == (conversions.branch("student", 1) | conversions.branch("teacher", 2)).keys()
    )


def test_run_round_trip(uninterrupted, tmp_path):
    """Student, teacher and heads, through every target that takes heads."""
    workdir, _ = uninterrupted
    expected = {
        which: reading.read(workdir, which=which, heads=True)
        for which in ("student", "teacher")
    }

    def assert_back(path, which):
        found = reading.read(path, which=which, heads=True)
        assert found.which == which
        for field in ("num_heads", "image_size", "interpolate_offset"):
            wanted = getattr(expected[which].module.config, field)
            assert getattr(found.module.config, field) == wanted
        jax.tree.map(
            np.testing.assert_array_equal, found.params, expected[which].params
        )

    def convert_run(source, name, *flags):
        assert convert.main([str(source), str(tmp_path / name), *flags]) == 0
        return tmp_path / name

    both = convert_run(workdir, "both.pth", "--to=torch-hub", "--which=both")
    flat = convert_run(workdir, "both.safetensors", "--to=safetensors", "--which=both")
    for which in ("student", "teacher"):
        assert_back(both, which)
        assert_back(flat, which)
        one = [f"--which={which}", "--heads", "--no-verify"]
        for source in (workdir, both, flat):
            for target, suffix in (("torch-hub", ".pth"), ("orbax", "_own")):
                name = f"{which}_{source.name}{suffix}"
                assert_back(convert_run(source, name, f"--to={target}", *one), which)
    students, teachers = (jax.tree.leaves(w.params) for w in expected.values())
    assert not all(map(np.array_equal, students, teachers))


def test_owner_is_kept_with_heads(folder, tmp_path):
    """A student is never labelled teacher, neither on the way nor after it."""
    source, path = folder / "training.pth", tmp_path / "s.safetensors"
    flags = ["--to", "safetensors", "--which=student", "--heads"]
    assert conversions.run(source, path, *flags) == 0
    names = safetensors.numpy.load_file(path)
    assert names.keys() == conversions.branch("student", 1).keys()
    again = tmp_path / "s.pth"
    assert conversions.run(path, again, "--to", "torch-hub", "--heads") == 0
    assert list(torch.load(again)) == ["student"]
    assert reading.read(again, which="student", heads=True).which == "student"
    assert (
        conversions.run(
            path, tmp_path / "t.pth", "--to", "torch-hub", "--which=teacher"
        )
        == 2
    )


def test_unknown_owner_is_not_called_teacher(tmp_path):
    heads = {f"dino_head.{k}": v for k, v in random_weights.head_tensors().items()}
    tensors = {f"backbone.{k}": v for k, v in conversions.backbone().items()} | heads
    conversions.save(tmp_path / "bare.pth", tensors)
    for target, name in (("torch-hub", "a.pth"), ("safetensors", "a.safetensors")):
        flags = ["--to", target, "--heads"]
        assert conversions.run(tmp_path / "bare.pth", tmp_path / name, *flags) == 0
    assert torch.load(tmp_path / "a.pth").keys() == tensors.keys()
    assert safetensors.numpy.load_file(tmp_path / "a.safetensors").keys() == (
        tensors.keys()
    )


@pytest.mark.parametrize("which", ["student", "teacher"])
def test_one_owner_with_heads_as_the_reference_saves_it(folder, tmp_path, which):
    path = tmp_path / "a.pth"
    flags = ["--to", "torch-hub", f"--which={which}", "--heads"]
    assert conversions.run(folder / "training.pth", path, *flags) == 0
    tree = torch.load(path)
    assert list(tree) == [which]
    expected = conversions.branch(which, {"student": 1, "teacher": 2}[which])
    assert {f"{which}.{key}" for key in tree[which]} == expected.keys()


def test_size_resamples_or_is_fixed(folder, tmp_path):
    source = folder / "vits14_reg4.pth"
    path = tmp_path / "a.pth"
    assert conversions.run(source, path, "--to", "torch-hub", "--size=98x98") == 0
    assert torch.load(path)["pos_embed"].shape == (1, 50, 128)
    path = tmp_path / "a.onnx"
    assert conversions.run(source, path, "--to", "onnx", "--size=56x84") == 0
    assert conversions.report(path)["verified"]["images"] == [2, 56, 84, 3]


def test_a_folder_for_a_size_prepares_images_for_it(folder, tmp_path):
    for target in ("huggingface", "orbax"):
        path = tmp_path / target
        flags = ["--to", target, "--size=448x448", "--no-verify"]
        assert conversions.run(folder / "vits14_reg4.pth", path, *flags) == 0
        found = reading.read(path)
        assert found.module.config.image_size == found.preprocessing.crop_size == 448
        assert found.preprocessing.resize_size == 512  # 256 / 224 of it
    processor = transformers.AutoImageProcessor.from_pretrained(
        tmp_path / "huggingface", backend="pil"
    )
    pixels = processor(np.zeros((500, 600, 3), np.uint8), return_tensors="np")
    assert pixels["pixel_values"].shape == (1, 3, 448, 448)


@pytest.mark.parametrize(
    "channels", [4, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 13))]
)
def test_weights_of_other_channels_with_their_own_mean(tmp_path, channels):
    prepare = {"mean": (0.4,) * channels, "std": (0.2,) * channels}
    source = conversions.own_export(
        tmp_path / "mine", channels=channels, prepare=prepare
    )
    for target in ("torch-hub", "huggingface", "onnx", "orbax"):
        path = tmp_path / f"new_{conversions.TARGETS[target]}"
        assert conversions.run(source, path, "--to", target) == 0
        assert (
            max(conversions.report(path)["verified"]["relative_error"].values()) < 1e-5
        )
    assert reading.read(tmp_path / "new_hf").preprocessing.mean == (0.4,) * channels


def test_export_with_different_features_is_refused(
    folder, tmp_path, monkeypatch, capsys
):
    """A writer that swaps two tensors: nothing is kept."""

    def swapped(weights):
        tensors = original(weights)
        a, b = "blocks.0.norm1.weight", "blocks.1.norm1.weight"
        return tensors | {a: tensors[b], b: tensors[a]}

    original = targets.backbone_tensors
    monkeypatch.setattr(targets, "backbone_tensors", swapped)
    for target in ("torch-hub", "safetensors", "huggingface"):
        path = tmp_path / conversions.TARGETS[target]
        assert (
            conversions.run(folder / "vits14.pth", path, "--to", target)
            == errors.BAD_INPUT
        )
        assert "gives different features: relative error" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_export_with_different_heads_is_refused(folder, tmp_path, monkeypatch, capsys):
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
        assert conversions.run(folder / "training.pth", tmp_path / "a.pth", *flags) == 2
        assert "holds different values" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "flags",
    [[], ["--to=coreml"], ["--to=timm", "--which=x"], ["--to=timm", "--num-heads=0"]],
)
def test_parser_errors_are_one_line(flags, capsys):
    with pytest.raises(SystemExit) as caught:
        convert.main(["a.pth", "b.pth", *flags])
    assert caught.value.code == errors.BAD_INPUT
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1, message


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
        (
            [source, tmp_path / "hf", "--to", "huggingface", "--heads"],
            "cannot hold projection heads",
        ),
        ([source, tmp_path / "there.pth", "--to", "torch-hub"], "add --overwrite"),
        ([source, tmp_path / "no/a.pth", "--to", "torch-hub"], "there is no folder"),
        ([source, tmp_path / "x.onnx", "--to", "onnx"], "x.onnx.data exists"),
        ([source, tmp_path / "y.pth", "--to", "torch-hub"], "y.pth.json exists"),
        ([source, tmp_path / "a.pth", "--to", "torch-hub", "--size=0x0"], "positive"),
        (
            [source, tmp_path / "a.pth", "--to", "torch-hub", "--which=teacher"],
            "does not say whether",
        ),
        (
            [training, tmp_path / "a.pth", "--to", "timm", "--which=both"],
            "cannot hold projection heads",
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
        assert conversions.run(*flags) == errors.BAD_INPUT, flags
        message = capsys.readouterr().err
        assert message.startswith("error: ") and message.count("\n") == 1, message
        assert words in message
    names = {"there.pth", "x.onnx.data", "y.pth.json"}
    assert {p.name for p in tmp_path.iterdir()} == names
    assert (tmp_path / "there.pth").read_bytes() == b"mine"


def test_a_real_process(folder, tmp_path):
    command = [sys.executable, "-m", "dinov2_jax.convert", str(folder / "vits14.pth")]
    command += [str(tmp_path / "a.pth"), "--to", "torch-hub", "--num-heads=2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "written and verified with torch" in done.stdout
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == errors.BAD_INPUT
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1

"""The folder of a page: its files, what is refused, and that none is half written."""

import json

import numpy as np
import onnxruntime
import pytest
import random_weights
import vits
from PIL import Image

from dinov2_jax import errors
from dinov2_jax.convert import destination as destination_lib
from dinov2_jax.data import preprocessing
from dinov2_jax.export_page import __main__ as export_page
from dinov2_jax.export_page import page_folder, runtime_files
from dinov2_jax.weights import reading, torch_writer

RUNTIME = {name: name.encode() for name in runtime_files.FILES}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "small.pth"
    drawn = random_weights.tensors(random_weights.small_shapes("vits14", depth=1))
    torch_writer.write(path, drawn)
    return path


def write(source, out, runtime=RUNTIME):
    weights = reading.read(source, num_heads=2)
    page_folder.check_model(weights, str(source))
    destination = destination_lib.Destination(out, is_file=False, target="page")
    return page_folder.write(
        weights, destination, name="small", size=28, runtime=runtime
    )


def test_the_folder_has_all_that_the_page_loads(source, tmp_path):
    out = tmp_path / "out"
    report = write(source, out)
    assert max(report["verified"]["relative_error"].values()) < 1e-4
    assert list(tmp_path.iterdir()) == [out]
    page = json.loads((out / "page.json").read_text())
    assert (page["model"], page["size"], page["patch_size"]) == ("small", 28, 14)
    assert page["mean"][0] == pytest.approx(0.485)
    assert page["model_bytes"] == (out / "model.onnx").stat().st_size
    session = onnxruntime.InferenceSession(out / "model.onnx")
    assert session.get_inputs()[0].shape == ["batch", 3, 28, 28]
    for name, content in RUNTIME.items():
        assert (out / "runtime" / name).read_bytes() == content
    names = {path.name for path in out.iterdir()}
    assert {"index.html", "style.css", "page.js", "backbone.js"} < names
    assert "MIT License" in (out / "runtime/LICENSE.txt").read_text()
    for photograph in page["photographs"]:
        assert np.asarray(Image.open(out / photograph["file"])).shape[2] == 3
        assert photograph["credit"]
    every = [path.read_text() for path in out.glob("*.json")]
    assert not any(str(source.parent) in text for text in every)


def test_nothing_is_left_of_a_page_that_fails(source, tmp_path):
    with pytest.raises(OSError):
        write(source, tmp_path / "out", RUNTIME | {"no/such/folder": b""})
    assert not any(tmp_path.iterdir())


def test_a_folder_with_other_files_is_not_replaced(source, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/letter.txt").write_text("dear")
    flags = [f"--model={source}", str(tmp_path / "out")]
    assert export_page.main(flags) == 2
    assert "exists: add --overwrite" in capsys.readouterr().err
    assert export_page.main([*flags, "--overwrite"]) == 2
    assert "files not written by a conversion" in capsys.readouterr().err
    assert (tmp_path / "out/letter.txt").read_text() == "dear"


@pytest.mark.parametrize(
    "flags, text",
    [
        (
            ["--size=30"],
            "--size=30 is not a multiple of the patch size 14: use --size=28",
        ),
        (["--runtime=nowhere"], "--runtime=nowhere does not exist"),
    ],
)
def test_wrong_flags_write_nothing(source, tmp_path, capsys, flags, text):
    given = [f"--model={source}", "--num-heads=2", str(tmp_path / "out"), *flags]
    assert export_page.main(given) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "wanted, patch_size, size",
    [(None, 14, 336), (None, 12, 336), (None, 16, 336), (48, 12, 48)],
)
def test_sizes_are_whole_patches(wanted, patch_size, size):
    assert page_folder.choose_size(wanted, patch_size) == size


def test_models_that_no_browser_holds_are_refused():
    def weights(kernel, **options):
        module = vits.make(embed_dim=24, depth=1, num_heads=3, **options)
        params = {"backbone": {"blocks": {"kernel": kernel}}}
        return reading.Weights(module, params, preprocessing.Preprocessing(), None)

    large = np.broadcast_to(np.float32(0), (2**15, 2**15))
    with pytest.raises(errors.UserError, match=r"giant are 4\.3 GB.*smaller"):
        page_folder.check_model(weights(large), "giant")
    with pytest.raises(errors.UserError, match="images of 1 channels"):
        page_folder.check_model(weights(large[:1], in_chans=1), "grey")

"""SSCD with random weights, compared with the same network in torch.

No published file was ever read here.
"""

import json

import numpy as np
import peers
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dinov2_jax import errors
from dinov2_jax.curate import __main__ as curate
from dinov2_jax.curate import (
    calibration,
    features,
    sscd,
    sscd_preprocessing,
    sscd_weights,
    tables,
)
from dinov2_jax.weights import torch_writer

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SQUEEZE = sscd_preprocessing.Preprocessing("squeeze", 320)


def make_twin(blocks=(2, 1, 1, 1), width=8, dim=16):
    """A ResNet of bottlenecks with GeM, in torch, with random weights and norms."""
    torch, nn = peers.torch, peers.torch.nn
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self, inputs, inner, stride, project):
            super().__init__()
            self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(inner)
            self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(inner)
            self.conv3 = nn.Conv2d(inner, 4 * inner, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(4 * inner)
            self.downsample = None
            if project:
                self.downsample = nn.Sequential(
                    nn.Conv2d(inputs, 4 * inner, 1, stride, bias=False),
                    nn.BatchNorm2d(4 * inner),
                )

        def forward(self, x):
            y = self.bn1(self.conv1(x)).relu()
            y = self.bn2(self.conv2(y)).relu()
            shortcut = x if self.downsample is None else self.downsample(x)
            return (self.bn3(self.conv3(y)) + shortcut).relu()

    class Backbone(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, width, 7, 2, padding=3, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            inputs = width
            for stage, count in enumerate(blocks):
                inner, layer = width * 2**stage, []
                for block in range(count):
                    stride = 2 if stage and not block else 1
                    layer.append(Block(inputs, inner, stride, not block))
                    inputs = 4 * inner
                setattr(self, f"layer{stage + 1}", nn.Sequential(*layer))
            self.fc = nn.Linear(inputs, dim)

        def forward(self, x):
            x = self.bn1(self.conv1(x)).relu()
            x = nn.functional.max_pool2d(x, 3, 2, padding=1)
            for stage in range(4):
                x = getattr(self, f"layer{stage + 1}")(x)
            x = x.clamp(min=1e-6).pow(3).mean(dim=(2, 3)).pow(1 / 3)
            return nn.functional.normalize(self.fc(x))

    backbone = Backbone()
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return backbone.eval()


def state_dict(twin):
    return {f"backbone.{name}": x for name, x in twin.state_dict().items()}


def describe_in_torch(twin, picture):
    """Descriptor of one uint8 [H, W, 3] in torch."""
    torch = peers.torch
    x = (np.asarray(picture, np.float64) / 255 - MEAN) / STD
    with torch.no_grad():
        return twin(torch.tensor(x.transpose(2, 0, 1)[None]).float())[0].numpy()


def picture(height, width, seed):
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (5, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), 2))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small network and its file."""
    twin = make_twin()
    path = tmp_path_factory.mktemp("sscd") / "small.torchvision.pt"
    peers.torch.save(state_dict(twin), path)
    return twin, path


def agree(twin, path, pictures):
    describer = sscd.Describer(sscd_weights.read(path), SQUEEZE, most=len(pictures))
    found = describer(pictures)
    expected = np.stack([describe_in_torch(twin, x) for x in pictures])
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)
    distance = np.linalg.norm(expected[0] - expected[1])
    error = np.linalg.norm(found - expected, axis=1)
    assert error.max() < 1e-5 and error.max() < 1e-3 * distance


def test_images_of_several_shapes_agree_with_torch(small):
    agree(*small, [picture(64, 64, 0), picture(45, 70, 1), picture(33, 96, 2)])


@pytest.mark.slow
def test_the_published_size_agrees_with_torch(tmp_path):
    twin, path = make_twin((3, 4, 6, 3), 64, 512), tmp_path / "full.torchvision.pt"
    peers.torch.save(state_dict(twin), path)
    agree(twin, path, [picture(64, 64, 0), picture(64, 64, 1)])


def test_resizes():
    wide = picture(100, 201, 0)
    assert SQUEEZE(wide).shape == (320, 320, 3)
    short = sscd_preprocessing.Preprocessing("short-side", 288)
    assert short(wide).shape == (288, int(288 * 2.01), 3)
    assert short(np.swapaxes(wide, 0, 1)).shape == (int(288 * 2.01), 288, 3)
    same = picture(288, 300, 1)
    assert short(same) is same
    large = picture(500, 700, 2)
    tensor = peers.torch.tensor(large.transpose(2, 0, 1)[None]).float()
    expected = peers.torch.nn.functional.interpolate(
        tensor, (320, 320), mode="bilinear", antialias=True
    )[0].numpy()
    difference = SQUEEZE(large).transpose(2, 0, 1) - expected
    assert np.abs(difference).max() <= 1.01  # Pillow rounds twice


def without(tensors, name):
    return {key: value for key, value in tensors.items() if key != name}


CHANGES = {
    "backbone.layer3.0.bn2.running_var": lambda x, name: without(x, name),
    "backbone.fc.bias": lambda x, name: without(x, name),
    "backbone.layer1.1.conv2.weight": lambda x, name: x | {name: x[name][:, :4]},
    "backbone.conv1.weight": lambda x, name: x | {name: x[name][:, 0]},
    "backbone.fc.scale": lambda x, name: x | {name: x["backbone.fc.bias"]},
    "backbone.layer2.7.conv1.weight": lambda x, name: (
        x | {name: x["backbone.conv1.weight"]}
    ),
    "Classy Vision": lambda x, _: (
        without(x, "backbone.fc.bias")
        | {"embeddings.1.weight": x["backbone.fc.weight"]}
    ),
    "more than tensors": lambda x, _: {"state_dict": x, "epoch": 3},
}


@pytest.mark.parametrize("name", CHANGES)
def test_other_tensors_are_refused(name, small, tmp_path):
    tensors = {key: x.numpy() for key, x in state_dict(small[0]).items()}
    path = tmp_path / "changed.pt"
    torch_writer.write(path, CHANGES[name](tensors, name))
    with pytest.raises(errors.UserError) as raised:
        sscd_weights.read(path)
    message = str(raised.value)
    named = "backbone.layer2." if "layer2.7" in name else name
    assert named in message and str(path) in message
    assert ".torchvision.pt" in message and "\n" not in message


def test_values_that_are_not_finite_are_refused(small, tmp_path):
    tensors = {key: x.numpy() for key, x in state_dict(small[0]).items()}
    name = "backbone.layer3.0.bn2.running_mean"
    torch_writer.write(tmp_path / "w.pt", tensors | {name: tensors[name] * np.inf})
    with pytest.raises(errors.UserError, match=r"layer3\.0\.conv2 has values that"):
        sscd_weights.read(tmp_path / "w.pt")


def test_counters_of_the_norms_may_be_missing(small, tmp_path):
    tensors = {
        name: x.numpy()
        for name, x in state_dict(small[0]).items()
        if not name.endswith("num_batches_tracked")
    }
    torch_writer.write(tmp_path / "w.pt", tensors)
    found, expected = map(sscd_weights.read, (tmp_path / "w.pt", small[1]))
    assert found.keys() == expected.keys()
    for name, layer in expected.items():
        np.testing.assert_array_equal(found[name]["kernel"], layer["kernel"])


@pytest.mark.filterwarnings("ignore:.torch.jit.script")
def test_other_files_are_refused(tmp_path):
    program = tmp_path / "sscd_disc_mixup.torchscript.pt"
    peers.torch.jit.script(peers.torch.nn.Linear(2, 2)).save(str(program))
    Image.new("RGB", (8, 8)).save(tmp_path / "weights.png")
    for name, what in {
        program.name: "TorchScript",
        "weights.png": "PNG",
        "gone.pt": "No such file",
    }.items():
        with pytest.raises(errors.UserError, match=what) as raised:
            sscd_weights.read(tmp_path / name)
        message = str(raised.value)
        assert "sscd_disc_mixup.torchvision.pt" in message and "\n" not in message


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(4):
        image = Image.fromarray(picture(90 + number, 120, number))
        image.save(folder / f"{number}.png")
    image.save(folder / "copy.jpg", quality=95)
    (folder / "broken.png").write_bytes(b"not an image")
    Image.new("RGB", (2, 64)).save(folder / "long.png")
    return folder


def test_from_images_to_descriptors(small, folder, tmp_path, capsys):
    twin, weights = small
    out = tmp_path / "descriptors.parquet"
    flags = [f"--weights={weights}", f"--out={out}"]
    assert curate.main(["describe", str(folder), *flags]) == 0
    table = pq.read_table(out).to_pydict()
    assert table["name"] == ["0.png", "1.png", "2.png", "3.png", "copy.jpg", "long.png"]
    assert table["path"][0] == bytes(folder / "0.png")
    for name, row in zip(table["name"], table["features"]):
        prepared = SQUEEZE(np.asarray(Image.open(folder / name)))
        expected = describe_in_torch(twin, prepared)
        np.testing.assert_allclose(row, expected, atol=1e-5)
    record = json.loads((tmp_path / "descriptors.parquet.json").read_text())
    settings = record["settings"]
    assert settings["weights"].startswith("sha256 ")
    assert settings["preprocessing"] == {"resize": "squeeze", "size": 320}
    assert list(record["skipped"]) == ["broken.png"]

    before = out.read_bytes()
    assert curate.main(["describe", str(folder), *flags]) == 0
    assert "nothing to do" in capsys.readouterr().err and out.read_bytes() == before
    assert curate.main(["describe", str(folder), *flags, "--resize=short-side"]) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_an_image_that_is_listed_twice(small, folder, tmp_path, capsys):
    (tmp_path / "list.txt").write_text(f"{folder}/0.png\n{folder}/1.png\n" * 2)
    flags = [f"--weights={small[1]}", f"--out={tmp_path}/out.parquet"]
    for shard in ([], ["--shard=1/2"]):
        line = ["describe", str(tmp_path / "list.txt"), *flags, *shard]
        assert curate.main(line) == 2
        assert "0.png' is listed twice" in capsys.readouterr().err


@pytest.mark.slow
def test_dedup_takes_and_calibrates_descriptors(small, folder, tmp_path):
    out, dups = tmp_path / "descriptors.parquet", tmp_path / "dups.parquet"
    flags = [f"--weights={small[1]}", f"--out={out}"]
    assert curate.main(["describe", str(folder), *flags]) == 0
    line = ["dedup", f"--features={out}", f"--out={dups}", "--threshold=0.5"]
    assert curate.main([*line, "--calibrate=4", f"--model={small[1]}"]) == 0
    columns, record = tables.read(dups)
    assert columns["nearest"][3] == "copy.jpg" and columns["nearest"][4] == "3.png"
    assert record["calibration"]["recall"]["JPEG 75"]["features"] == 1


def test_calibration_describes_as_the_file_says(small, folder, tmp_path):
    twin, weights = small
    out = tmp_path / "descriptors.parquet"
    line = ["describe", str(folder / "[0-3].png"), f"--weights={weights}"]
    assert curate.main([*line, f"--out={out}"]) == 0
    pool = features.open_features([out])
    embedder = calibration.make_embedder(pool, str(weights), {})
    pictures = (np.asarray(Image.open(folder / name)) for name in pool.names)
    found = embedder.embed(map(embedder.prepare, pictures), 4)
    np.testing.assert_allclose(found, pool.matrix(), atol=1e-6)
    other = tmp_path / "other.torchvision.pt"
    bias = state_dict(twin)["backbone.fc.bias"]
    changed = state_dict(twin) | {"backbone.fc.bias": bias + 1}
    peers.torch.save(changed, other)
    with pytest.raises(errors.UserError, match="other weights"):
        calibration.make_embedder(pool, str(other), {})


def test_the_short_side_keeps_the_shape(small, folder, tmp_path):
    twin, weights = small
    out = tmp_path / "short.npy"
    line = ["describe", str(folder), f"--weights={weights}", f"--out={out}"]
    assert curate.main([*line, "--resize=short-side", "--shard=2/3"]) == 0
    out = tmp_path / "short-00002-of-00003.npy"
    record = json.loads(out.with_name(f"{out.name}.json").read_text())
    assert record["names"] == ["2.png", "3.png"]
    short = sscd_preprocessing.Preprocessing("short-side", 288)
    for name, row in zip(record["names"], np.load(out)):
        prepared = short(np.asarray(Image.open(folder / name)))
        assert prepared.shape[0] == 288 < prepared.shape[1]
        np.testing.assert_allclose(row, describe_in_torch(twin, prepared), atol=1e-5)
    squeezed = tmp_path / "squeezed.npy"
    assert curate.main([*line[:-1], f"--out={squeezed}"]) == 0
    with pytest.raises(errors.UserError, match="differ in preprocessing"):
        features.open_features([squeezed, out])


def test_what_is_too_long_has_no_row(small, folder, tmp_path):
    out = tmp_path / "short.npy"
    line = ["describe", str(folder), f"--weights={small[1]}", f"--out={out}"]
    assert curate.main([*line, "--resize=short-side", "--shard=3/3"]) == 0
    out = tmp_path / "short-00003-of-00003.npy"
    record = json.loads(out.with_name(f"{out.name}.json").read_text())
    assert record["names"] == ["copy.jpg"] and "2x64" in record["skipped"]["long.png"]

"""Every kind of data that the guides name trains, by the commands that they give."""

import io
import json
import math
import shlex
import subprocess
import sys
import tarfile

import numpy as np
import processes
import pytest
from PIL import Image

SHORT = ("--config.optim.warmup_steps=1", "--config.optim.freeze_last_layer_steps=1")
TRAIN = ("--config.train.steps=2", *SHORT)
AGAIN = ("--config.train.steps=3", *SHORT)
EVALUATE = ("--config.evaluation.image_size=16", "--config.evaluation.resize_size=16")
SMALL = ("--config.model.depth=1", "--config.crops.local_crops_number=1")


def photograph(number, size=(32, 32), channels=3):
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
    image = small.resize(size, Image.Resampling.BICUBIC)
    return image.convert("L") if channels == 1 else image


def save(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def run(trainer, workdir, *flags, resumed=False, changed=False, **environment):
    """Trains for two steps, or resumes and trains for a third; returns the output."""
    finished = trainer.run(
        "--config=configs/debug.py",
        f"--workdir={workdir}",
        "--config.log.tensorboard=False",
        "--config.data.workers=0",  # any number does the same: data/stream_test.py
        *(AGAIN if resumed else TRAIN),
        *flags,
        **environment,
    )
    assert finished.code == 0, finished.output
    expected = (
        "the images changed since",
        "evaluation leaves out",
        "evaluation.train_path and evaluation.val_path are the same",
    )
    printed = processes.noise(finished.output)
    assert all(line.startswith(expected) for line in printed), finished.output
    assert sum(line.startswith(expected[0]) for line in printed) == changed
    assert ("resumed from step 2" in finished.output) == resumed
    rows = [row for row in processes.rows(workdir) if "loss/total" in row]
    assert [row["step"] for row in rows] == list(range(1, 4 if resumed else 3))
    for row in rows:
        for name, value in row.items():
            assert math.isfinite(value), (row["step"], name)
    return finished.output


def images_line(output):
    return next(x for x in output.splitlines() if x.startswith("images "))


def program(*arguments):
    """What a program of `dinov2_jax.data` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "dinov2_jax.data", *map(str, arguments)],
        cwd=processes.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def accuracies(workdir):
    (row,) = [row for row in processes.rows(workdir) if "knn/top1" in row]
    return row


def write_cifar(root):
    for part, count in (("train", 40), ("test", 10)):
        for i in range(count):
            name = f"{('cat', 'dog')[i % 2]}/{i:04}.png"
            save(photograph(i + count), root / part / name)


def test_class_folders_and_a_change_on_resume(in_process, tmp_path):
    root = tmp_path / "cifar"
    workdir = root / "train" / "run"  # its pictures are no images
    write_cifar(root)
    (root / "test/cat/0000.png").write_bytes(b"")  # evaluation does without it
    flags = ("--config.data.source=folder", f"--config.data.path={root / 'train'}")
    printed = images_line(run(in_process, workdir, *flags))
    assert f"40 images in 2 folders below {root / 'train'}" in printed
    before = json.loads((workdir / "data.json").read_text())
    save(photograph(99), root / "train/dog/new.png")
    output = run(
        in_process,
        workdir,
        *flags,
        *EVALUATE,
        f"--config.evaluation.train_path={root / 'train'}",
        f"--config.evaluation.val_path={root / 'test'}",
        "--config.evaluation.picture_size=32",
        resumed=True,
        changed=True,
    )
    assert "the images changed since this run last started: 40 images then, 41 now" in (
        output
    )
    assert output.count("evaluation leaves out cat/0000.png: empty file") == 1
    after = json.loads((workdir / "data.json").read_text())
    assert (before["images"], after["images"]) == (40, 41)
    assert "1 x output of a run" in images_line(output)
    assert 0 <= accuracies(workdir)["knn/top1"] <= 1
    assert (workdir / "pca.png").exists()
    root = root.rename(tmp_path / "moved")
    finished = in_process.run(
        "--config=configs/debug.py",
        f"--workdir={root / 'train' / 'run'}",
        "--config.log.tensorboard=False",
        "--config.data.workers=0",
        *AGAIN,
        flags[0],
        f"--config.data.path={root / 'train'}",
    )
    assert finished.code == 0 and "nothing to do" in finished.output
    printed = f"-> '{root / 'train'}': same images at a new location"
    assert printed in finished.output


def test_imagenet(in_process, tmp_path):
    root = tmp_path / "imagenet"
    for i in range(34):
        name = f"n0144{i % 4:04}/n0144{i % 4:04}_{i}.JPEG"
        save(photograph(i, (500, 375 + i)), root / "train" / name)
    flags = ("--config.data.source=auto", f"--config.data.path={root / 'train'}")
    printed = images_line(run(in_process, tmp_path / "run", *flags))
    assert f"34 images in 4 folders below {root / 'train'}" in printed


def test_a_flat_folder(in_process, tmp_path):
    for i in range(33):
        save(photograph(i, (70 + i, 90)), tmp_path / "flat" / f"IMG_{i}.JPG")
    flags = ("--config.data.source=folder", f"--config.data.path={tmp_path / 'flat'}")
    printed = images_line(run(in_process, tmp_path / "run", *flags))
    assert f"33 images in 1 folder below {tmp_path / 'flat'}" in printed


PREPARE = """
import io, sys
import numpy as np, tensorflow_datasets as tfds
from PIL import Image

class Squares(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=["even", "odd"])}))
    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}
    def _generate_examples(self):
        for i in range(36):
            stream = io.BytesIO()
            pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(stream, "PNG")
            stream.seek(0)
            yield i, {"image": stream, "label": i % 2}

Squares(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
assert "tensorflow" not in sys.modules
"""


@pytest.mark.slow
def test_tfds(trainer, in_process, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    command = [sys.executable, "-c", PREPARE, str(tmp_path / "tfds")]
    subprocess.run(command, check=True, capture_output=True)
    # A TensorFlow that fails where it is imported, as if there was none.
    (tmp_path / "path").mkdir()
    (tmp_path / "path/tensorflow.py").write_text("raise ImportError('no TensorFlow')")
    flags = (
        "--config.data.source=tfds",
        "--config.data.tfds_name=squares:1.0.0",
        f"--config.data.path={tmp_path / 'tfds'}",
    )
    environment = {"PYTHONPATH": str(tmp_path / "path")}
    output = run(trainer, tmp_path / "run", *flags, **environment)
    assert "36 images" in images_line(output) and "squares" in images_line(output)
    run(in_process, tmp_path / "run", *flags, resumed=True)


def test_webdataset(in_process, tmp_path):
    (tmp_path / "tars").mkdir()
    for shard in range(3):
        with tarfile.open(tmp_path / "tars" / f"x-{shard:04}.tar", "w") as tar:
            for i in range(12):
                stream = io.BytesIO()
                photograph(12 * shard + i, (64, 48)).save(stream, "JPEG")
                for extension, content in (("jpg", stream.getvalue()), ("cls", b"1")):
                    info = tarfile.TarInfo(f"{12 * shard + i:06}.{extension}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    pattern = f"{tmp_path}/tars/x-{{0000..0002}}.tar"
    flags = ("--config.data.source=auto", f"--config.data.path={pattern}")
    output = run(in_process, tmp_path / "run", *flags)
    assert "36 images" in images_line(output) and "3 " in images_line(output)
    run(in_process, tmp_path / "run", *flags, resumed=True)


def test_array_records_of_shard(in_process, tmp_path):
    write_cifar(tmp_path / "cifar")
    records = tmp_path / "records"
    program("shard", tmp_path / "cifar/train", records, "--shard-size=15")
    flags = ("--config.data.source=auto", f"--config.data.path={records}")
    assert "40 images" in images_line(run(in_process, tmp_path / "run", *flags))
    run(in_process, tmp_path / "run", *flags, resumed=True)


def stats_flags(values, *arguments):
    """The flags that `stats` prints; `values` in [0, 1] are what it must have seen.

    Args:
      values: [C, n], of all images.
      *arguments: Of the program.
    """
    flags = shlex.split(program("stats", *arguments))
    for flag, expected in zip(flags, (values.mean(1), values.std(1)), strict=True):
        found = [float(x) for x in flag.split("=")[1].strip("(,)").split(",")]
        np.testing.assert_allclose(found, expected, atol=1 / 255)
    return flags


@pytest.mark.slow
def test_one_channel(in_process, tmp_path):
    root, workdir, pixels = tmp_path / "scans", tmp_path / "run", []
    for i in range(40):
        image = photograph(i, channels=1)
        pixels.append(np.asarray(image).ravel() / 255)
        save(image, root / "ab"[i % 2] / f"{i}.png")
    flags = [
        *stats_flags(np.concatenate(pixels)[None], root, "--channels=1"),
        "--config.data.source=folder",
        f"--config.data.path={root}",
        "--config.model.in_chans=1",
        "--config.crops.policy=gray",
        f"--config.evaluation.train_path={root}",
        f"--config.evaluation.val_path={root}",
        "--config.evaluation.picture_size=32",
    ]
    run(in_process, workdir, *flags, *SMALL, *EVALUATE)
    # The same images on both sides: each finds itself, and another is not far.
    assert accuracies(workdir)["knn/top1_pixels"] > 0.5
    assert "knn/top1_color_histogram" not in accuracies(workdir)
    assert (workdir / "pca.png").exists()


@pytest.mark.slow
def test_thirteen_channels_by_a_pattern(in_process, tmp_path):
    root, workdir, pixels = tmp_path / "tiles", tmp_path / "run", []
    for i in range(36):
        rng = np.random.default_rng(i)
        level = np.arange(1, 14)[:, None, None] * 500
        tile = (level + rng.integers(0, 3000, (13, 40, 36))).astype(np.uint16)
        pixels.append(tile.reshape(13, -1) / 10_000)
        (root / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        np.save(root / "ab"[i % 2] / f"{i}.npy", tile)
    pattern = f"{root}/**/*.npy"
    options = (pattern, "--channels=13", "--value-range", 0, 10_000)
    flags = [
        *stats_flags(np.concatenate(pixels, axis=1), *options),
        "--config.data.source=auto",
        f"--config.data.path={pattern}",
        "--config.data.value_range=(0,10000)",
        "--config.model.in_chans=13",
        "--config.crops.policy=multispectral",
    ]
    output = run(in_process, workdir, *flags, *SMALL)
    assert "36 images" in images_line(output)
    evaluation = [f"--config.evaluation.{n}_path={pattern}" for n in ("train", "val")]
    run(in_process, workdir, *flags, *SMALL, *EVALUATE, *evaluation, resumed=True)
    found = accuracies(workdir)
    assert {"knn/top1", "knn/top1_random_init", "knn/top1_pixels"} <= found.keys()
    assert "knn/top1_color_histogram" not in found
    assert not (workdir / "pca.png").exists()

"""`python -m dinov2_jax.embed`: what it writes, survives and refuses."""

import json
import logging
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tarfile

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import random_weights
from PIL import Image

import dinov2_jax
from dinov2_jax.data import preprocessing
from dinov2_jax.data.sources import manifest
from dinov2_jax.embed import __main__ as embed
from dinov2_jax.embed import extraction, images, left_out, output, resumable_output
from dinov2_jax.weights import torch_writer

ROOT = pathlib.Path(__file__).parents[2]
# What embed runs as, but that saves at once and dies of a signal right after a save,
# however fast the machine is.
DYING = """
import os, sys
from dinov2_jax.embed import resumable_output
number, left = int(sys.argv.pop(1)), int(sys.argv.pop(1))
save = resumable_output.Unfinished.save
def save_and_die(self):
    global left
    save(self)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), number)
resumable_output.SAVE_SECONDS = 0.0
resumable_output.Unfinished.save = save_and_die
from dinov2_jax.embed import __main__ as embed
sys.exit(embed.main())
"""


def save_weights(path, seed=0, name="vits14"):
    drawn = random_weights.tensors(random_weights.small_shapes(name), seed)
    torch_writer.write(path, drawn)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_weights(tmp_path_factory.mktemp("weights") / "small.pth")


def picture(seed, size=(60, 50), mode="RGB"):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 5, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode)


def fill(folder, count):
    """Pictures in sub-folders, of several sizes and forms."""
    for i in range(count):
        path = folder / f"{i % 3}" / f"{i:03}.{['png', 'jpg', 'webp'][i % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(i, (40 + 7 * (i % 5), 90 - 11 * (i % 4))).save(path)
    return folder


@pytest.fixture
def photos(tmp_path):
    return fill(tmp_path / "photos", 11)


def arguments(data, weights, out, *more):
    small = ("--size=28", "--resize=32", "--batch-size=4", "--num-heads=2")
    return [str(data), f"--model={weights}", f"--out={out}", *small, *more]


def run(*args):
    assert embed.main(arguments(*args)) == 0


def described(out):
    return json.loads(out.with_name(out.name + ".json").read_text())


def expected(data, weights, names, features="cls"):
    """The features by the public way, an image at a time."""
    model = dinov2_jax.load(weights, num_heads=2)
    prepare = type(model.preprocessing)(resize_size=32, crop_size=28)
    rows = []
    for name in names:
        with Image.open(os.path.join(os.fsencode(data), os.fsencode(name))) as image:
            x = prepare(image.convert("RGB"))
        out = model(x[None])
        mean = np.asarray(out.patches).mean((1, 2))
        rows.append(
            {
                "cls": out.cls,
                "patch_mean": mean,
                "cls+patch_mean": np.concatenate([out.cls, mean], -1),
                "patches": out.patches,
            }[features][0]
        )
    return np.stack(rows)


def all_names(folder):
    found = [p for p in folder.rglob("*") if p.is_file()]
    return sorted(str(p.relative_to(folder)) for p in found)


@pytest.mark.parametrize(
    "features",
    [
        "cls+patch_mean",
        "patches",
        pytest.param("cls", marks=pytest.mark.slow),
        pytest.param("patch_mean", marks=pytest.mark.slow),
    ],
)
def test_rows_are_the_models_features(photos, weights, tmp_path, features):
    out = tmp_path / "f.npy"
    run(photos, weights, out, f"--features={features}")
    rows, about = np.load(out), described(out)
    assert about["names"] == all_names(photos)
    assert about["rows"] == len(rows) == 11 and about["skipped"] == {}
    wanted = expected(photos, weights, about["names"], features)
    assert rows.shape == wanted.shape and rows.dtype == np.float32
    np.testing.assert_allclose(rows, wanted, atol=2e-5)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "f.npy",
        "f.npy.json",
        "photos",
    ]


def test_a_list_in_its_order_and_features_of_length_one(
    photos, weights, tmp_path, capfd
):
    run(photos, weights, tmp_path / "all.npy", "--features=patches")
    names = all_names(photos)[::-3]
    listed = tmp_path / "list.csv"
    listed.write_text("\n".join(["file_name", *(f"photos/{name}" for name in names)]))
    out = tmp_path / "f.npy"
    run(listed, weights, out, "--features=patches", "--normalize")
    about = described(out)
    assert about["names"] == [f"photos/{name}" for name in names]
    assert about["settings"]["normalize"] is True
    rows = np.load(tmp_path / "all.npy")[::-3]
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    np.testing.assert_allclose(np.load(out), rows, atol=1e-5)
    # Neither a finished nor an unfinished run goes on with features of other lengths.
    raw = arguments(listed, weights, out, "--features=patches")
    assert embed.main(raw) == 2
    assert "exists with other content" in capfd.readouterr().err
    left = resumable_output.folder_of(out)
    left.mkdir()
    (left / "run.json").write_text(json.dumps(about["settings"]))
    out.unlink()
    assert embed.main(raw) == 2
    assert "unfinished run with different normalize" in capfd.readouterr().err


def test_all_that_training_reads(photos, tmp_path):
    """The pixels of each kind of source are those of the files themselves."""
    names = all_names(photos)
    (tmp_path / "list.txt").write_text("".join(f"photos/{name} 1\n" for name in names))
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in names:
            tar.add(photos / name, name)
    content = [{"bytes": (photos / name).read_bytes()} for name in names]
    pq.write_table(pa.table({"image": content}), tmp_path / "x.parquet")
    prepare = preprocessing.Preprocessing(resize_size=32, crop_size=28)

    def pixels(path):
        source = images.open_source(str(path))
        (batch,) = images.batches(source, prepare, start=0, batch_size=11, workers=2)
        return batch.images[batch.good]

    expected = pixels(photos)
    assert len(expected) == 11
    for name in ("photos/**/*", "list.txt", "x.tar", "x.parquet"):
        np.testing.assert_array_equal(pixels(tmp_path / name), expected, err_msg=name)
    shutil.copy(photos / names[4], photos / "a[1]*.png")
    (photos / "a1x.png").write_bytes(b"bad")
    np.testing.assert_array_equal(pixels(photos / "a[1]*.png"), expected[4:5])
    shutil.copy(photos / names[4], photos / "a{1,2}[x]{.png")
    np.testing.assert_array_equal(pixels(photos / "a{1,2}[x]{.png"), expected[4:5])


def test_a_pattern_that_the_shell_expanded(photos, weights, tmp_path, capfd):
    found = sorted(str(path) for path in photos.glob("0/*.png"))
    assert embed.main([*found[1:], *arguments(found[0], weights, tmp_path / "f.npy")])
    line = capfd.readouterr().err
    assert line.startswith("error: 4 paths are given") and line.count("\n") == 1
    assert "quote a pattern, 'photos/*.jpg'" in line


def test_weights_wrapped_by_another_project(photos, weights, tmp_path, capfd):
    out, wrapped = tmp_path / "f.npy", tmp_path / "wrapped.pth"
    run(photos, weights, out)
    tensors = random_weights.tensors(random_weights.small_shapes("vits14"))
    net = {f"encoder.{name}": tensor for name, tensor in tensors.items()}
    torch_writer.write(wrapped, {"net": net})
    capfd.readouterr()
    run(photos, wrapped, out, "--key=net", "--prefix=encoder.")
    assert "is complete: nothing to do" in capfd.readouterr().err


def test_parquet_holds_the_same(photos, weights, tmp_path):
    run(photos, weights, tmp_path / "f.npy", "--features=cls+patch_mean")
    run(photos, weights, tmp_path / "f.parquet", "--features=cls+patch_mean")
    table = pq.read_table(tmp_path / "f.parquet")
    rows = np.load(tmp_path / "f.npy")
    assert table.schema.field("name").type == pa.string()
    kind = table.schema.field("features").type
    assert pa.types.is_fixed_size_list(kind) and kind.list_size == 256
    assert kind.value_type == pa.float32()
    assert table["name"].to_pylist() == described(tmp_path / "f.npy")["names"]
    np.testing.assert_array_equal(np.array(table["features"].to_pylist()), rows)
    assert "names" not in described(tmp_path / "f.parquet")
    again = tmp_path / "again.parquet"
    run(photos, weights, again, "--features=cls+patch_mean")
    assert again.read_bytes() == (tmp_path / "f.parquet").read_bytes()


@pytest.mark.slow
def test_shards_hold_together_what_one_run_writes(photos, weights, tmp_path, capfd):
    run(photos, weights, tmp_path / "f.parquet")
    for number in (3, 1, 2):
        run(photos, weights, tmp_path / "f.parquet", f"--shard={number}/3")
    parts = sorted(tmp_path.glob("f-*.parquet"))
    assert [part.name for part in parts] == [
        f"f-{number:05}-of-00003.parquet" for number in (1, 2, 3)
    ]
    whole, joined = pq.read_table(tmp_path / "f.parquet"), pq.read_table(parts)
    for name in ("name", "path"):
        assert joined[name].to_pylist() == whole[name].to_pylist()
    np.testing.assert_allclose(
        joined["features"].to_pylist(), whole["features"].to_pylist(), atol=2e-5
    )
    settings = described(parts[0])["settings"]
    assert settings["shard"] == "1/3"
    # Jobs that divide other images than those of the unfinished part do not go on.
    parts[0].unlink()
    left = resumable_output.folder_of(parts[0])
    left.mkdir()
    (left / "run.json").write_text(json.dumps(settings))
    picture(99).save(photos / "zz.png")
    args = arguments(photos, weights, tmp_path / "f.parquet", "--shard=1/3")
    capfd.readouterr()
    assert embed.main(args) == 2
    assert "unfinished run with different images" in capfd.readouterr().err


def test_parquet_in_several_row_groups_and_float16(
    photos, weights, tmp_path, monkeypatch
):
    monkeypatch.setattr("dinov2_jax.embed.output._GROUP_ROWS", 4)
    run(photos, weights, tmp_path / "f.npy")
    run(photos, weights, tmp_path / "f.parquet", "--out-dtype=float16")
    file = pq.ParquetFile(tmp_path / "f.parquet")
    assert file.num_row_groups == 3
    found = np.array(file.read()["features"].to_pylist(), np.float32)
    np.testing.assert_allclose(found, np.load(tmp_path / "f.npy"), rtol=1e-3, atol=1e-3)


def test_bad_images_have_no_row_and_are_named(photos, weights, tmp_path, capfd):
    (photos / "0" / "003.png").write_bytes(b"")
    (photos / "0" / "aaa.png").write_bytes(b"no image")
    shutil.copy(photos / "1" / "001.jpg", photos / "zz.jpg")
    with open(photos / "zz.jpg", "r+b") as file:
        file.truncate(300)
    Image.new("RGB", (1, 60_000)).save(photos / "thin.png")
    run(photos, weights, tmp_path / "f.npy", "--resize=128")
    about, rows = described(tmp_path / "f.npy"), np.load(tmp_path / "f.npy")
    assert set(about["skipped"]) == {"0/003.png", "0/aaa.png", "zz.jpg"}
    assert about["skipped"]["0/003.png"] == "empty file"
    assert len(rows) == len(about["names"]) == 11  # the thin one too
    shutil.rmtree(photos / "0")
    (photos / "zz.jpg").unlink()
    run(photos, weights, tmp_path / "good.npy", "--resize=128")
    good = described(tmp_path / "good.npy")["names"]
    chosen = [about["names"].index(name) for name in good]
    np.testing.assert_allclose(rows[chosen], np.load(tmp_path / "good.npy"), atol=2e-5)
    stderr = capfd.readouterr().err
    assert "3 of 14 images could not be read" in stderr
    assert "'0/003.png' (empty file)" in stderr


def test_an_image_that_can_be_read_again(photos, weights, tmp_path, capfd):
    """As after a permission was given or a decoder installed: the file is the same."""
    path, out = photos / "0" / "003.png", tmp_path / "f.npy"
    content, time = path.read_bytes(), path.stat().st_mtime_ns
    path.write_bytes(b"?" * len(content))
    os.utime(path, ns=(time, time))
    run(photos, weights, out)
    run(photos, weights, out)
    assert "can be now" not in capfd.readouterr().err
    assert left_out.readable(lambda index: index, range(1000)) == 100
    assert left_out.readable(lambda index: index, []) == 0
    path.write_bytes(content)
    os.utime(path, ns=(time, time))
    run(photos, weights, out)
    stderr = capfd.readouterr().err
    assert "1 of the 1 images that could not be read then can be now: " in stderr
    assert f"remove {out} and repeat the command" in stderr


def test_names_of_any_bytes(weights, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    raw = [b"caf\xe9.png", "café.png".encode(), b'new\nline".png', b"a b\t.png"]
    for i, name in enumerate(raw):
        picture(i).save(folder / "x.png")
        os.rename(folder / "x.png", os.path.join(os.fsencode(folder), name))
    run(folder, weights, tmp_path / "f.npy")
    names = described(tmp_path / "f.npy")["names"]
    assert [os.fsencode(name) for name in names] == sorted(raw)
    wanted = expected(folder, weights, names)
    np.testing.assert_allclose(np.load(tmp_path / "f.npy"), wanted, atol=2e-5)
    run(folder, weights, tmp_path / "f.parquet")
    table = pq.read_table(tmp_path / "f.parquet")
    assert table["name"].to_pylist() == [
        name.decode("utf-8", "backslashreplace") for name in sorted(raw)
    ]
    assert table.schema.field("path").type == pa.binary()
    assert table["path"].to_pylist() == [
        os.path.join(os.fsencode(folder), name) for name in sorted(raw)
    ]
    assert described(tmp_path / "f.parquet")["root"] == str(folder)
    # The features file is a list of images for training.
    source = images.open_source(str(tmp_path / "f.parquet"))
    assert type(source) is manifest.ManifestSource
    sizes = [source.open(i).pixels().shape for i in range(len(source))]
    assert sizes == [(50, 60, 3)] * 4
    # A folder of the same images elsewhere is not what was embedded.
    assert output.is_complete(
        tmp_path / "f.parquet", described(tmp_path / "f.parquet")["settings"]
    )
    moved = folder.rename(tmp_path / "moved")
    assert embed.main(arguments(moved, weights, tmp_path / "f.parquet")) == 2
    about = described(tmp_path / "f.npy")
    del about["root"]  # a file of an earlier version
    (tmp_path / "f.npy.json").write_text(json.dumps(about))
    run(moved, weights, tmp_path / "f.npy")
    assert "root" not in described(tmp_path / "f.npy")


def test_gray_and_transparent_images_count_as_rgb(weights, tmp_path):
    (tmp_path / "photos").mkdir()
    picture(0, mode="L").save(tmp_path / "photos" / "0.png")
    picture(0, mode="L").convert("RGB").save(tmp_path / "photos" / "1.png")
    picture(0, mode="RGBA").save(tmp_path / "photos" / "2.png")
    picture(0).save(tmp_path / "photos" / "3.png")
    run(tmp_path / "photos", weights, tmp_path / "f.npy")
    rows = np.load(tmp_path / "f.npy")
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[2], rows[3])
    assert np.abs(rows[0] - rows[2]).max() > 0.1


def test_batch_size_and_workers_change_nothing(photos, weights, tmp_path):
    run(photos, weights, tmp_path / "a.npy", "--workers=1")
    for i, size in enumerate(["3", "64"]):
        out = tmp_path / f"{i}.npy"
        run(photos, weights, out, f"--batch-size={size}", "--workers=3")
        np.testing.assert_allclose(np.load(out), np.load(tmp_path / "a.npy"), atol=1e-5)


def test_one_compilation_for_any_number_of_images(photos, weights, tmp_path, caplog):
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        run(photos, weights, tmp_path / "f.npy")
    lines = [r.getMessage() for r in caplog.records]
    found = [x for x in lines if re.match(r"Finished XLA compilation of jit\(ex", x)]
    assert len(found) == 1, lines


def test_registers_swiglu_and_bfloat16(photos, tmp_path):
    weights = save_weights(tmp_path / "g.pth", name="vitg14_reg4")
    run(photos, weights, tmp_path / "f.npy")
    names = described(tmp_path / "f.npy")["names"]
    wanted = expected(photos, weights, names)
    np.testing.assert_allclose(np.load(tmp_path / "f.npy"), wanted, atol=2e-5)
    run(photos, weights, tmp_path / "low.npy", "--dtype=bfloat16")
    low = np.load(tmp_path / "low.npy")
    assert low.dtype == np.float32
    error = np.linalg.norm(low - wanted) / np.linalg.norm(wanted)
    assert 1e-4 < error < 2e-2


def test_a_finished_run_is_not_repeated(photos, weights, tmp_path, capfd):
    out = tmp_path / "f.npy"
    run(photos, weights, out)
    before = out.stat()
    run(photos, weights, out)
    assert out.stat() == before
    assert "is complete: nothing to do" in capfd.readouterr().err
    run(photos, weights, out, "--overwrite")
    assert out.stat().st_ino != before.st_ino
    out.write_bytes(b"something else by now")
    assert embed.main(arguments(photos, weights, out)) == 2
    assert out.read_bytes() == b"something else by now"


def test_existing_output_needs_overwrite(photos, weights, tmp_path, capfd):
    out = tmp_path / "f.npy"
    out.write_bytes(b"precious")
    assert embed.main(arguments(photos, weights, out)) == 2
    assert out.read_bytes() == b"precious"
    run(photos, weights, out, "--overwrite")
    was = out.read_bytes()
    capfd.readouterr()
    # Each changes what the run would write.
    os.utime(photos / "0" / "000.png", ns=(1, 1))
    for change in ["", "--features=patches", "--dtype=bfloat16", "--out-dtype=float16"]:
        assert embed.main(arguments(photos, weights, out, *change.split())) == 2
        assert "--overwrite" in capfd.readouterr().err
    other = save_weights(tmp_path / "other.pth", seed=1)
    assert embed.main(arguments(photos, other, out)) == 2
    assert out.read_bytes() == was


def test_unfinished_run_with_different_settings_is_refused(
    photos, weights, tmp_path, monkeypatch, capfd
):
    out = tmp_path / "f.npy"

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(extraction.Extractor, "fetch", interrupted)
    assert embed.main(arguments(photos, weights, out)) == 130
    monkeypatch.undo()
    assert not out.exists() and resumable_output.folder_of(out).is_dir()
    os.utime(photos / "0" / "000.png", ns=(1, 1))
    capfd.readouterr()
    assert embed.main(arguments(photos, weights, out, "--features=patches")) == 2
    line = capfd.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1
    assert "different images and features" in line and "--overwrite" in line
    run(photos, weights, out, "--overwrite")
    assert not resumable_output.folder_of(out).exists()


def process(argv, devices=None):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    if devices:
        flag = f"--xla_force_host_platform_device_count={devices}"
        environment["XLA_FLAGS"] = flag
    return subprocess.Popen(
        argv, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize(
    "suffix", ["npy", pytest.param("parquet", marks=pytest.mark.slow)]
)
def test_repeated_kills_give_the_same_bytes(weights, tmp_path, suffix):
    photos = fill(tmp_path / "photos", 90)
    (photos / "0" / "003.png").write_bytes(b"")
    (photos / "2" / "zzz.jpg").write_bytes(b"bad")
    whole = tmp_path / f"whole.{suffix}"
    run(photos, weights, whole)
    out = tmp_path / f"f.{suffix}"
    journal = resumable_output.folder_of(out) / "journal"
    done = 0
    for how, saves in [(signal.SIGKILL, 1), (signal.SIGINT, 7), (signal.SIGKILL, 8)]:
        script = [sys.executable, "-c", DYING, str(int(how)), str(saves)]
        running = process([*script, *arguments(photos, weights, out)])
        printed = running.communicate(timeout=300)[1]
        assert running.returncode == (130 if how == signal.SIGINT else -how), printed
        assert "Traceback" not in printed
        if done:
            assert f"{done:,} done before" in printed
        assert not out.exists()
        last = json.loads(journal.read_bytes().splitlines()[-1])
        assert last["done"] > done
        done = last["done"]
    assert done < 92
    run(photos, weights, out)
    assert out.read_bytes() == whole.read_bytes()
    description = out.with_name(out.name + ".json").read_bytes()
    assert description == whole.with_name(whole.name + ".json").read_bytes()
    assert not resumable_output.folder_of(out).exists()


@pytest.mark.parametrize("at", ["unlink", "describe", "replace", "remove"])
def test_a_kill_while_it_is_published(photos, weights, tmp_path, monkeypatch, at):
    """Over the file of an earlier run, which must not get another's description."""

    class Kill(BaseException):
        pass

    whole, out = tmp_path / "whole.npy", tmp_path / "f.npy"
    run(photos, weights, whole)
    run(photos, weights, out, "--resize=40")  # as many bytes as the next
    name = {
        "unlink": "pathlib.Path.unlink",
        "describe": "dinov2_jax.embed.output._describe",
        "replace": "os.replace",
        "remove": "dinov2_jax.embed.resumable_output.remove",
    }[at]
    unlink, replace = pathlib.Path.unlink, os.replace

    def kill(*args, **kwargs):
        if at == "unlink" and args[0] != out:
            return unlink(*args, **kwargs)
        if at == "replace" and args[1] != out:
            return replace(*args, **kwargs)
        raise Kill

    monkeypatch.setattr(name, kill)
    with pytest.raises(Kill):
        run(photos, weights, out, "--overwrite")
    monkeypatch.undo()
    if at == "unlink":
        assert embed.main(arguments(photos, weights, out)) == 2
        run(photos, weights, out, "--overwrite")
    else:
        run(photos, weights, out)
    assert out.read_bytes() == whole.read_bytes()
    assert described(out) == described(whole)
    assert not resumable_output.folder_of(out).exists()


def test_eight_devices_give_the_features_of_one(photos, weights, tmp_path):
    run(photos, weights, tmp_path / "one.npy", "--features=cls+patch_mean")
    command = [sys.executable, "-m", "dinov2_jax.embed"]
    command += arguments(
        photos, weights, tmp_path / "eight.npy", "--features=cls+patch_mean"
    )
    running = process(command, devices=8)
    stderr = running.communicate(timeout=300)[1]
    assert running.returncode == 0, stderr
    assert "devices   8 cpu, batch 8" in stderr
    one, eight = (np.load(tmp_path / f"{n}.npy") for n in ("one", "eight"))
    np.testing.assert_allclose(eight, one, atol=1e-5)
    names = [described(tmp_path / f"{n}.npy")["names"] for n in ("one", "eight")]
    assert names[0] == names[1]


def test_out_of_memory_names_a_smaller_batch(photos, weights, tmp_path, monkeypatch):
    model = dinov2_jax.load(weights, num_heads=2)
    extractor = extraction.Extractor(
        model.module,
        model.params,
        kind="cls",
        prepare=type(model.preprocessing)(resize_size=32, crop_size=28),
        dtype="float32",
        out_dtype="float32",
        batch_size=6,
        most=100,
    )

    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 1 GiB")

    monkeypatch.setattr(extractor, "_extract", full)
    with pytest.raises(embed.errors.UserError, match="6 images.*--batch-size=3"):
        extractor(np.zeros((6, 28, 28, 3), np.uint8))
    extractor.batch_size = 1
    with pytest.raises(embed.errors.UserError, match="1 image .*a smaller --size"):
        extractor(np.zeros((1, 28, 28, 3), np.uint8))


BAD_COMMANDS = {
    "--out=f.csv": "--out=f.csv: the name must end in .npy or .parquet",
    "--out=.": "the name must end in",
    "--out=no/such/f.npy": "there is no folder no/such",
    "--size=30": r"a crop of 30 px is not a multiple .* 14: add --size=28",
    "--size=56": "--resize=32 is less than the crop of 56 px",
    "--size=0": "argument --size: '0' is not a whole number above 0",
    "--features=all": "argument --features: invalid choice: 'all'",
    "--model=no/such.pth": "there is no file or folder no/such.pth",
    "--model=dinov2_vits15": "did you mean dinov2_vits14",
    "--model=dinov2_vitb14 --size=99": "99 px is not a multiple .* 14: add --size=98",
    "--sizes=28": "unrecognized arguments: --sizes=28",
}


@pytest.mark.parametrize("flags", BAD_COMMANDS)
def test_bad_commands_are_one_line(photos, weights, tmp_path, capfd, flags):
    command = arguments(photos, weights, tmp_path / "f.npy", *flags.split())
    try:
        code = embed.main(command)
    except SystemExit as left:  # by argparse
        code = left.code
    stderr = capfd.readouterr().err
    assert code == 2
    assert stderr.startswith("error: ") and stderr.count("\n") == 1, stderr
    assert re.search(BAD_COMMANDS[flags], stderr), stderr
    assert os.listdir(tmp_path) == ["photos"]


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        ("nowhere", "nowhere does not exist"),
        ("file.txt", "file.txt lists files that do not exist, such as 'x'"),
        ("file.doc", "file.doc is neither a folder nor a known type"),
        ("empty", "no images below .*empty; looked for "),
        ("*.png", r"no images match DATA = .*/\*.png: correct the pattern"),
    ],
)
def test_invalid_data(weights, tmp_path, capfd, monkeypatch, data, wanted):
    monkeypatch.setattr("dinov2_jax.pretrained.load", None)  # is not come to
    (tmp_path / "file.txt").write_text("x")
    (tmp_path / "file.doc").write_text("x")
    (tmp_path / "empty").mkdir()
    command = arguments(tmp_path / data, weights, tmp_path / "f.npy")
    assert embed.main(command) == 2
    stderr = capfd.readouterr().err
    assert stderr.startswith("error: ") and stderr.count("\n") == 1
    assert re.search(wanted, stderr) and "--config" not in stderr


def test_dark_images_are_said_before_weights_are_read(tmp_path, capfd):
    dark = np.full((20, 20), 4095, np.uint16)
    Image.fromarray(dark).save(tmp_path / "a.png")
    (tmp_path / "no.pth").write_bytes(b"no weights")
    assert embed.main(arguments(tmp_path, tmp_path / "no.pth", tmp_path / "f.npy"))
    said = capfd.readouterr().err
    assert "warning: 1 of 1 images are nearly black" in said
    assert "lower 12 of 16 bits; a model sees them so" in said


def test_no_readable_image_at_all(weights, tmp_path, capfd):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"")
    out = tmp_path / "f.npy"
    assert embed.main(arguments(tmp_path / "photos", weights, out)) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith("error: none of the 1 images could be read")
    assert sorted(os.listdir(tmp_path)) == ["photos"]


def test_a_folder_that_cannot_be_written(photos, weights, tmp_path, capfd):
    (tmp_path / "f.npy.partial").write_text("a file where the folder would be")
    assert embed.main(arguments(photos, weights, tmp_path / "f.npy")) == 2
    stderr = capfd.readouterr().err
    assert "cannot write" in stderr and stderr.count("\n") == 1

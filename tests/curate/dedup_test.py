"""`dinov2-jax curate dedup`: what it decides, writes, reports and refuses."""

import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pytest
import random_weights
from PIL import Image
from pyarrow import parquet

from dinov2_jax.curate import __main__ as curate
from dinov2_jax.curate import duplicates, features, image_files, search, tables
from dinov2_jax.data.decode import image_decoder, regular_file
from dinov2_jax.data.sources import photos
from dinov2_jax.embed import __main__ as embed
from dinov2_jax.weights import torch_writer


def write(path, names, rows, paths=None):
    values = pa.array(np.asarray(rows, np.float32).ravel())
    columns = {
        "name": names,
        "features": pa.FixedSizeListArray.from_arrays(values, len(rows[0])),
    }
    if paths is not None:
        columns["path"] = pa.array([str(p).encode() for p in paths], pa.binary())
    parquet.write_table(pa.table(columns), path)
    return str(path)


def turned(*degrees):
    """Unit vectors in a plane: near if their angles are."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def dedup(folder, *flags):
    out = folder / "dups.parquet"
    for path in folder.glob("dups.*"):
        path.unlink()
    assert curate.main(["dedup", "--features", *map(str, flags), f"--out={out}"]) == 0
    return tables.read(out)


# Angles whose pairs under 6 degrees (similarity .9945) are a-b, b-c (a chain) and d-e.
NAMES, ANGLES = list("abcdef"), (0, 5, 10.5, 40, 44, 90)
FLAGS = ("--threshold=0.994", "--keep=first")


def test_the_table(tmp_path):
    pool = write(tmp_path / "f.parquet", NAMES, turned(*ANGLES))
    columns, record = dedup(tmp_path, pool, *FLAGS)
    assert columns["name"].tolist() == NAMES
    assert columns["component"].tolist() == [0, 0, 0, 1, 1, -1]
    assert columns["component"].dtype == np.int32
    assert columns["kept"].tolist() == [True, False, False, True, False, True]
    assert columns["nearest"].tolist() == ["b", "a", "b", "e", "d", ""]
    near = np.cos(np.radians([5, 5, 5.5, 4, 4]))
    np.testing.assert_allclose(columns["similarity"][:5], near, rtol=1e-6)
    assert np.isnan(columns["similarity"][5])
    assert set(columns["leak"]) == {""}
    assert record["counts"] == {
        "images": 6,
        "pairs": 3,
        "components": 2,
        "largest": 3,
        "kept": 3,
        "leaking": 0,
    }
    assert record["parameters"]["threshold"] == 0.994
    assert record["inputs"][0]["files"] == [pool]
    greedy, _ = dedup(tmp_path, pool, *FLAGS, "--linkage=greedy")
    assert greedy["kept"].tolist() == [True, False, True, True, False, True]


@pytest.mark.parametrize("linkage", ["component", "greedy"])
def test_the_order_of_the_rows_changes_nothing(tmp_path, linkage):
    """If the largest are kept, and of equally large ones the first name."""
    rng = np.random.default_rng(0)
    names = [f"{i}.png" for i in range(60)]
    for name in names:
        size = (int(rng.integers(1, 4)), 2)
        Image.new("RGB", size).save(tmp_path / name)
    rows = turned(*rng.uniform(0, 360, 60))
    flags = (f"--root={tmp_path}", "--threshold=0.998", f"--linkage={linkage}")
    pool = write(tmp_path / "f.parquet", names, rows)
    columns, record = dedup(tmp_path, pool, *flags)
    assert record["counts"]["components"] > 5 and not columns["kept"].all()
    order = rng.permutation(60)
    pool = write(tmp_path / "f.parquet", np.array(names)[order].tolist(), rows[order])
    permuted, _ = dedup(tmp_path, pool, *flags)
    permuted = tables.match(names, permuted)
    for column in ("kept", "nearest"):
        assert permuted[column].tolist() == columns[column].tolist()
    pairs = set(zip(columns["component"], permuted["component"]))
    assert len(pairs) == len(set(columns["component"]))


def test_whole_components_that_touch_a_test_set_leave(tmp_path, capsys):
    pool = write(tmp_path / "f.parquet", NAMES, turned(*ANGLES))
    first = write(tmp_path / "first.parquet", ["t", "u"], turned(14, 200))
    second = write(tmp_path / "second.parquet", ["v"], turned(92))
    columns, record = dedup(tmp_path, pool, *FLAGS, "--against", first, second)
    assert columns["leak"].tolist() == [first, first, first, "", "", second]
    assert columns["kept"].tolist() == [False, False, False, True, False, False]
    assert [list(leak.values()) for leak in record["leaks"]] == [
        [first, 2, 1, 1, 3],
        [second, 1, 1, 1, 1],
    ]
    assert "1 of 2 test images (50.0%) are like 1 images" in capsys.readouterr().err
    pairs, _ = tables.read(tmp_path / "dups.leaks.parquet")
    found = list(zip(pairs["name"], pairs["test"], pairs["test_name"]))
    assert found == [("c", first, "t"), ("f", second, "v")]
    stricter, _ = dedup(
        tmp_path, pool, *FLAGS, "--against", first, "--against-threshold=0.9985"
    )
    assert set(stricter["leak"]) == {""}


def test_pairs_of_another_program(tmp_path, capsys):
    pool = write(tmp_path / "f.parquet", NAMES, turned(*ANGLES))
    table = {
        "name": ["b", "f", "a", "c", "c"],
        "neighbour": ["a", "d", "b", "c", "d"],
        "similarity": [0.9, 0.8, 0.9, 1.0, 0.5],
    }
    parquet.write_table(pa.table(table), tmp_path / "pairs.parquet")
    flags = (pool, f"--pairs={tmp_path / 'pairs.parquet'}", "--keep=first")
    columns, record = dedup(tmp_path, *flags, "--threshold=0.7")
    assert columns["component"].tolist() == [0, 0, -1, 1, -1, 1]
    assert record["counts"]["pairs"] == 2
    columns, record = dedup(tmp_path, *flags)
    assert columns["component"].tolist() == [0, 0, 1, 1, -1, 1]
    for missing in (float("nan"), None):  # of a feature that is zero
        table["similarity"][1] = missing
        parquet.write_table(pa.table(table), tmp_path / "pairs.parquet")
        bad = [
            "dedup",
            "--features",
            *map(str, flags),
            f"--out={tmp_path / 'o.parquet'}",
        ]
        assert curate.main(bad) == 2
        assert "similarity is null in 1 of 5 rows" in capsys.readouterr().err


def test_a_chain_is_reported(tmp_path, capsys):
    names = [f"{i:02}" for i in range(30)]
    pool = write(tmp_path / "f.parquet", names, turned(*range(0, 150, 5)))
    dedup(tmp_path, pool, *FLAGS)
    assert "the largest component has 30 images" in capsys.readouterr().err
    _, record = dedup(tmp_path, pool, *FLAGS, "--linkage=greedy")
    assert "warning" not in capsys.readouterr().err
    assert record["counts"]["kept"] == 15


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of photograph windows, of which five are there again, mirrored."""
    folder = tmp_path_factory.mktemp("pictures")
    source = photos.PhotosSource("train")
    for number, index in enumerate(range(0, len(source), 20)):
        pixels = source.open(index).pixels()
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
        if number < 5:
            copy = Image.fromarray(pixels[:, ::-1])
            copy.resize((pixels.shape[1] // 2, 64)).save(folder / f"{number:02}c.jpg")
    return folder


def test_hashes_find_what_features_do_not(tmp_path, pictures):
    """Features without any pair; the larger image is kept."""
    paths = sorted(pictures.iterdir())
    names = [path.name for path in paths]
    rows = np.eye(len(names))
    pool = write(tmp_path / "f.parquet", names, rows, paths)
    hashes = tmp_path / "hashes.parquet"
    flags = (pool, "--threshold=0.5", f"--hashes={hashes}")
    columns, record = dedup(tmp_path, *flags)
    by_name = dict(zip(names, columns["nearest"]))
    assert all(by_name[f"0{i}.png"] == f"0{i}c.jpg" for i in range(5))
    assert record["counts"]["pairs"] == 5 and columns["similarity"][0] == 0
    dropped = np.array(names)[~columns["kept"]].tolist()
    assert dropped == [f"0{i}c.jpg" for i in range(5)]
    written = hashes.stat().st_mtime_ns
    again, _ = dedup(tmp_path, *flags)
    assert again["kept"].tolist() == columns["kept"].tolist()
    assert hashes.stat().st_mtime_ns == written


def test_hashes_of_images_that_changed_or_are_gone(
    tmp_path, pictures, capsys, monkeypatch
):
    paths = sorted(pictures.iterdir())
    names = [path.name for path in paths]
    pool = write(tmp_path / "f.parquet", names, np.eye(len(names)), paths)
    about = tmp_path / "f.parquet.json"
    hashes = tmp_path / "hashes.parquet"
    flags = ["dedup", "--features", str(pool), "--threshold=0.5", f"--hashes={hashes}"]

    def run(number, *more):
        code = curate.main([*flags, f"--out={tmp_path}/{number}.parquet", *more])
        return code, capsys.readouterr().err

    code, told = run(0, f"--root={tmp_path}/nowhere")
    assert code == 2 and f"nor does any other of the {len(names)} images" in told
    assert not hashes.exists()
    os.remove(shutil.copytree(pictures, tmp_path / "some") / names[3])
    code, told = run(1, f"--root={tmp_path / 'some'}")
    assert code == 0 and f"1 of {len(names)} images cannot be read" in told
    assert names[3] in told and hashes.exists()
    hashes.unlink()
    about.write_text(json.dumps({"settings": {"images": "first"}}))
    assert run(2)[0] == 0
    about.write_text(json.dumps({"settings": {"images": "second"}}))
    monkeypatch.delattr(search, "find_pairs")  # refused before the search
    code, told = run(3)
    assert code == 2 and "images that were changed since, or" in told
    hashes.unlink()
    code, told = run(4, f"--root={tmp_path}/nowhere")
    assert code == 2 and "add --root, the folder that was embedded" in told
    code, told = run(5, f"--root={tmp_path}/nowhere", "--keep=largest")
    assert code == 2 and "add --root, the folder that was embedded" in told


def test_equal_hashes_leave_one_image(tmp_path, pictures):
    """The largest of three sizes, in the middle, with either linkage."""
    picture = Image.open(pictures / "07.png")
    names = ["a.png", "b.png", "c.png"]
    for name, side in zip(names, (64, 192, 128)):
        picture.resize((side, side), 0).save(tmp_path / name)
    paths = [tmp_path / name for name in names]
    pool = write(tmp_path / "f.parquet", names, np.eye(3), paths)
    for linkage in ("component", "greedy"):
        flags = f"--hashes={tmp_path / 'h.parquet'}", f"--linkage={linkage}"
        columns, _ = dedup(tmp_path, pool, "--threshold=0.5", *flags)
        assert columns["kept"].tolist() == [False, True, False], linkage


def test_calibration_with_a_model(tmp_path, pictures, capsys):
    """Of features that `embed` wrote; the threshold is used and recorded."""
    model, pool = tmp_path / "small.pth", tmp_path / "f.parquet"
    drawn = random_weights.tensors(random_weights.small_shapes("vits14"), 0)
    torch_writer.write(model, drawn)
    flags = (f"--model={model}", "--num-heads=2", "--size=28")
    assert embed.main([str(pictures), *flags, f"--out={pool}"]) == 0
    root = f"--root={pictures}"
    flags = (pool, "--calibrate=6", "--num-heads=2", root)
    columns, record = dedup(tmp_path, *flags, f"--model={model}")
    told = capsys.readouterr().err
    threshold = record["parameters"]["threshold"]
    assert f"proposed: --threshold={threshold:g}" in told and "crop 50 %" in told
    assert record["calibration"]["price"] == 0
    found = columns["similarity"][columns["component"] >= 0]
    assert np.all(found > threshold)
    assert record["calibration"]["recall"]["JPEG 75"]["either"] >= 0.8
    other = tmp_path / "other.pth"
    drawn = random_weights.tensors(random_weights.small_shapes("vits14"), 1)
    torch_writer.write(other, drawn)
    out = f"--out={tmp_path / 'x.parquet'}"
    assert (
        curate.main(["dedup", "--features", *map(str, flags), f"--model={other}", out])
        == 2
    )
    assert "was made with other weights than --model=" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, words",
    [
        ((), "a threshold depends on the model and the images: add --calibrate=500"),
        (("--calibrate=5",), "add --model"),
        (("--threshold=1.5",), "--threshold=1.5: cosine similarities"),
        (("--threshold=0.9", "--bits=40"), "--bits=40"),
        (("--threshold=0.9",), "add --root, the folder that was embedded, or --keep="),
        (("--threshold=0.9", "--hashes=h.parquet"), "add --root, the folder that was"),
        (("--threshold=0.9", "--hashes=h.txt"), "must end in .parquet"),
        (("--threshold=0.9", "--hashes=x/h.parquet"), "--hashes=x/h.parquet: there is"),
        (("--calibrate=5", "--model=x", "--root={0}"), "does not say how it was made"),
        (("--pairs={0}/f.parquet", "--keep=first"), "no column neighbour, only name"),
        (("--pairs={0}/p.parquet", "--keep=first"), "has the image 'z', which the"),
        (
            ("--pairs=x.parquet", "--against", "{0}/f.parquet"),
            "add --against-threshold",
        ),
        (("--threshold=0.9", "--against", "{0}/g.parquet"), "have 2 and 3 numbers"),
    ],
)
def test_refused_flags(tmp_path, capsys, flags, words):
    pool = write(tmp_path / "f.parquet", NAMES, turned(*ANGLES))
    write(tmp_path / "g.parquet", ["x"], np.eye(3)[:1])
    (tmp_path / NAMES[0]).touch()
    table = {"name": ["a"], "neighbour": ["z"], "similarity": [0.9]}
    parquet.write_table(pa.table(table), tmp_path / "p.parquet")
    flags = [flag.format(tmp_path) for flag in flags]
    out = tmp_path / "dups.parquet"
    assert curate.main(["dedup", "--features", pool, *flags, f"--out={out}"]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not out.exists()


def test_an_existing_table_stays(tmp_path, capsys):
    pool = write(tmp_path / "f.parquet", NAMES, turned(*ANGLES))
    out = tmp_path / "dups.parquet"
    out.write_text("mine")
    assert curate.main(["dedup", "--features", pool, *FLAGS, f"--out={out}"]) == 2
    assert "exists" in capsys.readouterr().err and out.read_text() == "mine"


def test_records_are_json(tmp_path):
    pool = write(tmp_path / "f.parquet", NAMES, turned(*ANGLES))
    _, record = dedup(tmp_path, pool, *FLAGS)
    assert json.loads((tmp_path / "dups.parquet.json").read_text()) == record


def test_pairs_of_hashes_and_features_are_one():
    found = duplicates._unique(
        np.array([3, 1, 1]), np.array([1, 3, 2]), np.float32([0.5, 0.7, 0.9]), 4
    )
    assert isinstance(found, search.Pairs)
    assert (found.left.tolist(), found.right.tolist()) == ([1, 1], [2, 3])
    np.testing.assert_array_equal(found.similarity, np.float32([0.9, 0.5]))


def test_largest_needs_existing_images_before_the_search(tmp_path, capsys, monkeypatch):
    paths = [tmp_path / "none" / name for name in NAMES]
    pool = write(tmp_path / "f.parquet", NAMES, turned(*ANGLES), paths)
    monkeypatch.delattr(search, "find_pairs")
    out = f"--out={tmp_path}/dups.parquet"
    assert curate.main(["dedup", "--features", pool, "--threshold=0.99", out]) == 2
    told = capsys.readouterr().err
    assert "nor does any other of the 6 images looked at: add --root" in told
    assert "or --keep=first" in told


def test_sizes_are_read_from_headers(tmp_path, monkeypatch):
    """Those of files that are cut off are known."""
    pixels = np.random.default_rng(0).integers(0, 256, (90, 80, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(content[:100])
    (tmp_path / "c.png").touch()
    paths = [tmp_path / name for name in ("a.png", "b.png", "c.png", "d.png")]
    names = [path.name for path in paths]
    pool = write(tmp_path / "f.parquet", names, np.eye(4), paths)
    images = image_files.ImageFiles(features.open_features([pool]))
    monkeypatch.delattr(regular_file, "read")
    assert images.size(0) == images.size(1) == 7200
    for row, reason in ((2, "empty file"), (3, "No such file")):
        with pytest.raises(image_decoder.BadImage, match=reason):
            images.size(row)

"""Manifests: text, tables and Parquet, written by others' libraries."""

import csv
import os
import pickle

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from dinov2_jax import errors
from dinov2_jax.data.decode import image_decoder
from dinov2_jax.data.sources import manifest, registry

DECODER = image_decoder.Decoder()


@pytest.fixture
def folder(tmp_path):
    for i in range(3):
        Image.new("RGB", (10 + i, 4)).save(tmp_path / f"{i}.png")
    (tmp_path / "lists").mkdir()
    return tmp_path


def write(path, rows, column="path", labels=True):
    if path.suffix == ".txt":
        path.write_text("# images\n\n" + "\n".join(rows) + "\r\n")
    elif path.suffix == ".parquet":
        table = {"other": list(range(len(rows))), column: rows}
        if labels:
            table["label"] = ["dog", "cat", "dog"][: len(rows)]
        parquet.write_table(pyarrow.table(table), path)
    else:
        with open(path, "w", newline="") as file:
            dialect = "excel-tab" if path.suffix == ".tsv" else "excel"
            rows_of = csv.writer(file, dialect)
            rows_of.writerow(["label", column] if labels else [column])
            for row, label in zip(rows, ["dog", "cat", "dog"]):
                rows_of.writerow([label, row] if labels else [row])


@pytest.mark.parametrize("column", ["path", "FILE", "image", "file_name"])
@pytest.mark.parametrize("ending", [".txt", ".csv", ".tsv", ".parquet"])
def test_every_kind(folder, ending, column):
    rows = ["../2.png", str(folder / "0.png"), "../1.png"]
    path = folder / "lists" / f"list{ending}"
    write(path, rows, column)
    for _ in range(2):  # the second from the cache
        source = registry.open_path(str(path), DECODER)
        assert type(source) is manifest.ManifestSource
        source = pickle.loads(pickle.dumps(source))
        assert [source.open(i).width for i in range(3)] == [12, 10, 11]
        assert [source.name(i) for i in range(3)] == rows
        if ending == ".txt":
            assert source.labels is None and source.label_names == []
        else:
            assert source.labels.tolist() == [1, 0, 1]
            assert source.label_names == ["cat", "dog"]
    assert f"3 images listed in {path}, first ../2.png" in source.describe()
    before = source.fingerprint
    write(path, rows[:2], column)
    source = registry.open_path(str(path), DECODER)
    assert len(source) == 2 and source.fingerprint != before


def repeated(folder, ending, repeats):
    path = folder / "lists" / f"list{ending}"
    paths = [b"../2.png", os.fsencode(folder / "0.png"), b"../1.png"]
    if ending == ".parquet":
        parquet.write_table(pyarrow.table({"path": paths, "repeat": repeats}), path)
    else:
        rows = [f"{os.fsdecode(p)},{n}" for p, n in zip(paths, repeats)]
        path.write_text("\n".join(["path,repeat", *rows]))
    return registry.open_path(str(path), DECODER)


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_images_that_come_several_times_in_a_pass(folder, ending):
    fingerprints = set()
    for _ in range(2):  # the second from the cache
        source = pickle.loads(pickle.dumps(repeated(folder, ending, [2, 1, 3])))
        assert len(source) == 3 and source.pass_length == 6
        places = range(source.pass_length)
        assert [source.resolve(5, place) for place in places] == [0, 0, 1, 2, 2, 2]
        assert [source.open(i).width for i in range(3)] == [12, 10, 11]
        assert "6 places a pass" in source.describe()
        fingerprints.add(source.fingerprint)
    assert len(fingerprints) == 1
    other = repeated(folder, ending, [2, 1, 4])
    assert other.fingerprint not in fingerprints
    # A list of lists keeps the repeats.
    path = str(folder / "lists" / f"list{ending}")
    both = registry.open_path(f"{path},{folder}", DECODER)
    shown = [both.resolve(0, place) for place in range(both.pass_length)]
    assert shown == [0, 0, 1, 2, 2, 2, 2, 3, 4, 5]


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
@pytest.mark.parametrize("times", [0, -1, 10_001, None, 1.5])
def test_wrong_repeats(folder, ending, times):
    with pytest.raises(errors.UserError, match="has repeat = .*: write a whole number"):
        repeated(folder, ending, [2, times, 1])


def test_whole_numbers_are_sorted_as_numbers():
    labels, names = manifest.numbered_labels(["10", "9", "2", "10"])
    assert labels.tolist() == [2, 1, 0, 2] and names == ["2", "9", "10"]
    assert manifest.numbered_labels(["1", None]) == (None, [])


def fingerprint(path):
    return pickle.loads(
        pickle.dumps(registry.open_path(str(path), DECODER))
    ).fingerprint


def test_changed_images_are_noticed(folder):
    path = folder / "lists" / "list.txt"
    write(path, ["../0.png", "../1.png", "../gone.png"])
    seen = [fingerprint(path)]
    os.utime(path, (5, 5))  # the list is what it was
    assert fingerprint(path) == seen[0]
    os.utime(folder / "1.png", (5, 5))
    seen.append(fingerprint(path))
    with open(folder / "0.png", "ab") as file:
        file.write(b"more")
    os.utime(folder / "0.png", (6, 6))
    seen.append(fingerprint(path))
    os.truncate(folder / "0.png", 50)
    os.utime(folder / "0.png", (6, 6))
    seen.append(fingerprint(path))
    (folder / "2.png").rename(folder / "gone.png")
    seen.append(fingerprint(path))
    write(path, ["../1.png", "../0.png", "../gone.png"])
    seen.append(fingerprint(path))
    assert len(set(seen)) == 6


def test_of_very_many_files_a_sample_is_looked_at(folder, monkeypatch):
    monkeypatch.setattr(manifest, "_STATUSES", 2)
    path = folder / "list.txt"
    write(path, ["0.png", "1.png", "2.png"])
    before = fingerprint(path)
    os.utime(folder / "1.png", (5, 5))
    assert fingerprint(path) == before
    os.utime(folder / "2.png", (5, 5))
    assert fingerprint(path) != before


@pytest.mark.parametrize(
    "name, content",
    [
        ("list.txt", b"\xef\xbb\xbf# a comment\n0.png\n1.png\n"),
        ("list.txt", b"\xef\xbb\xbf0.png\n  # a comment\n1.png"),
        ("list.txt", b"0.png\r1.png\r"),
        ("list.txt", b'  0.png \t\n"1.png"\n'),
        ("list.csv", b"path;label\n0.png;x\n1.png;y\n"),
        ("list.csv", b"\xef\xbb\xbfpath\n0.png\n1.png\n"),
        ("list.csv", b'label, path\r1, "0.png"\r2, 1.png\r'),
        ("list.csv", b"label\tpath\n1\t0.png\n2\t1.png\n"),
        ("list.tsv", b"label,path\n1,0.png\n2,1.png\n"),
    ],
)
def test_lists_as_programs_write_them(folder, name, content):
    (folder / name).write_bytes(content)
    source = registry.open_path(str(folder / name), DECODER)
    assert [source.name(i) for i in range(len(source))] == ["0.png", "1.png"]
    assert (source.labels is None) == (b"label" not in content)


@pytest.mark.parametrize("between", [" ", "\t"])
def test_imagenet_lists(folder, between):
    (folder / "a b.png").write_bytes((folder / "2.png").read_bytes())
    rows = [("0.png", 10), ("a b.png", 2), ("1.png", 10)]
    lines = [f"{name}{between}{label}" for name, label in rows]
    (folder / "train.txt").write_text("\n".join(lines) + "\n")
    source = registry.open_path(str(folder / "train.txt"), DECODER)
    assert [source.name(i) for i in range(3)] == [name for name, _ in rows]
    assert source.label_names == ["2", "10"] and source.labels.tolist() == [1, 0, 1]


def test_blanks_and_quotes_of_a_name_stay(folder):
    names = [" 0.png", '"0.png"', "a;b.png", "1.png "]
    for name in names:
        (folder / name).write_bytes((folder / "2.png").read_bytes())
    (folder / "list.txt").write_text("\n".join(names))
    source = registry.open_path(str(folder / "list.txt"), DECODER)
    assert [source.name(i) for i in range(4)] == names


def test_what_it_names_is_not_trusted(folder):
    os.mkfifo(folder / "pipe.jpg")
    rows = ["pipe.jpg", "nowhere.jpg", ".", "a\0b.jpg", "/dev/zero"]
    (folder / "list.txt").write_bytes(
        "\n".join([*rows, "\udcff.png"]).encode("utf-8", "surrogateescape")
    )
    source = registry.open_path(str(folder / "list.txt"), DECODER)
    reasons = []
    for i in range(6):
        with pytest.raises(image_decoder.BadImage) as caught:
            source.open(i)
        reasons.append(caught.value.reason)
    assert reasons[0] == reasons[4] == "not a regular file"
    assert reasons[1].startswith("No such file") and reasons[2] == "a folder"
    assert source.describe().isprintable()


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("list.csv", b"a,b\n1,2\n", "only a, b"),
        ("list.csv", b"", "only none"),
        ("list.csv", b"path,label\n0.png,1\n,2\n", "line 3, has no path"),
        ("list.txt", b"# nothing\n\n", "no paths in"),
        ("list.parquet", b"PAR1 no", "cannot read"),
        ("list.csv", b'path\n"' + b"x" * 200_000, "cannot read"),
        ("list.csv", b"path;label\n ;2\n", "line 2, has no path"),
        ("list.csv", b"name;label\na;2\n", "only name;label"),
        ("list.txt", "0.png\n1.png\n".encode("utf-16"), "is in UTF-16"),
        ("list.csv", "path\n0.png\n".encode("utf-16-be"), "is in UTF-16"),
        ("list.txt", b"0.png\nhttps://x.org/a.jpg\n", "https://x.org/a.jpg"),
        ("list.csv", b"path\ngs://b/c.jpg\n", "gs://b/c.jpg"),
        ("list.txt", b"lists/0.png\n" * 200, "first 100"),
        ("list.txt", b"no.png", "'no.png'"),
        ("list.txt", b"no.png 1\nnot.png 2", "'no.png 1'"),
        ("list.csv", b"path\nlists\n.\n", "one per line in a text file"),
        ("list.txt", b"a.svs\n", "vips dzsave"),
    ],
)
def test_bad_manifests(folder, name, content, words):
    (folder / name).write_bytes(content)
    with pytest.raises(errors.UserError) as caught:
        registry.open_path(str(folder / name), DECODER)
    said = str(caught.value)
    assert words in said and str(folder / name) in said and "\n" not in said


def test_a_list_opened_before_its_disk_was_mounted(folder):
    (folder / "list.txt").write_text("disk/0.png 7\ndisk/1.png 8\n")
    for _ in range(2):
        with pytest.raises(errors.UserError, match="mount their disk"):
            registry.open_path(str(folder / "list.txt"), DECODER)
    (folder / "disk").mkdir()
    for name in ("0.png", "1.png"):
        (folder / name).rename(folder / "disk" / name)
    source = registry.open_path(str(folder / "list.txt"), DECODER)
    assert [source.name(i) for i in range(2)] == ["disk/0.png", "disk/1.png"]
    assert source.label_names == ["7", "8"]
    (folder / "disk").rename(folder / "elsewhere")
    with pytest.raises(errors.UserError, match="mount their disk"):  # from the cache
        registry.open_path(str(folder / "list.txt"), DECODER)


def test_without_pyarrow(folder, monkeypatch):
    write(folder / "list.parquet", ["0.png"])
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(errors.UserError, match="pip install pyarrow"):
        registry.open_path(str(folder / "list.parquet"), DECODER)

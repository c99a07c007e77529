"""Folders: everything users have in them, and an index that is brought up to date."""

import os
import pathlib
import pickle
import random
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from dinov2_jax import errors
from dinov2_jax.data.decode import image_decoder
from dinov2_jax.data.sources import folder, folder_index, index_cache, registry

DECODER = image_decoder.Decoder()


def touch(path, content=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def age(root, seconds=100):
    """Makes folders that changed in this test look as if that was longer ago."""
    for path, _, _ in os.walk(root):
        if time.time() - os.stat(path).st_mtime < 50:
            os.utime(path, (time.time() - seconds,) * 2)


def names(source):
    return [source.name(i) for i in range(len(source))]


def expected(root):
    """Paths by another route: pathlib's."""
    found = [p for p in pathlib.Path(root).rglob("*.jpg") if p.is_file()]
    return sorted(os.fsencode(p.relative_to(root)) for p in found)


def found(root):
    source = folder.FolderSource(root, DECODER)
    return [source.relative_path(i) for i in range(len(source))]


@pytest.fixture
def listed(monkeypatch):
    """Folders below the root that were listed since it was last emptied."""
    seen, scandir = [], os.scandir

    def spy(path):
        if isinstance(path, bytes):  # not those of the cache
            seen.append(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", spy)
    return seen


def test_what_cannot_be_an_image_is_never_opened(tmp_path):
    Image.new("RGB", (3, 2)).save(tmp_path / "good.png")
    (tmp_path / "a.jpg").mkdir()
    Image.new("RGB", (5, 2)).save(tmp_path / "a.jpg" / "inside.png")
    os.mkfifo(tmp_path / "pipe.jpg")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket.png"))
    (tmp_path / "null.jpg").symlink_to("/dev/null")
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "self.jpg").symlink_to(tmp_path / "self.jpg")
    source = folder.FolderSource(tmp_path, DECODER)
    listener.close()
    assert names(source) == ["a.jpg/inside.png", "good.png"]
    assert source.open(0).width == 5
    skipped = dict(source.skipped_names())
    assert set(skipped) == {
        *("pipe.jpg", "socket.png", "null.jpg", "broken.jpg", "self.jpg")
    }
    assert skipped["pipe.jpg"] == "not a regular file"
    said = source.describe()
    assert said.startswith(f"2 images in 2 folders below {tmp_path} (5 skipped: ")
    assert "3 x not a regular file" in said and "first a.jpg/inside.png" in said
    # A pipe that took the place of an image is not opened either: that would hang.
    (tmp_path / "good.png").unlink()
    os.mkfifo(tmp_path / "good.png")
    with pytest.raises(image_decoder.BadImage, match="good.png: not a regular file"):
        source.open(1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_folders(tmp_path):
    touch(tmp_path / "a/1.jpg")
    touch(tmp_path / "closed/2.jpg")
    (tmp_path / "closed").chmod(0)
    try:
        source = folder.FolderSource(tmp_path, DECODER)
        assert names(source) == ["a/1.jpg"]
        assert source.unreadable_folders == [str(tmp_path / "closed") + "/"]
        assert "1 x unreadable folder" in source.describe()
    finally:
        (tmp_path / "closed").chmod(0o700)
    assert names(folder.FolderSource(tmp_path, DECODER)) == ["a/1.jpg", "closed/2.jpg"]


def test_names_that_are_not_text(tmp_path):
    root = os.fsencode(tmp_path)
    os.mkdir(root + b"/\xff\xfe")
    for name in (b"/\xff\xfe/\x80.jpg", b"/new\nline.jpg", b"/esc\x1b[31m.jpg"):
        with open(root + name, "wb") as file:
            Image.new("RGB", (4, 4)).save(file, "PNG")
    os.symlink(b"nowhere", root + b"/\xff.jpg")
    for _ in range(2):  # also when the index comes from the disk
        source = folder.FolderSource(tmp_path, DECODER)
        assert [source.open(i).width for i in range(3)] == [4, 4, 4]
        said = source.describe()
        assert said.isprintable() and said.encode("utf-8")
        age(tmp_path)


def test_ten_thousand_folders(tmp_path, listed):
    for i in range(10_000):
        (tmp_path / f"{i:05}").mkdir()
    for i in range(0, 10_000, 100):
        (tmp_path / f"{i:05}" / "a.jpg").touch()
    age(tmp_path)
    source = folder.FolderSource(tmp_path, DECODER)
    assert len(source) == len(source.label_names) == 100
    assert len(listed) == 10_001
    listed.clear()
    again = folder.FolderSource(tmp_path, DECODER)
    assert listed == [] and names(again) == names(source)


def test_a_second_start_lists_nothing(tmp_path, listed):
    for i in range(5):
        touch(tmp_path / f"{i}/a.jpg")
    age(tmp_path)
    first = folder.FolderSource(tmp_path, DECODER)
    listed.clear()
    second = folder.FolderSource(tmp_path, DECODER)
    assert listed == []
    assert names(first) == names(second) and first.fingerprint == second.fingerprint
    # A name that came, without a change of the folder's time, is not seen: so the
    # folder was not listed.
    status = os.stat(tmp_path / "1")
    touch(tmp_path / "1/b.jpg")
    os.utime(tmp_path / "1", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert len(folder.FolderSource(tmp_path, DECODER)) == 5


def test_only_changed_folders_are_listed(tmp_path, listed):
    for i in range(5):
        touch(tmp_path / f"{i}/a.jpg")
    age(tmp_path)
    before = folder.FolderSource(tmp_path, DECODER).fingerprint
    touch(tmp_path / "3/b.jpg")
    listed.clear()
    source = folder.FolderSource(tmp_path, DECODER)
    assert listed == [os.fsencode(tmp_path) + b"/3/"]
    assert "3/b.jpg" in names(source) and source.fingerprint != before


def test_an_index_brought_up_to_date_is_that_of_a_new_one(
    tmp_path, monkeypatch, listed
):
    rng, reused = random.Random(0), 0
    root = tmp_path / "root"
    for step in range(12):
        for _ in range(6):
            where = root.joinpath(*(rng.choice("abc") for _ in range(rng.randrange(4))))
            touch(where / f"{rng.randrange(30)}.jpg", bytes(rng.randrange(1, 9)))
        if step % 3 == 1:
            (root / "a" / f"{step}.jpg").unlink(missing_ok=True)
            victim = rng.choice(sorted(root.rglob("*.jpg")))
            victim.unlink()
        if step == 4:
            (root / "b").rename(root / "B")
        if step == 7:
            (root / "link").symlink_to(root / "a")
        age(root, seconds=10_000 - step)
        listed.clear()
        kept = folder.FolderSource(root, DECODER)
        reused += len(kept._index["folder_how"]) - len(listed)
        with monkeypatch.context() as patch:
            patch.setenv("DINOV2_JAX_CACHE", str(tmp_path / f"cache{step}"))
            new = folder.FolderSource(root, DECODER)
        assert kept.fingerprint == new.fingerprint
        assert names(kept) == names(new)
        for name in ("labels", "sizes", "mtimes", "folders"):
            assert (name in kept._index) == (name in new._index)
            if name in kept._index:
                np.testing.assert_array_equal(kept._index[name], new._index[name])
        paths = [kept.relative_path(i) for i in range(len(kept))]
        if step < 7:  # pathlib does not follow links
            assert paths == expected(root)
        statuses = [os.stat(os.path.join(os.fsencode(root), path)) for path in paths]
        assert kept._index["sizes"].tolist() == [s.st_size for s in statuses]
    assert reused > 50


def test_removed_and_overwritten_files(tmp_path):
    for i in range(4):
        touch(tmp_path / f"{i}.jpg")
    age(tmp_path)
    fingerprints = [folder.FolderSource(tmp_path, DECODER).fingerprint]
    (tmp_path / "2.jpg").unlink()
    age(tmp_path)
    fingerprints.append(folder.FolderSource(tmp_path, DECODER).fingerprint)
    assert found(tmp_path) == expected(tmp_path) == [b"0.jpg", b"1.jpg", b"3.jpg"]
    with open(tmp_path / "1.jpg", "ab") as file:  # the folder stays as it was
        file.write(b"more")
    fingerprints.append(folder.FolderSource(tmp_path, DECODER).fingerprint)
    os.utime(tmp_path / "0.jpg", (1, 1))
    fingerprints.append(folder.FolderSource(tmp_path, DECODER).fingerprint)
    assert len(set(fingerprints)) == 4


def test_a_folder_that_just_changed_is_listed_again(tmp_path):
    touch(tmp_path / "1.jpg")
    os.utime(tmp_path, (time.time() + 300,) * 2)  # just changed, on a slow machine too
    status = os.stat(tmp_path)
    folder.FolderSource(tmp_path, DECODER)
    touch(tmp_path / "2.jpg")  # within the file system's tick, as it were
    os.utime(tmp_path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert len(folder.FolderSource(tmp_path, DECODER)) == 2


INDEX = """
import sys
from dinov2_jax.data.sources import folder
from dinov2_jax.data.decode import image_decoder
sys.stdin.readline()
source = folder.FolderSource(sys.argv[1], image_decoder.Decoder())
print(len(source), source.fingerprint)
"""


def test_processes_that_index_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("DINOV2_JAX_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "root"
    for i in range(3000):
        touch(root / str(i % 30) / f"{i}.jpg")
    command = [sys.executable, "-c", INDEX, str(root)]
    running = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    for process in running:  # all have imported by the time they are let go
        process.stdin.write("\n")
        process.stdin.flush()
    said = {process.communicate(timeout=300)[0] for process in running}
    assert len(said) == 1 and said.pop().startswith("3000 ")
    left = {p.suffix for p in (tmp_path / "cache" / "indexes").iterdir()}
    assert left == {".index"}  # nothing half-written


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "old", "header"])
def test_a_damaged_cache_is_built_anew(tmp_path, monkeypatch, damage):
    monkeypatch.setenv("DINOV2_JAX_CACHE", str(tmp_path / "cache"))
    for i in range(50):
        touch(tmp_path / "root" / f"{i}.jpg")
    age(tmp_path / "root")
    want = found(tmp_path / "root")
    (path,) = (tmp_path / "cache" / "indexes").iterdir()
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[:-500]
    elif damage == "flip":
        content[content.index(b"17.jpg")] ^= 64
    elif damage == "empty":
        content = b""
    elif damage == "old":
        content[8] ^= 1
    else:
        content[30] ^= 64
    path.write_bytes(content)
    assert found(tmp_path / "root") == want
    (path,) = (tmp_path / "cache" / "indexes").iterdir()
    index_cache.Index(path).verify()


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    touch(tmp_path / "file")
    monkeypatch.setenv("DINOV2_JAX_CACHE", str(tmp_path / "file" / "cache"))
    touch(tmp_path / "root" / "a.jpg")
    source = folder.FolderSource(tmp_path / "root", DECODER)
    assert names(pickle.loads(pickle.dumps(source))) == ["a.jpg"]
    assert not pathlib.Path(source._index.path).is_relative_to(tmp_path)


def test_workers_have_the_list_of_the_trainer(tmp_path):
    touch(tmp_path / "a.jpg")
    source = folder.FolderSource(tmp_path, DECODER)
    pickled = pickle.dumps(source)
    touch(tmp_path / "0.jpg")  # and another program starts
    assert len(folder.FolderSource(tmp_path, DECODER)) == 2
    assert names(pickle.loads(pickled)) == ["a.jpg"]


def test_a_hundred_thousand_paths_are_pickled_as_one(tmp_path):
    paths = [b"%06d/some/long/path.jpg" % i for i in range(100_000)]
    key = index_cache.key("test", str(tmp_path))
    arrays = index_cache.text_arrays("paths", paths)
    header = {"fingerprint": "0" * 32, "label_names": []}
    index = index_cache.write(key, "0" * 32, header, arrays)
    source = folder.FilesSource(str(tmp_path), index, DECODER)
    assert source.relative_path(0) == paths[0]
    pickled = pickle.dumps(source)
    assert len(pickled) < 700
    again = pickle.loads(pickled)
    assert [again.relative_path(i) for i in (0, 1, 99_999)] == [
        paths[i] for i in (0, 1, 99_999)
    ]
    assert index_cache.newest(key)["paths"].tobytes() == b"".join(paths)


@pytest.mark.parametrize(
    "pattern, want",
    [
        ("*/train/**/*.jpg", ["a/train/1.jpg", "a/train/x/y/2.jpg", "b/train/3.jpg"]),
        ("*/train/*.jpg", ["a/train/1.jpg", "b/train/3.jpg"]),
        ("**/2.jpg", ["a/train/x/y/2.jpg"]),
        ("{a,c}/**", ["a/train/1.jpg", "a/train/x/y/2.jpg", "a/val/4.JPG", "c/6.png"]),
        ("a/**/[12].*", ["a/train/1.jpg", "a/train/x/y/2.jpg"]),
        ("?/val/*", ["a/val/4.JPG"]),
        ("{a/train,b}/**/{1..3}.jpg", None),
        ("**/*.dat", ["c/5.dat"]),
    ],
)
def test_patterns(tmp_path, pattern, want):
    root = tmp_path / "data"
    for name in (
        *("a/train/1.jpg", "a/train/x/y/2.jpg", "a/train/x/y/notes.md", "a/val/4.JPG"),
        *("b/train/3.jpg", "b/train/.hidden.jpg", "b/.git/train/1.jpg"),
        *("c/5.dat", "c/6.png"),
    ):
        touch(root / name)
    want = want or ["a/train/1.jpg", "a/train/x/y/2.jpg", "b/train/3.jpg"]
    source = registry.open_path(f"{root}/{pattern}", DECODER)
    assert type(source) is folder.GlobSource
    where = [os.path.join(source.path, name) for name in names(source)]
    assert where == [str(root / name) for name in want]


def test_patterns_list_only_what_can_match(tmp_path, listed):
    for name in ("a/train/1.jpg", "a/other/1.jpg", "b/deep/er/1.jpg"):
        touch(tmp_path / name)
    source = folder.GlobSource(f"{tmp_path}/*/train/*.jpg", DECODER)
    assert names(source) == ["a/train/1.jpg"]
    assert listed and not [path for path in listed if b"other" in path]


def test_a_pattern_through_links_ends(tmp_path):
    touch(tmp_path / "a/train/1.jpg")
    (tmp_path / "a/train/loop").symlink_to(tmp_path)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    source = folder.GlobSource(f"{tmp_path}/**/1.jpg", DECODER)
    assert "a/train/1.jpg" in names(source) and len(source) < 4


def test_a_pattern_that_matches_nothing(tmp_path):
    touch(tmp_path / "a/1.jpg")
    with pytest.raises(errors.UserError) as caught:
        registry.open_path(f"{tmp_path}/*/*.png", DECODER)
    said = str(caught.value)
    assert f"{tmp_path}/*/*.png" in said and "\n" not in said


def test_progress_is_silent_off_a_terminal(tmp_path, capfd):
    touch(tmp_path / "a.jpg")
    folder_index.find_images(str(tmp_path))
    assert capfd.readouterr() == ("", "")

"""WebDataset shards, written with Python's tarfile and, where there is one, tar."""

import io
import json
import os
import pickle
import random
import shutil
import subprocess
import tarfile

import pytest
from PIL import Image

from dinov2_jax import errors
from dinov2_jax.data.decode import image_decoder
from dinov2_jax.data.sources import registry, tar_index, webdataset

DECODER = image_decoder.Decoder()


def png(width):
    stream = io.BytesIO()
    Image.new("RGB", (width, 4)).save(stream, "PNG")
    return stream.getvalue()


def add(tar, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def write(path, members, mode="w", tar_format=tarfile.PAX_FORMAT):
    with tarfile.open(path, mode, format=tar_format) as tar:
        for name, content in members:
            add(tar, name, content)


@pytest.fixture
def shards(tmp_path):
    for shard in range(3):
        members = []
        for i in range(4):
            number = 4 * shard + i
            members += [
                (f"{number:04}.PNG", png(10 + number)),
                (f"{number:04}.txt", b"a caption"),
                (f"{number:04}.cls", b"%d\n" % (number % 3)),
            ]
        write(tmp_path / f"x-{shard:02}.tar", members)
    return tmp_path


def widths(source):
    return [source.open(i).width for i in range(len(source))]


@pytest.mark.parametrize("path", ["", "x-*.tar", "x-{00..02}.tar", "x-0{0,1,2}.tar"])
def test_shards(shards, path):
    source = registry.open_path(str(shards / path), DECODER)
    assert type(source) is webdataset.TarSource
    pickled = pickle.dumps(source)
    assert len(pickled) < 700
    for one in (source, pickle.loads(pickled)):
        assert widths(one) == list(range(10, 22))
        assert one.labels.tolist() == [i % 3 for i in range(12)]
        assert one.label_names == ["0", "1", "2"]
        assert one.name(5) == "x-01.tar/0005.PNG"
    assert source.content(0) == png(10)
    assert "12 images in 3 tar files of" in source.describe()
    assert "first x-00.tar/0000.PNG" in source.describe()


def test_one_shard_with_labels_in_json(tmp_path):
    members = [
        ("a/1.jpg", png(3)),
        ("a/1.json", json.dumps({"label": "cat", "url": "x"}).encode()),
        ("b/1.jpg", png(4)),
        ("b/1.json", json.dumps({"label": "dog"}).encode()),
        ("b/1.seg.png", png(5)),
    ]
    write(tmp_path / "s.tar", members)
    source = registry.open_path(str(tmp_path / "s.tar"), DECODER)
    assert widths(source) == [3, 4, 5] and source.label_names == ["cat", "dog"]
    assert source.labels.tolist() == [0, 1, 1]
    write(tmp_path / "s.tar", members[:3])
    source = registry.open_path(str(tmp_path / "s.tar"), DECODER)
    assert len(source) == 2 and source.labels is None


@pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_what_tar_files_hold(tmp_path, tar_format):
    long = "/".join(["f" * 40] * 4) + "/1.png"
    with tarfile.open(tmp_path / "s.tar", "w", format=tar_format) as tar:
        add(tar, long, png(7))
        for kind in b"1256":  # hard link, symbolic link, folder, pipe
            kind = bytes([kind])
            info = tarfile.TarInfo(f"not{kind.decode()}.png")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        if tar_format != tarfile.USTAR_FORMAT:
            add(tar, "\udcff\udcfe.png", png(8))
    source = registry.open_path(str(tmp_path / "s.tar"), DECODER)
    assert widths(source) == [7, 8][: len(source)]
    assert source.name(0) == f"s.tar/{long}" and source.describe().isprintable()
    reasons = ("link to a missing member", "symbolic link", "not a regular file")
    assert source.skipped() == dict.fromkeys(reasons, 1)
    assert "(3 skipped: " in source.describe()


@pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
@pytest.mark.parametrize("pax_headers", [{}, {"comment": "for all members"}])
def test_places_are_those_that_tarfile_finds(tmp_path, tar_format, pax_headers):
    rng = random.Random(0)
    headers = pax_headers if tar_format == tarfile.PAX_FORMAT else {}
    with tarfile.open(
        tmp_path / "s.tar", "w", format=tar_format, pax_headers=headers
    ) as tar:
        for i in range(200):
            folder = "/".join("d" * rng.randrange(1, 60) for _ in range(i % 4))
            info = tarfile.TarInfo(
                f"{folder}/{i}{rng.choice(['.jpg', '.PNG', '.txt'])}"
            )
            info.size, info.mtime = rng.randrange(2000), rng.choice([0, 1.5, 2e9])
            info.uid, info.uname = 1000, rng.choice(["", "ü"])
            if i % 20 == 19:
                info.type, info.size = tarfile.DIRTYPE, 0
            tar.addfile(info, io.BytesIO(rng.randbytes(info.size)))
    found = tar_index.read(str(tmp_path / "s.tar"))
    with tarfile.open(tmp_path / "s.tar") as tar:
        want = [
            (os.fsencode(m.name), m.offset_data, m.size)
            for m in tar.getmembers()
            if m.isreg() and m.name.lower().endswith((".jpg", ".png"))
        ]
    assert list(zip(found.names, found.offsets, found.sizes)) == want
    assert len(want) > 100 and not found.problem


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar")
def test_a_shard_of_the_program_tar(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png(5 + i))
    names = [f"{i}.png" for i in range(3)]
    command = ["tar", "-cf", "s.tar", *names]
    subprocess.run(command, cwd=tmp_path, check=True)
    source = registry.open_path(str(tmp_path / "s.tar"), DECODER)
    assert widths(source) == [5, 6, 7]


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar")
@pytest.mark.parametrize("tar_format", ["gnu", "pax"])
def test_links_and_sparse_files_of_the_program_tar(tmp_path, tar_format):
    (tmp_path / "a.png").write_bytes(png(5))
    os.link(tmp_path / "a.png", tmp_path / "b.png")  # stored once, as a hard link
    os.link(tmp_path / "a.png", tmp_path / "c.png")
    os.symlink("a.png", tmp_path / "d.png")
    with open(tmp_path / "e.png", "wb") as file:
        file.seek(10_000_000)
        file.write(b"x")
    names = [f"{letter}.png" for letter in "abcde"]
    command = ["tar", f"--format={tar_format}", "--sparse", "-cf", "s.tar", *names]
    subprocess.run(command, cwd=tmp_path, check=True)
    source = registry.open_path(str(tmp_path / "s.tar"), DECODER)
    assert [source.name(i) for i in range(3)] == [f"s.tar/{n}.png" for n in "abc"]
    assert widths(source) == [5, 5, 5]
    assert source.skipped() == {"symbolic link": 1, "sparse file": 1}


def test_hidden_members_and_odd_labels(tmp_path):
    members = [("._a.png", b"AppleDouble"), ("./a.png", png(5)), ("./.b/._a.cls", b"x")]
    members.append(("a.json", b"[" * 100_000))  # too deep for Python's parser
    write(tmp_path / "s.tar", members)
    source = registry.open_path(str(tmp_path / "s.tar"), DECODER)
    assert widths(source) == [5] and source.left_out() == {}
    assert source.labels is None


def test_only_changed_shards_are_read(shards, monkeypatch):
    first = registry.open_path(str(shards), DECODER)
    read, really = [], tar_index.read

    def spy(path):
        read.append(os.path.basename(path))
        return really(path)

    monkeypatch.setattr(tar_index, "read", spy)
    assert registry.open_path(str(shards), DECODER).fingerprint == first.fingerprint
    assert read == []
    members = [("new.png", png(50)), ("new.cls", b"7")]
    write(shards / "x-01.tar", members)
    write(shards / "x-03.tar", members)
    source = registry.open_path(str(shards), DECODER)
    assert sorted(read) == ["x-01.tar", "x-03.tar"]
    assert widths(source) == [10, 11, 12, 13, 50, 18, 19, 20, 21, 50]
    assert source.label_names == ["0", "1", "2", "7"]
    assert source.labels.tolist() == [0, 1, 2, 0, 3, 2, 0, 1, 2, 3]
    assert source.fingerprint != first.fingerprint


@pytest.mark.parametrize("where", ["header", "content", "garbage"])
def test_a_damaged_shard_is_read_up_to_the_damage(shards, where):
    path = shards / "x-01.tar"
    content = bytearray(path.read_bytes())
    # A member takes 512 bytes of header and its content, filled up to 512.
    third = 6 * 1024
    if where == "header":
        content = content[: third + 100]
    elif where == "content":
        content = content[: third + 520]
    else:
        content[third : third + 512] = b"\xa5" * 512
    path.write_bytes(content)
    source = registry.open_path(str(shards), DECODER)
    assert widths(source) == [10, 11, 12, 13, 14, 15, 18, 19, 20, 21]
    assert "1 file not read to the end, such as x-01.tar" in source.describe()


def test_a_shard_that_shrinks_later(shards):
    source = registry.open_path(str(shards), DECODER)
    (shards / "x-02.tar").write_bytes(b"")
    with pytest.raises(
        image_decoder.BadImage, match="x-02.tar/0011.PNG: its shard was cut"
    ):
        source.open(11)


@pytest.mark.parametrize("name", ["s.tar.gz", "s.tgz", "s.tar"])
def test_compressed(tmp_path, name):
    write(tmp_path / name, [("a.png", png(3))], "w:gz")
    with pytest.raises(errors.UserError) as caught:
        registry.open_path(str(tmp_path / name), DECODER)
    said = str(caught.value)
    assert f"{tmp_path / name} is compressed" in said


def test_nothing_there(shards, tmp_path):
    write(tmp_path / "text.tar", [("a.txt", b"x")])
    for path, words in (
        (f"{shards}/x-{{00..07}}.tar", "x-03.tar does not exist"),
        (f"{shards}/y-*.tar", "no .tar files match"),
        (f"{tmp_path}/text.tar", "no images inside 1 tar file of data.path"),
    ):
        with pytest.raises(errors.UserError) as caught:
            registry.open_path(path, DECODER)
        assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_shard_that_cannot_be_read(tmp_path):
    (tmp_path / "x.tar").symlink_to("/proc/self/mem")  # nor can root read that
    with pytest.raises(errors.UserError) as caught:
        registry.open_path(str(tmp_path), DECODER)
    said = str(caught.value)
    assert f"cannot read {tmp_path}/x.tar" in said and "\n" not in said


def test_many_shards_with_few_open_files(shards, monkeypatch):
    monkeypatch.setattr(webdataset, "_MOST_OPEN", 1)
    source = registry.open_path(str(shards), DECODER)
    before = len(os.listdir("/proc/self/fd"))
    assert widths(source) == list(range(10, 22))
    assert len(os.listdir("/proc/self/fd")) <= before + 1

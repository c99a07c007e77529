"""ArrayRecord files: plain image bytes, and the records of `shard`."""

import concurrent.futures
import io
import json
import os
import pickle

import numpy as np
import pytest
from array_record.python import array_record_module
from PIL import Image

from configs import default
from dinov2_jax import errors
from dinov2_jax.data import batch_builder
from dinov2_jax.data.decode import image_decoder
from dinov2_jax.data.sources import array_record, mixture, registry

DECODER = image_decoder.Decoder()


def encoded(width, kind="PNG"):
    stream = io.BytesIO()
    Image.new("RGB", (width, 4)).save(stream, kind)
    return stream.getvalue()


def write(path, records, options="group_size:1"):
    writer = array_record_module.ArrayRecordWriter(str(path), options)
    for record in records:
        writer.write(record)
    writer.close()


def widths(source):
    return [source.open(i).width for i in range(len(source))]


@pytest.mark.parametrize("options", ["group_size:1", "group_size:3", "uncompressed"])
def test_plain_images(tmp_path, options):
    for shard in range(2):
        kinds = ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"]
        kinds = kinds[shard:] + kinds[:shard]
        records = [encoded(10 * shard + i + 1, kind) for i, kind in enumerate(kinds)]
        write(tmp_path / f"x-{shard}.array_record", records, options)
    for path in ("", "x-*.array_record", "x-{0..1}.array_record"):
        source = registry.open_path(str(tmp_path / path), DECODER)
        assert type(source) is array_record.ArrayRecordSource
        want = [1, 2, 3, 4, 5, 6, 11, 12, 13, 14, 15, 16]
        assert widths(source) == want
        pickled = pickle.dumps(source)
        assert len(pickled) < 700 and widths(pickle.loads(pickled)) == want
    assert source.name(7) == "x-1.array_record record 1"
    assert source.labels is None and source.label_names == []
    said = source.describe()
    assert said.startswith("12 images in 2 ArrayRecord files of")
    one = registry.open_path(str(tmp_path / "x-1.array_record"), DECODER)
    assert widths(one) == want[6:]
    with pytest.raises(IndexError):
        one.open(6)


def test_the_record_is_what_its_description_says(tmp_path):
    """Read and written here by hand, from the description alone."""
    records = []
    for i, name in enumerate(["a/1.png", "b/\udcff.png", "ü.png"]):
        fields = {"name": name, "label": "abc"[i % 2]}
        head = json.dumps(fields).encode("ascii")
        length = len(head).to_bytes(4, "little")
        records.append(b"dinov2\x00\x01" + length + head + encoded(3 + i))
    write(tmp_path / "x.array_record", records)
    source = registry.open_path(str(tmp_path), DECODER)
    assert widths(source) == [3, 4, 5]
    assert [source.name(i) for i in range(3)] == ["a/1.png", "b/\\xff.png", "ü.png"]
    assert source.labels.tolist() == [0, 1, 0] and source.label_names == ["a", "b"]
    assert source.content(1) == encoded(4) and source.describe().encode()
    packed = array_record.pack(b"content", name="n", label=None)
    assert packed[:8] == b"dinov2\x00\x01" and packed.endswith(b"content")
    assert json.loads(packed[12:-7]) == {"name": "n"}


def test_a_batch_reads_each_record_once(tmp_path, monkeypatch):
    records = [
        array_record.pack(encoded(30 + i), name=f"{i}.png", label=None)
        for i in range(4)
    ]
    write(tmp_path / "x.array_record", records)
    config = default.get_config()
    config.train.batch_size = config.train.group_size = 4
    record, read = array_record.ArrayRecordSource._record, []
    monkeypatch.setattr(
        array_record.ArrayRecordSource,
        "_record",
        lambda self, index: read.append(int(index)) or record(self, index),
    )
    path, name = str(tmp_path), "x.array_record record 2"
    one = registry.open_path(path, DECODER)
    both = mixture.MixtureSource([one, one], [1.0, 1.0], ["a", "b"])
    assert one.place_name(2) == name and both.place_name(6) == f"b: {name}"
    read.clear()
    builder = batch_builder.make_batch_builder(config, one)
    builder(0)
    assert sorted(read) == [0, 1, 2, 3]


def test_other_records_are_refused(tmp_path):
    write(tmp_path / "x.array_record", [b"\x0a\x10 a protocol buffer"])
    with pytest.raises(errors.UserError, match="--config.data.source=tfds"):
        registry.open_path(str(tmp_path), DECODER)
    write(tmp_path / "x.array_record", [])
    with pytest.raises(errors.UserError, match="no records in 1 ArrayRecord file"):
        registry.open_path(str(tmp_path), DECODER)


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000", "PPM", "TGA", "npy", "empty"])
def test_first_records_of_every_kind(tmp_path, kind):
    if kind == "npy":
        stream = io.BytesIO()
        np.save(stream, np.zeros((4, 3, 3), np.uint8))
        first = stream.getvalue()
    else:
        first = b"" if kind == "empty" else encoded(3, kind)
    write(tmp_path / "x.array_record", [first, encoded(5)])
    source = registry.open_path(str(tmp_path), DECODER)
    assert source.open(1).width == 5
    if first:
        assert source.open(0).width == 3


def test_a_damaged_first_record_is_a_bad_image(tmp_path):
    path = tmp_path / "x.array_record"
    write(path, [encoded(200), encoded(5)], "group_size:1,uncompressed")
    content = bytearray(path.read_bytes())
    content[content.index(encoded(200)) + 30] ^= 255
    path.write_bytes(content)
    source = registry.open_path(str(path), DECODER)
    assert source.open(1).width == 5
    with pytest.raises(image_decoder.BadImage, match="its record cannot be read"):
        source.open(0)


@pytest.mark.parametrize(
    "head",
    ['{"name": 5}', '["x"]', '["name"]', '{"name": "a", "label": [3]}', "3", "{"]
    + ['{"name": "\\ud800"}', "[" * 60_000],
)
def test_odd_headers_are_bad_images(tmp_path, head):
    record = array_record.MAGIC + len(head).to_bytes(4, "little") + head.encode()
    write(tmp_path / "x.array_record", [record + encoded(4), encoded(5)])
    source = registry.open_path(str(tmp_path), DECODER)
    for read in (source.open, source.content):
        with pytest.raises(image_decoder.BadImage, match="its header is not that"):
            read(0)
    assert source.name(0) == "x.array_record record 0"
    with pytest.raises(errors.UserError, match=r"label of x.array_record record 0 in"):
        _ = source.labels


def test_more_shards_than_open_files(tmp_path, monkeypatch):
    monkeypatch.setattr(array_record, "_MOST_OPEN", 3)
    for i in range(20):
        write(tmp_path / f"x-{i:02d}.array_record", [encoded(5 + i)])
    source = registry.open_path(str(tmp_path), DECODER)

    def opened():
        links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
        real = map(os.path.realpath, links)
        return sum(path.startswith(str(tmp_path)) for path in real)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        order = [(7 * i) % 20 for i in range(200)]
        found = list(pool.map(lambda i: source.open(i).width, order))
    assert found == [5 + i for i in order]
    assert opened() == 3


@pytest.mark.parametrize("damage", ["text", "cut", "empty"])
def test_damaged_files_are_refused(tmp_path, damage):
    write(tmp_path / "x.array_record", [encoded(9)] * 100, "group_size:1,uncompressed")
    content = (tmp_path / "x.array_record").read_bytes()
    content = {"text": b"x" * 10_000, "cut": content[:-5000], "empty": b""}[damage]
    (tmp_path / "x.array_record").write_bytes(content)
    with pytest.raises(errors.UserError, match="not a whole ArrayRecord file"):
        registry.open_path(str(tmp_path), DECODER)


def test_a_damaged_record_is_a_bad_image(tmp_path):
    path = tmp_path / "x.array_record"
    write(path, [encoded(200 + i) for i in range(300)], "group_size:1,uncompressed")
    source = registry.open_path(str(path), DECODER)
    content = bytearray(path.read_bytes())
    at = content.index(encoded(450)) + 30
    content[at] ^= 255
    with open(path, "r+b") as file:  # under the reader
        file.write(content)
    bad = []
    for i in range(300):
        try:
            source.open(i)
        except image_decoder.BadImage as error:
            bad.append(i)
            assert error.name == "x.array_record record 250"
            assert "its record cannot be read" in error.reason
    assert bad == [250] and source.name(250) == "x.array_record record 250"
    cut = [encoded(5), array_record.MAGIC + b"\xff\xff\0\0{"]
    write(tmp_path / "y.array_record", cut)
    source = registry.open_path(str(tmp_path / "y.array_record"), DECODER)
    with pytest.raises(image_decoder.BadImage, match="the record is cut off"):
        source.open(1)


def test_files_are_counted_again_when_they_change(tmp_path):
    path = tmp_path / "x.array_record"
    write(path, [encoded(5)])
    before = registry.open_path(str(tmp_path), DECODER).fingerprint
    write(path, [encoded(5), encoded(6)])
    source = registry.open_path(str(tmp_path), DECODER)
    assert widths(source) == [5, 6] and source.fingerprint != before


def test_large_sets_leave_the_index_in_the_file(tmp_path, monkeypatch):
    write(tmp_path / "x.array_record", [encoded(5 + i) for i in range(20)])
    monkeypatch.setattr(array_record, "_MOST_IN_MEMORY", 10)
    assert widths(registry.open_path(str(tmp_path), DECODER)) == list(range(5, 25))
    assert os.listdir(tmp_path) == ["x.array_record"]

"""Parquet and Arrow files in the layout that Hugging Face's `datasets` writes."""

import io
import json
import os
import pickle

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from dinov2_jax import errors
from dinov2_jax.data.decode import image_decoder
from dinov2_jax.data.sources import huggingface, manifest, registry, table_files

DECODER = image_decoder.Decoder()
NAMES = ["cat", "dog", "eel"]
FEATURES = {
    "image": {"_type": "Image"},
    "label": {"names": NAMES, "_type": "ClassLabel"},
}


def content(width):
    stream = io.BytesIO()
    Image.new("RGB", (width, 3), (width,) * 3).save(stream, "PNG")
    return stream.getvalue()


def table(widths, labels=None, names=True):
    """What `datasets` writes of images of these widths."""
    kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    images = [{"bytes": content(w), "path": f"{w}.png"} for w in widths]
    labels = [w % 3 for w in widths] if labels is None else labels
    metadata = {"huggingface": json.dumps({"info": {"features": FEATURES}})}
    schema = pyarrow.schema(
        {"id": pyarrow.int64(), "image": kind, "label": pyarrow.int64()},
        metadata=metadata if names else None,
    )
    columns = [list(range(len(widths))), images, labels]
    arrays = [pyarrow.array(c, f.type) for c, f in zip(columns, schema)]
    return pyarrow.table(arrays, schema=schema)


def write_arrow(path, content, rows=2):
    with pyarrow.OSFile(str(path), "wb") as file:
        with pyarrow.ipc.new_stream(file, content.schema) as writer:
            writer.write_table(content, max_chunksize=rows)


def opened(path):
    return pickle.loads(pickle.dumps(registry.open_path(str(path), DECODER)))


def widths(source):
    return [source.open(i).width for i in range(len(source))]


@pytest.fixture
def folder(tmp_path):
    """A split as on the hub: 5 and 4 images in row groups of 2."""
    for number, part in enumerate(([5, 6, 7, 8, 9], [10, 11, 12, 13])):
        path = tmp_path / f"train-0000{number}-of-00002.parquet"
        parquet.write_table(table(part), path, row_group_size=2)
    (tmp_path / "README.md").touch()
    return tmp_path


@pytest.mark.parametrize("path", ["", "train-*.parquet", "train-0000{0..1}-of-*"])
def test_parquet_of_the_hub(folder, path):
    path = f"{folder}/{path}" + (".parquet" if path.endswith("*") else "")
    source = opened(path)
    assert type(source) is huggingface.HuggingFaceSource
    assert widths(source) == list(range(5, 14))
    assert source.label_names == NAMES
    assert source.labels.tolist() == [w % 3 for w in range(5, 14)]
    assert source.content(6) == content(11)
    assert source.name(6) == "train-00001-of-00002.parquet row 1"
    with pytest.raises(IndexError):
        source.open(9)


@pytest.mark.parametrize("kept, groups", [(1, 1), (400, 2), (2**20, 5)])
def test_any_order_with_few_row_groups_kept(folder, monkeypatch, kept, groups):
    monkeypatch.setattr(huggingface, "_GROUP_BYTES", kept)
    source = opened(folder)
    order = np.random.default_rng(0).permutation(9)
    assert [source.open(i).width - 5 for i in order] == order.tolist()
    assert len(source._groups) == groups
    assert source._group_bytes == sum(c.nbytes for c in source._groups.values())
    assert source._group_bytes <= kept or groups == 1
    again = [source.open(i).width - 5 for i in order[::-1]]
    assert again == order[::-1].tolist()


def test_save_to_disk(tmp_path):
    split = tmp_path / "train"
    split.mkdir()
    for number, part in enumerate(([5, 6, 7], [8, 9])):
        write_arrow(split / f"data-0000{number}-of-00002.arrow", table(part))
    write_arrow(split / "cache-1234.arrow", table([50]))
    (split / "dataset_info.json").write_text(json.dumps({"features": FEATURES}))
    (split / "state.json").write_text("{}")
    source = opened(split)
    assert widths(source) == [5, 6, 7, 8, 9]
    assert source.labels.tolist() == [2, 0, 1, 2, 0]
    assert widths(opened(split / "data-00001-of-00002.arrow")) == [8, 9]
    # A `DatasetDict` of one split, then of two.
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    assert widths(opened(tmp_path)) == [5, 6, 7, 8, 9]
    (tmp_path / "test").mkdir()
    write_arrow(tmp_path / "test" / "data-00000-of-00001.arrow", table([3]))
    with pytest.raises(errors.UserError) as caught:
        opened(tmp_path)
    said = str(caught.value)
    assert "holds the splits test, train: name one, such as " in said
    assert widths(opened(said.split("'")[1])) in ([3], [5, 6, 7, 8, 9])


def test_two_splits_in_a_folder(folder):
    parquet.write_table(table([3]), folder / "test-00000-of-00001.parquet")
    with pytest.raises(errors.UserError) as caught:
        opened(folder)
    said = str(caught.value)
    assert "the splits test, train" in said and "\n" not in said
    assert widths(opened(said.split("'")[1])) in ([3], list(range(5, 14)))


@pytest.mark.parametrize(
    "labels, names, want",
    [
        ([7, 10, 7], False, ([0, 1, 0], ["7", "10"])),
        ([-1, -1, -1], True, (None, [])),
        ([0, None, 1], True, (None, [])),
        ([0, None, 1], False, (None, [])),
    ],
)
def test_labels(tmp_path, labels, names, want):
    parquet.write_table(table([4, 5, 6], labels, names), tmp_path / "x.parquet")
    source = opened(tmp_path / "x.parquet")
    found = source.labels
    assert (found if found is None else found.tolist(), source.label_names) == want


def test_plain_bytes_and_files_beside(tmp_path):
    plain = pyarrow.table({"jpg": [content(4)], "text": ["a"]})
    parquet.write_table(plain, tmp_path / "plain.parquet")
    assert widths(opened(tmp_path / "plain.parquet")) == [4]
    beside = pyarrow.table(
        {"image": [{"bytes": None, "path": "5.png"}, {"bytes": None, "path": None}]},
        schema=pyarrow.schema({"image": table([1]).schema.field("image").type}),
    )
    parquet.write_table(beside, tmp_path / "beside.parquet")
    (tmp_path / "5.png").write_bytes(content(5))
    source = opened(tmp_path / "beside.parquet")
    assert source.open(0).width == 5
    with pytest.raises(image_decoder.BadImage, match="its row has no image"):
        source.open(1)


@pytest.mark.parametrize("column", ["image", "img"])
def test_bytes_may_be_paths(tmp_path, column):
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(content(4 + i))
    paths = pyarrow.table({column: [b"1.png", b"0.png"]})
    parquet.write_table(paths, tmp_path / "list.parquet")
    source = registry.open_path(str(tmp_path / "list.parquet"), DECODER)
    assert type(source) is manifest.ManifestSource and widths(source) == [5, 4]
    write_arrow(tmp_path / "list.arrow", paths)
    assert not table_files.holds_images(str(tmp_path / "list.arrow"))
    inside = pyarrow.table({column: [content(4)]})
    parquet.write_table(inside, tmp_path / "list.parquet")
    write_arrow(tmp_path / "list.arrow", inside)
    for name in ("list.parquet", "list.arrow"):
        assert widths(opened(tmp_path / name)) == [4]


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.parquet")
    assert not table_files.holds_images(str(tmp_path / "x.parquet"))
    (tmp_path / "a.png").write_bytes(content(4))
    assert widths(registry.open_path(str(tmp_path), DECODER)) == [4]


def test_damage(folder):
    source = opened(folder)
    path = folder / "train-00000-of-00002.parquet"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(image_decoder.BadImage, match="00000-of-00002.parquet row 0"):
        source.open(0)
    assert source.open(8).width == 13
    with pytest.raises(errors.UserError, match="cannot read .*repair it"):
        opened(folder)


def test_other_columns_are_named(folder):
    parquet.write_table(
        pyarrow.table({"text": ["a"]}), folder / "train-00002-of-00003.parquet"
    )
    with pytest.raises(errors.UserError, match="no column image, only text"):
        opened(folder)


def test_the_fingerprint_is_not_the_place(folder, tmp_path_factory):
    before = opened(folder).fingerprint
    moved = folder.rename(tmp_path_factory.mktemp("elsewhere") / "data")
    assert opened(moved).fingerprint == before
    parquet.write_table(table([1]), moved / "train-00001-of-00002.parquet")
    assert opened(moved).fingerprint != before


def test_large_row_groups_are_said(tmp_path):
    path = tmp_path / "x.parquet"
    parquet.write_table(table([4] * 40), path)
    (line,) = opened(path).warnings()
    assert "40 rows" in line and "dinov2_jax.data shard" in line
    parquet.write_table(table([4] * 40), path, row_group_size=10)
    assert opened(path).warnings() == []

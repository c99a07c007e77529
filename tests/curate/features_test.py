"""Features files as one array, in both formats, whole and in shards."""

import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from dinov2_jax import errors
from dinov2_jax.curate import features
from dinov2_jax.embed import output

SETTINGS = {"weights": "sha256 1", "preprocessing": {"crop_size": 4}, "features": "cls"}


def write(path, names, rows, paths=None, group=3, **settings):
    """A Parquet file as of `embed`, in small row groups."""
    width = rows.shape[1]
    values = pa.array(rows.ravel())
    columns = {
        "name": names,
        "features": pa.FixedSizeListArray.from_arrays(values, width),
    }
    if paths is not None:
        columns["path"] = pa.array(paths, pa.binary())
    parquet.write_table(pa.table(columns), path, row_group_size=group)
    description = {"settings": SETTINGS | settings}
    path.with_name(f"{path.name}.json").write_text(json.dumps(description))
    return path


def some_rows(count=10, seed=0):
    rows = np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float16)
    return [f"{seed}/{i}.jpg" for i in range(count)], rows


def test_shards_are_one_array(tmp_path):
    (names, rows), (more_names, more) = some_rows(), some_rows(5, seed=1)
    write(tmp_path / "b.parquet", more_names, more, [b"/b"] * 5)
    write(tmp_path / "a.parquet", names, rows, [b"/a\xff"] * 10)
    found = features.open_features([tmp_path])
    whole = np.concatenate([rows, more]).astype(np.float32)
    assert (len(found), found.dim) == (15, 4)
    assert found.names.tolist() == names + more_names
    assert found.paths == [b"/a\xff"] * 10 + [b"/b"] * 5
    np.testing.assert_array_equal(found.matrix(), whole)
    assert found.matrix().dtype == np.float32
    for start, stop in ((0, 1), (2, 4), (8, 13), (14, 15), (5, 5)):
        np.testing.assert_array_equal(found.rows(start, stop), whole[start:stop])
    blocks = dict(found.blocks(4))
    assert list(blocks) == [0, 4, 8, 12]
    np.testing.assert_array_equal(np.concatenate(list(blocks.values())), whole)
    places = np.array([14, 0, 7, 7, 3])
    np.testing.assert_array_equal(found.take(places), whole[places])


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_files_of_embed_are_read(tmp_path, suffix):
    names, rows = [b"a.jpg", b"\xff.jpg"], some_rows(2)[1]
    np.save(tmp_path / "rows.npy", rows)
    out = tmp_path / f"features{suffix}"
    output.publish(
        out, tmp_path / "rows.npy", 2, lambda: iter(names), {}, SETTINGS, None
    )
    found = features.open_features([out])
    assert found.names.tolist() == ["a.jpg", "\\xff.jpg"]
    assert found.description["settings"] == SETTINGS
    np.testing.assert_array_equal(found.matrix(), rows.astype(np.float32))


def test_the_digest_is_of_names_and_features(tmp_path):
    names, rows = some_rows()

    def digest(name, *content):
        return features.open_features([write(tmp_path / name, *content)]).digest

    first = digest("a.parquet", names, rows)
    assert digest("b.parquet", names, rows) == first
    assert digest("c.parquet", names[::-1], rows) != first
    assert digest("d.parquet", names, rows + 1) != first


@pytest.mark.parametrize(
    "change, words",
    [
        ({"weights": "sha256 2"}, "differ in weights"),
        ({"preprocessing": {}}, "differ in preprocessing"),
        ({"features": "patch_mean"}, "differ in kind of features"),
        ({"normalize": True}, "differ in --normalize"),
    ],
)
def test_features_of_other_models_are_refused(tmp_path, change, words):
    first = write(tmp_path / "a.parquet", *some_rows())
    second = write(tmp_path / "b.parquet", *some_rows(3, seed=1), **change)
    with pytest.raises(errors.UserError, match=words):
        features.open_features([first, second])
    with pytest.raises(errors.UserError, match=words):
        features.refuse_others(*(features.open_features([x]) for x in (first, second)))


def test_refused_files(tmp_path):
    names, rows = some_rows()
    good = write(tmp_path / "good.parquet", names, rows)
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    narrow = write(wrong / "narrow.parquet", ["x"], rows[:1, :3])
    patches = write(wrong / "patches.parquet", names, rows, features="patches")
    empty = write(wrong / "empty.parquet", [], rows[:0])
    (wrong / "damaged.parquet").write_bytes(b"PAR1")
    parquet.write_table(pa.table({"name": names}), wrong / "table.parquet")
    np.save(wrong / "rows.npy", rows)
    rows = rows.copy()
    rows[4, 2] = np.nan
    nan = write(wrong / "nan.parquet", names, rows)
    for paths, words in {
        (good, good): "'0/0.jpg' is 2 times in",
        (good, narrow): "have 4 and 3 numbers",
        (patches,): "features of patches",
        (empty,): "no rows",
        (wrong / "damaged.parquet",): "cannot be read",
        (wrong / "table.parquet",): "no column features",
        (wrong / "rows.npy",): "no names of its rows in rows.npy.json",
        (wrong / "none.parquet",): "does not exist",
        (tmp_path / "wrong.txt",): "no features file",
    }.items():
        with pytest.raises(errors.UserError, match=words) as caught:
            features.open_features(paths)
        assert "\n" not in str(caught.value)
    with pytest.raises(errors.UserError, match="'0/4.jpg' are not finite"):
        features.open_features([nan]).matrix()
    numbers = {"name": pa.array([1, 2]), "features": pa.array([[1.0], [2.0]])}
    parquet.write_table(pa.table(numbers), wrong / "numbers.parquet")
    with pytest.raises(errors.UserError, match="name has int64, not text"):
        features.open_features([wrong / "numbers.parquet"])
    for column, values in (("name", ["a", None]), ("path", [b"a", None])):
        table = {"name": ["a", "b"], "features": [[1.0], [2.0]], column: values}
        parquet.write_table(pa.table(table), wrong / "nulls.parquet")
        with pytest.raises(errors.UserError, match=f"{column} is null in 1 of 2 rows"):
            features.open_features([wrong / "nulls.parquet"])
    for column, words in (
        (["0.5 1", "2 3"], "features has string, not lists of numbers"),
        ([0.5, 2.0], "features has double, not lists of numbers"),
        ([["0.5"], ["2"]], "features has list<element: string>, not lists of numbers"),
        ([[], []], "the lists of `features` are empty|not lists of numbers"),
        ([[1.0], None], "features is null in some rows"),
        ([[1.0], [1.0, 2.0]], "are not all 1 long"),
    ):
        table = {"name": ["a", "b"], "features": column}
        parquet.write_table(pa.table(table), wrong / "odd.parquet")
        with pytest.raises(errors.UserError, match=words):
            features.open_features([wrong / "odd.parquet"]).matrix()
    (tmp_path / "void").mkdir()
    with pytest.raises(errors.UserError, match="no .parquet files"):
        features.open_features([tmp_path / "void"])


def test_a_folder_that_lacks_a_part(tmp_path):
    names, rows = some_rows(6)
    parts = [
        write(tmp_path / f"f-{i}.parquet", [names[i]], rows[[i]], shard=f"{i + 1}/3")
        for i in range(3)
    ]
    assert len(features.open_features([tmp_path])) == 3
    parts[1].unlink()
    with pytest.raises(errors.UserError, match="lacks part 2 of 3: run that job with"):
        features.open_features([tmp_path])
    assert len(features.open_features(parts[::2])) == 2


def test_unit_rows():
    rows = np.array([[3, 4], [0, 0]], np.float16)
    np.testing.assert_allclose(features.unit(rows), [[0.6, 0.8], [0, 0]], rtol=1e-6)

"""Tables between steps: what is written, matched and refused."""

import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from dinov2_jax import errors
from dinov2_jax.curate import tables

NAMES = np.array(["b", "a", "ü"], object)


def test_a_table_and_its_record_return(tmp_path):
    path = tmp_path / "t.parquet"
    columns = {
        "name": NAMES,
        "kept": np.array([True, False, True]),
        "component": np.array([0, -1, 2], np.int32),
        "hash": np.array([2**63, 0, 5], np.uint64),
        "similarity": np.array([0.5, np.nan, 1], np.float32),
    }
    tables.write(path, columns, {"step": "dedup", "seed": 3})
    found, record = tables.read(path)
    assert list(found) == list(columns)
    for name, values in columns.items():
        np.testing.assert_array_equal(found[name], values)
        assert found[name].dtype == values.dtype
    assert (record["step"], record["seed"]) == ("dedup", 3)
    assert json.loads((tmp_path / "t.parquet.json").read_text()) == record
    assert {p.name for p in tmp_path.iterdir()} == {"t.parquet", "t.parquet.json"}


def test_tables_of_other_programs_have_no_record(tmp_path):
    parquet.write_table(pa.table({"name": ["x"]}), tmp_path / "t.parquet")
    columns, record = tables.read(tmp_path / "t.parquet")
    assert (columns["name"].tolist(), record) == (["x"], {})


def test_a_folder_as_spark_writes_it_is_a_table(tmp_path):
    folder = tmp_path / "t.parquet"
    folder.mkdir()
    for part, names in enumerate((["x", "y"], ["z"])):
        parquet.write_table(pa.table({"name": names}), folder / f"p-{part}.parquet")
        (folder / f".p-{part}.parquet.crc").write_bytes(b"\0")
    for other in ("_SUCCESS", "p-0.parquet.json"):
        (folder / other).touch()
    columns, record = tables.read(folder)
    assert (columns["name"].tolist(), record) == (["x", "y", "z"], {})
    assert tables.layout(folder) == (["name"], 3)
    before = tables.digest(folder)
    parquet.write_table(pa.table({"name": ["other"]}), folder / "p-1.parquet")
    assert tables.digest(folder) != before
    (tmp_path / "empty").mkdir()
    with pytest.raises(errors.UserError, match=r"empty has no \*.parquet"):
        tables.read(tmp_path / "empty")


def test_only_wanted_columns_are_read(tmp_path):
    """The pages of the others are damaged."""
    path = tmp_path / "t.parquet"
    names = [f"{i}.jpg" for i in range(1000)]
    tables.write(path, {"name": names, "x": np.arange(1000.0)}, {"step": "cluster"})
    chunk = parquet.ParquetFile(path).metadata.row_group(0).column(1)
    content = bytearray(path.read_bytes())
    begin = chunk.dictionary_page_offset or chunk.data_page_offset
    content[begin : begin + chunk.total_compressed_size] = bytes(
        [255] * chunk.total_compressed_size
    )
    path.write_bytes(content)
    assert tables.layout(path) == (["name", "x"], 1000)
    columns, record = tables.read(path, ["name"])
    assert columns["name"].tolist() == names and record["step"] == "cluster"
    with pytest.raises(errors.UserError, match="is no Parquet file"):
        tables.read(path)
    with pytest.raises(errors.UserError, match="has no column c1, only name, x"):
        tables.read(path, ["name", "c1"])


def test_rows_are_matched_by_name():
    columns = {"name": NAMES, "n": np.arange(3)}
    matched = tables.match(["ü", "b", "a"], columns)
    assert matched["n"].tolist() == [2, 0, 1]
    assert tables.match(NAMES, columns)["n"].tolist() == [0, 1, 2]
    with pytest.raises(errors.UserError, match="t has 3 rows|lacks 'c'"):
        tables.match(["ü", "b", "c"], columns, path="t")
    with pytest.raises(errors.UserError, match="has also 'a'"):
        tables.match(["ü", "b"], columns)
    with pytest.raises(errors.UserError, match="no column n, only name"):
        tables.need({"name": NAMES}, ["n"])


def test_refused_files(tmp_path):
    (tmp_path / "t.parquet").write_text("no")
    with pytest.raises(errors.UserError, match="is no Parquet file"):
        tables.read(tmp_path / "t.parquet")
    with pytest.raises(errors.UserError, match="does not exist"):
        tables.read(tmp_path / "none.parquet")
    for name, words in {
        "t.csv": "must end in .parquet",
        "none/t.parquet": "create it first",
        "t.parquet": "exists",
    }.items():
        with pytest.raises(errors.UserError, match=words):
            tables.check_out(tmp_path / name)
    tables.check_out(tmp_path / "new.csv", suffix=".csv")

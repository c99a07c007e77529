"""The step `sample` as a command."""

import ast
import json
import os

import numpy as np
import pools
import pyarrow as pa
import pytest

from dinov2_jax.curate import sampling_sql, tables


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder with images and clusters.parquet."""
    folder = tmp_path_factory.mktemp("pool")
    pools.write(folder)
    pools.write_clusters(folder)
    return folder


def test_sample_filters_chooses_and_prints_a_mixture(folder, tmp_path, capsys):
    names = pools.NAMES
    kept = np.arange(pools.COUNT) % 10 > 0
    tables.write(
        tmp_path / "dups.parquet", {"name": names[::-1], "kept": kept[::-1]}, {}
    )
    scores = np.linspace(0, 1, pools.COUNT)
    tables.write(tmp_path / "scores.parquet", {"name": names, "nsfw": scores}, {})
    only = [name for name in names if name != "55.jpg"]
    tables.write(tmp_path / "only.parquet", {"name": only}, {})
    flags = (
        f"sample --clusters {folder}/clusters.parquet "
        f"--exclude {tmp_path}/dups.parquet --only {tmp_path}/only.parquet "
        f"--scores {tmp_path}/scores.parquet --drop 'nsfw>0.5'"
    )
    out = tmp_path / "curated.csv"
    assert not pools.curate(f"{flags} --count 40 --mixture {folder} --out {out}")
    rows = pools.manifest(out)
    allowed = {n for i, n in enumerate(names) if kept[i] and scores[i] <= 0.5} - {
        "55.jpg"
    }
    chosen = [row["name"] for row in rows]
    assert len(chosen) == len(set(chosen)) == 40 and set(chosen) <= allowed
    assert all(row["path"] == str(folder / row["name"]) for row in rows)
    columns, _ = tables.read(folder / "clusters.parquet")
    sizes = np.bincount([columns["c2"][names.index(name)] for name in chosen])
    free = [np.isin(names, list(allowed)) & (columns["c2"] == i) for i in range(5)]
    even = [given for given, of in zip(sizes, free) if given < of.sum()]
    assert max(even) - min(even) <= 1 and max(sizes) <= max(even)
    printed = capsys.readouterr().out
    mixture = printed.partition('--config.data.mixture="')[2].partition('"')[0]
    assert ast.literal_eval(mixture) == ((str(out), 3.0), (str(folder), 1.0))
    counts = json.loads((tmp_path / "curated.csv.json").read_bytes())["counts"]
    assert counts["duplicates"] == 20 and counts["not wanted"] == 1
    again = tmp_path / "again.csv"
    assert not pools.curate(f"{flags} --count {len(allowed) + 5} --out {again}")
    assert len(pools.manifest(again)) == len(allowed) + 5
    assert {row["name"] for row in pools.manifest(again)} == allowed


def test_unknown_scores_leave_and_unknown_duplicates_stay(folder, tmp_path, capsys):
    """A table of removed images need not have the others."""
    names = pools.NAMES
    scores = np.zeros(pools.COUNT)
    scores[:7] = np.nan
    tables.write(tmp_path / "scores.parquet", {"name": names, "nsfw": scores}, {})
    tables.write(
        tmp_path / "removed.parquet", {"name": names[-5:], "kept": [False] * 5}, {}
    )
    assert not pools.curate(
        f"sample --clusters {folder}/clusters.parquet --out {tmp_path}/x.csv "
        f"--scores {tmp_path}/scores.parquet --drop 'nsfw>0.5' "
        f"--exclude {tmp_path}/removed.parquet"
    )
    chosen = {row["name"] for row in pools.manifest(tmp_path / "x.csv")}
    assert chosen == set(names[7:-5])
    assert "7 without nsfw" in capsys.readouterr().out
    none = {"name": np.array([], object), "kept": np.array([], bool)}
    tables.write(
        tmp_path / "none.parquet",
        {
            k: pa.array(v, t)
            for (k, v), t in zip(none.items(), (pa.string(), pa.bool_()))
        },
        {},
    )
    assert not pools.curate(
        f"sample --clusters {folder}/clusters.parquet --out {tmp_path}/y.csv "
        f"--exclude {tmp_path}/none.parquet"
    )
    assert len(pools.manifest(tmp_path / "y.csv")) == pools.COUNT


def test_the_query_needs_no_rows(tmp_path, capsys):
    """The pages are damaged, and the layout at the end of the file is not."""
    path = tmp_path / "clusters.parquet"
    columns = {"name": ["a", "b", "c"], "c1": [0, 0, 1], "c2": [0, 0, 0]}
    tables.write(path, columns, {})
    content = path.read_bytes()
    path.write_bytes(content[:4] + bytes(40) + content[44:])
    assert not pools.curate(f"sample --clusters {path} --sql duckdb")
    query = sampling_sql.query(str(path), levels=2, count=3, seed=0, dialect="duckdb")
    assert capsys.readouterr().out == query
    assert pools.curate(f"sample --clusters {path} --out {tmp_path}/x.csv") == 2


def test_sample_of_foreign_names_and_paths(tmp_path, capsys):
    raw = b"caf\xe9,\n.jpg"  # neither UTF-8 nor safe in a CSV file
    (tmp_path / "b.jpg").touch()
    columns = {
        "name": ["caf\\xe9,\n.jpg", "b.jpg"],
        "path": [bytes(tmp_path / "x").replace(b"x", raw), bytes(tmp_path / "b.jpg")],
    }
    columns["path"][0] = bytes(tmp_path) + b"/" + raw
    tables.write(tmp_path / "pool.parquet", columns, {})
    flags = f"sample --clusters {tmp_path}/pool.parquet --out {tmp_path}"
    assert not pools.curate(f"{flags}/a.csv")
    assert (
        pools.manifest(tmp_path / "a.csv")[0]["path"].encode(errors="surrogateescape")
        == bytes(tmp_path) + b"/" + raw
    )
    del columns["path"]
    tables.write(tmp_path / "pool.parquet", columns, {})
    (tmp_path / os.fsdecode(raw)).touch()
    assert not pools.curate(f"{flags}/b.csv --root {tmp_path}")
    paths = [os.fsencode(row["path"]) for row in pools.manifest(tmp_path / "b.csv")]
    assert sorted(paths) == [bytes(tmp_path / "b.jpg"), bytes(tmp_path) + b"/" + raw]
    assert pools.curate(f"{flags}/c.csv") == 2
    assert "has no column `path`: add --root" in capsys.readouterr().err
    assert pools.curate(f"{flags}/d.csv --root {tmp_path}/nowhere") == 2
    assert "nor does any of the first 100" in capsys.readouterr().err


def test_wrong_flags_of_sample_are_one_line(folder, tmp_path, capsys):
    names = pools.NAMES
    tables.write(tmp_path / "s.parquet", {"name": names[5:], "a": np.ones(195)}, {})
    text = ["x"] * len(names)
    for file, columns in {
        "t": {"name": names, "a": text, "kept": text},
        "other": {"name": ["other"], "kept": [False]},
        "numbers": {"name": [1, 2]},
        "twice": {"name": ["a", "b", "a"], "path": [b"a", b"b", b"a"]},
    }.items():
        tables.write(tmp_path / f"{file}.parquet", columns, {})
    flags = f"sample --clusters {folder}/clusters.parquet --out {tmp_path}/x.csv"
    for more, message in [
        ("--drop 'a>1'", "--scores and --drop belong together"),
        (f"--scores {tmp_path}/s.parquet --drop 'a>1'", "no row for 5 of 200 images"),
        (f"--scores {tmp_path}/s.parquet --drop 'b>1'", "has no column b"),
        (f"--only {tmp_path}/none.parquet", "none.parquet does not exist"),
        (f"--scores {tmp_path}/t.parquet --drop 'a>1'", "a has object, not numbers"),
        (f"--exclude {tmp_path}/t.parquet", "kept has object, not true or false"),
        (f"--exclude {tmp_path}/other.parquet", "has none of the images of --clusters"),
        (f"--only {tmp_path}/numbers.parquet", "name has int64, not text"),
        (f"--clusters {tmp_path}/twice.parquet", "'a' 2 times"),
        (f"--only {tmp_path}/other.parquet", "no image is left: 200 images, 200 not"),
    ]:
        assert pools.curate(f"{flags} {more}") == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    with pytest.raises(SystemExit):
        pools.curate(f"{flags} --drop nsfw")
    assert "'nsfw' is no condition such as" in capsys.readouterr().err


@pytest.mark.parametrize("sql", [False, True])
@pytest.mark.parametrize(
    "column, values, words",
    [
        ("name", ["a", None, "c"], "column name is null in 1 of 3 rows"),
        ("c1", [0, None, 1], "column c1 is null in 1 of 3 rows"),
        ("c1", [0.0, np.nan, 1.0], "column c1 is null in 1 of 3 rows"),
        ("c2", [None, None, 0], "column c2 is null in 2 of 3 rows"),
        ("c1", [0, -1, 1], "column c1 is negative in 1 rows"),
        ("path", [None, b"b", b"c"], "column path is null in 1 of 3 rows"),
    ],
)
def test_nulls_and_negative_clusters_are_refused(
    tmp_path, capsys, column, values, words, sql
):
    columns = {"name": ["a", "b", "c"], "c1": [0, 0, 1], "c2": [0, 0, 0]}
    columns |= {"path": [b"a", b"b", b"c"], column: values}
    path = tmp_path / "clusters.parquet"
    tables.write(path, columns, {})
    how = "--sql duckdb" if sql else f"--out {tmp_path}/x.csv"
    if sql and column == "path":
        return  # the query does not read it
    assert pools.curate(f"sample --clusters {path} {how}") == 2
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1

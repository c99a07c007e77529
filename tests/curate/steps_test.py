"""The steps cluster, sample and retrieve as commands, on small tables."""

import ast
import csv
import json
import shlex

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from dinov2_jax.curate import __main__ as program
from dinov2_jax.curate import hierarchy, tables

COUNT, DIM = 300, 6


def curate(line):
    return program.main(shlex.split(line))


def write_features(path, rows, names, paths=None):
    columns = {
        "name": pyarrow.array(names),
        "features": pyarrow.FixedSizeListArray.from_arrays(
            pyarrow.array(rows.ravel()), rows.shape[1]
        ),
    }
    if paths is not None:
        columns["path"] = pyarrow.array(paths, pyarrow.binary())
    parquet.write_table(pyarrow.table(columns), path)


def manifest(path):
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Folder with images (empty files), pool.parquet and clusters.parquet."""
    folder = tmp_path_factory.mktemp("pool")
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((5, DIM))
    label = np.minimum(rng.geometric(0.5, COUNT) - 1, 4)
    rows = centres[label] + 0.1 * rng.standard_normal((COUNT, DIM))
    names = [f"{i}.jpg" for i in range(COUNT)]
    for name in names:
        (folder / name).touch()
    paths = [bytes(folder / name) for name in names]
    write_features(folder / "pool.parquet", rows.astype(np.float32), names, paths)
    assert not curate(
        f"cluster --features {folder}/pool.parquet --levels 15,5 --resamplings 2 "
        f"--out {folder}/clusters.parquet"
    )
    return folder, rows.astype(np.float32), names


def test_cluster_writes_a_hierarchy(pool, capsys):
    folder, rows, names = pool
    columns, record = tables.read(folder / "clusters.parquet")
    assert list(columns) == ["name", "path", "c1", "c2"]
    assert list(columns["name"]) == names
    assert columns["path"][3] == bytes(folder / "3.jpg")
    assert (
        record["counts"]["images"] == COUNT and record["parameters"]["metric"] == "l2"
    )
    assert record == json.loads((folder / "clusters.parquet.json").read_bytes())
    centroids = np.load(folder / "clusters.centroids.npz")
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    for name, below, assigned in (
        ("c1", unit, columns["c1"]),
        ("c2", centroids["c1"], None),
    ):
        distances = ((below[:, None] - centroids[name]) ** 2).sum(-1)
        nearest = distances.argmin(1)
        if assigned is None:
            assigned, nearest = columns["c2"], nearest[columns["c1"]]
        np.testing.assert_array_equal(assigned, nearest)
    assert not (folder / "clusters.parquet.partial").exists()


def test_wrong_flags_of_cluster_are_one_line(pool, capsys):
    folder, *_ = pool
    for flags, message in [
        ("--levels 400 --out x.parquet", "--levels=400: 400 clusters are too many for"),
        ("--levels 9,0 --out x.parquet", "--levels has a 0"),
        ("--levels 9 --out clusters.parquet", "clusters.parquet exists"),
        ("--levels 9 --out x.csv", "must end in .parquet"),
    ]:
        flags = flags.replace("--out ", f"--out {folder}/")
        assert curate(f"cluster --features {folder}/pool.parquet {flags}") == 2
        assert message in capsys.readouterr().err


def test_assignments_of_another_program_become_the_lowest_level(pool, tmp_path, capsys):
    folder, rows, names = pool
    ids = np.random.default_rng(1).choice([3, 10, 500, 7_000_000_000], COUNT)
    theirs = {"name": names[::-1], "centroid": ids[::-1]}
    tables.write(tmp_path / "theirs.parquet", theirs, {})
    flags = f"cluster --features {folder}/pool.parquet --metric l2-raw --levels 2"
    assert not curate(
        f"{flags} --assignments {tmp_path}/theirs.parquet --out {tmp_path}/out.parquet"
    )
    columns, _ = tables.read(tmp_path / "out.parquet")
    expected = np.unique(ids, return_inverse=True)[1]
    np.testing.assert_array_equal(columns["c1"], expected)
    centroids = np.load(tmp_path / "out.centroids.npz")
    means = [rows[expected == i].mean(0) for i in range(4)]
    np.testing.assert_allclose(centroids["c1"], means, rtol=1e-5, atol=1e-6)
    assert centroids["c2"].shape == (2, DIM)
    tables.write(tmp_path / "two.parquet", theirs | {"more": ids}, {})
    assert curate(
        f"{flags} --assignments {tmp_path}/two.parquet --out {tmp_path}/b.parquet"
    )
    assert "has 2 columns of integers (centroid, more)" in capsys.readouterr().err


def test_sample_filters_chooses_and_prints_a_mixture(pool, tmp_path, capsys):
    folder, _, names = pool
    kept = np.arange(COUNT) % 10 > 0
    tables.write(
        tmp_path / "dups.parquet", {"name": names[::-1], "kept": kept[::-1]}, {}
    )
    scores = np.linspace(0, 1, COUNT)
    tables.write(tmp_path / "scores.parquet", {"name": names, "nsfw": scores}, {})
    only = [name for name in names if name != "55.jpg"]
    tables.write(tmp_path / "only.parquet", {"name": only}, {})
    flags = (
        f"sample --clusters {folder}/clusters.parquet "
        f"--exclude {tmp_path}/dups.parquet --only {tmp_path}/only.parquet "
        f"--scores {tmp_path}/scores.parquet --drop 'nsfw>0.5'"
    )
    out = tmp_path / "curated.csv"
    assert not curate(f"{flags} --count 40 --mixture {folder} --out {out}")
    rows = manifest(out)
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
    assert counts["duplicates"] == 30 and counts["not wanted"] == 1
    again = tmp_path / "again.csv"
    assert not curate(f"{flags} --count {len(allowed) + 5} --out {again}")
    assert len(manifest(again)) == len(allowed) + 5
    assert {row["name"] for row in manifest(again)} == allowed


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
    assert not curate(f"{flags}/a.csv")
    assert (
        manifest(tmp_path / "a.csv")[0]["path"].encode(errors="surrogateescape")
        == bytes(tmp_path) + b"/" + raw
    )
    del columns["path"]
    tables.write(tmp_path / "pool.parquet", columns, {})
    assert not curate(f"{flags}/b.csv --root {tmp_path}")
    assert curate(f"{flags}/c.csv") == 2
    assert "has no column `path`: add --root" in capsys.readouterr().err
    assert curate(f"{flags}/d.csv --root {tmp_path}/nowhere") == 2
    assert "nor does any of the first 100" in capsys.readouterr().err


def test_wrong_flags_of_sample_are_one_line(pool, tmp_path, capsys):
    folder, _, names = pool
    tables.write(tmp_path / "s.parquet", {"name": names[5:], "a": np.ones(295)}, {})
    flags = f"sample --clusters {folder}/clusters.parquet --out {tmp_path}/x.csv"
    for more, message in [
        ("--drop 'a>1'", "--scores and --drop belong together"),
        (f"--scores {tmp_path}/s.parquet --drop 'a>1'", "no row for 5 of 300 images"),
        (f"--scores {tmp_path}/s.parquet --drop 'b>1'", "has no column b"),
        (f"--only {tmp_path}/none.parquet", "none.parquet does not exist"),
        (f"--only {tmp_path}/other.parquet", "no image is left: 300 images, 300 not"),
    ]:
        tables.write(tmp_path / "other.parquet", {"name": ["other"]}, {})
        assert curate(f"{flags} {more}") == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    with pytest.raises(SystemExit):
        curate(f"{flags} --drop nsfw")
    assert "'nsfw' is no condition such as" in capsys.readouterr().err


def test_retrieve_by_sample_is_brute_force(pool, tmp_path, monkeypatch, capsys):
    from dinov2_jax.curate import retrieve

    monkeypatch.setattr(retrieve, "_POOL_ROWS", 128)  # several parts
    folder, rows, names = pool
    queries = np.random.default_rng(2).standard_normal((7, DIM)).astype(np.float32)
    write_features(tmp_path / "q.parquet", queries, [f"q{i}" for i in range(7)])
    assert not curate(
        f"retrieve --features {folder}/pool.parquet --queries {tmp_path}/q.parquet "
        f"--per-query 5 --out {tmp_path}/found.parquet"
    )
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, rows)]
    similar = unit[0] @ unit[1].T
    best = np.argsort(-similar, axis=1)[:, :5]
    expected, hits = np.unique(best, return_counts=True)
    columns, record = tables.read(tmp_path / "found.parquet")
    assert list(columns["name"]) == [names[i] for i in expected]
    np.testing.assert_array_equal(columns["queries"], hits)
    asked = np.where(np.isin(np.arange(COUNT), best[0]), similar[0], -1)
    for query in range(1, 7):
        mine = np.isin(np.arange(COUNT), best[query])
        asked = np.maximum(asked, np.where(mine, similar[query], -1))
    np.testing.assert_allclose(columns["similarity"], asked[expected], atol=1e-5)
    assert record["counts"]["asked"] == 35
    assert f"found {len(expected)} different ones" in capsys.readouterr().out


def test_retrieve_by_cluster(pool, tmp_path, capsys):
    folder, rows, names = pool
    columns, _ = tables.read(folder / "clusters.parquet")
    target = np.bincount(columns["c1"]).argmax()
    members = np.flatnonzero(columns["c1"] == target)
    queries = np.concatenate([rows[members[:4]] * 3, rows[columns["c1"] != target][:1]])
    write_features(tmp_path / "q.parquet", queries, [f"q{i}" for i in range(5)])
    flags = (
        f"retrieve --features {folder}/pool.parquet --queries {tmp_path}/q.parquet "
        f"--mode cluster"
    )
    clusters = f"--clusters {folder}/clusters.parquet"
    assert not curate(f"{flags} {clusters} --out {tmp_path}/all.parquet")
    found, _ = tables.read(tmp_path / "all.parquet")
    assert list(found["name"]) == [names[i] for i in members]
    assert set(found["queries"]) == {4} and set(found["cluster"]) == {target}
    few = f"{flags} {clusters} --per-cluster 6 --max 5 --out {tmp_path}/few.parquet"
    assert not curate(few)
    chosen, record = tables.read(tmp_path / "few.parquet")
    assert len(chosen["name"]) == 5 and set(chosen["name"]) <= set(found["name"])
    assert record["counts"]["found"] == 6
    assert curate(f"{flags} {clusters} --min-hits 5 --out {tmp_path}/n.parquet") == 2
    assert "no cluster has 5 queries, the most is 4" in capsys.readouterr().err
    assert curate(f"{flags} --out {tmp_path}/n.parquet") == 2
    assert "needs --clusters" in capsys.readouterr().err


def test_cluster_resumes_after_a_kill(pool, tmp_path, monkeypatch):
    folder, *_ = pool
    line = (
        f"cluster --features {folder}/pool.parquet --levels 15,5 --resamplings 2 "
        f"--out {tmp_path}/clusters.parquet"
    )
    save = hierarchy.State.save_level

    def killed(self, number, level):
        save(self, number, level)
        raise KeyboardInterrupt

    monkeypatch.setattr(hierarchy.State, "save_level", killed)
    assert curate(line) == 130
    monkeypatch.undo()
    assert not curate(line)
    for name in ("clusters.parquet", "clusters.centroids.npz"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()

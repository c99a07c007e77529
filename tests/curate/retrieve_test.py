"""The step `retrieve` as a command."""

import numpy as np
import pools
import pytest

from dinov2_jax.curate import retrieve, tables


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder with pool.parquet and clusters.parquet."""
    folder = tmp_path_factory.mktemp("pool")
    pools.write(folder)
    pools.write_clusters(folder)
    return folder


def test_retrieve_by_sample_is_brute_force(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(retrieve, "_POOL_ROWS", 128)  # several parts
    rows, names = pools.rows(), pools.NAMES
    queries = (
        np.random.default_rng(2).standard_normal((7, pools.DIM)).astype(np.float32)
    )
    pools.write_features(tmp_path / "q.parquet", queries, [f"q{i}" for i in range(7)])
    assert not pools.curate(
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
    asked = np.where(np.isin(np.arange(pools.COUNT), best[0]), similar[0], -1)
    for query in range(1, 7):
        mine = np.isin(np.arange(pools.COUNT), best[query])
        asked = np.maximum(asked, np.where(mine, similar[query], -1))
    np.testing.assert_allclose(columns["similarity"], asked[expected], atol=1e-5)
    assert record["counts"]["asked"] == 35
    assert f"found {len(expected)} different ones" in capsys.readouterr().out


def test_retrieve_by_cluster(folder, tmp_path, capsys):
    rows, names = pools.rows(), pools.NAMES
    columns, _ = tables.read(folder / "clusters.parquet")
    target = np.bincount(columns["c1"]).argmax()
    members = np.flatnonzero(columns["c1"] == target)
    queries = np.concatenate([rows[members[:4]] * 3, rows[columns["c1"] != target][:1]])
    pools.write_features(tmp_path / "q.parquet", queries, [f"q{i}" for i in range(5)])
    flags = (
        f"retrieve --features {folder}/pool.parquet --queries {tmp_path}/q.parquet "
        f"--mode cluster"
    )
    clusters = f"--clusters {folder}/clusters.parquet"
    assert not pools.curate(f"{flags} {clusters} --out {tmp_path}/all.parquet")
    found, _ = tables.read(tmp_path / "all.parquet")
    assert list(found["name"]) == [names[i] for i in members]
    assert set(found["queries"]) == {4} and set(found["cluster"]) == {target}
    few = f"{flags} {clusters} --per-cluster 6 --max 5 --out {tmp_path}/few.parquet"
    assert not pools.curate(few)
    chosen, record = tables.read(tmp_path / "few.parquet")
    assert len(chosen["name"]) == 5 and set(chosen["name"]) <= set(found["name"])
    assert record["counts"]["found"] == 6
    assert (
        pools.curate(f"{flags} {clusters} --min-hits 5 --out {tmp_path}/n.parquet") == 2
    )
    assert "no cluster has 5 queries, the most is 4" in capsys.readouterr().err
    assert pools.curate(f"{flags} --out {tmp_path}/n.parquet") == 2
    assert "needs --clusters" in capsys.readouterr().err
    tables.write(
        tmp_path / "c.parquet", columns, {"inputs": {"features": "a digest of others"}}
    )
    other = f"--clusters {tmp_path}/c.parquet --out {tmp_path}/n.parquet"
    assert pools.curate(f"{flags} {other}") == 2
    assert "was made of other features" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--clusters {}/clusters.parquet", "clusters.parquet is not used by"),
        ("--per-cluster 4", "--per-cluster=4 is not used by --mode=sample"),
        ("--min-hits 4", "--min-hits=4 is not used by --mode=sample"),
        (
            "--mode cluster --clusters {}/clusters.parquet --per-query 4",
            "--per-query=4 is not used by --mode=cluster: add --mode=sample",
        ),
    ],
)
def test_flags_of_the_other_mode_are_refused(folder, tmp_path, capsys, flags, words):
    pool = f"{folder}/pool.parquet"
    command = f"retrieve --features {pool} --queries {pool} --out {tmp_path}/x.parquet"
    assert pools.curate(f"{command} {flags.format(folder)}") == 2
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1

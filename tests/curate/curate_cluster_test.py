"""The step `cluster` as a command."""

import json

import numpy as np
import pools
import pytest

from dinov2_jax.curate import level_state, tables

LEVELS = "--levels 20,4 --resamplings 2"  # as in hierarchy_test.py: compiled once


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder with pool.parquet and its clusters.parquet."""
    folder = tmp_path_factory.mktemp("pool")
    pools.write(folder)
    assert not pools.curate(
        f"cluster --features {folder}/pool.parquet {LEVELS} "
        f"--out {folder}/clusters.parquet"
    )
    return folder


def test_cluster_writes_a_hierarchy(folder):
    rows, names = pools.rows(), pools.NAMES
    columns, record = tables.read(folder / "clusters.parquet")
    assert list(columns) == ["name", "path", "c1", "c2"]
    assert list(columns["name"]) == names
    assert columns["path"][3] == bytes(folder / "3.jpg")
    assert (
        record["counts"]["images"] == pools.COUNT
        and record["parameters"]["metric"] == "l2"
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


def test_wrong_flags_of_cluster_are_one_line(folder, capsys):
    for flags, message in [
        ("--levels 500 --out x.parquet", "--levels=500: 500 clusters are too many for"),
        ("--levels 9,0 --out x.parquet", "--levels has a 0"),
        ("--levels 9 --out clusters.parquet", "clusters.parquet exists"),
        ("--levels 9 --out x.csv", "must end in .parquet"),
    ]:
        flags = flags.replace("--out ", f"--out {folder}/")
        assert pools.curate(f"cluster --features {folder}/pool.parquet {flags}") == 2
        assert message in capsys.readouterr().err


def test_assignments_of_another_program_become_the_lowest_level(
    folder, tmp_path, capsys
):
    rows, names = pools.rows(), pools.NAMES
    ids = np.random.default_rng(1).choice([3, 10, 500, 7_000_000_000], pools.COUNT)
    theirs = {"name": names[::-1], "centroid": ids[::-1]}
    (tmp_path / "theirs.parquet").mkdir()  # as Spark writes a table
    tables.write(tmp_path / "theirs.parquet/part-0.parquet", theirs, {})
    flags = f"cluster --features {folder}/pool.parquet --metric l2-raw --levels 2"
    assert not pools.curate(
        f"{flags} --assignments {tmp_path}/theirs.parquet --out {tmp_path}/out.parquet"
    )
    columns, _ = tables.read(tmp_path / "out.parquet")
    expected = np.unique(ids, return_inverse=True)[1]
    np.testing.assert_array_equal(columns["c1"], expected)
    centroids = np.load(tmp_path / "out.centroids.npz")
    means = [rows[expected == i].mean(0) for i in range(4)]
    np.testing.assert_allclose(centroids["c1"], means, rtol=1e-5, atol=1e-6)
    assert centroids["c2"].shape == (2, pools.DIM)
    tables.write(tmp_path / "two.parquet", theirs | {"more": ids}, {})
    assert pools.curate(
        f"{flags} --assignments {tmp_path}/two.parquet --out {tmp_path}/b.parquet"
    )
    assert "has 2 columns of integers (centroid, more)" in capsys.readouterr().err


def test_cluster_resumes_after_a_kill(folder, tmp_path, monkeypatch):
    line = (
        f"cluster --features {folder}/pool.parquet {LEVELS} "
        f"--out {tmp_path}/clusters.parquet"
    )
    save = level_state.State.save_level

    def killed(self, number, level):
        save(self, number, level)
        raise KeyboardInterrupt

    monkeypatch.setattr(level_state.State, "save_level", killed)
    assert pools.curate(line) == 130
    monkeypatch.undo()
    assert not pools.curate(line)
    for name in ("clusters.parquet", "clusters.centroids.npz"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()

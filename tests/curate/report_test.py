"""The report on a pool of small pictures with known duplicates and clusters."""

import base64
import csv
import html.parser
import io
import os
import re

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from dinov2_jax.curate import __main__ as curate
from dinov2_jax.curate import features as features_lib
from dinov2_jax.curate import neighbours, report_inputs, tables

COUNT, WIDTH, THRESHOLD = 24, 8, 0.95


def write_features(path, rows, names, *, root=None):
    table = {"name": names}
    if root is not None:
        table["path"] = [os.fsencode(root / name) for name in names]
    table["features"] = pa.FixedSizeListArray.from_arrays(
        pa.array(rows.astype(np.float32).ravel()), rows.shape[1]
    )
    parquet.write_table(pa.table(table), path, row_group_size=7)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """24 pictures of 6 colours; each third one is a copy of the one before."""
    folder = tmp_path_factory.mktemp("pool")
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((COUNT, WIDTH))
    names = [f"{i:02}<&'\".png" for i in range(COUNT)]
    for i, name in enumerate(names):
        if i % 3 == 2:
            rows[i] = 2 * rows[i - 1] + 0.01 * rng.standard_normal(WIDTH)
        colour = tuple(int(x) for x in rng.integers(0, 256, 3))
        Image.new("RGB", (300, 40 + i), colour).save(folder / name)
    write_features(folder / "f.parquet", rows, names, root=folder)
    component = np.array([-1 if i % 3 == 0 else i // 3 for i in range(COUNT)], np.int32)
    kept = np.array([i % 3 != 2 for i in range(COUNT)])
    shares = {"features": 0.5, "hashes": 0.25, "either": 0.75}
    found = {"images": 20, "price": 0.05, "recall": {"flip": shares}}
    record = {"parameters": {"threshold": THRESHOLD}, "calibration": found}
    dups = {"name": names, "component": component, "kept": kept}
    tables.write(folder / "dups.parquet", dups, record)
    chosen = np.flatnonzero(kept)[::-1]  # in another order, without the duplicates
    clusters = {
        "name": [names[i] for i in chosen],
        "c1": (chosen % 6).astype(np.int32),
        "c2": (chosen % 2).astype(np.int32),
    }
    tables.write(folder / "clusters.parquet", clusters, {"parameters": {"levels": [6]}})
    with open(folder / "m.csv", "w", newline="") as file:
        rows = [(folder / names[i], names[i]) for i in (0, 1, 3, 3)]
        csv.writer(file).writerows([("path", "name"), *rows])
    return folder


def report(pool, *more, features="f.parquet"):
    args = [f"--features={pool / features}", f"--out={pool / 'report.html'}"]
    (pool / "report.html").unlink(missing_ok=True)
    assert curate.main(["report", *args, *more]) == 0
    return (pool / "report.html").read_text()


class Page(html.parser.HTMLParser):
    """Tags of a page, its pictures, and what it would load."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.pictures, self.loaded = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "src" and value.startswith("data:image/jpeg;base64,"):
                self.pictures.append((dict(attrs)["alt"], value))
            elif name in ("src", "href", "srcset") or name.startswith("on"):
                self.loaded.append(value)


def rows_of(text):
    """Cells of all rows of tables."""
    rows = re.findall(r"<tr>(.*?)</tr>", text)
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]


def test_all_parts(pool):
    text = report(
        pool,
        f"--dups={pool / 'dups.parquet'}",
        f"--clusters={pool / 'clusters.parquet'}",
        f"--manifest={pool / 'm.csv'}",
    )
    page = Page(text)
    assert not {"script", "link", "iframe"} & set(page.tags) and not page.loaded
    rows = rows_of(text)
    for row in (
        ["embedded", "24", "100.0%"],
        ["kept by dedup", "16", "66.7%"],
        ["chosen", "3", "12.5%"],
        ["places in a pass, with repeats", "4", "16.7%"],
        ["2", "8"],  # groups of two
        ["dedup", "threshold", "0.95"],
        ["flip", "50.0%", "25.0%", "75.0%"],
    ):
        assert row in rows
    # Kept are 0 1 3 4 6 ...: four of each number modulo 6 but 2 and 5.
    assert ["1", "pool", "4", "4", "4", "4", "0.0000", "1.0000"] in rows
    assert ["2", "pool", "2", "8", "8", "8", "0.0000", "1.0000"] in rows
    assert ["2", "chosen", "2", "1", "2", "3", "0.2500", "0.8113"] in rows
    # Eight pairs above the threshold, eight components, two clusters, pairs below.
    assert "5.0% of 20 images have another image" in text
    below = text.split("just below")[1].split("<h2>")[0]
    assert len(page.pictures) == 2 * 8 + 2 * 8 + 2 + 2 * below.count("<figure>")
    assert below.count("<figure>") >= 4
    names = {name for name, _ in page.pictures}
    assert names <= {f"{i:02}<&'\".png" for i in range(COUNT)}
    _, data = page.pictures[0]
    picture = Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2])))
    assert picture.format == "JPEG" and picture.width == 96
    assert text.count("class='first'") == 8


def test_duplicates_found_by_other_features(pool, tmp_path):
    """And by a table that lacks an image."""
    columns, record = tables.read(pool / "dups.parquet")
    record["inputs"] = [{"digest": "of others"}]
    columns = {name: values[1:] for name, values in columns.items()}
    tables.write(tmp_path / "dups.parquet", columns, record)
    text = report(pool, f"--dups={tmp_path / 'dups.parquet'}")
    assert "found by other features" in text and "Pairs just above" not in text
    assert ["kept by dedup", "16", "66.7%"] in rows_of(text)


def test_clusters_of_another_program(pool, tmp_path):
    columns, _ = tables.read(pool / "clusters.parquet")
    columns["c1"] = columns["c1"].astype(np.int64) * 7 * 10**10
    columns["c2"] = np.array([f"cluster {c}" for c in columns["c2"]], object)
    tables.write(tmp_path / "c.parquet", columns, {})
    flags = f"--manifest={pool / 'm.csv'}"
    found = [
        [row for row in rows_of(text) if "pool" in row]
        for path in (tmp_path / "c.parquet", pool / "clusters.parquet")
        for text in [report(pool, flags, f"--clusters={path}")]
    ]
    assert found[0] == found[1] != []


def test_images_in_no_cluster():
    columns = {
        "name": np.array(["a", "c", "b"], object),
        "c1": np.array([5, -1, 9]),
        "c2": np.array(["x", None, "x"], object),
    }
    levels = report_inputs._levels(columns, ["a", "b", "c", "d"], "c.parquet")
    assert [level.tolist() for level in levels] == [[0, 1, -1, -1], [0, 0, -1, -1]]


def test_without_paths_or_tables(pool):
    features = features_lib.open_features([pool / "f.parquet"])
    write_features(pool / "g.parquet", features.matrix(), features.names)
    text = report(pool, features="g.parquet")
    assert "no pictures" in text and not Page(text).pictures


def test_a_picture_that_is_gone(pool, tmp_path):
    features = features_lib.open_features([pool / "f.parquet"])
    write_features(
        pool / "gone.parquet", features.matrix(), features.names, root=tmp_path
    )
    text = report(pool, f"--dups={pool / 'dups.parquet'}", features="gone.parquet")
    assert "No such file" in text and not Page(text).pictures


def test_tables_of_other_images(pool, capsys):
    other = pool / "other.csv"
    other.write_text("path,name\nx.png,x.png\n")
    args = [f"--features={pool / 'f.parquet'}", f"--out={pool / 'other.html'}"]
    assert curate.main(["report", *args, f"--manifest={other}"]) == 2
    assert "lists 'x.png', which the features lack" in capsys.readouterr().err
    other.write_text("path\nx.png\n")
    assert curate.main(["report", *args, f"--manifest={other}"]) == 2
    assert "has no column name" in capsys.readouterr().err


@pytest.mark.parametrize("count", [5, COUNT, 100])
def test_nearest_of_a_sample(pool, monkeypatch, count):
    monkeypatch.setattr(neighbours, "_BLOCK_VALUES", 50)
    features = features_lib.open_features([pool / "f.parquet"])
    found = neighbours.find(features, count=count, seed=1)
    assert len(found.images) == min(count, COUNT)
    x = features.matrix()
    cosines = (x @ x.T) / np.outer(*[np.linalg.norm(x, axis=1)] * 2)
    np.fill_diagonal(cosines, -2)
    np.testing.assert_array_equal(found.nearest, cosines[found.images].argmax(1))
    np.testing.assert_allclose(
        found.similarity, cosines[found.images].max(1), atol=1e-6
    )
    pairs, similarity = neighbours.distinct_pairs(found)
    assert len({tuple(pair) for pair in pairs}) == len(pairs) == len(similarity)
    np.testing.assert_allclose(similarity, cosines[tuple(pairs.T)], atol=1e-6)

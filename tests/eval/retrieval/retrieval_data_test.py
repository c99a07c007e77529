"""Benchmarks in their layouts on disk, and files that are not what they should be."""

import json
import os
import pathlib
import pickle

import numpy as np
import pytest
from PIL import Image

from dinov2_jax import errors
from dinov2_jax.eval.retrieval import retrieval_data


def picture(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((30, 40, 3), value, np.uint8)
    pixels[5:15, 10:30] = 200
    Image.fromarray(pixels).save(path)


def write_revisited(root, protocol=2, **changes):
    query = {"bbx": [10.0, 5.0, 30.0, 15.0], "easy": [0], "hard": [1], "junk": []}
    query["easy"] = np.array(query["easy"])  # some copies hold arrays
    content = {"imlist": ["a", "b"], "qimlist": ["c"], "gnd": [query]} | changes
    root.mkdir(exist_ok=True)
    (root / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(content, protocol))
    for name in "abc":
        picture(root / f"jpg/{name}.jpg")
    return root


@pytest.mark.parametrize("protocol", [2, 5])
def test_revisited(tmp_path, protocol):
    root = write_revisited(tmp_path / "roxford5k", protocol)
    found = retrieval_data.read_revisited(str(root), query_crop=True)
    assert len(found.database) == 2
    assert found.truth[0]["easy"].tolist() == [0]
    assert found.truth[0]["junk"].tolist() == []
    query = found.queries.open(0)
    assert (query.width, query.height) == (20, 10)
    assert query.pixels().mean() > 190  # the box alone
    whole = retrieval_data.read_revisited(str(root), query_crop=False)
    assert whole.queries.open(0).width == 40
    assert whole.queries.fingerprint != found.queries.fingerprint


def test_names_of_any_bytes(tmp_path):
    path = pathlib.Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg"))
    picture(path)
    source = retrieval_data.ListedImages([path], flag="--data")
    assert len(source.fingerprint) == 64 and source.open(0).width == 40


class Bomb:
    def __reduce__(self):
        return print, ("executed",)


def test_a_pickle_cannot_execute_anything(tmp_path, capsys):
    root = write_revisited(tmp_path / "roxford5k", gnd=[Bomb()])
    with pytest.raises(errors.UserError, match="cannot be read: it names"):
        retrieval_data.read_revisited(str(root), query_crop=True)
    assert "executed" not in capsys.readouterr().out


def test_amstertime(tmp_path):
    for name in ("b", "a"):
        picture(tmp_path / f"old/{name}.jpg")
        picture(tmp_path / f"new/{name}.png")
    old, new = retrieval_data.read_amstertime(str(tmp_path))
    assert [old.name(i)[-5:] for i in (0, 1)] == ["a.jpg", "b.jpg"]
    assert [new.name(i)[-5:] for i in (0, 1)] == ["a.png", "b.png"]
    picture(tmp_path / "new/c.png")
    with pytest.raises(errors.UserError, match="such as c: each needs a partner"):
        retrieval_data.read_amstertime(str(tmp_path))


def write_met(root):
    lists = {
        "MET_database": [
            {"id": 70, "path": "MET/70/0.jpg"},
            {"id": 8, "path": "MET/8/0.jpg"},
            {"id": 70, "path": "MET/70/1.jpg"},
        ],
        "valset": [{"MET_id": 8, "path": "q/0.jpg"}, {"path": "q/1.jpg"}],
        "testset": [{"path": "q/2.jpg"}, {"MET_id": 999, "path": "q/3.jpg"}],
    }
    for name, entries in lists.items():
        path = root / f"ground_truth/{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(entries))
        for entry in entries:
            picture(root / entry["path"])
    return root


def test_met(tmp_path):
    found = retrieval_data.read_met(str(write_met(tmp_path)))
    assert found.num_classes == 2
    assert found.train.labels.tolist() == [1, 0, 1]
    assert found.val.labels.tolist() == [0, -1]
    assert found.test.labels.tolist() == [-1, 2]  # 999 is of no training image


@pytest.mark.parametrize(
    "damage, text",
    [
        (lambda root: (root / "jpg/a.jpg").unlink(), "unpack the images"),
        (lambda root: write_revisited(root, imlist=3), "needs imlist, qimlist"),
        (lambda root: (root / "gnd_x.pkl").write_bytes(b"x"), "has 2 files gnd"),
        (lambda root: (root / "gnd_roxford5k.pkl").write_bytes(b""), "cannot be read"),
    ],
)
def test_damaged_benchmarks(tmp_path, damage, text):
    root = write_revisited(tmp_path / "roxford5k")
    damage(root)
    with pytest.raises(errors.UserError, match=text):
        retrieval_data.read_revisited(str(root), query_crop=True)


def test_missing_lists_of_the_met(tmp_path):
    write_met(tmp_path)
    (tmp_path / "ground_truth/valset.json").write_text('[{"MET_id": 8}]')
    with pytest.raises(errors.UserError, match="'path' is missing"):
        retrieval_data.read_met(str(tmp_path))
    with pytest.raises(errors.UserError, match="mini_MET_database.json"):
        retrieval_data.read_met(str(tmp_path), mini=True)

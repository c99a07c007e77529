"""Mixtures and several folders in `embed`: every image once, under names to join."""

import os
import tarfile

import pytest
from PIL import Image

from dinov2_jax import errors
from dinov2_jax.embed import images, shards


@pytest.fixture
def folders(tmp_path):
    for i, name in enumerate(("a/0", "a/1", "b/0", "b/sub/2")):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (10 + i, 4)).save(path)
    (tmp_path / "list.csv").write_text(
        f"path,repeat\n{tmp_path}/a/1.png,9\nb/0.png,1\n"
    )
    return tmp_path


def names(source):
    return [os.fsdecode(source.relative_path(i)) for i in range(len(source))]


@pytest.mark.parametrize("weights", [(3.0, 1.0), (1, 1e9)])
def test_a_mixture_whatever_its_weights(folders, weights):
    entries = tuple(zip((f"{folders}/a", f"{folders}/b"), weights))
    source = images.open_source(repr(entries))
    assert names(source) == ["a/0.png", "a/1.png", "b/0.png", "b/sub/2.png"]
    assert images.root(source) == str(folders)
    assert [source.open(i).width for i in range(4)] == [10, 11, 12, 13]
    separated = images.open_source(f"{folders}/a,{folders}/b")
    assert names(separated) == names(source)
    before = images.identity(source)
    assert images.identity(separated) == before
    Image.new("RGB", (5, 5)).save(folders / "b/0.png")
    assert images.identity(source) != before


def test_a_file_of_several_sources_comes_once(folders):
    entries = [(f"{folders}/list.csv", 2), (f"{folders}/a", 1, "folder")]
    source = images.open_source(f" {entries}")
    assert names(source) == ["a/1.png", "b/0.png", "a/0.png"]
    assert "3 images" in source.describe() and "1 file of several" in source.describe()
    parts = [shards.ShardSource(source, shards.parse(f"{i}/2")) for i in (1, 2)]
    assert names(parts[0]) + names(parts[1]) == names(source)
    assert images.root(parts[0]) == str(folders)
    with pytest.raises(IndexError):
        source.open(3)


def test_shards_and_files_together(folders):
    with tarfile.open(folders / "x.tar", "w") as tar:
        tar.add(folders / "a/0.png", "0.png")
    source = images.open_source(repr([(f"{folders}/x.tar", 1), (f"{folders}/a", 1)]))
    assert images.root(source) is None and len(set(names(source))) == 3
    assert source.open(0).width == source.open(1).width == 10
    with pytest.raises(errors.UserError, match="x.tar twice: name it once"):
        images.open_source(repr([(f"{folders}/x.tar", 1)] * 2))


@pytest.mark.parametrize(
    "text, message",
    [
        ("(('a', 1)", "is no mixture: write paths and weights"),
        ("(('a',),)", "write a path and a weight"),
        ("(('nowhere', 1),)", "data.mixture = nowhere does not exist"),
    ],
)
def test_wrong_mixtures(text, message):
    with pytest.raises(errors.UserError, match=message):
        images.open_source(text)

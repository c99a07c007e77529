"""Shards of the images that several jobs embed."""

import pathlib

import pytest
from PIL import Image

from dinov2_jax import errors
from dinov2_jax.embed import images, shards


@pytest.fixture
def source(tmp_path):
    for i in range(7):
        Image.new("RGB", (10 + i, 4)).save(tmp_path / f"{i}.png")
    return images.open_source(str(tmp_path))


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_are_disjoint_and_together_everything(source, count):
    parts = [
        shards.ShardSource(source, shards.Shard(number, count))
        for number in range(1, count + 1)
    ]
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    names = [part.name(i) for part in parts for i in range(len(part))]
    assert names == [f"{i}.png" for i in range(7)]
    paths = [part.relative_path(i) for part in parts for i in range(len(part))]
    assert paths == [name.encode() for name in names]
    widths = [part.open(i).width for part in parts for i in range(len(part))]
    assert widths == list(range(10, 17))
    with pytest.raises(IndexError):
        parts[0].open(len(parts[0]))
    assert len({images.identity(part) for part in parts}) == count
    assert {images.root(part) for part in parts} == {images.root(source)}


def test_a_part_notices_a_change_of_another(source, tmp_path):
    part = shards.ShardSource(source, shards.parse("1/3"))
    assert f"2 images of shard 1/3 of 7 images in 1 folder below {tmp_path}" in (
        part.describe()
    )
    before = images.identity(part)
    Image.new("RGB", (4, 4)).save(tmp_path / "9.png")
    again = images.open_source(str(tmp_path))
    part = shards.ShardSource(again, shards.parse("1/3"))
    assert len(part) == 2 and images.identity(part) != before


def test_names_of_the_files():
    out = pathlib.Path("a/f.parquet")
    assert shards.parse("3/12").file_name(out) == pathlib.Path(
        "a/f-00003-of-00012.parquet"
    )


@pytest.mark.parametrize("text", ["", "0/8", "9/8", "1", "1/0", "-1/8", "a/b", "1/8/2"])
def test_wrong_shards(text):
    with pytest.raises(errors.UserError, match="number from 1 to the count"):
        shards.parse(text)


def test_more_shards_than_images(source):
    with pytest.raises(errors.UserError, match="only 7: divide them into at most 7"):
        shards.ShardSource(source, shards.parse("1/8"))
    assert len(shards.ShardSource(source, shards.parse("8/8"))) == 1

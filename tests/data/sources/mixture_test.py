"""Mixtures: the shares of the sources, and every image once a pass."""

import collections
import fractions
import pickle

import numpy as np
import pytest
from PIL import Image

from configs import debug, default
from dinov2_jax import errors
from dinov2_jax.config import checking
from dinov2_jax.data import batch_builder
from dinov2_jax.data.sources import base, mixture, registry


class Numbers(base.Source):
    """As many images as are wanted."""

    fingerprint = "numbers"

    def __init__(self, length):
        self._length = length

    def open(self, index):
        raise NotImplementedError

    def __len__(self):
        return self._length

    def name(self, index):
        return str(index)

    def _where(self):
        return "in memory"


def make(lengths, weights):
    names = [f"s{i}" for i in range(len(lengths))]
    return mixture.MixtureSource([Numbers(n) for n in lengths], weights, names)


@pytest.mark.parametrize(
    "lengths, weights",
    [
        ([10, 10], [1, 1]),
        ([10, 1000], [0.5, 0.5]),
        ([1000, 7, 30], [0.2, 0.5, 0.3]),
        ([1, 1, 1], [1, 2, 4]),
        ([3, 5], [1e-3, 1]),
        ([100, 10], [0.9, 0.1]),
        ([9, 91], [3.3, 6.7]),
        ([5], [0.1]),
        ([5, 7], [1e308, 1.5e308]),
        ([5, 7], [1e-308, 2e-308]),
        ([2, 20_000], [1, 1]),
    ],
)
def test_shares_and_every_image_once_a_pass(lengths, weights):
    source = make(lengths, weights)
    total = source.pass_length
    exact = [fractions.Fraction(weight) for weight in weights]
    shares = np.array([float(weight / sum(exact)) for weight in exact])
    assert np.all(np.abs(np.array(source.places) - total * shares) <= 1)
    # No shorter pass would do: one source has hardly more places than images.
    assert any(p - n <= 1 for p, n in zip(source.places, lengths))
    starts = np.cumsum([0, *lengths])
    seen = collections.Counter()
    for number in range(3):
        shown = [source.resolve(number, place) for place in range(total)]
        counts = np.bincount(shown, minlength=len(source))
        assert len(counts) == len(source) and counts.min() >= 1
        for i, places in enumerate(source.places):
            mine = counts[starts[i] : starts[i + 1]]
            assert mine.sum() == places and mine.max() - mine.min() <= 1
        seen.update(shown)
    for i in range(len(lengths)):
        mine = [seen[index] for index in range(starts[i], starts[i + 1])]
        assert max(mine) - min(mine) <= 1  # balanced over the passes


@pytest.mark.parametrize(
    "lengths, weights, least",
    [
        ([6, 6], [1e-308, 1e308], "1e+304"),
        ([6, 6], [1, 1e-9], "0.0001"),
        ([10, 1_000_000], [100, 1], "1000"),
        ([3, 10, 40_000], [7, 2, 1], "9.34"),  # 40,000 / 10,000 times 7 / 3
    ],
)
def test_absurd_ratios_are_refused(lengths, weights, least):
    with pytest.raises(errors.UserError) as caught:
        make(lengths, weights)
    said = str(caught.value)
    assert f" {least} " in said and "\n" not in said
    rare = weights.index(min(weights))
    weights[rare] = float(least)  # the fix fixes it, and hardly less does
    assert make(lengths, weights).pass_length > 0
    weights[rare] *= 0.98
    with pytest.raises(errors.UserError, match=f"every image of s{rare} "):
        make(lengths, weights)


def test_the_extra_images_change_with_the_pass():
    source = make([100, 1000], [1, 7.7])  # 130 places for the 100
    extra = []
    for number in range(10):
        shown = [source.resolve(number, p) for p in range(source.places[0])]
        extra.append({i for i, c in collections.Counter(shown).items() if c == 2})
    assert all(len(e) == len(extra[0]) > 20 for e in extra)
    assert not extra[0] & extra[1] and set.union(*extra) == set(range(100))
    # Spread over the source, not one run of neighbours.
    assert np.max(np.diff([0, *sorted(extra[0]), 99])) < 10


def write(path, count, value):
    path.mkdir()
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 40, (40, 40, 3)) + value
        Image.fromarray(pixels.astype(np.uint8)).save(path / f"{i}.png")


@pytest.fixture
def config(tmp_path):
    write(tmp_path / "few", 4, 0)
    write(tmp_path / "many", 12, 200)
    config = debug.get_config()
    config.data.source = "auto"
    config.data.workers = 0
    config.train.update(batch_size=8, group_size=4)
    config.data.mixture = (
        (str(tmp_path / "few"), 2.0),
        (f"{tmp_path}/many/*.png", 1),
    )
    return config


def test_a_mixture_of_folders(config, tmp_path):
    checking.check(config)
    source = registry.make_source(config)
    assert len(source) == 16 and source.pass_length == 36
    assert source.name(4) == f"{tmp_path}/many/*.png: 0.png"
    assert source.open(0).pixels().mean() < 50 < source.open(4).pixels().mean()
    source = pickle.loads(pickle.dumps(source))
    said = source.describe()
    assert "16 images in 2 sources" in said and "66.7% 4 images" in said
    builder = batch_builder.make_batch_builder(config, source)
    shown = [builder.image_index(0, offset) for offset in range(36)]
    counts = np.bincount(shown)
    assert counts.tolist() == [6] * 4 + [1] * 12
    # Twice the same image, but not the same crops.
    first, second = (
        i for i in range(36) if builder.place(0, i) in (0, 4) and shown[i] == 0
    )
    flat = [builder(n)["global_crops"].reshape(2, 2, 4, 32, 32, 3) for n in range(5)]
    crops = [flat[i // 8][i % 8 // 4, 0, i % 4] for i in (first, second)]
    assert crops[0].mean() < 60 and crops[1].mean() < 60
    assert not np.array_equal(*crops)
    again = batch_builder.make_batch_builder(config, source)(3)
    np.testing.assert_array_equal(again["global_crops"], builder(3)["global_crops"])


def test_an_entry_may_name_its_kind(config, tmp_path):
    (tmp_path / "many" / "x.tar").write_bytes(b"")
    config.data.mixture = ((str(tmp_path / "few"), 1), (str(tmp_path / "many"), 1))
    with pytest.raises(errors.UserError) as caught:
        registry.make_source(config)
    path = f"{tmp_path}/many"
    assert (
        f"choose which to read, ('{path}', WEIGHT, 'KIND') with folder or webdataset"
        in (str(caught.value))
    )
    config.data.mixture = ((str(tmp_path / "few"), 1), (path, 1, "folder"))
    checking.check(config)
    assert len(registry.make_source(config)) == 16


def test_bad_images_of_a_mixture_are_replaced(config, tmp_path):
    (tmp_path / "many" / "3.png").write_bytes(b"x")
    source = registry.make_source(config)
    builder = batch_builder.make_batch_builder(config, source)
    bad = np.concatenate([builder(step)["bad_images"] for step in range(5)])
    assert {str(name) for name in bad["name"]} == {f"{tmp_path}/many/*.png: 3.png"}


@pytest.mark.parametrize(
    "value, name",
    [
        ((("/a", 0.0),), "/a is 0.0"),
        ((("/a", float("nan")),), "/a is nan"),
        ((("/a",),), "('/a',)"),
        (("/a", "/b"), "'/a'"),
        ((("/a", "1"),), "('/a', '1')"),
        ((("/a", 1, 2),), "('/a', 1, 2)"),
        ((("/a", 1, "photos"),), "'photos'"),
        ((("/a", 1, "tfds"),), "--tfds-name"),
    ],
)
def test_bad_mixtures(tmp_path, value, name):
    config = default.get_config()
    value = tuple((str(tmp_path), *e[1:]) if isinstance(e, tuple) else e for e in value)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    config.data.mixture = value
    with pytest.raises(errors.UserError) as caught:
        registry.make_source(config)
    said = str(caught.value).replace(str(tmp_path), "/a")
    assert name in said and "\n" not in said
    config.data.path = "/elsewhere"
    with pytest.raises(errors.UserError, match="data.path = '/elsewhere'"):
        registry.make_source(config)

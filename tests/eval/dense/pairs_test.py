"""Pairs of files: folders of splits, partners, and what tells two sets apart."""

import functools

import dense_pairs
import pytest

from dinov2_jax import errors
from dinov2_jax.eval.dense import pairs
from dinov2_jax.eval.depth import depth_data
from dinov2_jax.eval.segmentation import segmentation_data

find = functools.partial(
    pairs.find_folders, image_names=("images",), target_names=("masks",)
)


@pytest.mark.parametrize("layout", ["{split}/{kind}", "{kind}/{split}"])
def test_a_missing_split_is_not_replaced_by_the_whole(tmp_path, layout):
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        path = tmp_path / layout.format(kind=kind, split="train")
        path.mkdir(parents=True)
    found = find(tmp_path, "train")
    assert [path.relative_to(tmp_path).parts.count("train") for path in found] == [1, 1]
    with pytest.raises(errors.UserError, match="neither val/images/ .* has train: put"):
        find(tmp_path, "val")


def test_folders_without_any_split_are_all_splits(tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / kind / "paris").mkdir(parents=True)
    expected = (tmp_path / "images", tmp_path / "masks")
    assert find(tmp_path, "train") == find(tmp_path, "val") == expected


def test_files_of_one_name_and_hidden_ones(tmp_path):
    dense_pairs.write(tmp_path, {"val": 2})
    folder = tmp_path / "val/images"
    (folder / "._0.png").write_bytes(b"of another system")
    assert len(segmentation_data.open_data(tmp_path, split="val").pairs) == 2
    (folder / "0.jpg").write_bytes((folder / "0.png").read_bytes())
    with pytest.raises(errors.UserError, match=r"0.jpg and .*0.png have the same name"):
        segmentation_data.open_data(tmp_path, split="val")


def test_the_settings_of_targets_count(tmp_path):
    dense_pairs.write(tmp_path, {"test": 1, "val": 1})
    depth = [
        depth_data.depth_pairs(tmp_path, unit=unit).fingerprint
        for unit in (None, 1000.0, 1000.0)
    ]
    assert depth[0] != depth[1] == depth[2]
    masks = [
        segmentation_data.open_data(
            tmp_path, split="val", reduce_zero_label=reduce
        ).pairs.fingerprint
        for reduce in (False, True)
    ]
    assert masks[0] != masks[1]


def test_evenly_spaced_pairs(tmp_path):
    dense_pairs.write(tmp_path, {"val": 5})
    every = segmentation_data.open_data(tmp_path, split="val").pairs
    assert every.spaced(None) is every and every.spaced(9) is every
    some = every.spaced(3)
    for paths in (some.images, some.targets):
        assert [path.stem for path in paths] == ["0", "2", "4"]

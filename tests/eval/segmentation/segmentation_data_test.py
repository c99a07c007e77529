import dense_pairs
import numpy as np
import pytest
from PIL import Image

from dinov2_jax import errors
from dinov2_jax.eval.segmentation import segmentation_data


def save(path, values, palette=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values, np.uint8))
    if palette:
        image = Image.fromarray(np.asarray(values, np.uint8), "P")
        image.putpalette(list(range(255, -1, -1)) * 3)
    image.save(path)


PIXELS = np.zeros((2, 3, 3))


def test_ade20k(tmp_path):
    for i in (1, 2):
        save(tmp_path / f"images/training/ADE_train_{i}.jpg", PIXELS)
        mask = [[0, 1, 150], [255, 2, 3]]
        save(tmp_path / f"annotations/training/ADE_train_{i}.png", mask)
    data = segmentation_data.open_data(tmp_path, split="train")
    assert (len(data.pairs), data.num_classes) == (2, 150)
    assert data.pairs.sample(1)[1].tolist() == [[255, 0, 149], [255, 1, 2]]


def test_voc2012_reads_palettes(tmp_path):
    save(tmp_path / "JPEGImages/a.jpg", PIXELS)
    save(tmp_path / "JPEGImages/unlisted.jpg", PIXELS)
    mask = [[0, 1, 20], [255, 2, 3]]
    save(tmp_path / "SegmentationClass/a.png", mask, palette=True)
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("a\n")
    data = segmentation_data.open_data(tmp_path, split="val")
    assert (len(data.pairs), data.num_classes) == (1, 21)
    assert data.class_names[20] == "tvmonitor"
    assert data.pairs.sample(0)[1].tolist() == mask


@pytest.mark.parametrize("ready", [True, False])
def test_cityscapes_with_and_without_train_ids(tmp_path, ready):
    save(tmp_path / "leftImg8bit/val/ulm/ulm_0_leftImg8bit.png", PIXELS)
    masks = tmp_path / "gtFine/val/ulm"
    save(masks / "ulm_0_gtFine_labelIds.png", [[7, 8, 33], [0, 31, 18]])
    if ready:
        wanted = [[0, 1, 18], [255, 16, 255]]
        save(masks / "ulm_0_gtFine_labelTrainIds.png", wanted)
    data = segmentation_data.open_data(tmp_path, split="val")
    assert (len(data.pairs), data.num_classes) == (1, 19)
    assert data.pairs.sample(0)[1].tolist() == [[0, 1, 18], [255, 16, 255]]


def test_pairs_and_their_classes(tmp_path):
    dense_pairs.write(tmp_path, {"train": 2, "val": 1})
    data = segmentation_data.open_data(tmp_path, split="train")
    assert data.num_classes is None
    assert segmentation_data.class_count(data, data, given=None) == 2
    (tmp_path / "classes.txt").write_text("ground\nbox\n")
    data = segmentation_data.open_data(tmp_path, split="val")
    assert data.class_names == ("ground", "box") and data.num_classes == 2


def test_classes_of_test_masks_are_known_before_training(tmp_path):
    dense_pairs.write(tmp_path, {"train": 1, "val": 1})
    save(tmp_path / "val/masks/0.png", np.full((40, 48), 3))
    train, val = (
        segmentation_data.open_data(tmp_path, split=split) for split in ("train", "val")
    )
    assert segmentation_data.class_count(train, val, given=None) == 4
    assert segmentation_data.class_count(train, val, given=6) == 6
    with pytest.raises(errors.UserError, match="label 3 .* pass --num-classes=4"):
        segmentation_data.class_count(train, val, given=2)
    (tmp_path / "classes.txt").write_text("ground\nbox\n")
    named = segmentation_data.open_data(tmp_path, split="train")
    with pytest.raises(errors.UserError, match="there are 2 classes: write 4 lines"):
        segmentation_data.class_count(named, val, given=None)
    with pytest.raises(errors.UserError, match="num-classes=4, and classes.txt has 2"):
        segmentation_data.class_count(named, val, given=4)
    ready = segmentation_data.Segmentation(train.pairs, 21, (), "voc2012")
    assert segmentation_data.class_count(ready, ready, given=None) == 21


def test_minus_one_is_ignored(tmp_path):
    dense_pairs.write(tmp_path, {"val": 1})
    (tmp_path / "val/masks/0.png").unlink()
    labels = np.where(np.arange(40)[:, None] < 5, -1, 1) + np.zeros((1, 48), int)
    np.save(tmp_path / "val/masks/0.npy", labels)
    data = segmentation_data.open_data(tmp_path, split="val")
    assert np.unique(data.pairs.sample(0)[1]).tolist() == [1, 255]


def smaller(root):
    save(root / "val/masks/0.png", np.zeros((40, 40)))


def colours(root):
    save(root / "val/masks/0.png", np.zeros((40, 48, 3)))


def missing(root):
    (root / "val/masks/0.png").unlink()


def large(root):
    values = np.full((40, 48), 300, np.uint16)
    Image.fromarray(values).save(root / "val/masks/0.png")


@pytest.mark.parametrize(
    "damage, message",
    [
        (smaller, "40x40 px and its image .* 40x48"),
        (colours, "save it with one channel"),
        (missing, "the first is 0: add or remove"),
        (large, "labels from 300 to 300"),
    ],
)
def test_masks_that_do_not_fit_are_named(tmp_path, damage, message):
    dense_pairs.write(tmp_path, {"val": 2})
    damage(tmp_path)
    with pytest.raises(errors.UserError, match=message):
        segmentation_data.open_data(tmp_path, split="val").pairs.sample(0)


def test_a_folder_without_images_says_where_they_go(tmp_path):
    with pytest.raises(errors.UserError, match="put the files into .*val/images"):
        segmentation_data.open_data(tmp_path, split="val")

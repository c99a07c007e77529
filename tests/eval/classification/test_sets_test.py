"""Further test sets: names, labels by number, and all opened at once."""

import json

import numpy as np
import pytest
from PIL import Image

from dinov2_jax import errors
from dinov2_jax.eval.classification import labelled, test_sets


def write(folder, names, classes=("cat", "dog")):
    for i, name in enumerate(names):
        path = folder / classes[i % len(classes)] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(path)
    return str(folder)


def validation(tmp_path, numbers):
    names = [f"ILSVRC2012_val_{number:08}.JPEG" for number in numbers]
    return labelled.open_labelled(write(tmp_path / "val", names), "--val-path")


def test_labels_of_real_go_by_the_numbers_in_names(tmp_path):
    source = validation(tmp_path, (4, 1, 2, 3))  # cats are 2 and 4, dogs 1 and 3
    path = tmp_path / "real.json"
    path.write_text(json.dumps([[10], [20, 21], [], [40], [50]]))
    found = test_sets.read_real(str(path), source, 1000)
    assert found.tolist() == [[20, 21], [40, -1], [10, -1], [-1, -1]]
    part = labelled.Subset(source, np.array([1, 2]))
    chosen = test_sets.read_real(str(path), part, 1000)
    np.testing.assert_array_equal(chosen, found[[1, 2]])
    with pytest.raises(errors.UserError, match="has the label 50 and --train-path has"):
        test_sets.read_real(str(path), source, 40)


@pytest.mark.parametrize("name", ["5.png", "ILSVRC2012_val_00000006.JPEG"])
def test_images_of_no_label_of_real_are_refused(tmp_path, name):
    source = labelled.open_labelled(write(tmp_path / "val", [name]), "--val-path")
    path = tmp_path / "real.json"
    path.write_text(json.dumps([[0]] * 5))
    with pytest.raises(errors.UserError, match=f"to 00000005, .* has .*{name}: name"):
        test_sets.read_real(str(path), source, 1000)


def test_sets_of_one_name_are_told_apart(tmp_path):
    paths = [write(tmp_path / x, ["0.png", "1.png"]) for x in ("a/val", "b/val", "c")]
    found = test_sets.open_sets([*paths, f"{paths[2]}/"], ["cat", "dog"])
    assert [each.name for each in found] == ["a/val", "b/val", "c"]


def test_all_sets_are_checked_and_cut_when_they_are_opened(tmp_path):
    path = write(tmp_path / "a", [f"{i}.png" for i in range(8)])
    (found,) = test_sets.open_sets([path], ["cat", "dog", "emu"], max_images=4)
    assert len(found.source) == 4 and found.mapping.tolist() == [0, 1]
    with pytest.raises(errors.UserError, match="a has 1 classes that --train-path"):
        test_sets.open_sets([path], ["cat", "emu"])
    root = tmp_path / "c"
    for severity in range(1, 6):
        write(root / "fog" / str(severity), [f"{i}.png" for i in range(8)])
    opened = test_sets.open_imagenet_c(str(root), ["cat", "dog"], max_images=2)
    assert [len(each.source) for each in opened["fog"]] == [2] * 5
    with pytest.raises(errors.UserError, match="1 has 2 classes that --train-path"):
        test_sets.open_imagenet_c(str(root), ["emu"])


def test_classes_in_another_order_are_numbered_alike(tmp_path):
    """Sub-folders are sorted as text, whole numbers of a list as numbers."""
    folders = [str(i) for i in range(11)]
    write(tmp_path / "train", [f"{i}.png" for i in range(11)], folders)
    write(tmp_path / "val", [f"{i}.png" for i in range(11)], folders)
    rows = "".join(f"val/{i}/{i}.png,{i}\n" for i in range(11))
    (tmp_path / "val.csv").write_text("path,label\n" + rows)
    train = labelled.open_labelled(str(tmp_path / "train"), "--train-path")
    val = labelled.open_labelled(str(tmp_path / "val.csv"), "--val-path")
    assert train.label_names != val.label_names
    same = labelled.same_classes(train, val, "train", "val")
    assert same.label_names == train.label_names and len(same) == 11
    assert same.fingerprint == val.fingerprint
    for i in range(11):
        assert same.label_names[same.labels[i]] == val.label_names[val.labels[i]]
        assert f"/{same.label_names[same.labels[i]]}/" in f"/{same.name(i)}"
    assert labelled.same_classes(train, train, "a", "b") is train


def test_one_class_is_refused(tmp_path):
    write(tmp_path / "one", ["a.png"], ["cat"])
    train = labelled.open_labelled(str(tmp_path / "one"), "--train-path")
    with pytest.raises(errors.UserError, match="has only the class 'cat': two or more"):
        labelled.need_two_classes(train, "one")

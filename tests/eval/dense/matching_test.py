import numpy as np
import pytest
from scipy import ndimage

from dinov2_jax.eval.dense import matching


def photograph(rng):
    """Smooth random features of 60 x 80 places, [H, W, D]."""
    x = rng.standard_normal((60, 80, 8))
    return ndimage.gaussian_filter(x, (2, 2, 0))


def crop(features, box):
    top, left, height, width = box
    return features[top : top + height : 2, left : left + width : 2]


def test_crops_of_one_picture_match_and_a_wrong_box_does_not():
    features = photograph(np.random.default_rng(0))
    boxes = [(0, 0, 40, 60), (10, 14, 40, 60)]
    crops = [crop(features, box) for box in boxes]
    accuracy, _, count = matching.matching_accuracy(*crops, boxes)
    assert accuracy > 0.95
    assert count == 15 * 23
    wrong, *_ = matching.matching_accuracy(*crops, [boxes[0], (0, 0, 40, 60)])
    assert wrong < 0.1


def test_a_crop_matches_itself_and_flips_change_nothing():
    features = photograph(np.random.default_rng(0))
    box = (4, 6, 40, 60)
    same = crop(features, box)
    accuracy, _, count = matching.matching_accuracy(same, same, [box, box])
    assert (accuracy, count) == (1.0, 20 * 30)
    other = (0, 20, 50, 50)
    crops = same, crop(features, other)
    noisy = [x + np.random.default_rng(1).standard_normal(x.shape) / 20 for x in crops]
    accuracy, _, count = matching.matching_accuracy(*noisy, [box, other])
    assert 0.05 < accuracy < 0.95
    # The photograph and with it both crops and boxes turned left to right.
    flipped = [(top, 80 - left - w, h, w) for top, left, h, w in (box, other)]
    turned = [x[:, ::-1] for x in noisy]
    turned_accuracy, _, turned_count = matching.matching_accuracy(*turned, flipped)
    assert (turned_accuracy, turned_count) == (accuracy, count)


def test_crops_that_do_not_overlap_have_no_patches():
    features = photograph(np.random.default_rng(0))
    boxes = [(0, 0, 20, 20), (40, 40, 20, 20)]
    crops = [crop(features, box) for box in boxes]
    assert matching.matching_accuracy(*crops, boxes) == (0.0, 0.0, 0)


@pytest.mark.parametrize("within", [0.4, 1.0, 1.7])
def test_chance_is_what_random_features_reach(within):
    rng = np.random.default_rng(0)
    hits = by_chance = total = 0
    for _ in range(300):
        boxes = matching.overlapping_boxes((200, 300), rng)
        pair = rng.standard_normal((2, 8, 8, 16))
        share, chance, count = matching.matching_accuracy(*pair, boxes, within=within)
        hits, by_chance = hits + share * count, by_chance + chance * count
        total += count
    spread = 4 * np.sqrt(by_chance / total / total)
    assert abs(hits - by_chance) / total < spread


def test_drawn_boxes_overlap_and_lie_inside():
    rng = np.random.default_rng(0)
    for _ in range(200):
        for (top, left, h, w), (top2, left2, h2, w2) in [
            matching.overlapping_boxes((300, 400), rng, scale=(0.3, 0.8))
        ]:
            assert top >= 0 and left >= 0 and top + h <= 300.1 and left + w <= 400.1
            assert top2 >= 0 and top2 + h2 <= 300.1 and left2 + w2 <= 400.1
            assert min(top + h, top2 + h2) - max(top, top2) >= 0.24 * min(h, h2)
            assert min(left + w, left2 + w2) - max(left, left2) >= 0.24 * min(w, w2)


def test_early_warnings_equal_loops():
    rng = np.random.default_rng(1)
    patches, cls = rng.standard_normal((2, 3, 4, 5)), rng.standard_normal((2, 5))

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    flat = patches.reshape(2, 12, 5)
    with_cls = [cosine(cls[b], flat[b, i]) for b in range(2) for i in range(12)]
    between = [
        cosine(flat[b, i], flat[b, j])
        for b in range(2)
        for i in range(12)
        for j in range(12)
        if i != j
    ]
    assert matching.class_patch_cosine(cls, patches) == pytest.approx(
        np.mean(with_cls), abs=1e-6
    )
    assert matching.mean_off_diagonal_cosine(patches) == pytest.approx(
        np.mean(between), abs=1e-6
    )


def test_an_assignment_is_one_to_one():
    first = np.array([[0.0], [1.0], [5.0]])
    second = np.array([[1.1], [0.9]])
    found = matching.assignment(first, second)
    assert found.first.tolist() == [0, 1]
    assert found.second.tolist() == [1, 0]
    np.testing.assert_allclose(found.distances, [0.9, 0.1])

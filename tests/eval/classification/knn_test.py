"""k-NN against scikit-learn's and a slow NumPy twin; features by their invariances."""

import numpy as np
import pytest
from sklearn import metrics, neighbors

from dinov2_jax.eval.classification import knn


def _data(seed=0, n=300, m=97, width=16, classes=7):
    """Overlapping clusters of very different feature lengths."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, width))

    def draw(count):
        labels = rng.integers(classes, size=count)
        features = centres[labels] + 1.2 * rng.normal(size=(count, width))
        return features * rng.uniform(0.1, 10.0, size=(count, 1)), labels

    return *draw(n), *draw(m)


def _slow_twin(train, train_labels, test, test_labels, ks, temperature, classes):
    correct = dict.fromkeys(ks, 0)
    for x, label in zip(test, test_labels):
        cosine = np.array(
            [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in train]
        )
        order = np.argsort(-cosine)[: max(ks)]
        weights = np.exp(cosine[order] / temperature)
        weights /= weights.sum()
        for k in ks:
            votes = np.zeros(classes)
            for index, weight in zip(order[:k], weights[:k]):
                votes[train_labels[index]] += weight
            correct[k] += votes.argmax() == label
    return {k: count / len(test) for k, count in correct.items()}


@pytest.mark.parametrize("temperature", [0.02, 0.07, 1.0])
def test_equals_a_slow_twin(temperature):
    data = _data()
    expected = _slow_twin(*data, (1, 10, 20), temperature, 7)
    accuracy = knn.knn_top1(
        *data, ks=(1, 10, 20), temperature=temperature, num_classes=7
    )
    assert accuracy == expected
    assert 0.3 < accuracy[10] < 0.95  # neither trivial nor chance


@pytest.mark.parametrize("k", [5, 10, 20])
def test_equals_scikit_learn(k):
    train, train_labels, test, test_labels = _data(seed=1)
    peer = neighbors.KNeighborsClassifier(
        k,
        metric="cosine",
        algorithm="brute",
        weights=lambda distance: np.exp((1.0 - distance) / 0.07),
    ).fit(train, train_labels)
    accuracy = knn.knn_top1(
        train, train_labels, test, test_labels, ks=(k, 20), num_classes=7
    )
    assert accuracy[k] == peer.score(test, test_labels)


def test_other_tops_equal_scikit_learn():
    train, train_labels, test, test_labels = _data(seed=4)
    peer = neighbors.KNeighborsClassifier(
        50,
        metric="cosine",
        algorithm="brute",
        weights=lambda distance: np.exp((1.0 - distance) / 0.07),
    ).fit(train, train_labels)
    scores = peer.predict_proba(test)
    accuracy = knn.knn_accuracy(
        train, train_labels, test, test_labels, ks=(50,), num_classes=7, tops=(1, 2)
    )
    for top in (1, 2):
        expected = metrics.top_k_accuracy_score(test_labels, scores, k=top)
        assert accuracy[50, top] == pytest.approx(expected)
    assert accuracy[50, 1] < accuracy[50, 2] < 1.0


def test_k_above_the_training_set():
    data = _data(seed=3, n=15)
    assert knn.knn_top1(*data, ks=(10, 20), num_classes=7)[20] == pytest.approx(
        knn.knn_top1(*data, ks=(15,), num_classes=7)[15]
    )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda a, b, c, d: (a, b[:-1], c, d), "300 features, 299 labels"),
        (lambda a, b, c, d: (a, b, c[:0], d[:0]), "test set"),
        (lambda a, b, c, d: (a, b + 1, c, d), "outside num_classes=7"),
    ],
)
def test_bad_input_is_refused(change, text):
    with pytest.raises(ValueError, match=text):
        knn.knn_top1(*change(*_data()), num_classes=7)


def _images(n=6, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 12, 10, 3), np.uint8)


def test_pixel_features():
    images = _images()
    features = knn.pixel_features(images)
    assert features.shape == (6, 360) and features.dtype == np.float32
    np.testing.assert_array_equal(
        np.round(features.reshape(images.shape) * 255), images
    )


def test_mean_removed_pixels_ignore_brightness_but_not_colour():
    images = _images() // 2
    features = knn.mean_removed_pixel_features(images)
    np.testing.assert_allclose(features.mean(axis=1), 0.0, atol=1e-6)
    brighter = knn.mean_removed_pixel_features(images + 100)
    np.testing.assert_allclose(brighter, features, atol=1e-6)
    redder = knn.mean_removed_pixel_features(images + np.uint8([100, 0, 0]))
    assert np.abs(redder - features).max() > 0.1


def test_histogram_equals_a_slow_twin():
    image = _images(1)[0]
    expected = np.zeros((8, 8, 8))
    for pixel in image.reshape(-1, 3):
        # Triangles of one bin's width about the centres; the ends hold what is beyond.
        centres = (np.arange(8) + 0.5) * 32 - 0.5
        shares = []
        for value in np.clip(pixel.astype(float), centres[0], centres[-1]):
            shares.append(np.maximum(1 - np.abs(value - centres) / 32, 0))
        expected += np.einsum("r,g,b->rgb", *shares)
    expected = np.sqrt(expected / expected.sum())
    (features,) = knn.color_histogram_features(image[None])
    np.testing.assert_allclose(features, expected.ravel(), atol=1e-6)


def test_histogram_ignores_layout_and_has_unit_norm():
    images = _images()
    features = knn.color_histogram_features(images)
    assert features.shape == (6, 512)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1.0, atol=1e-6)
    pixels = images.reshape(6, -1, 3)
    shuffled = pixels[:, np.random.default_rng(0).permutation(120)]
    np.testing.assert_allclose(
        knn.color_histogram_features(shuffled.reshape(images.shape)),
        features,
        atol=1e-6,
    )
    other = knn.color_histogram_features(images[..., ::-1])
    assert np.abs(other - features).max() > 0.01

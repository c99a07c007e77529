"""Weighted k-nearest-neighbour evaluation, and pixel features as baselines.

Mirrors the reference's protocol (`dinov2/eval/knn.py`): features L2-normalised, votes
weighted by softmax(similarity / temperature) over the max(ks) nearest neighbours, the
first k of them summed per class.

Shapes: N training images, M test images, D feature width, C classes.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

_MAX_SIMILARITIES = 2**26  # in memory at a time, 256 MiB; sets the chunk size


def _normalised(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, np.float32)
    norm = np.linalg.norm(features, axis=-1, keepdims=True)
    return features / np.maximum(norm, 1e-12)


@jax.jit(static_argnames=("ks", "num_classes"))
def _predictions(train, train_labels, test, *, ks, temperature, num_classes):
    """Predict classes from normalised features for each k, [len(ks), M]."""
    # Full float32: lower precision would reorder nearly equal neighbours.
    similarity = jnp.matmul(test, train.T, precision=jax.lax.Precision.HIGHEST)
    similarity, neighbours = jax.lax.top_k(similarity, max(ks))  # [M, max(ks)]
    weights = jax.nn.softmax(similarity / temperature, axis=-1)
    classes = train_labels[neighbours]
    rows = jnp.arange(len(test))[:, None]
    votes = jnp.zeros((len(test), num_classes))
    return jnp.stack(
        [votes.at[rows, classes[:, :k]].add(weights[:, :k]).argmax(-1) for k in ks]
    )


def knn_top1(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    ks: Sequence[int] = (10, 20),
    temperature: float = 0.07,
    num_classes: int,
) -> dict[int, float]:
    """Compute the top-1 accuracy of the weighted k-NN classifier.

    Args:
      train_features: Training features, [N, D], of any scale.
      train_labels: Training labels, int [N] in [0, num_classes).
      test_features: Test features, [M, D].
      test_labels: Test labels, int [M].
      ks: Numbers of neighbours that vote; a k above N is taken as N.
      temperature: Temperature of the softmax over cosine similarities.
      num_classes: Number of classes C.

    Returns:
      {k: accuracy in [0, 1]}, averaged over the test images.

    Raises:
      ValueError: Empty sets, mismatched lengths, or labels outside the classes.
    """
    train_labels, test_labels = np.asarray(train_labels), np.asarray(test_labels)
    for name, features, labels in (
        ("train", train_features, train_labels),
        ("test", test_features, test_labels),
    ):
        if len(features) == 0 or len(features) != len(labels):
            raise ValueError(
                f"k-NN needs one label per feature in the {name} set and at least one "
                f"of them: got {len(features)} features, {len(labels)} labels"
            )
        if labels.min() < 0 or labels.max() >= num_classes:
            raise ValueError(
                f"{name} labels span {labels.min()}..{labels.max()}, outside "
                f"num_classes={num_classes}"
            )
    train = jnp.asarray(_normalised(train_features))
    test = _normalised(test_features)
    clipped = tuple(min(k, len(train)) for k in ks)
    correct = np.zeros(len(ks), np.int64)
    chunk = max(_MAX_SIMILARITIES // len(train), 1)
    for start in range(0, len(test), chunk):
        predictions = _predictions(
            train,
            jnp.asarray(train_labels),
            test[start : start + chunk],
            ks=clipped,
            temperature=temperature,
            num_classes=num_classes,
        )
        hits = np.asarray(predictions) == test_labels[start : start + chunk]
        correct += hits.sum(axis=1)
    return {k: int(hits) / len(test) for k, hits in zip(ks, correct)}


def pixel_features(images: np.ndarray) -> np.ndarray:
    """Return raw pixels in [0, 1], uint8 [N, H, W, 3] -> float32 [N, H*W*3]."""
    images = np.asarray(images)
    return images.reshape(len(images), -1).astype(np.float32) / 255.0


def mean_removed_pixel_features(images: np.ndarray) -> np.ndarray:
    """Return pixels minus each image's mean, uint8 [N, H, W, 3] -> [N, H*W*3].

    Raw pixels are all positive, so their cosines are all near 1 and follow brightness.
    One mean per image, over all its pixels and channels, keeps the colours: on
    photographs that beat a mean per channel and the mean image of the training set.
    """
    images = np.asarray(images).astype(np.float32) / 255.0
    images = images - images.mean(axis=(1, 2, 3), keepdims=True)
    return images.reshape(len(images), -1)


def color_histogram_features(images: np.ndarray, *, bins: int = 8) -> np.ndarray:
    """Compute joint RGB histograms, uint8 [N, H, W, 3] -> float32 [N, bins**3].

    Every pixel is shared by the eight nearest bins (trilinear, so that a small colour
    shift changes the histogram little; hard bins scored lower). The square root makes
    cosine similarity the Bhattacharyya coefficient of two histograms.

    Args:
      images: Images, uint8 [N, H, W, 3].
      bins: Number of bins per channel.

    Returns:
      Features of unit L2 norm.
    """
    images = np.asarray(images)
    position = (np.arange(256) + 0.5) * bins / 256 - 0.5  # of a value, in bin centres
    position = np.clip(position, 0, bins - 1)
    lower = np.minimum(position.astype(np.int64), bins - 2)
    upper_share = position - lower
    features = np.empty((len(images), bins**3), np.float32)
    corners = [(r, g, b) for r in (0, 1) for g in (0, 1) for b in (0, 1)]
    for features_row, image in zip(features, images):
        pixels = image.reshape(-1, 3)
        base, share = lower[pixels], upper_share[pixels]  # [H*W, 3]
        histogram = np.zeros(bins**3)
        for corner in corners:
            index = (base + corner) @ (bins**2, bins, 1)
            weight = np.where(corner, share, 1.0 - share).prod(axis=-1)
            histogram += np.bincount(index, weight, minlength=bins**3)
        features_row[:] = np.sqrt(histogram / len(pixels))
    return features

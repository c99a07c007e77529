"""Weighted k-nearest-neighbour evaluation, and pixel features as baselines.

Mirrors the reference's protocol (`dinov2/eval/knn.py`): features L2-normalised, votes
weighted by softmax(similarity / temperature) over the max(ks) nearest neighbours, the
first k of them summed per class.

Shapes: N training images, M test images, D feature width, C classes.
"""

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dinov2_jax.eval import reference_settings
from dinov2_jax.eval.classification import accuracy, nearest


@functools.partial(jax.jit, static_argnames=("ks", "num_classes"))
def votes(
    similarities: jax.Array,
    labels: jax.Array,
    *,
    ks: tuple[int, ...],
    temperature: float,
    num_classes: int,
) -> jax.Array:
    """Sum the neighbours' weights of each class.

    Args:
      similarities: Cosine similarities of the neighbours, highest first, [M, max(ks)].
      labels: Their labels, int [M, max(ks)].
      ks: Numbers of neighbours that vote.
      temperature: Temperature of the softmax over the similarities.
      num_classes: Number of classes C.

    Returns:
      [len(ks), M, C]; it sums to 1 over the classes only for the largest k.
    """
    weights = jax.nn.softmax(similarities / temperature, axis=-1)
    rows = jnp.arange(len(weights))[:, None]
    nothing = jnp.zeros((len(weights), num_classes))
    return jnp.stack([nothing.at[rows, labels[:, :k]].add(weights[:, :k]) for k in ks])


def classify(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    *,
    ks: Sequence[int] = reference_settings.KNN_KS,
    temperature: float = reference_settings.KNN_TEMPERATURE,
    num_classes: int,
    mesh: Mesh | None = None,
) -> Iterator[tuple[slice, jax.Array]]:
    """Classify blocks of test images.

    Args:
      train_features: Training features, [N, D], of any scale.
      train_labels: Training labels, int [N] in [0, num_classes).
      test_features: Test features, [M, D].
      ks: Numbers of neighbours that vote; a k above N is taken as N.
      temperature: Temperature of the softmax over cosine similarities.
      num_classes: Number of classes C.
      mesh: Devices that share the training features; None takes this process's.

    Yields:
      The place of a block among the test images, and its votes, [len(ks), block, C].
    """
    labels = np.asarray(train_labels)
    bank = nearest.Bank(train_features, mesh)
    ks = tuple(min(k, len(bank)) for k in ks)
    for place, similarities, neighbours in bank.search(test_features, max(ks)):
        yield (
            place,
            votes(
                similarities,
                labels[neighbours],
                ks=ks,
                temperature=temperature,
                num_classes=num_classes,
            ),
        )


def knn_accuracy(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    ks: Sequence[int] = reference_settings.KNN_KS,
    temperature: float = reference_settings.KNN_TEMPERATURE,
    num_classes: int,
    tops: Sequence[int] = (1, 5),
    mesh: Mesh | None = None,
) -> dict[tuple[int, int], float]:
    """Compute accuracies of the weighted k-NN classifier.

    Args:
      train_features: Training features, [N, D], of any scale.
      train_labels: Training labels, int [N] in [0, num_classes).
      test_features: Test features, [M, D].
      test_labels: Test labels, int [M].
      ks: Numbers of neighbours that vote; a k above N is taken as N.
      temperature: Temperature of the softmax over cosine similarities.
      num_classes: Number of classes C.
      tops: Numbers of classes that must include the label.
      mesh: Devices that share the training features; None takes this process's.

    Returns:
      {(k, top): accuracy in [0, 1]}, averaged over the test images.

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
    ks = tuple(dict.fromkeys(ks))
    correct = dict.fromkeys([(k, top) for k in ks for top in tops], 0)
    blocks = classify(
        train_features,
        train_labels,
        test_features,
        ks=ks,
        temperature=temperature,
        num_classes=num_classes,
        mesh=mesh,
    )
    for place, block in blocks:
        for k, scores in zip(ks, block):
            for top in tops:
                best = accuracy.predictions(scores, k=top)
                correct[k, top] += int(accuracy.hits(best, test_labels[place]).sum())
    return {key: count / len(test_labels) for key, count in correct.items()}


def knn_top1(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    ks: Sequence[int] = (10, 20),
    temperature: float = reference_settings.KNN_TEMPERATURE,
    num_classes: int,
) -> dict[int, float]:
    """Compute top-1 accuracies, {k: accuracy}, with the arguments of `knn_accuracy`."""
    accuracies = knn_accuracy(
        train_features,
        train_labels,
        test_features,
        test_labels,
        ks=ks,
        temperature=temperature,
        num_classes=num_classes,
        tops=(1,),
    )
    return {k: accuracies[k, 1] for k in ks}


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

"""Predictions of heads of any kind for single images."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from dinov2_jax import pretrained
from dinov2_jax.eval.dense import dense_features, dense_pictures
from dinov2_jax.eval.depth import depth_model
from dinov2_jax.eval.heads import head_files
from dinov2_jax.eval.segmentation import segmentation_inference

_MAX_16 = 2**16 - 1
_OTHER_FILES = ("results", "predictions")  # written beside those of images


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a head says about an image.

    Attributes:
      summary: What goes into the JSON file.
      picture: The bytes of a PNG: the image, and the map beside it if there is one.
      map: The map as an image of numbers, or None.
    """

    summary: dict[str, Any]
    picture: bytes
    map: Image.Image | None = None


Predictor = Callable[[np.ndarray], Prediction]


def make_predictor(
    model: pretrained.Model,
    head: head_files.Head,
    names: Sequence[str],
    *,
    top: int = 5,
    short: int = 512,
    ratios: tuple[float, ...] = (1.0,),
    flip: bool = False,
) -> Predictor:
    """Return the function from an image, uint8 [H, W, 3], to its prediction.

    Args:
      model: The backbone.
      head: The head.
      names: Names of the classes.
      top: Number of classes that a summary has.
      short: Short side at which maps of classes are computed, px.
      ratios: Scales of the views whose probabilities are averaged.
      flip: Whether to average with the mirrored image.
    """
    if head.spec.kind == "classification":
        return _classifier(model, head, names, top)
    if head.spec.kind != "segmentation":
        return _depth_estimator(depth_model.DepthEstimator(model, head, flip=flip))
    settings = segmentation_inference.Inference(
        short=short,
        long=None,
        window=short,
        stride=max(short * 2 // 3, 1),
        ratios=ratios,
        flip=flip,
    )
    segmenter = segmentation_inference.Segmenter(model, head, settings)
    return _segmenter(segmenter, names, top)


def _classifier(model, head, names, top):
    module, layers = model.module, head.spec.layers
    blocks = dense_features.last_blocks(module.config.depth, layers)

    @jax.jit
    def probabilities(weights, images):
        backbone, params = weights
        taps = dense_features.dense_features(
            module, backbone, images, blocks=blocks, norm=True
        )
        mean = taps[-1][0].mean(axis=(1, 2))
        x = jnp.concatenate([*(cls for _, cls in taps), mean], axis=-1)
        x = jnp.matmul(x, params["weight"].T, precision=jax.lax.Precision.HIGHEST)
        return jax.nn.softmax(x + params["bias"])

    def predict(image):
        x = model.preprocess(image)
        found = np.asarray(probabilities((model.params, head.params), x))[0]
        order = np.argsort(-found, kind="stable")[:top]
        classes = [
            {"class": int(i), "name": names[i], "probability": float(found[i])}
            for i in order
        ]
        return Prediction({"classes": classes}, dense_pictures.row([image]))

    return predict


def _segmenter(segmenter, names, top):
    def predict(image):
        labels = segmenter(image)
        shares = np.bincount(labels.ravel(), minlength=len(names)) / labels.size
        order = np.argsort(-shares, kind="stable")[:top]
        classes = [
            {"class": int(i), "name": names[i], "share": float(shares[i])}
            for i in order
            if shares[i] > 0
        ]
        drawn = dense_pictures.colored_labels(labels, len(names))
        return Prediction(
            {"classes": classes},
            dense_pictures.row([image, drawn]),
            dense_pictures.palette_image(labels, len(names)),
        )

    return predict


def _depth_estimator(estimator):
    def predict(image):
        depth = estimator(image)
        low, middle, high = np.percentile(depth, (2, 50, 98)).tolist()
        unit = 1000 if depth.max() * 1000 <= _MAX_16 else 100
        values = np.round(np.minimum(depth * unit, _MAX_16)).astype(np.uint16)
        summary = {
            "values_of_a_metre": unit,
            "min": float(depth.min()),
            "median": middle,
            "max": float(depth.max()),
        }
        drawn = dense_pictures.colored_depth(depth, low, max(high, low + 1e-6))
        picture = dense_pictures.row([image, drawn])
        return Prediction(summary, picture, Image.fromarray(values))

    return predict


def unique_names(
    paths: Sequence[pathlib.Path],
) -> Iterator[tuple[str, pathlib.Path]]:
    """Yield a name without suffix for each path; taken ones get a number."""
    taken, counts = set(_OTHER_FILES), {}
    for path in paths:
        name = path.stem
        while name in taken:
            counts[path.stem] = counts.get(path.stem, 1) + 1
            name = f"{path.stem}_{counts[path.stem]}"
        taken.add(name)
        yield name, path


def one_line(entry: Mapping[str, Any]) -> str:
    """Return a summary as a line of text."""
    if "median" in entry:
        return (
            f"{entry['min']:.2f} to {entry['max']:.2f} m, median {entry['median']:.2f}"
        )
    parts = []
    for found in entry["classes"]:
        share = found.get("probability", found.get("share"))
        parts.append(f"{found['name']} {100 * share:.1f} %")
    return ", ".join(parts)

"""Evaluation inside the training loop: k-NN with its baselines, and a PCA picture."""

import concurrent.futures
import contextlib
import functools
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dinov2_jax import errors, feature_extractor, sharding, ssl_meta_arch
from dinov2_jax.data import preprocessing
from dinov2_jax.data.decode import image_decoder
from dinov2_jax.data.sources import base, photos, registry
from dinov2_jax.eval import random_init
from dinov2_jax.eval.classification import knn
from dinov2_jax.visualize import pca

NUM_PICTURES = 4
BASELINE_SIZE = 64  # px; larger images are shrunk for the pixel baselines


class Evaluator:
    """k-NN classification by class tokens between two labelled sources.

    Args:
      meta_arch: Student, teacher and losses; gives the backbone and the normalisation.
      mesh: Mesh over which batches are sharded.
      bank: Labelled source whose features are searched.
      queries: Labelled source that is classified; it has the bank's classes.
      pictures: Images for the PCA picture, uint8 [n, P, P, C], C 1 or 3; None for no
        picture.
      resize_size: Short side before the central crop, px.
      image_size: Side of the crop, px.
      batch_size: Images per forward pass, rounded up to a multiple of the devices.
      max_images: Maximum number of images of each source, evenly spaced; 0 for all.
      ks: Numbers of neighbours that vote; `knn/top1` reports the first.
      temperature: Temperature of the votes.
    """

    def __init__(
        self,
        meta_arch: ssl_meta_arch.SSLMetaArch,
        mesh: Mesh,
        *,
        bank: base.Source,
        queries: base.Source,
        pictures: np.ndarray | None,
        resize_size: int,
        image_size: int,
        batch_size: int,
        max_images: int,
        ks: tuple[int, ...],
        temperature: float,
    ):
        student = meta_arch.student
        backbone, self._pictures = student.backbone, pictures
        self._in_chans = backbone.config.in_chans
        extractor = functools.partial(
            feature_extractor.FeatureExtractor,
            backbone,
            mean=student.mean,
            std=student.std,
            mesh=mesh,
        )
        self._class_tokens, self._patches = (
            extractor(kind="cls"),
            extractor(kind="patches"),
        )
        self._bank, self._queries = bank, queries
        self._resize_size, self._image_size = resize_size, image_size
        self._batch_size = -(-batch_size // mesh.size) * mesh.size
        self._max_images, self._ks, self._temperature = max_images, ks, temperature
        self._baselines: dict[str, float] | None = None
        self._left_out: set[str] = set()  # errors already logged
        self._random_init = jax.jit(
            lambda key: random_init.fair_random_params(backbone, key),
            out_shardings=sharding.replicated(mesh),
        )

    def evaluate(self, params: Any, seed: int) -> dict[str, float]:
        """Measure the accuracies in [0, 1] of a backbone and of the baselines.

        Args:
          params: The backbone's parameters.
          seed: Seed of the random initialisation.

        Returns:
          `knn/top1` (first k) and `knn/top1_k<k>`, then `knn/top1_random_init` (the
          same ViT, see `eval.random_init`), `knn/top1_pixels`,
          `knn/top1_pixels_mean_removed` and, for RGB images,
          `knn/top1_color_histogram`.
        """
        if self._baselines is None:
            self._baselines = self._measure_baselines(seed)
        accuracy = self._accuracy(lambda batch: self._features(params, batch))
        metrics = {f"knn/top1_k{k}": value for k, value in accuracy.items()}
        return {"knn/top1": accuracy[self._ks[0]]} | metrics | self._baselines

    def _measure_baselines(self, seed: int) -> dict[str, float]:
        def shrunk(extract):
            size = min(self._image_size, BASELINE_SIZE)
            return lambda batch: extract(
                np.stack([preprocessing.resize_and_crop(x, size, size) for x in batch])
            )

        params = self._random_init(jax.random.key(seed))
        features = {
            "random_init": lambda batch: self._features(params, batch),
            "pixels": shrunk(knn.pixel_features),
            "pixels_mean_removed": shrunk(knn.mean_removed_pixel_features),
        }
        if self._in_chans == 3:
            features["color_histogram"] = knn.color_histogram_features
        first = self._ks[0]
        return {
            f"knn/top1_{name}": self._accuracy(extract)[first]
            for name, extract in features.items()
        }

    def picture(self, params: Any, seed: int, path: pathlib.Path) -> None:
        """Write the pictures, if any, beside the PCA of their patch features.

        Args:
          params: The backbone's parameters.
          seed: Seed of the random initialisation that is shown beside it.
          path: The PNG file to write.
        """
        if self._pictures is None:
            return
        random_init = self._random_init(jax.random.key(seed))
        columns = {
            "trained": self._patches(params, self._pictures),
            "random initialisation": self._patches(random_init, self._pictures),
        }
        if jax.process_index() == 0:
            rgb = np.broadcast_to(self._pictures, (*self._pictures.shape[:3], 3))
            pca.pca_picture(rgb, columns, path)

    def _accuracy(self, extract: Any) -> dict[int, float]:
        sets = []
        for source in (self._bank, self._queries):
            features, labels = [], []
            for batch, batch_labels in self._batches(source):
                features.append(np.asarray(extract(batch)))
                labels.append(batch_labels)
            sets += [np.concatenate(features), np.concatenate(labels)]
        return knn.knn_top1(
            *sets,
            ks=self._ks,
            temperature=self._temperature,
            num_classes=len(self._bank.label_names),
        )

    def _features(self, params: Any, batch: np.ndarray) -> np.ndarray:
        """Compute class tokens [n, D] of uint8 [n, S, S, C] on all devices."""
        count = len(batch)
        padded = np.zeros((self._batch_size, *batch.shape[1:]), np.uint8)
        padded[:count] = batch  # so that the last batch needs no compilation
        return self._class_tokens(params, padded)[:count]

    def _batches(self, source) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield uint8 [n, S, S, C] and int labels [n], without unreadable images."""
        count = len(source)
        if self._max_images and count > self._max_images:
            chosen = np.linspace(0, count - 1, self._max_images).astype(int)
        else:
            chosen = np.arange(count)

        def read(index):
            try:
                image = source.open(int(index)).pixels()
            except image_decoder.BadImage as error:
                if str(error) not in self._left_out:
                    self._left_out.add(str(error))
                    logging.warning("evaluation leaves out %s", error)
                return None
            return preprocessing.resize_and_crop(
                image, self._resize_size, self._image_size
            )

        with concurrent.futures.ThreadPoolExecutor() as pool:
            for start in range(0, len(chosen), self._batch_size):
                indices = chosen[start : start + self._batch_size]
                pairs = zip(pool.map(read, indices), source.labels[indices])
                good = [(image, label) for image, label in pairs if image is not None]
                if good:
                    yield np.stack([g[0] for g in good]), np.array([g[1] for g in good])


def _some(source: base.Source) -> list[np.ndarray]:
    """Read up to `NUM_PICTURES` evenly spaced images, skipping unreadable ones."""
    found = []
    for index in np.linspace(0, len(source) - 1, NUM_PICTURES).astype(int):
        with contextlib.suppress(image_decoder.BadImage):
            found.append(source.open(int(index)).pixels())
    return found


def _doubts(bank: base.Source, queries: base.Source) -> Iterator[str]:
    """Yield what makes the accuracy between two labelled sources meaningless."""
    if bank.fingerprint == queries.fingerprint:
        yield (
            "evaluation.train_path and evaluation.val_path are the same images: each "
            "is its own nearest neighbour, so k-NN is near 100 % whatever the model; "
            "set --config.evaluation.val_path to other images"
        )
    if len(bank.label_names) == 1:
        yield (
            f"evaluation.train_path has one class ({bank.label_names[0]}): k-NN is "
            "100 % whatever the model; set --config.evaluation.train_path to a folder "
            "with a sub-folder for each class"
        )


def make_evaluator(
    config: Any, meta_arch: ssl_meta_arch.SSLMetaArch, mesh: Mesh
) -> Evaluator | None:
    """Return the evaluator that `config.evaluation` describes, None if nothing is set.

    It draws pictures only of images with 1 or 3 channels.

    Raises:
      UserError: A folder is missing, has no labels, or the labels do not match.
    """
    c, channels = config.evaluation, config.model.in_chans
    pictures = []
    if c.train_path:
        bank, queries = (
            registry.open_path(
                c[name], image_decoder.make_decoder(config), field=f"evaluation.{name}"
            )
            for name in ("train_path", "val_path")
        )
        for source, path in ((bank, c.train_path), (queries, c.val_path)):
            if source.labels is None:
                raise errors.UserError(
                    f"{path} has no sub-folders to serve as labels: k-NN needs one "
                    "sub-folder a class, or leave evaluation.train_path and val_path "
                    "empty"
                )
        if list(bank.label_names) != list(queries.label_names):
            differing = set(bank.label_names) ^ set(queries.label_names)
            raise errors.UserError(
                f"the sub-folders of {c.train_path} and {c.val_path} differ "
                f"({', '.join(sorted(differing)[:5])}): both need the same classes"
            )
        for doubt in _doubts(bank, queries):
            logging.warning("%s", doubt)
        if channels in (1, 3):
            pictures = _some(queries)
    elif config.data.source == "photos" and c.photos_split != "none":
        bank = photos.PhotosSource("bank", channels=channels)
        queries = photos.PhotosSource(c.photos_split, channels=channels)
        pictures = photos.load_unseen()
        if channels == 1:
            pictures = [photos.luma(picture) for picture in pictures]
    else:
        return None
    size = c.picture_size
    pictures = [preprocessing.resize_and_crop(p, size, size) for p in pictures]
    return Evaluator(
        meta_arch,
        mesh,
        bank=bank,
        queries=queries,
        pictures=np.stack(pictures) if pictures else None,
        resize_size=c.resize_size,
        image_size=c.image_size,
        batch_size=c.batch_size,
        max_images=c.max_images,
        ks=tuple(c.knn_k),
        temperature=c.knn_temperature,
    )

"""Evaluation inside the training loop, with baselines, and a PCA picture."""

import concurrent.futures
import functools
import logging
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dinov2_jax import feature_extractor, sharding, ssl_meta_arch
from dinov2_jax.data import preprocessing
from dinov2_jax.data.decode import image_decoder
from dinov2_jax.data.sources import base
from dinov2_jax.eval import evaluation_data, in_loop, random_init
from dinov2_jax.eval.classification import knn
from dinov2_jax.visualize import pca

BASELINE_SIZE = 64  # px; larger images are shrunk for the pixel baselines


class Evaluator:
    """The evaluations of `in_loop`, on labelled sources and on images without labels.

    Args:
      meta_arch: Student, teacher and losses; gives the backbone and the normalisation.
      mesh: Mesh over which batches are sharded.
      tasks: Names of the evaluations.
      data: The images.
      resize_size: Short side before the central crop, px.
      image_size: Side of the crop, px.
      batch_size: Images per forward pass, rounded up to a multiple of the devices.
      max_images: Maximum number of images of each source, evenly spaced; 0 for all.
      settings: Settings of the evaluations.
      others: Evaluators of the same at other sizes; only their first metrics count.

    Attributes:
      tasks: Names of the evaluations.
    """

    def __init__(
        self,
        meta_arch: ssl_meta_arch.SSLMetaArch,
        mesh: Mesh,
        *,
        tasks: Sequence[str],
        data: evaluation_data.Data,
        resize_size: int,
        image_size: int,
        batch_size: int,
        max_images: int,
        settings: in_loop.Settings,
        others: Sequence["Evaluator"] = (),
    ):
        self._others = others
        student = meta_arch.student
        backbone, self._pictures = student.backbone, data.pictures
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
        self.tasks, self._settings = tuple(tasks), settings
        self._data = data
        self._resize_size, self._image_size = resize_size, image_size
        self._batch_size = -(-batch_size // mesh.size) * mesh.size
        self._max_images = max_images
        self._baselines: dict[str, float] | None = None
        self._left_out: set[str] = set()  # errors already logged
        self._random_init = jax.jit(
            lambda key: random_init.fair_random_params(backbone, key),
            out_shardings=sharding.replicated(mesh),
        )

    def identities(self) -> tuple[str, str]:
        """Return those of the images that are measured, see `evaluation_data.Data`."""
        return self._data.identities()

    def evaluate(self, params: Any, seed: int) -> dict[str, float]:
        """Measure a backbone and the baselines.

        Args:
          params: The backbone's parameters.
          seed: Seed of the random initialisation.

        Returns:
          The metrics of each task, see `in_loop`; then, for the first metric of each,
          that of the same ViT untrained (`knn/top1_random_init`, see
          `eval.random_init`), and of k-NN `knn/top1_pixels`,
          `knn/top1_pixels_mean_removed` and, for RGB images,
          `knn/top1_color_histogram`; and at other sizes `knn/top1_at_224`.
        """
        if self._baselines is None:
            self._baselines = self._measure_baselines(seed)
        metrics = {}
        for found in self._measure(params).values():
            metrics |= found
        for other in self._others:
            for found in other._measure(params).values():
                first = next(iter(found))
                metrics[f"{first}_at_{other._image_size}"] = found[first]
        return metrics | self._baselines

    def _measure(self, params: Any) -> dict[str, dict[str, float]]:
        """Return the metrics of a backbone by task."""
        found, labelled = {}, None
        for name in self.tasks:
            if name in in_loop.DENSE:
                found[name] = in_loop.DENSE[name](
                    self._data.images,
                    lambda crops: (
                        self._patches(params, crops),
                        self._class_tokens(params, crops),
                    ),
                    self._settings,
                )
                continue
            if labelled is None:
                labelled = self._labelled(lambda batch: self._features(params, batch))
            found[name] = in_loop.LABELLED[name](labelled, self._settings)
        return found

    def _measure_baselines(self, seed: int) -> dict[str, float]:
        def shrunk(extract):
            size = min(self._image_size, BASELINE_SIZE)
            return lambda batch: extract(
                np.stack([preprocessing.resize_and_crop(x, size, size) for x in batch])
            )

        metrics = {}
        measured = self._measure(self._random_init(jax.random.key(seed)))
        for name, found in measured.items():
            first = in_loop.FIRST[name]
            metrics[f"{first}_random_init"] = found[first]
        if "knn" not in self.tasks:
            return metrics
        features = {
            "pixels": shrunk(knn.pixel_features),
            "pixels_mean_removed": shrunk(knn.mean_removed_pixel_features),
        }
        if self._in_chans == 3:
            features["color_histogram"] = knn.color_histogram_features
        for name, extract in features.items():
            found = in_loop.measure_knn(self._labelled(extract), self._settings)
            metrics[f"knn/top1_{name}"] = found["knn/top1"]
        return metrics

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

    def _labelled(self, extract: Any) -> in_loop.Labelled:
        """Return the features of both sources that a function of a batch gives.

        Raises:
          UserError: No image of one can be read.
        """
        sets = []
        for name, source in (
            ("evaluation.train_path", self._data.bank),
            ("evaluation.val_path", self._data.queries),
        ):
            features, labels = [], []
            for batch, batch_labels in self._batches(source):
                features.append(np.asarray(extract(batch)))
                labels.append(batch_labels)
            if not features:
                count = len(self._chosen(source))
                raise evaluation_data.unreadable(name, count)
            sets += [np.concatenate(features), np.concatenate(labels)]
        return in_loop.Labelled(*sets, num_classes=len(self._data.bank.label_names))

    def _features(self, params: Any, batch: np.ndarray) -> np.ndarray:
        """Compute class tokens [n, D] of uint8 [n, S, S, C] on all devices."""
        count = len(batch)
        padded = np.zeros((self._batch_size, *batch.shape[1:]), np.uint8)
        padded[:count] = batch  # so that the last batch needs no compilation
        return self._class_tokens(params, padded)[:count]

    def _chosen(self, source) -> np.ndarray:
        return evaluation_data.chosen_indices(len(source), self._max_images)

    def _batches(self, source) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield uint8 [n, S, S, C] and int labels [n], without unreadable images."""
        chosen = self._chosen(source)

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


def make_evaluator(
    config: Any,
    meta_arch: ssl_meta_arch.SSLMetaArch,
    mesh: Mesh,
    training: base.Source | None = None,
) -> Evaluator | None:
    """Return the evaluator that `config.evaluation` describes, None if nothing is set.

    It draws pictures only of images with 1 or 3 channels.

    Args:
      config: The config of the run.
      meta_arch: Student, teacher and losses.
      mesh: The mesh.
      training: Source of the training images, see `evaluation_data.open_data`.

    Raises:
      UserError: A folder is missing, has no labels, or the labels do not match.
    """
    data = evaluation_data.open_data(config, training)
    if data is None:
        return None
    c = config.evaluation
    tasks = [t for t in c.tasks if t in in_loop.DENSE or data.bank is not None]

    def at(size, **others):
        return Evaluator(
            meta_arch,
            mesh,
            tasks=tasks,
            data=data,
            resize_size=round(c.resize_size * size / c.image_size),
            image_size=size,
            batch_size=c.batch_size,
            max_images=c.max_images,
            settings=in_loop.Settings(
                ks=tuple(c.knn_k), temperature=c.knn_temperature, size=size
            ),
            **others,
        )

    return at(c.image_size, others=[at(size) for size in c.other_sizes])

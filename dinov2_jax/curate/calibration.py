"""The threshold of similarity that suits a model and images, from planted duplicates.

Some images are changed in ways that leave them duplicates, and embedded. The share that
a threshold finds is its recall. Its price is the share of these images that have any
neighbour above it among all images, planted ones and those that hashes find aside.
Rates of random pairs would mislead: 1e5 images have 5e9 pairs.

Shapes: n images, C changes, K neighbours, D width.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dinov2_jax import errors
from dinov2_jax.curate import changes, hashes, image_files
from dinov2_jax.curate import features as features_lib
from dinov2_jax.data.decode import image_decoder
from dinov2_jax.eval.classification import nearest

PRICE = 0.01  # most that a proposed threshold costs
_NEIGHBOURS = 32
_HIGHEST = 0.9999
_BANK_ROWS = 2**17
_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Embedder:
    """How features are computed, in two parts, so that few large images are in memory.

    Attributes:
      prepare: Function of an image, uint8 [H, W, 3], that returns what the model takes.
      embed: From an iterator over prepared images and their greatest number to float32
        [n, D], in the same order.
    """

    prepare: Callable[[np.ndarray], np.ndarray]
    embed: Callable[[Iterator[np.ndarray], int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What thresholds find and cost.

    Attributes:
      changes: Names of the changes, C of them.
      similarity: Similarity of each image to each changed form, float32 [n, C].
      by_hash: Whether the hashes of the two are near, bool [n, C].
      strangers: Highest similarity of each image to an image that was not planted and
        that its hash does not find, float32 [n].
      pairs: (name, name, similarity) of those, the highest similarity first.
      size: Number of all images.
    """

    changes: list[str]
    similarity: np.ndarray
    by_hash: np.ndarray
    strangers: np.ndarray
    pairs: list[tuple[str, str, float]]
    size: int

    def price(self, threshold: float) -> float:
        """Return the share of images that have a stranger above the threshold."""
        return float(np.mean(self.strangers > np.float32(threshold)))

    def proposal(self) -> float:
        """Return the lowest threshold of four digits whose price is at most `PRICE`.

        It is 0.9999 at most, whose price may be higher; see `excess`.
        """
        allowed = int(PRICE * len(self.strangers))
        highest = np.sort(self.strangers)[::-1][allowed]
        threshold = max(np.ceil(float(highest) * 1e4) / 1e4, 1e-4)
        return float(min(threshold, _HIGHEST))

    def excess(self, threshold: float) -> str:
        """Return a warning if a proposal costs more than `PRICE`, otherwise ""."""
        price = self.price(threshold)
        if price <= PRICE:
            return ""
        return (
            f", the highest one; still {price:.1%} of the images have another above "
            f"it, more than {PRICE:.0%}: look at the pairs, which may be copies that "
            "hashes do not find, or images that these features cannot tell apart"
        )

    def recalls(self, threshold: float) -> list[tuple[str, float, float, float]]:
        """Return (change, share found by features, by hashes, by either)."""
        by_features = self.similarity > np.float32(threshold)
        either = by_features | self.by_hash
        columns = (x.mean(axis=0).tolist() for x in (by_features, self.by_hash, either))
        return list(zip(self.changes, *columns))

    def describe(self, threshold: float) -> str:
        """Return the table for people."""
        price, most = self.price(threshold), _SHOWN
        lines = [
            f"{len(self.strangers)} of {self.size:,} images, threshold {threshold:g}: "
            f"{price:.1%} have another image above it",
            f"{'found after':18} features  hashes  either",
        ]
        for name, *shares in self.recalls(threshold):
            lines.append(
                f"{name:18} {shares[0]:8.1%} {shares[1]:7.1%} {shares[2]:7.1%}"
            )
        lines.append(
            "most similar images that are not planted (look at them: if they show the "
            "same, a lower threshold is as good):"
        )
        for first, second, similarity in self.pairs[:most]:
            lines.append(f"  {similarity:.4f}  {first}  {second}")
        return "\n".join(lines)


def calibrate(
    features: features_lib.Features,
    images: image_files.ImageFiles,
    embedder: Embedder,
    *,
    count: int,
    bits: int,
    seed: int,
) -> Calibration:
    """Plant duplicates of some images and compare.

    Args:
      features: Features of all images.
      images: The images.
      embedder: How `features` were computed.
      count: Number of images to change, n.
      bits: Most bits by which hashes of the same image differ.
      seed: Seed of the choice and of random changes.

    Raises:
      UserError: None of the chosen images can be read.
    """
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(len(features), min(count, len(features)), False))
    names = list(changes.CHANGES)
    used: list[int] = []
    planted: list[np.ndarray] = []
    own: list[np.ndarray] = []

    def change(row: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """Return hashes of an image and of its changed forms, and those prepared."""
        pixels = np.asarray(images.open(row).pixels())
        found, prepared = [], []
        for at, name in enumerate(names):
            try:
                changed = changes.apply(name, pixels, seed=(seed, row, at))
            except OSError as error:  # a side of more than 65,535 px is no JPEG
                raise image_decoder.BadImage(
                    str(features.names[row]), str(error)
                ) from error
            found.append(hashes.image_hashes(changed))
            prepared.append(embedder.prepare(changed))
        return hashes.image_hashes(pixels), np.stack(found), prepared

    readable = image_files.Readable(change, chosen, what="calibrating")

    def changed_images() -> Iterator[np.ndarray]:
        for row, (hashed, hashed_changes, prepared) in readable:
            used.append(row)
            own.append(hashed)
            planted.append(hashed_changes)
            yield from prepared

    embedded = embedder.embed(changed_images(), len(chosen) * len(names))
    readable.warn(without="no part in the calibration")
    originals = features_lib.unit(features.take(np.array(used)))
    embedded = features_lib.unit(embedded).reshape(len(used), len(names), -1)
    similarity = np.einsum("nd,ncd->nc", originals, embedded)
    by_hash = hashes.distance(np.stack(own)[:, None], np.stack(planted)) <= bits
    strangers, partners = _strangers(features, images, used, originals, own, bits)
    order = np.argsort(-strangers, kind="stable")
    pairs = [
        (
            str(features.names[used[at]]),
            str(features.names[partners[at]]),
            float(strangers[at]),
        )
        for at in order
    ]
    return Calibration(names, similarity, by_hash, strangers, pairs, len(features))


def _strangers(
    features: features_lib.Features,
    images: image_files.ImageFiles,
    used: list[int],
    originals: np.ndarray,
    own: list[np.ndarray],
    bits: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the highest similarity of each image to a stranger, and the stranger.

    If all neighbours are duplicates by their hashes, the least similar one is taken.
    """
    values, places = _neighbours(features, originals)
    known: dict[int, np.ndarray | None] = dict(zip(used, own))

    def hash_of(row: int) -> np.ndarray | None:
        if row not in known:
            try:
                known[row] = images.hashes_and_size(row)[0]
            except image_decoder.BadImage:
                known[row] = None
        return known[row]

    strangers = np.full(len(used), -1.0, np.float32)
    partners = np.array(used)
    for at, row in enumerate(used):
        for value, place in zip(values[at], places[at].tolist()):
            if place == row or place < 0:
                continue
            strangers[at], partners[at] = value, place
            other = hash_of(place)
            if other is None or hashes.distance(own[at], other) > bits:
                break
    return strangers, partners


def _neighbours(
    features: features_lib.Features, queries: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest of all images, the queries among them: [n, K] each."""
    most = min(_NEIGHBOURS + 1, len(features))
    values = np.full((len(queries), most), -np.inf, np.float32)
    places = np.full((len(queries), most), -1, np.int64)
    for start, rows in features.blocks(_BANK_ROWS):
        bank = nearest.Bank(rows)
        for part, found, indices in bank.search(queries, min(most, len(rows))):
            both = np.concatenate([values[part], found], axis=1)
            where = np.concatenate([places[part], indices + start], axis=1)
            order = np.argsort(-both, axis=1, kind="stable")[:, :most]
            values[part] = np.take_along_axis(both, order, axis=1)
            places[part] = np.take_along_axis(where, order, axis=1)
    return values, places


def make_embedder(
    features: features_lib.Features, model: str, flags: dict[str, Any]
) -> Embedder:
    """Return how the features were computed.

    Args:
      features: The features.
      model: The model, as `dinov2_jax.load` takes it; for features of
        `curate describe`, SSCD's weights.
      flags: Further arguments of `load`.

    Raises:
      UserError: It is another model, or the features do not say how they were made.
    """
    from dinov2_jax import pretrained
    from dinov2_jax.curate import sscd, sscd_preprocessing, sscd_weights
    from dinov2_jax.data import preprocessing
    from dinov2_jax.embed import extraction

    settings = features.description.get("settings")
    if not settings or "preprocessing" not in settings:
        raise errors.UserError(
            f"{features.files[0]} does not say how it was made, in the .json file "
            "beside it: --calibrate needs features of dinov2-jax embed; otherwise give "
            "a --threshold"
        )
    of_sscd = settings.get("features") == sscd.KIND
    loaded = None if of_sscd else pretrained.load(model, **flags)
    params = loaded.params if loaded else sscd_weights.read(model)
    digest = f"sha256 {extraction.digest(params)}"
    if digest != settings["weights"]:
        raise errors.UserError(
            f"{features.files[0]} was made with other weights than --model={model} "
            f"({settings['weights'][:19]} and {digest[:19]}): name the model it was "
            "made with"
        )
    if loaded is None:
        resize = sscd_preprocessing.Preprocessing(**settings["preprocessing"])
        return Embedder(
            resize,
            lambda prepared, most: sscd.Describer(params, resize, most=most).describe(
                prepared
            ),
        )
    prepare = preprocessing.Preprocessing(
        **{
            name: tuple(value) if isinstance(value, list) else value
            for name, value in settings["preprocessing"].items()
        }
    )

    def embed(prepared: Iterator[np.ndarray], most: int) -> np.ndarray:
        extractor = extraction.Extractor(
            loaded.module,
            loaded.params,
            kind=settings["features"],
            prepare=prepare,
            dtype=settings["dtype"],
            out_dtype="float32",
            batch_size=None,
            most=most,
        )
        size, found, slot = prepare.crop_size, [], 0
        shape = extractor.batch_size, size, size, 3
        batch = np.zeros(shape, np.uint8)
        for picture in prepared:
            batch[slot] = picture
            slot += 1
            if slot == len(batch):
                found.append(extractor.fetch(extractor(batch)))
                batch, slot = np.zeros(shape, np.uint8), 0
        if slot:
            found.append(extractor.fetch(extractor(batch))[:slot])
        if not found:
            return np.empty((0, features.dim), np.float32)
        return np.concatenate(found)

    return Embedder(
        lambda picture: preprocessing.resize_and_crop(
            picture, prepare.resize_size, prepare.crop_size
        ),
        embed,
    )

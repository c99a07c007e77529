"""Randomly cropped training batches for linear probes.

Mirrors the reference's classification transform for training: a random-resized crop of
8 % to 100 % of the area, bicubic, and a flip. The batch of a step is a function of the
seed and the step, whatever the number of threads, restarts or devices.
"""

import collections
import concurrent.futures
from collections.abc import Callable, Generator
from typing import Any

import numpy as np

from dinov2_jax import errors
from dinov2_jax.augment import crop_boxes, resize
from dinov2_jax.data.decode import image_decoder

SCALE = (0.08, 1.0)
FLIP = 0.5
Cut = Callable[[image_decoder.OpenedImage, np.random.Generator, int], np.ndarray]
_BATCHES_AHEAD = 2
_MOST_UNREADABLE = 100  # images in a row


def random_crop(
    image: image_decoder.OpenedImage, rng: np.random.Generator, size: int
) -> np.ndarray:
    """Cut a random crop, resize it and flip it at random.

    Args:
      image: The image, as its source opened it.
      rng: The only source of randomness.
      size: Side of the crop after resizing, px.

    Returns:
      uint8 [size, size, C].
    """
    box = crop_boxes.random_crop_box(
        rng, width=image.width, height=image.height, scale=SCALE
    )
    crop = resize.crop_and_resize(image.pixels(), box, size)
    return crop[:, ::-1] if rng.random() < FLIP else crop


class TrainOrder:
    """The images of every step: all in random order, again and again.

    Args:
      count: Number of images.
      batch_size: Images in a step.
      seed: Seed of the orders.
    """

    def __init__(self, count: int, batch_size: int, seed: int):
        self._count, self._batch_size, self._seed = count, batch_size, seed
        self._orders: dict[int, np.ndarray] = {}

    def __call__(self, step: int) -> list[tuple[int, int]]:
        """Return (pass, image) of each image of a step."""
        first = step * self._batch_size
        places = range(first, first + self._batch_size)
        return [self._at(*divmod(place, self._count)) for place in places]

    def _at(self, number: int, place: int) -> tuple[int, int]:
        if number not in self._orders:
            rng = np.random.default_rng((self._seed, number))
            # Steps come in order, so older passes are not asked for again.
            self._orders = {n: o for n, o in self._orders.items() if n == number - 1}
            self._orders[number] = rng.permutation(self._count)
        return number, int(self._orders[number][place])


def batches(
    source: Any,
    order: TrainOrder,
    *,
    size: int,
    seed: int,
    start: int,
    stop: int,
    workers: int,
    cut: Cut = random_crop,
) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
    """Yield the batches of steps, decoded ahead by threads.

    In place of an image that cannot be read, the next one is shown.

    Args:
      source: Labelled images.
      order: The images of every step.
      size: Side of the crops, px.
      seed: Seed of the crops.
      start: The first step.
      stop: The step after the last one.
      workers: Number of threads.
      cut: Function that makes an image of that size, as `random_crop` does.

    Yields:
      uint8 [B, S, S, 3] and labels, int [B].

    Raises:
      UserError: Too many images in a row cannot be read.
    """

    def one(number: int, index: int) -> tuple[np.ndarray, int]:
        rng = np.random.default_rng((seed, number, index))
        for i in range(_MOST_UNREADABLE):
            shown = (index + i) % len(source)
            try:
                crop = cut(source.open(shown), rng, size)
                return crop, int(source.labels[shown])
            except image_decoder.BadImage as error:
                reason = str(error)
        raise errors.UserError(
            f"{_MOST_UNREADABLE} training images in a row cannot be read, the last one "
            f"{reason}: name other images with --train-path"
        )

    pool = concurrent.futures.ThreadPoolExecutor(workers)
    pending: collections.deque = collections.deque()
    steps = iter(range(start, stop))

    def submit():
        step = next(steps, None)
        if step is not None:
            pending.append([pool.submit(one, *place) for place in order(step)])

    try:
        for _ in range(1 + _BATCHES_AHEAD):
            submit()
        while pending:
            done = [future.result() for future in pending.popleft()]
            submit()
            yield np.stack([d[0] for d in done]), np.array([d[1] for d in done])
    finally:
        pool.shutdown(wait=True, cancel_futures=True)

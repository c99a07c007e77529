"""Images per second: each stage in one process, whole pipelines in many processes.

The pipelines are those of `data.augmentation` ("host", and "split" for "device"), the
reference's transforms if torch is installed, and the loader up to the trainer.
"""

import concurrent.futures.process
import contextlib
import dataclasses
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dinov2_jax import errors
from dinov2_jax.augment import crop_boxes, fast_resize, on_host, policies, resize
from dinov2_jax.data import multi_crop, shared_batches, workers
from dinov2_jax.data.decode import image_decoder
from dinov2_jax.data.sources import base
from dinov2_jax.data.tools import reference_pipeline

PATCH = 14  # pixels
_CONTESTANTS = ("reference", "host", "split")
_STAGE_IMAGES = 48
_CHUNK = 8  # images per task
_POLICIES = {1: "gray", 3: "rgb"}  # by number of channels; all others are multispectral


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of crops in pixels and number of local ones, as in `config.crops`."""

    global_size: int = 224
    local_size: int = 98
    num_local: int = 8

    def multi_crop(self, policy: policies.Policy | None) -> multi_crop.MultiCrop:
        """Return the crops of these sizes; a policy augments them on the host."""
        return multi_crop.MultiCrop(
            global_crops_size=self.global_size,
            local_crops_number=self.num_local,
            local_crops_size=self.local_size,
            policy=policy,
        )

    def crop_bytes(self, channels: int) -> int:
        """Return the bytes of all crops of one image."""
        pixels = 2 * self.global_size**2 + self.num_local * self.local_size**2
        return channels * pixels


def measure(
    source: base.Source,
    sizes: Sizes,
    *,
    workers: int,
    rounds: int,
    seconds: float = 3.0,
    channels: int = 3,
) -> dict[str, Any]:
    """Measure all stages and pipelines.

    Contestants take turns of about `seconds`, `rounds` times, in `workers` processes
    that are already running. The reference takes part if there are three channels.

    Returns:
      `stages`: milliseconds per image of each, in one process; `images_per_second`: of
      each contestant, one value per round; `ratios` of their medians to the
      reference's; `bottleneck`: in words.
    """
    stages = _stages(source, sizes, _policy(channels))
    rates: dict[str, list[float]] = {name: [] for name in _CONTESTANTS}
    missing = ""
    if channels != 3:
        missing = f"3 channels, not {channels}"
        del rates["reference"]
    with workers_pool(source, sizes, workers, channels) as pool:
        for name in list(rates):
            try:
                _turn(pool, name, workers, 1)  # imports, and the disk's cache
            except ImportError as error:
                missing = f"torch: {error}"
                del rates[name]
        tasks = {name: _tasks(pool, name, workers, seconds) for name in rates}
        for _ in range(rounds):
            for name in rates:
                rates[name].append(_turn(pool, name, workers, tasks[name]))
    rates["split, delivered by the loader"] = _loader(
        source, sizes, workers, rounds, channels
    )
    medians = {name: statistics.median(values) for name, values in rates.items()}
    base = medians.get("reference")
    return {
        "sizes": dataclasses.asdict(sizes),
        "workers": workers,
        "stages": stages,
        "images_per_second": rates,
        "ratios": {name: m / base for name, m in medians.items()} if base else {},
        "missing": missing,
        "bottleneck": _bottleneck(stages, medians, workers),
    }


def _policy(channels: int) -> policies.Policy:
    return policies.POLICIES[_POLICIES.get(channels, "multispectral")]


def _stages(source, sizes, policy) -> dict[str, float]:
    """Return the milliseconds per image in this process, the median over images."""
    crops = sizes.multi_crop(None)
    seconds: dict[str, list[float]] = {}

    def timed(stage: str, function: Callable[..., Any], *arguments: Any) -> Any:
        start = time.perf_counter()
        result = function(*arguments)
        seconds.setdefault(stage, []).append(time.perf_counter() - start)
        return result

    def resized(module, pixels, boxes, views):
        return [
            module.crop_and_resize(pixels, box, size)
            for box, (_, size, _) in zip(boxes, views)
        ]

    def augmented(rng, cut, views):
        return [
            on_host.augment(rng, crop, policy, view)
            for crop, (view, _, _) in zip(cut, views)
        ]

    chosen = np.linspace(0, len(source) - 1, min(len(source), _STAGE_IMAGES))
    for index in chosen.astype(int):
        rng = np.random.default_rng(int(index))
        try:
            image = timed("read", source.open, int(index))
            views = crops.views()
            boxes = [
                crop_boxes.random_crop_box(
                    rng, width=image.width, height=image.height, scale=scale
                )
                for _, _, scale in views
            ]
            factor = crop_boxes.reduction(boxes, [size for _, size, _ in views])
            timed("decode, as small as crops allow", image.pixels, factor)
            again = source.open(int(index))
            pixels = timed("decode, whole", again.pixels)
        except image_decoder.BadImage:
            continue
        timed("cut and resize", resized, fast_resize, pixels, boxes, views)
        exact = "cut and resize, Pillow's arithmetic"
        cut = timed(exact, resized, resize, pixels, boxes, views)
        timed("augment on the host", augmented, rng, cut, views)
    if not seconds:
        raise errors.UserError("none of the images could be read: see data scan PATH")
    return {name: 1e3 * statistics.median(values) for name, values in seconds.items()}


class _Work:
    """Function in a worker that prepares images as a contestant does."""

    def __init__(self, source, sizes: Sizes, channels: int):
        self.source, self.sizes = source, sizes
        self.crops = {
            "host": sizes.multi_crop(_policy(channels)),
            "split": sizes.multi_crop(None),
        }
        self.reference = None

    def __call__(self, name: str, first: int) -> int:
        """Prepare `_CHUNK` images from the first on; return how many were readable."""
        done = 0
        for i in range(first, first + _CHUNK):
            index, rng = i % len(self.source), np.random.default_rng(i)
            try:
                if name == "reference":
                    self._by_reference(index, rng)
                else:
                    self.crops[name](self.source.open(index), rng)
            except image_decoder.BadImage:
                continue
            done += 1
        return done

    def _by_reference(self, index: int, rng: np.random.Generator) -> None:
        if self.reference is None:
            self.reference = reference_pipeline.ReferencePipeline(
                **dataclasses.asdict(self.sizes)
            )
        content = self.source.content(index)
        try:
            self.reference(content, rng)
        except OSError as error:  # Pillow raises it for damaged files
            raise image_decoder.BadImage(self.source.name(index), str(error)) from error


_work: _Work | None = None


def _begin(source, sizes, channels) -> None:
    global _work
    workers.initialise(0, 0)
    _work = _Work(source, sizes, channels)


def _do(name: str, first: int) -> int:
    assert _work is not None  # `_begin` ran in this process
    return _work(name, first)


@contextlib.contextmanager
def workers_pool(
    source, sizes: Sizes, count: int, channels: int = 3
) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    """Run processes like the loader's: one thread each, without an accelerator.

    They are killed at the end, because they ignore signals, and waiting for one to
    finish its work could take forever.

    Raises:
      UserError: A process cannot start, or dies.
    """
    workers.check_main_guard()
    others, started = set(multiprocessing.active_children()), False
    with shared_batches.semaphores():
        pool = concurrent.futures.ProcessPoolExecutor(
            count,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(source, sizes, channels),
        )
    try:
        with workers.environment(), shared_batches.semaphores():
            for future in [pool.submit(os.getpid) for _ in range(count)]:
                future.result()
        started = True
        yield pool
    except concurrent.futures.process.BrokenProcessPool as error:
        if started:
            raise errors.UserError(
                "a worker process died: lower --workers if memory is short (see "
                "dmesg), or find the image that kills it with data scan PATH"
            ) from error
        raise errors.UserError(
            f"a worker process could not start, its error is above; {workers.GUARD}"
        ) from error
    finally:
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        pool.shutdown(cancel_futures=True)


def _turn(pool, name: str, count: int, tasks: int) -> float:
    """Return a contestant's images per second over `tasks` tasks per worker."""
    start = time.perf_counter()
    firsts = range(0, tasks * count * _CHUNK, _CHUNK)
    done = sum(pool.map(_do, [name] * len(firsts), firsts))
    return done / (time.perf_counter() - start)


def _tasks(pool, name: str, count: int, seconds: float) -> int:
    """Return how many tasks per worker take about `seconds`."""
    rate = _turn(pool, name, count, 1)
    return max(round(seconds * rate / (count * _CHUNK)), 1)


def _loader(
    source, sizes: Sizes, count: int, rounds: int, channels: int
) -> list[float]:
    """Return the images per second that reach the main process, by round."""
    from dinov2_jax.data import batch_builder, loader  # import grain, which imports jax

    batch = min(32, len(source))
    side = sizes.global_size // PATCH
    builder = batch_builder.BatchBuilder(
        source=source,
        multi_crop=sizes.multi_crop(None),
        seed=0,
        batch_size=batch,
        group_size=batch,
        grid=(side, side),
        mask_probability=0.5,
        mask_ratio_min_max=(0.1, 0.5),
    )
    skipped, turn = 4 * count, 2 * count  # batches: ready early; in a round
    with loader.Loader(
        builder,
        start_step=0,
        num_steps=skipped + rounds * turn,
        workers=count,
        prefetch=1,
        batch_bytes=batch * sizes.crop_bytes(channels),
        timeout=600.0,
    ) as batches:
        for _ in range(skipped):
            next(batches)
        rates = []
        for _ in range(rounds):
            start = time.perf_counter()
            for _ in range(turn):
                next(batches)
            rates.append(turn * batch / (time.perf_counter() - start))
    return rates


def _bottleneck(stages, medians, count) -> str:
    """Describe the slowest part of the default mode, and the remedy."""
    names = ("read", "decode, as small as crops allow", "cut and resize")
    parts = {name: stages[name] for name in names}
    slowest = max(parts, key=parts.get)
    share = parts[slowest] / sum(parts.values())
    delivered = medians["split, delivered by the loader"]
    if delivered < 0.7 * medians["split"]:
        return (
            f"batches reach the trainer at {delivered:.0f} of {medians['split']:.0f} "
            "images/s: the transfer between processes; a larger /dev/shm or faster "
            "memory helps"
        )
    advice = {
        "read": "pack the images: python -m dinov2_jax.data shard PATH DST",
        "decode, as small as crops allow": "store them smaller: python -m "
        "dinov2_jax.data shard PATH DST --resize 512",
        "cut and resize": "more cores, or fewer and smaller crops",
    }[slowest]
    return (
        f"{slowest}, {share:.0%} of the host's work: {advice}; "
        f"{count} workers give {delivered:.0f} images/s"
    )

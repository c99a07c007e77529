"""Images a second of the host's input pipeline: 2 + 8 crops of JPEGs, no device.

ViT-S/14's crops (224 and 98 px) of JPEGs that are 500 px long, as ImageNet's are. One
process decoding alone, one building whole batches, and the loader with one worker a
core. Needs grain, Pillow and scikit-image's photographs.
"""

import itertools
import os
import pathlib
import sys
import tempfile
import time
from typing import Any

from benchmarks import embed, report, timing, workloads
from benchmarks.settings import Settings


def run(args: Settings) -> None:
    """Measures, prints and writes."""
    from dinov2_jax.data import batch_builder, sources

    count, batch_size = (8, 4) if args.tiny else (64, 8)
    config = workloads.make_config("vits", batch_size, args.overrides)
    config.data.workers = os.cpu_count()
    rows: list[report.Row] = []
    with tempfile.TemporaryDirectory() as folder:
        config.data.path = str(pathlib.Path(folder) / "photos")
        embed.make_photos(pathlib.Path(config.data.path), count)
        source = sources.make_source(config)
        builder = batch_builder.make_batch_builder(config, source)
        numbers = itertools.count()

        def decode() -> None:
            for i in range(batch_size):
                source.open((next(numbers) * batch_size + i) % count).pixels()

        def build() -> None:
            builder(next(numbers))

        for name, cores, seconds in (
            ("decode, one process", 1, sample(decode, args)),
            ("batches, one process", 1, sample(build, args)),
            (
                f"loader, {config.data.workers} workers",
                config.data.workers,
                load(config, source, args),
            ),
        ):
            spread = timing.spread(seconds)
            rate = batch_size / spread["median"]
            rows.append(
                {
                    "what": name,
                    "batch_size": batch_size,
                    "batch": spread,
                    "images_per_second": rate,
                    "images_per_second_and_core": rate / cores,
                }
            )
            report.write("input", args, rows)
    report.show(COLUMNS, rows)


def sample(call: Any, args: Settings) -> list[float]:
    """Seconds a batch, in this process."""
    print(f"  {call.__name__}", file=sys.stderr, flush=True)
    return timing.samples(call, count=args.samples, warmup=1)


def load(config: Any, source: Any, args: Settings) -> list[float]:
    """Seconds a batch from the loader, each a mean over as many as it has workers."""
    from dinov2_jax.data import loader

    print("  load", file=sys.stderr, flush=True)
    # What workers have ready when asked first does not count: that much is skipped.
    skipped = config.data.workers * (config.data.prefetch + 2)
    total = skipped + config.data.workers * args.samples
    seconds = []
    with loader.make_loader(config, source, start_step=0, num_steps=total) as batches:
        for _ in range(skipped):
            next(batches)
        for _ in range(args.samples):
            start = time.perf_counter()
            for _ in range(config.data.workers):
                next(batches)
            seconds.append((time.perf_counter() - start) / config.data.workers)
    return seconds


COLUMNS = {
    "": lambda row: row["what"],
    "ms per image": lambda row: f"{1e3 / row['images_per_second']:.1f}",
    "images/s": lambda row: f"{row['images_per_second']:.1f}",
    "low": lambda row: f"{row['batch_size'] / row['batch']['high']:.1f}",
    "high": lambda row: f"{row['batch_size'] / row['batch']['low']:.1f}",
    "images/s and core": lambda row: f"{row['images_per_second_and_core']:.1f}",
}

"""Images/s of the host's input pipeline, against the reference's transforms.

This is what `python -m dinov2_jax.data bench` measures, on JPEGs with a long side of
500 px, like ImageNet's. Uses no device; needs grain, Pillow, scikit-image's photographs
and torch.
"""

import os
import pathlib
import tempfile

from benchmarks import report
from benchmarks.settings import Settings


def run(args: Settings) -> None:
    """Measure, print the table and write the results."""
    from dinov2_jax.data.decode import image_decoder, pillow_setup
    from dinov2_jax.data.sources import registry
    from dinov2_jax.data.tools import bench, throughput

    pillow_setup.configure()  # as the program does when it starts
    sizes = throughput.Sizes(56, 28, 2) if args.tiny else throughput.Sizes()
    with tempfile.TemporaryDirectory() as folder:
        bench.make_jpegs(pathlib.Path(folder), 16 if args.tiny else 2000)
        found = throughput.measure(
            registry.open_path(folder, image_decoder.Decoder()),
            sizes,
            workers=os.cpu_count() or 1,
            rounds=args.rounds,
            seconds=0.1 if args.tiny else 3.0,
        )
    print(bench.table(found))
    report.write("input", args, [found])

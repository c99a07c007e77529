"""Compiled cycles of the kernels that gather crops from a stream and add to them.

    python -m benchmarks.tpu_crops [--chips v6e ...] [--crops 64x257:38 ...]

Compares the scheduled bundles of each kernel (`benchmarks/tpu_cycles.py`) with the
minimum cycles of its transfers, behind which the bundles should hide. 1,024 channels in
bfloat16; nothing is run. Prints a table in thousands of cycles and writes
benchmarks/results/tpu_crops.json.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

RESULTS = pathlib.Path(__file__).parent / "results" / "tpu_crops.json"
WIDTH = 1024
# Crops x tokens : kept, for ViT-L/14 with 32 images per device and drop rate 0.4.
CROPS = ("64x257:38", "256x50:153")


def kernels(batch, length, num_kept):
    """Return name -> (function, bytes that it moves, arguments' shapes and dtypes)."""
    import jax.numpy as jnp

    from dinov2_jax.kernels import crops_tpu, layer_norm

    scale = batch / num_kept
    size = 2 * num_kept * length * WIDTH
    stream = (1, batch, length, WIDTH), jnp.bfloat16
    kept = (1, num_kept), jnp.int32
    rows = (1, num_kept * length, WIDTH), jnp.bfloat16
    take, add = crops_tpu.take, crops_tpu.add
    return {
        "take, statistics": (
            lambda x, kept: take(x, kept, epsilon=layer_norm.EPSILON),
            2 * size,
            (stream, kept),
        ),
        "take, sums": (
            lambda x, kept: take(x, kept, scale=scale, sums=True),
            2 * size,
            (stream, kept),
        ),
        "add": (
            lambda x, kept, rows: add(x, kept, rows, scale=scale),
            3 * size,
            (stream, kept, rows),
        ),
    }


def worker(chip, crops, dump):
    """Compile the kernels for one chip and shape, and print their cycles."""
    import jax
    from jax.experimental import topologies

    from benchmarks import tpu_attention, tpu_cycles
    from dinov2_jax import sharding
    from dinov2_jax.kernels import crops_tpu

    shape, _, num_kept = crops.partition(":")
    batch, length = map(int, shape.split("x"))
    num_kept = int(num_kept)
    topology, clock, bandwidth = tpu_attention.CHIPS[chip]
    topology = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    mesh = sharding.make_mesh(devices=topology.devices[:1])
    block = min(num_kept, crops_tpu.most_crops(length))
    steps = -(-num_kept // block)
    found = {}
    for name, (function, size, shapes) in kernels(batch, length, num_kept).items():
        arguments = [
            jax.ShapeDtypeStruct(*s, sharding=sharding.replicated(mesh)) for s in shapes
        ]
        with jax.set_mesh(mesh):
            donated = 0 if name == "add" else ()
            jax.jit(function, donate_argnums=donated).lower(*arguments).compile()
        (by_depth,) = (
            by_depth
            for kernel, by_depth in tpu_cycles.bundles(dump).items()
            if "_crops" in kernel
        )
        for path in dump.iterdir():
            path.unlink()
        # Inside a step the longest loop is over crops.
        kernel = tpu_cycles.Kernel(name, (steps, block))
        found[name] = {
            "bundles": tpu_cycles.kernel_cycles(by_depth, kernel),
            "transfers": round(size / bandwidth * clock),
        }
    print(json.dumps(found))


def measure(chip, crops):
    """Measure in a new process, because libtpu reads its settings only once."""
    from benchmarks import tpu_cycles

    with tempfile.TemporaryDirectory() as dump:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.tpu_crops"]
            + ["--worker", chip, crops, dump],
            env=tpu_cycles.environment(pathlib.Path(dump)),
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    """Compile everything, print the table and write it."""
    from benchmarks import environment, tpu_attention

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    chips = tpu_attention.CHIPS
    parser.add_argument("--chips", nargs="+", default=list(chips), choices=chips)
    parser.add_argument("--crops", nargs="+", default=CROPS)
    options = parser.parse_args()
    print(f"{'thousands of cycles':36}{'bundles':>10}{'transfers':>10}")
    rows = []
    for chip in options.chips:
        for crops in options.crops:
            for name, numbers in measure(chip, crops).items():
                rows.append({"chip": chip, "crops": crops, "name": name} | numbers)
                texts = (f"{value / 1e3:10.1f}" for value in numbers.values())
                print(f"{chip:5}{crops:13}{name:18}" + "".join(texts), flush=True)
    report = {"environment": environment.describe(["jax", "jaxlib"]), "rows": rows}
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(*sys.argv[2:4], pathlib.Path(sys.argv[4]))
    else:
        main()

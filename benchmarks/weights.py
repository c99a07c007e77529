"""Loading and converting the released sizes: time, memory and exact round trips.

    python -m benchmarks.weights [--names vits14 vitg14_reg4] [--rounds=3]

For each size, a `.pth` of random weights is written under the released names. It is
read by `dinov2_jax.load` and by PyTorch (`torch.load` and a strict `load_state_dict`
into a module that is already built), in separate processes that alternate. Measured are
seconds, and peak memory as a multiple of the weights, without that of the imports.
Last, hub -> here -> hub and hub -> here -> Hugging Face -> here -> hub are compared
byte for byte. Writes benchmarks/results/weights.json.

The file is in the page cache for both. ViT-g takes 14 GB of disk and 10 GB of memory.
"""

import argparse
import json
import math
import pathlib
import statistics
import tempfile
import time

import numpy as np

from benchmarks import environment, workers

SHAPES = pathlib.Path(__file__).parents[1] / "tests" / "reference" / "state_dicts"
RESULTS = pathlib.Path(__file__).parent / "results" / "weights.json"
NAMES = [f"vit{size}14{reg}" for size in "sblg" for reg in ("", "_reg4")]
LOADERS = ("jax", "torch")


def write_random(name: str, path: pathlib.Path) -> int:
    """Write random weights of a released size; return their bytes."""
    from dinov2_jax.weights import lazy_tensor, torch_writer

    shapes = json.loads((SHAPES / f"dinov2_{name}.json").read_text())
    rng = np.random.default_rng(0)
    float32 = np.dtype(np.float32)
    torch_writer.write(
        path,
        {
            key: lazy_tensor.LazyTensor(
                tuple(shape),
                float32,
                lambda shape=shape: rng.standard_normal(shape, np.float32),
            )
            for key, shape in shapes.items()
        },
    )
    return 4 * sum(math.prod(shape) for shape in shapes.values())


def load_with_jax(path: str) -> dict:
    """Return the seconds and bytes of `dinov2_jax.load`."""
    import jax
    import jax.numpy as jnp

    import dinov2_jax

    load = dinov2_jax.load
    jnp.zeros(8).block_until_ready()
    before, start = environment.peak_host_bytes(), time.monotonic()
    model = load(path)
    jax.block_until_ready(model.params)
    return {
        "seconds": time.monotonic() - start,
        "bytes": environment.peak_host_bytes() - before,
    }


def load_with_torch(path: str) -> dict:
    """Return seconds and bytes of `torch.load` and `load_state_dict`."""
    import torch

    shapes = {k: v.shape for k, v in torch.load(path, mmap=True).items()}
    model = torch.nn.Module()
    for key, shape in shapes.items():
        module, names = model, key.split(".")
        for part in names[:-1]:
            if part not in dict(module.named_children()):
                module.add_module(part, torch.nn.Module())
            module = module.get_submodule(part)
        # Ones, so that memory is touched, as by a constructor that draws weights.
        module.register_parameter(names[-1], torch.nn.Parameter(torch.ones(shape)))
    before, start = environment.peak_host_bytes(), time.monotonic()
    model.load_state_dict(torch.load(path, map_location="cpu"), strict=True)
    seconds = time.monotonic() - start
    weights = sum(p.nbytes for p in model.parameters())
    # Loading needs the module's memory too.
    return {
        "seconds": seconds,
        "bytes": environment.peak_host_bytes() - before + weights,
    }


def round_trips(path: pathlib.Path, folder: pathlib.Path) -> dict[str, bool]:
    """Return whether the file survives conversion, directly and via Hugging Face."""
    from dinov2_jax.convert import __main__ as convert

    def run(source, destination, target):
        flags = ["--to", target, "--no-verify", "--overwrite"]
        assert convert.main([str(source), str(destination), *flags]) == 0

    back, hf = folder / "back.pth", folder / "hf"
    run(path, back, "torch-hub")
    same = {"hub": same_bytes(path, back)}
    run(path, hf, "huggingface")
    run(hf, back, "torch-hub")
    return same | {"hugging face": same_bytes(path, back)}


def same_bytes(first: pathlib.Path, second: pathlib.Path) -> bool:
    """Return whether two files are equal, reading them in chunks."""
    with open(first, "rb") as a, open(second, "rb") as b:
        while True:
            x, y = a.read(1 << 24), b.read(1 << 24)
            if x != y:
                return False
            if not x:
                return True


def measure(name: str, rounds: int) -> dict:
    """Measure one size."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        path = folder / "weights.pth"
        size = write_random(name, path)
        runs = {loader: [] for loader in LOADERS}
        for _ in range(rounds):
            for loader in LOADERS:
                flags = [f"--load={loader}", f"--file={path}"]
                runs[loader].append(workers.run_worker("weights", flags, {}))
        return {
            "bytes": size,
            "loads": runs,
            "round_trips": round_trips(path, folder),
        }


def describe(name: str, report: dict) -> str:
    """Return one row of the table."""
    cells = []
    for loader in LOADERS:
        runs = report["loads"][loader]
        seconds = [run["seconds"] for run in runs]
        memory = max(run["bytes"] for run in runs) / report["bytes"]
        cells.append(
            f"{loader} {statistics.median(seconds):6.2f} s ({min(seconds):.2f} to "
            f"{max(seconds):.2f}), {memory:.2f} x the weights"
        )
    trips = [
        f"{k} {'equal' if v else 'DIFFERS'}" for k, v in report["round_trips"].items()
    ]
    return f"{name:12} {report['bytes'] / 1e9:5.2f} GB  {'  '.join([*cells, *trips])}"


def main() -> None:
    """Print the table and write the JSON; with --load, measure once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--load", choices=LOADERS, help="measure once, print JSON")
    parser.add_argument("--file", help="for --load")
    args = parser.parse_args()
    if args.load:
        load = load_with_jax if args.load == "jax" else load_with_torch
        print(json.dumps(load(args.file)))
        return
    report = environment.describe(("jax", "torch", "safetensors"))
    report["sizes"] = {}
    for name in args.names:
        report["sizes"][name] = measured = measure(name, args.rounds)
        print(describe(name, measured), flush=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    print(f"wrote {RESULTS}")


if __name__ == "__main__":
    main()

"""Features of a folder of photographs, against PyTorch, on this machine's CPU.

    python -m benchmarks.embed [--images=192] [--rounds=9]

ViT-S/14 at 224 px in float32, class tokens; both sides use the same random weights and
JPEG files. Ours is what `python -m dinov2_jax.embed` runs. The peer is the usual script
of PyTorch users: transformers' `Dinov2Model` with SDPA attention, inference mode,
Pillow, a `DataLoader`, `numpy.save`. Its batch size, and whether glibc keeps freed
memory, are the best of those tried; of its pipeline with and without loader processes
the faster one counts.

Measured are the forward pass, the pipeline from image files to a features file without
start-up, and whole commands. Contestants have their own processes and take turns. Other
jobs may run on the machine: a turn waits up to --patience seconds for a quiet moment,
the share of the cores that others took is recorded, and only turns with a low share
count. Prints a table and writes benchmarks/results/embed.json.
"""

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks import environment, quiet, workers

RESULTS = pathlib.Path(__file__).parent / "results" / "embed.json"
SHAPES = pathlib.Path(__file__).parents[1] / "tests" / "reference" / "state_dicts"
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")  # of scikit-image
TORCH_BATCHES = (2, 4, 8, 16)
PACKAGES = ("jax", "jaxlib", "torch", "transformers", "pillow", "numpy")


def make_photos(folder: pathlib.Path, count: int) -> None:
    """Write crops of photographs as JPEGs, long side 500 px, like ImageNet's."""
    import numpy as np
    import skimage.data
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        image = Image.fromarray(getattr(skimage.data, PHOTOGRAPHS[i % 4])())
        share = rng.uniform(0.6, 1.0)
        width, height = (int(n * share) for n in image.size)
        left = int(rng.integers(0, image.width - width + 1))
        top = int(rng.integers(0, image.height - height + 1))
        image = image.crop((left, top, left + width, top + height))
        scale = 500 / max(image.size)
        size = tuple(round(n * scale) for n in image.size)
        image.resize(size, Image.Resampling.BICUBIC).save(
            folder / f"{i:05}.jpg", quality=90
        )


def make_weights(path: pathlib.Path) -> None:
    """Write a .pth of a random ViT-S/14 under the released names."""
    import torch

    torch.manual_seed(0)
    state = {}
    for name, shape in json.loads((SHAPES / "dinov2_vits14.json").read_text()).items():
        one = name.endswith("gamma") or ("norm" in name and name.endswith("weight"))
        state[name] = torch.ones(shape) if one else 0.02 * torch.randn(shape)
    torch.save(state, path)


class Contestant:
    """A process that waits for its turns.

    Args:
      command: Arguments of `embed_contestants`.
      variables: Environment variables to add.

    Attributes:
      samples: Samples of its turns so far.
    """

    def __init__(self, *command: str, variables: Mapping[str, str] | None = None):
        self.samples: list[dict] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.embed_contestants", *command],
            env=os.environ | {"JAX_PLATFORMS": "cpu"} | dict(variables or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._expect("ready")

    def _expect(self, wanted: str = "") -> str:
        line = self._process.stdout.readline().strip()
        if not line or (wanted and line != wanted):
            raise RuntimeError(f"a contestant failed: {self._process.args}")
        return line

    def take_turn(self, patience: float) -> None:
        """Wait for a quiet moment, then measure."""
        quiet.await_quiet(patience)
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self.samples.append(json.loads(self._expect()))

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait()


def rate(samples: list[dict]) -> dict[str, Any]:
    """Return median and range of images/s, of quiet samples if there are three."""
    undisturbed = [s for s in samples if s["others"] <= quiet.NOISE]
    chosen = undisturbed if len(undisturbed) >= 3 else samples
    rates = [s["images_per_second"] for s in chosen]
    return {
        "median": statistics.median(rates),
        "low": min(rates),
        "high": max(rates),
        "samples": len(rates),
        "quiet": chosen is undisturbed,
    }


@contextlib.contextmanager
def contestants(commands: Mapping[str, Any]) -> Iterator[dict[str, Contestant]]:
    """Start all contestants one after the other, and end them after the block."""
    with contextlib.ExitStack() as stack:
        started = {}
        for name, (command, variables) in commands.items():
            started[name] = Contestant(*command, variables=variables)
            stack.callback(started[name].close)
        yield started


def compete(
    commands: Mapping[str, Any], rounds: int, patience: float
) -> dict[str, list[dict]]:
    """Sample contestants in turns until each has enough quiet samples."""
    with contestants(commands) as started:
        for number in range(3 * rounds):
            for contestant in started.values():
                contestant.take_turn(patience)
            counts = [
                sum(s["others"] <= quiet.NOISE for s in c.samples)
                for c in started.values()
            ]
            print(f"  round {number + 1}: quiet samples {counts}", file=sys.stderr)
            if min(counts) >= rounds:
                break
        return {name: c.samples for name, c in started.items()}


def whole_commands(
    folder: pathlib.Path, torch_settings: tuple, rounds: int, patience: float
) -> dict[str, list[dict]]:
    """Sample whole commands, imports and compilation included."""
    settings, variables = torch_settings
    ours = ["-m", "dinov2_jax.embed", str(folder / "photos"), "--overwrite"]
    ours += [f"--model={folder / 'weights.pth'}", f"--out={folder / 'whole.npy'}"]
    theirs = ["-m", "benchmarks.embed_contestants", "--once", "torch", "pipeline"]
    theirs += [str(folder), *settings]
    samples: dict[str, list[dict]] = {"jax": [], "torch": []}
    images = len(list((folder / "photos").iterdir()))
    for _ in range(rounds):
        for name, command, extra in (("jax", ours, {}), ("torch", theirs, variables)):
            quiet.await_quiet(patience)
            watch = quiet.Watch()
            subprocess.run(
                [sys.executable, *command],
                env=os.environ | {"JAX_PLATFORMS": "cpu"} | extra,
                check=True,
                stderr=subprocess.DEVNULL,
            )
            samples[name].append(watch.sample(images))
    return samples


def difference(folder: pathlib.Path) -> float:
    """Return the largest difference of both features over the largest value."""
    import numpy as np

    ours, theirs = (np.load(folder / f"{name}.npy") for name in ("jax", "torch"))
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def measure(folder: pathlib.Path, args: argparse.Namespace) -> dict:
    """Take all measurements."""
    make_photos(folder / "photos", args.images)
    make_weights(folder / "weights.pth")
    subprocess.run(
        [sys.executable, "-m", "dinov2_jax.convert", folder / "weights.pth"]
        # transformers interpolates position embeddings differently. Stored at 224 px,
        # they give equal features and save it that work.
        + [folder / "huggingface", "--to=huggingface", "--size=224x224"],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    keeping = {"": {}, ", memory kept": workers.KEEP_MEMORY}
    print("tuning torch", file=sys.stderr)
    tuning = compete(
        {
            f"batch {batch}{kept}": (
                ("torch", "forward", str(folder), str(batch), "0"),
                variables,
            )
            for batch in TORCH_BATCHES
            for kept, variables in keeping.items()
        },
        rounds=3,
        patience=args.patience,
    )
    best = max(tuning, key=lambda name: rate(tuning[name])["median"])
    batch = best.split()[1].rstrip(",")
    variables = workers.KEEP_MEMORY if "kept" in best else {}
    print(f"torch is fastest with {best}", file=sys.stderr)
    forward = compete(
        {
            "jax": (("jax", "forward", str(folder)), {}),
            "torch": (("torch", "forward", str(folder), batch, "0"), variables),
            "torch, no malloc settings": (
                ("torch", "forward", str(folder), batch, "0"),
                {},
            ),
            "jax module": (("jax", "module", str(folder)), {}),
        },
        args.rounds,
        args.patience,
    )
    pipeline = compete(
        {
            "jax": (("jax", "pipeline", str(folder)), {}),
            "torch": (("torch", "pipeline", str(folder), batch, "0"), variables),
            "torch, 2 loader processes": (
                ("torch", "pipeline", str(folder), batch, "2"),
                variables,
            ),
            "torch, no malloc settings": (
                ("torch", "pipeline", str(folder), batch, "0"),
                {},
            ),
        },
        args.rounds,
        args.patience,
    )
    faster = max(
        ("torch", "torch, 2 loader processes"),
        key=lambda name: rate(pipeline[name])["median"],
    )
    settings = (batch, "2" if "2" in faster else "0"), variables
    whole = whole_commands(folder, settings, max(args.rounds // 2, 3), args.patience)
    return {
        "torch_settings": best,
        "largest_relative_difference": difference(folder),
        "tuning": tuning,
        "forward": forward,
        "pipeline": pipeline,
        "whole": whole,
    }


def summarize(report: dict) -> dict[str, str]:
    """Return the rows of the table."""
    rows = {}
    for part in ("forward", "pipeline", "whole"):
        rates = {name: rate(samples) for name, samples in report[part].items()}
        for name, r in rates.items():
            note = "" if r["quiet"] else ", among other jobs"
            rows[f"{part}, {name}"] = (
                f"{r['median']:.2f} images/s ({r['low']:.2f} to {r['high']:.2f}, "
                f"{r['samples']} turns{note})"
            )
        peer = max(r["median"] for name, r in rates.items() if name.startswith("torch"))
        rows[f"{part}, jax over the best torch"] = (
            f"{rates['jax']['median'] / peer:.2f} x"
        )
        plain = rates.get("torch, no malloc settings")
        if plain:
            rows[f"{part}, jax over torch without malloc settings"] = (
                f"{rates['jax']['median'] / plain['median']:.2f} x"
            )
    return rows


def main() -> None:
    """Print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=9, help="quiet ones wanted")
    parser.add_argument("--patience", type=float, default=30.0, help="seconds a turn")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    args = parser.parse_args()
    report = environment.describe(PACKAGES)
    with tempfile.TemporaryDirectory() as folder:
        report |= measure(pathlib.Path(folder), args)
    report["summary"] = summarize(report)
    for name, value in report["summary"].items():
        print(f"{name:54} {value}")
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()

"""Features of a folder of photographs, against PyTorch, on this machine's CPU.

Whole commands from JPEG files to a file of class tokens, start-up included: ViT-S/14 at
224 px in float32 with random weights. Ours is `python -m dinov2_jax.embed`; the peer is
the usual script, `benchmarks.embed_torch`, at its best batch size of those tried, with
and without loader processes and with memory kept by glibc. They take turns. Needs torch
and transformers.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks import contest, report, timing, workers
from benchmarks.settings import Settings

TORCH_BATCH = 16


def make_model(folder: pathlib.Path) -> None:
    """Write a random ViT-S/14 for 224 px in the format of transformers."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=384, num_attention_heads=6, image_size=224, patch_size=14
    )
    transformers.Dinov2Model(config).save_pretrained(folder)


def run(args: Settings) -> None:
    """Measure, print the table and write the results."""
    from dinov2_jax.data.tools import bench

    if args.torch_device is None:
        print("embed: left out, as PyTorch, the peer, is not installed")
        return
    images = 4 if args.tiny else 256
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "photos").mkdir()
        bench.make_jpegs(folder / "photos", images)
        make_model(folder / "model")
        ours = ["dinov2_jax.embed", str(folder / "photos"), "--overwrite"]
        ours += [f"--model={folder / 'model'}", f"--out={folder / 'jax.npy'}"]
        commands = {"jax": (ours, {"JAX_PLATFORMS": "cpu"})}
        for loaders in (0, 2):
            theirs = ["benchmarks.embed_torch", name, str(TORCH_BATCH), str(loaders)]
            title = f"torch, {loaders} loader processes"
            commands[title] = (theirs, workers.KEEP_MEMORY)
        found = {title: {"contestant": title, "seconds": []} for title in commands}
        for _ in range(args.samples * args.rounds):
            for title, (command, variables) in commands.items():
                found[title]["seconds"].append(_seconds(command, variables))
        features = [np.load(folder / f"{name}.npy") for name in ("jax", "torch")]
    rows = list(found.values())
    contest.add_ratios(rows)
    for row in rows:
        row["time"] = timing.spread(row["seconds"])
        row["images_per_second"] = images / row["time"]["median"]
        row["ours_over_this"] = timing.spread(row.pop("ratios"))
    difference = float(np.abs(features[0] - features[1]).max())
    difference /= float(np.abs(features[1]).max())
    report.write("embed", args, rows, images=images, difference=difference)
    report.show(COLUMNS, rows)
    print(f"largest difference of features over the largest feature: {difference:.2g}")


def _seconds(command: list[str], variables: dict[str, str]) -> float:
    """Run `python -m COMMAND` and return the seconds that it took."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", *command],
        env=os.environ | variables,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.perf_counter() - start


COLUMNS = {
    "": lambda row: row["contestant"],
    "ms": lambda row: report.milliseconds(row["time"]),
    "images/s": lambda row: f"{row['images_per_second']:.1f}",
    "jax is": lambda row: contest.factor(row["ours_over_this"]),
}

"""A process that computes the features of a folder, once for each input line.

python -m benchmarks.embed_contestants [--once] FRAMEWORK KIND FOLDER [BATCH LOADERS]

FOLDER comes from `benchmarks.embed`: photos/, weights.pth, huggingface/. Each turn
prints a sample; with --once there is a single turn and nothing is printed.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from benchmarks import quiet


def jax_contestant(kind: str, folder: pathlib.Path) -> Callable[[], int]:
    """Return a function that does one turn and returns the number of images.

    Args:
      kind: "forward", the forward pass alone; "pipeline", from the image files to the
        features file; "module", a call of the model that `dinov2_jax.load` returns.
      folder: Folder with photos/ and weights.pth.
    """
    from dinov2_jax import cli
    from dinov2_jax.embed import __main__ as embed

    cli.keep_freed_memory()
    if kind != "module":
        embed.one_device_a_core()
    import numpy as np

    import dinov2_jax
    from dinov2_jax.embed import extraction, output, resumable_output
    from dinov2_jax.embed import folder as folder_lib

    model = dinov2_jax.load(folder / "weights.pth")
    photos = folder_lib.Folder(str(folder / "photos"))
    prepare = model.preprocessing
    if kind == "module":
        images = np.zeros((8, 224, 224, 3), np.float32)
        return lambda: len(np.asarray(model(images).cls))
    extractor = extraction.Extractor(
        model.module,
        model.params,
        kind="cls",
        prepare=prepare,
        dtype="float32",
        out_dtype="float32",
        batch_size=None,
        most=len(photos),
    )
    images = np.zeros((extractor.batch_size, 224, 224, 3), np.uint8)
    if kind == "forward":
        return lambda: len(extractor.fetch(extractor(images)))

    def pipeline() -> int:
        out = folder / "jax.npy"
        with resumable_output.Unfinished(
            out,
            {},
            row_shape=(384,),
            dtype=np.float32,
            count=len(photos),
            overwrite=True,
        ) as rows:
            embed.compute(rows, photos, extractor, prepare, None)
            names = (photos.relative_path(i) for i in range(len(photos)))
            output.publish(out, rows.finish_rows(), rows.rows, lambda: names, {}, {})
        resumable_output.remove(out)
        return len(photos)

    return pipeline


def torch_contestant(
    kind: str, folder: pathlib.Path, batch_size: int, workers: int
) -> Callable[[], int]:
    """Return the same as `jax_contestant`; `workers`: loader processes."""
    import numpy as np
    import torch
    import transformers
    from PIL import Image

    torch.set_num_threads(quiet.CORES)
    model = transformers.Dinov2Model.from_pretrained(
        folder / "huggingface", attn_implementation="sdpa"
    ).eval()
    mean = np.array([0.485, 0.456, 0.406], np.float32)
    std = np.array([0.229, 0.224, 0.225], np.float32)

    class Photos(torch.utils.data.Dataset):
        def __init__(self):
            self.paths = sorted((folder / "photos").iterdir())

        def __len__(self):
            return len(self.paths)

        def __getitem__(self, index):
            with Image.open(self.paths[index]) as file:
                image = file.convert("RGB")
            scale = 256 / min(image.size)
            size = tuple(max(round(n * scale), 256) for n in image.size)
            image = image.resize(size, Image.Resampling.BICUBIC)
            left, top = ((n - 224) // 2 for n in image.size)
            image = image.crop((left, top, left + 224, top + 224))
            pixels = (np.asarray(image, np.float32) / 255 - mean) / std
            return torch.from_numpy(pixels.transpose(2, 0, 1).copy())

    @torch.inference_mode()
    def forward(images) -> Any:
        return model(pixel_values=images).last_hidden_state[:, 0].numpy()

    images = torch.zeros(batch_size, 3, 224, 224)
    if kind == "forward":
        return lambda: len(forward(images))

    def pipeline() -> int:
        photos = Photos()
        loader = torch.utils.data.DataLoader(photos, batch_size, num_workers=workers)
        rows = [forward(images) for images in loader]
        np.save(folder / "torch.npy", np.concatenate(rows))
        return len(photos)

    return pipeline


def serve(turn: Callable[[], int]) -> None:
    """Take a turn for each line on standard input and print its sample."""
    turn()
    turn()
    print("ready", flush=True)
    for _ in sys.stdin:
        watch = quiet.Watch()
        images = turn()
        print(json.dumps(watch.sample(images)), flush=True)


def main() -> None:
    """Serve turns, or take a single one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--once", action="store_true")
    parser.add_argument("framework", choices=("jax", "torch"))
    parser.add_argument("kind", choices=("forward", "pipeline", "module"))
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("settings", nargs="*", type=int, help="of torch")
    args = parser.parse_args()
    make = {"jax": jax_contestant, "torch": torch_contestant}[args.framework]
    turn = make(args.kind, args.folder, *args.settings)
    if args.once:
        turn()
    else:
        serve(turn)


if __name__ == "__main__":
    main()

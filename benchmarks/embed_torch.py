"""A process that computes the features of a folder as users of PyTorch usually do.

python -m benchmarks.embed_torch FOLDER BATCH_SIZE LOADERS

FOLDER comes from `benchmarks.embed`. Writes the class tokens to FOLDER/torch.npy.
"""

import os
import pathlib
import sys

import numpy as np
import torch
import transformers
from PIL import Image

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


class Photos(torch.utils.data.Dataset):
    """Photographs of a folder, resized to 256 px, cropped to 224 and normalised."""

    def __init__(self, folder: pathlib.Path):
        self.paths = sorted(folder.iterdir())

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self.paths[index]) as file:
            image = file.convert("RGB")
        scale = 256 / min(image.size)
        size = tuple(max(round(n * scale), 256) for n in image.size)
        image = image.resize(size, Image.Resampling.BICUBIC)
        left, top = ((n - 224) // 2 for n in image.size)
        image = image.crop((left, top, left + 224, top + 224))
        pixels = (np.asarray(image, np.float32) / 255 - MEAN) / STD
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


@torch.inference_mode()
def main(folder: str, batch_size: str, loaders: str) -> None:
    """Compute and write the features."""
    torch.set_num_threads(os.cpu_count() or 1)
    root = pathlib.Path(folder)
    model = transformers.Dinov2Model.from_pretrained(
        root / "model", attn_implementation="sdpa"
    ).eval()
    batches = torch.utils.data.DataLoader(
        Photos(root / "photos"), int(batch_size), num_workers=int(loaders)
    )
    rows = [model(images).last_hidden_state[:, 0].numpy() for images in batches]
    np.save(root / "torch.npy", np.concatenate(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])

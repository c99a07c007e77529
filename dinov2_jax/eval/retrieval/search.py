"""Images of a folder that look like given ones: dinov2-jax search INDEX IMAGE..."""

import argparse
import json
import os
import pathlib
from typing import Any

from dinov2_jax import cli, errors
from dinov2_jax.data.decode import pillow_setup
from dinov2_jax.weights import flags

_DESCRIPTION = """
Finds the images most similar to each IMAGE, by cosine, among those whose features INDEX
holds: the .npy that `dinov2-jax embed DATA --out=INDEX` wrote. The search is exact
unless --faiss is passed.
"""


def main(argv: list[str] | None = None) -> int:
    """Search as the flags say and return the exit code."""
    parser = cli.Parser(prog="dinov2-jax search", description=_DESCRIPTION)
    add, home = parser.add_argument, os.path.expanduser
    add("index", metavar="INDEX", type=home, help="features.npy of `embed`")
    add("images", metavar="IMAGE", nargs="+", type=home, help="images to look for")
    add(
        "--model",
        required=True,
        type=home,
        metavar="SOURCE",
        help="the weights that INDEX was made with",
    )
    add("--k", type=cli.positive, default=10, help="images to find (default: 10)")
    add(
        "--faiss",
        action="store_true",
        help="for millions of images: look only into the clusters nearest to the "
        "image; the first call makes INDEX.faiss (pip install 'dinov2-jax[search]')",
    )
    add(
        "--probes",
        type=cli.positive,
        default=32,
        help="clusters to look into with --faiss (default: 32)",
    )
    flags.add(parser)
    add(
        "--folder",
        type=home,
        metavar="DIR",
        help="the folder that was embedded, or that of its list; needed for --out",
    )
    add("--out", type=cli.path, metavar="PNG", help="draw what was found")
    args = parser.parse_args(argv)
    return cli.exit_code(lambda: search(args))


def search(args: argparse.Namespace) -> None:
    """Print, and perhaps draw, the nearest images of each given one.

    Args:
      args: The parsed flags.

    Raises:
      UserError: Index, weights and images do not fit each other.
    """
    import numpy as np

    from dinov2_jax import files
    from dinov2_jax.eval.retrieval import faiss_index, ranked_pictures, retrieval_data

    if args.out and not args.folder:
        raise errors.UserError(
            "--out needs the images: add --folder, the folder that was embedded"
        )
    if args.faiss:
        faiss_index.module()
    rows, description = _read_index(pathlib.Path(args.index))
    queries = retrieval_data.ListedImages(
        [pathlib.Path(image) for image in args.images], flag="IMAGE"
    )
    features = _query_features(args, queries, description["settings"])
    names = description["names"]
    similar, found = _nearest(args, rows, features)
    for image, values, places in zip(args.images, similar, found):
        print(image)
        for value, place in zip(values, places):
            print(f"  {value:.4f}  {names[place]}")
    if args.out:
        shown = np.unique(found)
        paths = [pathlib.Path(args.folder) / names[place] for place in shown]
        database = retrieval_data.ListedImages(paths, flag="--folder")
        ranking = [np.searchsorted(shown, places) for places in found]
        with files.open_new(args.out) as file:
            file.write(
                ranked_pictures.sheet(
                    queries,
                    database,
                    range(len(queries)),
                    ranking,
                    [[None] * len(row) for row in ranking],
                )
            )
        print(f"wrote {args.out}")


def _nearest(args: argparse.Namespace, rows: Any, features: Any) -> tuple[Any, Any]:
    """Return the nearest rows' similarities and indices, [queries, K] each."""
    import numpy as np

    from dinov2_jax.eval.classification import nearest
    from dinov2_jax.eval.retrieval import faiss_index

    k = min(args.k, len(rows))
    if args.faiss:
        path = pathlib.Path(args.index)
        return faiss_index.search(rows, features, k, path=path, probes=args.probes)
    blocks = list(nearest.Bank(rows).search(features, k))
    similar, found = (np.concatenate([block[i] for block in blocks]) for i in (1, 2))
    return similar, found


def _read_index(path: pathlib.Path) -> tuple[Any, dict[str, Any]]:
    """Return the features of `embed`, memory-mapped, and their description."""
    import numpy as np

    from dinov2_jax.embed import output

    if path.suffix != ".npy":
        raise errors.UserError(
            f"{path} is no .npy file, which search reads: embed the folder again with "
            "--out=features.npy"
        )
    try:
        description = json.loads(output.description_of(path).read_bytes())
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
        complete = output.is_complete(path, description["settings"])
        names = description["names"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise errors.UserError(
            f"{path} is not an output of dinov2-jax embed ({error}): make it with "
            "dinov2-jax embed FOLDER --out=features.npy"
        ) from error
    if not complete or len(names) != len(rows):
        raise errors.UserError(
            f"{path} was replaced after {output.description_of(path)} was written: "
            "embed the folder again"
        )
    if rows.ndim != 2:
        raise errors.UserError(
            f"{path} holds features of patches: embed with --features=cls"
        )
    return rows, description


def _query_features(args: argparse.Namespace, queries: Any, settings: Any) -> Any:
    """Extract features of the queries as those of the index were."""
    import numpy as np

    from dinov2_jax.data import preprocessing
    from dinov2_jax.data.decode import image_decoder
    from dinov2_jax.embed import extraction
    from dinov2_jax.eval import features

    backbone = features.load(
        args.model,
        **flags.chosen(args),
        dtype=settings["dtype"],
        cache="",
    )
    digest = settings["weights"].removeprefix("sha256 ")
    if digest != backbone.digest:
        raise errors.UserError(
            f"{args.index} was made with different weights (sha256 {digest[:12]}) than "
            f"--model={args.model} (sha256 {backbone.digest[:12]}): name the model it "
            "was made with, or embed the folder again"
        )
    prepare = preprocessing.Preprocessing(
        **{
            name: tuple(value) if isinstance(value, list) else value
            for name, value in settings["preprocessing"].items()
        }
    )
    extractor = extraction.Extractor(
        backbone.model.module,
        backbone.model.params,
        kind=settings["features"],
        prepare=prepare,
        dtype=settings["dtype"],
        out_dtype="float32",
        batch_size=None,
        most=len(queries),
    )
    size, found = prepare.crop_size, []
    for start in range(0, len(queries), extractor.batch_size):
        stop = min(start + extractor.batch_size, len(queries))
        batch = np.zeros((extractor.batch_size, size, size, 3), np.uint8)
        for slot, index in enumerate(range(start, stop)):
            try:
                pixels = queries.open(index).pixels()
            except image_decoder.BadImage as error:
                raise errors.UserError(
                    f"{error}: name images that can be read"
                ) from error
            batch[slot] = preprocessing.resize_and_crop(
                pixels, prepare.resize_size, size
            )
        found.append(extractor.fetch(extractor(batch))[: stop - start])
    return np.concatenate(found)


if __name__ == "__main__":
    cli.keep_freed_memory()
    pillow_setup.configure()
    cli.start(main)

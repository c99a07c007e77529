"""A local page that shows what a model sees: dinov2-jax demo --model SOURCE."""

import argparse
import contextlib
import importlib.util
import logging
import os
import pathlib
import signal

from dinov2_jax import cli, errors, files
from dinov2_jax.data.decode import pillow_setup
from dinov2_jax.weights import flags

_DESCRIPTION = """
Opens a page on this machine: click a patch and see what is similar to it in two images;
principal components of images with colours in common; the attention of each head; the
nearest images of a folder; predictions of heads. Nobody else can reach it. Needs pip
install 'dinov2-jax[demo]'.
"""


def main(argv: list[str] | None = None) -> int:
    """Serve the page as the flags say until Ctrl-C, and return the exit code."""
    args = _parser().parse_args(argv)
    return cli.exit_code(lambda: _serve(args))


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(prog="dinov2-jax demo", description=_DESCRIPTION)
    add, home = parser.add_argument, os.path.expanduser
    add(
        "--model",
        required=True,
        type=home,
        metavar="SOURCE",
        help="anything dinov2_jax.load accepts: the folder of a run, a file of "
        "weights, a Hugging Face folder, or a name such as dinov2_vits14_reg",
    )
    add(
        "--folder",
        type=home,
        metavar="IMAGES",
        help="images to search, or whatever else embed takes; their features are "
        "computed at the start and kept",
    )
    add(
        "--head",
        nargs="+",
        default=[],
        type=home,
        help="released heads such as dinov2_vits14_ade20k_linear, or head files",
    )
    add("--port", type=cli.positive, help="default: the first free one from 7860 on")
    add(
        "--size",
        type=cli.positive,
        default=448,
        help="longer side at which the model sees images, px (default: %(default)s)",
    )
    add(
        "--cache",
        type=cli.path,
        metavar="DIR",
        help="folder for the features of IMAGES; default: below ~/.cache/dinov2_jax",
    )
    flags.add(parser)
    return parser


def _serve(args: argparse.Namespace) -> None:
    if importlib.util.find_spec("gradio") is None:
        raise errors.UserError("demo needs Gradio: pip install 'dinov2-jax[demo]'")
    from dinov2_jax.demo import server

    if args.port:
        server.check_port(args.port)
    with server.environment() as folder:
        page = _make_page(args, pathlib.Path(folder))
        with server.serve(page, port=args.port) as address:
            print(f"{address}  (Ctrl-C ends it)", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                while True:
                    signal.pause()


def _make_page(args: argparse.Namespace, folder: pathlib.Path):
    """Load everything and return the page.

    Args:
      args: The parsed flags.
      folder: Folder for the example photographs.
    """
    # These import jax.
    from PIL import Image

    from dinov2_jax.demo import heads, neighbours, page, session
    from dinov2_jax.eval import features
    from dinov2_jax.visualize import examples

    backbone = features.load(
        args.model,
        **flags.chosen(args),
        cache=args.cache or files.cache_folder() / "features",
    )
    patch_size = backbone.model.config.patch_size
    if args.size < patch_size:
        raise errors.UserError(
            f"--size={args.size} is smaller than one patch of this model, "
            f"{patch_size} px: try 448"
        )
    tabs = heads.load(backbone.model, args.head)
    found = neighbours.Neighbours(backbone, args.folder) if args.folder else None
    paths = []
    for example in examples.load()[:2]:
        paths.append(folder / f"{example.name}.png")
        Image.fromarray(example.pixels).save(paths[-1])
    return page.make(
        session.Session(backbone.model, size=args.size),
        name=pathlib.Path(args.model).absolute().name,
        examples=paths,
        neighbours=found,
        heads=tabs,
    )


if __name__ == "__main__":
    cli.keep_freed_memory()
    pillow_setup.configure()
    cli.exit_on_signals()
    cli.start(main, log_level=logging.WARNING)

"""A static page that runs a model in the browser: dinov2-jax export-page OUT."""

import argparse
import logging
import os
import pathlib
import sys

from dinov2_jax import cli
from dinov2_jax.data.decode import pillow_setup
from dinov2_jax.export_page import runtime_files
from dinov2_jax.weights import flags

_DESCRIPTION = """
Writes a folder with a page that runs a model in the visitor's browser: click a patch of
an image and see what is similar to it in this and in another one. Any static host
serves it, at any path. Images do not leave the visitor's computer.
"""
_EPILOG = f"""
The page runs on {runtime_files.NAME} {runtime_files.VERSION}, which is downloaded once
from the npm registry (33 MB) and checked; --runtime is for machines without a network.
"""


def main(argv: list[str] | None = None) -> int:
    """Write the page as the flags say and return the exit code."""
    args = _parser().parse_args(argv)
    return cli.exit_code(lambda: _write(args), interrupted="nothing was written")


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog="dinov2-jax export-page", description=_DESCRIPTION, epilog=_EPILOG
    )
    add = parser.add_argument
    add("out", metavar="OUT", type=cli.path, help="folder to write")
    add(
        "--model",
        required=True,
        type=os.path.expanduser,
        metavar="SOURCE",
        help="anything dinov2_jax.load accepts: the folder of a run, a file of "
        "weights, a Hugging Face folder, or a name such as dinov2_vits14_reg",
    )
    add("--name", help="name of the model on the page; default: that of SOURCE")
    add(
        "--size",
        type=cli.positive,
        help="side of the images in px, a multiple of the patch size: larger ones have "
        "more patches and take longer (default: about 336)",
    )
    add(
        "--runtime",
        type=cli.path,
        metavar="PATH",
        help=f"{runtime_files.TARBALL} or a folder that it was unpacked into; default: "
        "from the cache or the npm registry",
    )
    add("--overwrite", action="store_true", help="replace an earlier page")
    flags.add(parser)
    return parser


def _write(args: argparse.Namespace) -> None:
    # These import jax.
    from dinov2_jax.convert import destination as destination_lib
    from dinov2_jax.export_page import page_folder
    from dinov2_jax.weights import reading

    destination = destination_lib.Destination(
        args.out.absolute(), is_file=False, target="page"
    )
    destination.check(args.model, overwrite=args.overwrite)
    weights = reading.read(args.model, **flags.chosen(args))
    page_folder.check_model(weights, args.model)
    size = page_folder.choose_size(args.size, weights.module.config.patch_size)
    runtime = runtime_files.read(args.runtime)
    name = args.name or pathlib.Path(args.model).absolute().name
    done = page_folder.write(
        weights, destination, name=name, size=size, runtime=runtime
    )
    checked = done["verified"]
    if "skipped" in checked:
        print(f"the model was not verified: {checked['skipped']}", file=sys.stderr)
    total = page_folder.total_bytes(destination.path)
    print(f"{args.out}: written, {total / 1e6:.1f} MB, images of {size} px")
    print(f"to look at it: python -m http.server --directory {args.out}")


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # weights need no accelerator
    cli.exit_on_signals()
    pillow_setup.configure()
    cli.start(main, log_level=logging.INFO)

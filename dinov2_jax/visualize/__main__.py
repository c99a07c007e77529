"""Pictures of what a backbone sees: python -m dinov2_jax.visualize A.jpg --model M."""

import argparse
import os
import pathlib
import sys
import tempfile

import numpy as np

from dinov2_jax import cli, errors
from dinov2_jax.data.decode import image_decoder, pillow_setup, value_use
from dinov2_jax.weights import flags

_MAX_STEM = 150  # bytes of an image's name in a picture's name

_DESCRIPTION = """
Draws the features and attention of a backbone on photographs, as PNG files. The default
is --pca and --attention, and --matches if there are two photographs.
"""
_EPILOG = """
Photographs keep their aspect ratio: the longer side becomes the multiple of the patch
size nearest to --size, and the other side is rounded to whole patches. Nothing is
cropped. Photographs are turned upright by their EXIF orientation.
"""


def main(argv: list[str] | None = None) -> int:
    """Draw as the flags say and return the exit code."""
    args = _parser().parse_args(argv)
    return cli.exit_code(lambda: _draw(args), interrupted="no partial picture was left")


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog="dinov2-jax visualize", description=_DESCRIPTION, epilog=_EPILOG
    )
    parser.add_argument(
        "images",
        nargs="+",
        type=os.path.expanduser,
        metavar="IMAGE",
        help="image files, of any size",
    )
    parser.add_argument(
        "--model",
        required=True,
        type=os.path.expanduser,  # the shell does not expand --model=~/weights.pth
        metavar="SOURCE",
        help="anything dinov2_jax.load accepts: the folder of a run, a file of "
        "weights, a Hugging Face folder, or a name such as dinov2_vits14_reg",
    )
    parser.add_argument(
        "--out",
        type=cli.path,
        default=pathlib.Path("pictures"),
        metavar="DIR",
        help="created if missing; pictures of the same name are replaced (default: "
        "%(default)s)",
    )
    kinds = parser.add_argument_group("what to draw")
    kinds.add_argument(
        "--pca",
        action="store_true",
        help="pca.png: three principal components of the patch features of all images "
        "together as colours",
    )
    kinds.add_argument(
        "--attention",
        action="store_true",
        help="attention_NAME.png: what the class token attends to, by head, and what "
        "the registers do",
    )
    kinds.add_argument(
        "--norms",
        action="store_true",
        help="norms.png: lengths of the patch tokens; shows outliers",
    )
    kinds.add_argument(
        "--matches",
        action="store_true",
        help="matches.png: patches of exactly two images that are each other's nearest",
    )
    parser.add_argument(
        "--foreground",
        action="store_true",
        help="for pca and matches: drop the background, found by the sign of the first "
        "component, as in the paper",
    )
    parser.add_argument(
        "--flip-foreground",
        action="store_true",
        help="like --foreground with the other side, if the automatic choice (the "
        "side that touches the borders less) is wrong",
    )
    parser.add_argument(
        "--size", type=int, default=518, help="longer side, px (default: %(default)s)"
    )
    parser.add_argument(
        "--block",
        type=int,
        default=-1,
        help="block whose features and attention are drawn, from 0; -1 is the last "
        "(the default)",
    )
    parser.add_argument(
        "--max-matches",
        type=int,
        default=20,
        help="matches to draw (default: %(default)s)",
    )
    flags.add(parser)
    return parser


def _draw(args: argparse.Namespace) -> None:
    _choose_kinds(args)
    _check_images(args.images)
    _make_folder(args.out)
    # These import jax, so they follow all checks that can do without it.
    from dinov2_jax import pretrained
    from dinov2_jax.visualize import attention_maps, matches, panels, pca, views

    model = pretrained.load(args.model, **flags.chosen(args))
    seen = [
        views.make_view(
            model,
            _decode(path),
            os.path.basename(path),
            size=args.size,
            block=args.block,
            attention=args.attention,
        )
        for path in args.images
    ]
    block = args.block % model.module.config.depth
    masks = None
    if args.foreground or args.flip_foreground:
        masks = pca.foreground([v.patches for v in seen], flip=args.flip_foreground)

    pictures = {}
    if args.pca:
        pictures["pca"] = pca.draw(seen, masks=masks)
    if args.norms:
        pictures["norms"] = attention_maps.draw_norms(seen, block=block)
    if args.matches:
        found = matches.mutual_nearest(*(v.patches for v in seen), masks)
        kept = matches.spread(found, args.max_matches)
        pictures["matches"] = matches.draw(*seen, kept, len(found))
    if args.attention:
        for stem, view in zip(_stems(args.images), seen):
            drawn = attention_maps.draw_attention(view, block=block)
            pictures[f"attention_{stem}"] = drawn
    for name, picture in pictures.items():
        path = args.out / f"{name}.png"
        panels.save(picture, path)
        print(f"wrote {path}")


def _choose_kinds(args: argparse.Namespace) -> None:
    """Fill in the kinds if none is given; raise UserError for what cannot be drawn."""
    if not (args.pca or args.attention or args.norms or args.matches):
        args.pca = args.attention = True
        args.matches = len(args.images) == 2
    if args.matches and len(args.images) != 2:
        raise errors.UserError(
            f"--matches needs two images, but {len(args.images)} are given: pass "
            "exactly two or leave it out"
        )
    foreground = args.foreground or args.flip_foreground
    if foreground and not (args.pca or args.matches):
        raise errors.UserError(
            "--foreground needs --pca or --matches: add one or leave it out"
        )
    for flag in ("size", "max_matches"):
        if getattr(args, flag) < 1:
            raise errors.UserError(
                f"--{flag.replace('_', '-')}={getattr(args, flag)}: use 1 or more"
            )


def _check_images(paths: list[str]) -> None:
    """Decode all files and report every bad one at once; keep none in memory."""
    bad, uses = [], []
    for path in paths:
        try:
            opened = image_decoder.Decoder().open(path, name=path)
            uses.append(value_use.examine(opened, opened.pixels(), None))
        except image_decoder.BadImage as error:
            bad.append(str(error))
    if bad:
        raise errors.UserError(
            f"{'; '.join(bad)}: pass image files (JPEG, PNG, WebP, ...)"
        )
    for line in value_use.describe(uses, None, "scale them to 8 bits first"):
        print(f"warning: {line}", file=sys.stderr)


def _decode(path: str) -> np.ndarray:
    return image_decoder.Decoder().decode(path, name=path)


def _stems(paths: list[str]) -> list[str]:
    """Return file names without suffix, numbered if two are the same."""
    stems: list[str] = []
    for path in paths:
        # Short enough for every file system, and distinct on case-insensitive ones.
        stem, number = _cut(pathlib.Path(path).stem), 1
        unique = stem
        while unique.casefold() in (known.casefold() for known in stems):
            number += 1
            unique = f"{stem}_{number}"
        stems.append(unique)
    return stems


def _cut(stem: str) -> str:
    """Return as many first characters as fit into `_MAX_STEM` bytes."""
    while len(os.fsencode(stem)) > _MAX_STEM:
        stem = stem[:-1]
    return stem


def _make_folder(folder: pathlib.Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise errors.UserError(
            f"cannot write to the folder {folder} ({error.strerror}): choose another "
            "--out"
        ) from error


if __name__ == "__main__":
    pillow_setup.configure()
    cli.start(main)

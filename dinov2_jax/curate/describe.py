r"""Descriptors of images for finding copies, with the published weights of SSCD.

    dinov2-jax curate describe photos/ --weights=sscd_disc_mixup.torchvision.pt \
        --out=descriptors.parquet
    dinov2-jax curate dedup --features descriptors.parquet --calibrate=500 \
        --model=sscd_disc_mixup.torchvision.pt --out=dups.parquet

SSCD was trained to recognise copies, also cropped or written on, where features of
DINOv2 join what means the same. DATA and OUT are those of `dinov2-jax embed`; the
features are 512 wide, float32 and of length one. A killed run resumes if its command is
repeated. One device is used: divide the images among jobs with --shard.

The weights are on https://github.com/facebookresearch/sscd-copy-detection. Of each
model there, only the .torchvision.pt is read. No published file was ever read
by this project, whose tests use random weights.
"""

import argparse
import dataclasses
import os
import sys
from typing import Any

import numpy as np

from dinov2_jax import cli, errors
from dinov2_jax.curate import sscd_preprocessing

_LONGEST = 16  # long by short side; above, a map might not fit into memory


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add(
        "data",
        metavar="DATA",
        type=os.path.expanduser,
        help="folder, 'pattern', list, shards, image or mixture",
    )
    add("--weights", required=True, type=cli.path, help="SSCD's .torchvision.pt")
    add("--out", required=True, type=cli.path, help="*.parquet or *.npy")
    add(
        "--resize",
        choices=tuple(sscd_preprocessing.RESIZES),
        default="squeeze",
        help="squeeze images to 320x320 px (the default), or make the short side 288 "
        "px and keep the shape, one image at a time",
    )
    add("--shard", metavar="I/N", help="only part I of N, into OUT-I-of-N")
    add("--overwrite", action="store_true", help="replace OUT")


def run(args: argparse.Namespace) -> None:
    """Describe the images as the flags say and write the features file.

    Args:
      args: The parsed flags.

    Raises:
      UserError: A foreseen error, raised before anything is written if possible.
    """
    # Imported here, so that --help and wrong flags need not wait for jax.
    from dinov2_jax.curate import image_files, sscd, sscd_weights
    from dinov2_jax.embed import (
        extraction,
        images,
        left_out,
        output,
        resumable_output,
        shards,
    )

    shard = shards.parse(args.shard) if args.shard is not None else None
    out = shard.file_name(args.out) if shard else args.out
    output.check(out)
    params = sscd_weights.read(args.weights)
    whole = source = images.open_source(args.data)
    if shard:
        source = shards.ShardSource(whole, shard)
    for line in source.warnings():
        _print(f"warning: {line}")
    prepare = sscd_preprocessing.Preprocessing(
        args.resize, sscd_preprocessing.RESIZES[args.resize]
    )
    settings = {
        "images": images.identity(source),
        "weights": f"sha256 {extraction.digest(params)}",
        "model": {"name": "SSCD", "dim": len(params["fc"]["bias"])},
        "features": sscd.KIND,
        "preprocessing": dataclasses.asdict(prepare),
        "dtype": "float32",
        "out_dtype": "float32",
    }
    if shard:
        settings["shard"] = str(shard)
    root = images.root(source)
    if out.exists() and not args.overwrite:
        if not output.is_complete(out, settings, root):
            raise errors.UserError(
                f"--out={out} exists with other content: choose another name or add "
                "--overwrite"
            )
        resumable_output.remove_finished(out, settings)
        _print(f"{out} is complete: nothing to do")
        advice = left_out.of_file(
            source, out, lambda index: _pixels(source, index, args.resize)
        )
        if advice:
            _print(advice)
        return
    if root is not None:  # names of records would have to be read from the shards
        image_files.refuse_repeated(whole)
    with resumable_output.Unfinished(
        out,
        settings,
        row_shape=(settings["model"]["dim"],),
        dtype="float32",
        count=len(source),
        overwrite=args.overwrite,
    ) as rows:
        finished = f", {rows.done:,} done before" if rows.done else ""
        _print(f"images    {source.describe()}{finished}")
        _append(rows, source, sscd.Describer(params, prepare, most=len(source)))
        if not rows.rows:
            resumable_output.remove(out)
            raise errors.UserError(
                f"none of the {len(source)} images could be read, such as "
                f"{source.name(0)!r} ({rows.bad[0]})"
            )
        output.publish(
            out,
            rows.finish_rows(),
            rows.rows,
            lambda: (
                source.relative_path(i) for i in range(len(source)) if i not in rows.bad
            ),
            {source.relative_path(i): why for i, why in sorted(rows.bad.items())},
            settings,
            root,
        )
    resumable_output.remove(out)
    if rows.bad:
        _print(
            f"{len(rows.bad):,} of {len(source):,} images have no row; they are listed "
            f"in {output.description_of(out)}"
        )
    _print(f"wrote {rows.rows:,} rows to {out}")


def _append(rows: Any, source: Any, describer: Any) -> None:
    """Append the rows of all images that are left, a batch at a time."""
    from dinov2_jax.curate import image_files
    from dinov2_jax.data.decode import image_decoder

    left = range(rows.done, len(source))

    def prepared(index: int) -> np.ndarray:
        return describer.prepare(_pixels(source, index, describer.prepare.resize))

    results = image_files.in_threads(prepared, left, what="describing")
    batch, bad = [], {}
    for index, result in zip(left, results):
        if isinstance(result, image_decoder.BadImage):
            bad[index] = result.reason
        else:
            batch.append(result)
        if len(batch) == describer.batch_size or index == left[-1]:
            rows.append(describer(batch), done=index + 1, bad=bad)
            batch, bad = [], {}


def _pixels(source: Any, index: int, resize: str) -> np.ndarray:
    """Return the pixels of an image that is not too long to be resized so."""
    from dinov2_jax.data.decode import image_decoder

    opened = source.open(index)
    short, long = sorted((opened.width, opened.height))
    if resize != "squeeze" and long > _LONGEST * short:
        reason = f"{opened.width}x{opened.height} px is too long"
        raise image_decoder.BadImage(source.name(index), reason)
    return opened.pixels()


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

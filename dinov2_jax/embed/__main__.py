"""Features of all images at a path: python -m dinov2_jax.embed DATA --model=NAME.

    python -m dinov2_jax.embed photos/ --model=dinov2_vits14 --out=features.npy

DATA is what training takes: a folder, searched recursively in the order of the paths; a
quoted pattern, 'photos/**/*.jpg'; a list or table of paths (.txt, .csv, .tsv,
.parquet), in its order; shards; one image; several folders, a/,b/; or a mixture as
data.mixture has it, "(('/data/a', 3.0), ('/data/b', 1.0))". Of several, each image
comes once, whatever the weights; its name is its path below the folder that holds all.
MODEL is anything that dinov2_jax.load takes: a name, a .pth, a Hugging Face folder, a
workdir. OUT is

  features.npy      [images, D], and features.npy.json, whose "names" are the paths of
                    the rows' images, as the list has them or below the folder
  features.parquet  columns "name", "path" (the absolute path as bytes, if the images
                    are files) and "features" (lists of fixed length D), and
                    features.parquet.json

An image that cannot be read has no row; the JSON file lists it with the reason under
"skipped". A run works in OUT.partial/ until it is done. To resume a killed run, repeat
its command: the result has the same bytes (up to rounding if the devices or
--batch-size differ). Several jobs divide the images with --shard=1/8 to --shard=8/8;
each writes its own file, features-00001-of-00008.parquet and so on.
"""

import argparse
import dataclasses
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from dinov2_jax import cli, errors
from dinov2_jax.data.decode import pillow_setup, value_use
from dinov2_jax.weights import flags

FEATURES = ("cls", "patch_mean", "cls+patch_mean", "patches")
_MAX_CPU_DEVICES = 8
_SCALE = (
    "a model sees them so, whatever data.value_range it was trained with: scale them "
    "to 8 bits first"
)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the flags; wrong ones give one line and exit code 2."""
    parser = cli.Parser(
        prog="dinov2-jax embed",
        description=__doc__.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    home = os.path.expanduser  # the shell does not expand --model=~/weights.pth
    add(
        "data",
        metavar="DATA",
        type=home,
        nargs="+",
        help="folder, 'pattern', list, shards, image or mixture",
    )
    add("--model", required=True, type=home, help="file, folder or name of weights")
    add("--out", required=True, type=cli.path, help="*.npy or *.parquet")
    add(
        "--features",
        choices=FEATURES,
        default="cls",
        help="class token (the default), mean of the patch tokens, both concatenated, "
        "or all patch tokens: [images, rows, columns, D], flat in Parquet",
    )
    add(
        "--batch-size",
        type=cli.positive,
        help="images per batch, over all devices",
    )
    add(
        "--size",
        type=cli.positive,
        help="side of the central crop, px; default: the model's own",
    )
    add(
        "--resize",
        type=cli.positive,
        help="short side before the crop, px; by default in proportion to --size",
    )
    add(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="dtype of the matmuls (default: float32 on the CPU, bfloat16 on "
        "accelerators)",
    )
    add("--out-dtype", choices=("float32", "float16"), default="float32")
    add(
        "--workers",
        type=cli.positive,
        help="decoding threads (default: one per core)",
    )
    add(
        "--normalize",
        action="store_true",
        help="divide features by their length, so that dot products are cosines; of "
        "patches each one",
    )
    add(
        "--shard",
        metavar="I/N",
        help="only part I of N equal parts, I from 1 on, into OUT-I-of-N",
    )
    flags.add(parser)
    add(
        "--overwrite",
        action="store_true",
        help="replace OUT, and discard an OUT.partial/ of other flags or files",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Embed as the flags say and return the exit code."""
    args = parse_arguments(argv)
    return cli.exit_code(
        lambda: embed(args), interrupted="the same command resumes the run"
    )


def embed(
    args: argparse.Namespace, check: Callable[[Any, dict[str, Any]], None] | None = None
) -> None:
    """Compute and write the features that the flags ask for.

    Args:
      args: The parsed flags.
      check: Function of the images and the settings, called before anything is
        written; it may raise `UserError`, or remove an earlier file at OUT.

    Raises:
      UserError: A foreseen error, raised before weights are read if possible.
    """
    # Imported here, so that --help and wrong flags need not wait for jax.
    from dinov2_jax import feature_extractor
    from dinov2_jax.embed import (
        extraction,
        images,
        left_out,
        output,
        resumable_output,
        shards,
    )

    shard = shards.parse(args.shard) if args.shard is not None else None
    if shard:
        args.out = shard.file_name(args.out)
    output.check(args.out)
    kept = not args.overwrite and check is None
    if kept and not output.description_of(args.out).exists():
        _refuse_existing(args.out)
    _check_flags(args)
    source = images.open_source(_one_path(args.data))
    if shard:
        source = shards.ShardSource(source, shard)
    skipped = source.skipped_names()
    if skipped:
        name, reason = skipped[0]
        _print_progress(f"warning: {len(skipped)} skipped, such as {name!r}: {reason}")
    for line in source.warnings() + value_use.check(source, None, _SCALE):
        _print_progress(f"warning: {line}")
    model, prepare = _load(args)
    dtype = args.dtype or extraction.default_dtype()
    settings = {
        "images": images.identity(source),
        "weights": f"sha256 {extraction.digest(model.params)}",
        "model": model.module.config.to_dict(),
        "features": args.features,
        "preprocessing": dataclasses.asdict(prepare),
        "dtype": dtype,
        "out_dtype": args.out_dtype,
    }
    if args.normalize:  # no key if not, as in files of earlier versions
        settings["normalize"] = True
    if shard:
        settings["shard"] = str(shard)
    if check is not None:
        check(source, settings)
    root = images.root(source)
    if not args.overwrite:
        if output.is_complete(args.out, settings, root):
            resumable_output.remove_finished(args.out, settings)
            _print_progress(f"{args.out} is complete: nothing to do")
            advice = left_out.of_file(
                source, args.out, lambda index: source.open(index).pixels()
            )
            if advice:
                _print_progress(advice)
            return
        _refuse_existing(args.out)
    row_shape = feature_extractor.features_shape(
        model.module, args.features, prepare.crop_size
    )
    with resumable_output.Unfinished(
        args.out,
        settings,
        row_shape=row_shape,
        dtype=args.out_dtype,
        count=len(source),
        overwrite=args.overwrite,
    ) as rows:
        extractor = extraction.Extractor(
            model.module,
            model.params,
            kind=args.features,
            prepare=prepare,
            dtype=dtype,
            out_dtype=args.out_dtype,
            batch_size=args.batch_size,
            most=len(source),
            normalize=args.normalize,
        )
        finished = f", {rows.done:,} done before" if rows.done else ""
        config = model.module.config
        _print_progress(
            f"images    {source.describe()}{finished}\n"
            f"model     {args.model}: {config.embed_dim} wide, {config.depth} blocks, "
            f"patch {config.patch_size}\n"
            f"features  {args.features}, {args.out_dtype} "
            f"{' x '.join(map(str, row_shape))}, crops of {prepare.crop_size} px from "
            f"a short side of {prepare.resize_size} px\n"
            f"devices   {extractor.devices}, batch {extractor.batch_size}, "
            f"matmuls in {dtype}"
        )
        del model  # the extractor has its own copy of the weights
        extraction.compute(
            rows, source, extractor, prepare, args.workers or _num_cores()
        )
        if not rows.rows:
            resumable_output.remove(args.out)
            raise errors.UserError(
                f"none of the {len(source)} images could be read, such as "
                f"{_first_bad(source, rows)}"
            )
        output.publish(
            args.out,
            rows.finish_rows(),
            rows.rows,
            lambda: (
                source.relative_path(i) for i in range(len(source)) if i not in rows.bad
            ),
            {source.relative_path(i): why for i, why in sorted(rows.bad.items())},
            settings,
            root,
        )
    resumable_output.remove(args.out)
    if rows.bad:
        _print_progress(
            f"{len(rows.bad):,} of {len(source):,} images could not be read and have "
            f"no row, such as {_first_bad(source, rows)}; all are listed in "
            f"{output.description_of(args.out)}"
        )
    _print_progress(f"wrote {rows.rows:,} rows to {args.out}")


def _one_path(paths: list[str]) -> str:
    if len(paths) > 1:
        raise errors.UserError(
            f"{len(paths)} paths are given, such as {paths[1]}, and DATA is one: quote "
            "a pattern, 'photos/*.jpg', or write the paths in a list (.txt), one per "
            "line"
        )
    return paths[0]


def _refuse_existing(out: pathlib.Path) -> None:
    if out.exists():
        raise errors.UserError(
            f"--out={out} exists with other content: choose another name or add "
            "--overwrite"
        )


def _check_flags(args: argparse.Namespace) -> None:
    """Check what can be checked before images are searched and weights are read."""
    from dinov2_jax.weights import hub_repository, official, reading

    if hub_repository.is_address(args.model):
        hub_repository.find(args.model)
    elif not os.path.exists(args.model):
        if args.model not in official.NAMES:
            reading.read(args.model)  # raises the error
        _preprocessing(args, official.config(args.model).patch_size)


def _load(args: argparse.Namespace) -> tuple[Any, Any]:
    """Load the model; return it and the preprocessing of the images."""
    from dinov2_jax import pretrained

    model = pretrained.load(args.model, **flags.chosen(args))
    config = model.module.config
    if config.in_chans != 3:
        raise errors.UserError(
            f"{args.model} takes images with {config.in_chans} channels: embed reads "
            "only RGB images"
        )
    return model, _preprocessing(args, config.patch_size, model.preprocessing)


def _preprocessing(args: argparse.Namespace, patch_size: int, prepare: Any = None):
    """Return the model's preprocessing with the sizes that the flags set."""
    from dinov2_jax.data import preprocessing

    prepare = prepare or preprocessing.Preprocessing()
    size = args.size or prepare.crop_size
    if size % patch_size:
        nearest = max(round(size / patch_size), 1) * patch_size
        raise errors.UserError(
            f"a crop of {size} px is not a multiple of the patch size {patch_size}: "
            f"add --size={nearest}"
        )
    resize = args.resize or prepare.with_crop(size).resize_size
    if resize < size:
        raise errors.UserError(
            f"--resize={resize} is less than the crop of {size} px: use at least "
            f"--resize={size}, or a smaller --size"
        )
    return dataclasses.replace(prepare, crop_size=size, resize_size=resize)


def _first_bad(source: Any, rows: Any) -> str:
    index = min(rows.bad)
    return f"{source.name(index)!r} ({rows.bad[index]})"


def _num_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def one_device_a_core() -> None:
    """Make jax, not imported yet, use one device per core if it has only CPUs.

    Each device then works on its own images instead of all cores sharing every
    operation: on two cores 15.4 instead of 13.8 images/s with ViT-S/14.
    """
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        number = min(_num_cores(), _MAX_CPU_DEVICES)
        os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(number))


def _print_progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    cli.keep_freed_memory()
    one_device_a_core()
    pillow_setup.configure()
    cli.start(main)

"""A config for one device and your images: python -m dinov2_jax.recipe --images=N ...

Prints a config file with the reason for every value, or why there is none.
"""

import argparse
import logging
import math
import sys

from dinov2_jax import cli, errors, files
from dinov2_jax.aot import machines
from dinov2_jax.models import model_config
from dinov2_jax.recipe import compiled, request


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    args = _parser().parse_args(argv)
    return cli.exit_code(lambda: _write(args))


def _write(args: argparse.Namespace) -> None:
    if args.out and args.out.exists():
        raise errors.UserError(f"--out={args.out} exists: name another file")
    if args.out and not args.out.parent.is_dir():
        raise errors.UserError(
            f"--out={args.out}: there is no folder {args.out.parent}: create it first"
        )
    asked = request.Request(
        images=args.images,
        memory=args.device_memory,
        hours=args.hours,
        device=args.device,
        mfu=args.mfu,
        source=args.source,
        arch=args.arch or request.Request.arch,
        batch=args.batch,
    )
    machine = compiled.machine_for(asked.peak_name)
    if args.verify:
        machines.prepare(machine)
    # These import jax, which reads what `prepare` set.
    from dinov2_jax.recipe import choices, config_text

    recipe = choices.make_recipe(asked)
    for advice in recipe.advice:
        print(f"note: {advice}", file=sys.stderr)
    found = ""
    if args.verify:
        print(f"compiling for {machine.name}, a minute or two", file=sys.stderr)
        found = compiled.check(recipe.config, machine, asked.memory)
    text = config_text.render(recipe, found)
    if not args.out:
        print(text, end="")
        return
    files.write_text(args.out, text)
    print(
        f"{recipe.title} Start it with\n  dinov2-jax train --config={args.out} "
        "--config.data.path=IMAGES --workdir=WORKDIR"
    )


def _number(text: str) -> float:
    """Parse a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _share(text: str) -> float:
    """Parse a share above 0 and at most 1."""
    value = _number(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is more than 1")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog="dinov2-jax recipe",
        description="Prints a config for one device, with the reason for every value.",
    )
    parser.add_argument(
        "--images", type=cli.positive, required=True, help="images of your data set"
    )
    parser.add_argument(
        "--device-memory",
        type=_number,
        required=True,
        metavar="GB",
        help="memory of the GPU or TPU device",
    )
    parser.add_argument(
        "--hours", type=_number, required=True, help="hours that training may take"
    )
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--source",
        default="",
        help="released backbone to start from, such as dinov2_vits14; default: none",
    )
    start.add_argument(
        "--arch",
        choices=list(model_config.ARCHS),
        help="size of a model from scratch; default: vit_small",
    )
    parser.add_argument(
        "--device",
        default="",
        help="v5e, v6e, v5p, H200, H100, A100, ..., or the dense bfloat16 TFLOP/s of "
        "the device; default: A100 from 40 GB on, else 165, an RTX 4090",
    )
    parser.add_argument(
        "--mfu",
        type=_share,
        default=request.Request.mfu,
        help="share of the peak FLOP/s that a step reaches; the log of a run has it; "
        "default: 0.45, an assumption",
    )
    parser.add_argument(
        "--batch",
        type=cli.positive,
        default=0,
        help="images per step; default: the largest of the usual sizes that fits",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compile the step, for --device or an H200, instead of estimating its "
        "memory; see dinov2-jax aot",
    )
    parser.add_argument(
        "--out", type=cli.path, help="write the config to this new file"
    )
    return parser


if __name__ == "__main__":
    cli.start(main, log_level=logging.ERROR)

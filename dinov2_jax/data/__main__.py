"""Programs for data sets: python -m dinov2_jax.data {scan,shard,stats,bench} PATH."""

import importlib
import sys

from dinov2_jax import cli
from dinov2_jax.data.decode import pillow_setup

# Each is a module in tools/ with `add_flags(parser)` and `run(args)`.
_PROGRAMS = {
    "scan": "count, measure and fully decode every image; list the bad ones",
    "shard": "pack images into ArrayRecord files, which are faster to read",
    "bench": "images a second of each stage, and the bottleneck",
    "stats": "mean and deviation of each channel, as flags to paste",
}


def main(argv: list[str] | None = None) -> int:
    """Run the program that the flags name and return its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    parser = cli.Parser(prog="dinov2-jax data", description="Programs for data sets.")
    programs = parser.add_subparsers(dest="program", required=True)
    for name, about in _PROGRAMS.items():
        program = programs.add_parser(name, help=about)
        if name in argv[:1]:  # the others are slow to import
            module = importlib.import_module(f"dinov2_jax.data.tools.{name}")
            program.description = module.__doc__
            module.add_flags(program)
    args = parser.parse_args(argv)
    return cli.exit_code(lambda: module.run(args))


if __name__ == "__main__":
    pillow_setup.configure()
    cli.exit_on_signals()
    cli.start(main)

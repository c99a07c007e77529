"""Programs for data sets: python -m dinov2_jax.data {scan,shard,stats,bench} PATH."""

import argparse
import importlib
import signal
import sys

from dinov2_jax import errors

# Each is a module in tools/ with `add_flags(parser)` and `run(args)`.
_PROGRAMS = {
    "scan": "count, measure and fully decode every image; name the bad ones",
    "shard": "pack images into ArrayRecord files, which are faster to read",
    "bench": "images a second of each stage, and the bottleneck",
    "stats": "mean and deviation of each channel, as flags to paste",
}


def main(argv: list[str] | None = None) -> int:
    """Run the program that the flags name and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="dinov2-jax data", description="Programs for data sets."
    )
    programs = parser.add_subparsers(dest="program", required=True)
    modules = {}
    for name, about in _PROGRAMS.items():
        modules[name] = importlib.import_module(f"dinov2_jax.data.tools.{name}")
        modules[name].add_flags(
            programs.add_parser(name, help=about, description=modules[name].__doc__)
        )
    args = parser.parse_args(argv)
    try:
        modules[args.program].run(args)
    except errors.UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return errors.BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return errors.INTERRUPTED
    return 0


if __name__ == "__main__":
    # SIGTERM raises SystemExit, so that cleanup runs as it does for Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())

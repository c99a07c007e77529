"""From a folder of images to a balanced training set without duplicates.

    python -m dinov2_jax.curate FOLDER --count N --out curated.csv
    python -m dinov2_jax.curate {describe,dedup,retrieve,cluster,sample,report} ...

The first form does everything. The second does one step, which reads features of
`dinov2-jax embed` (or `describe`) and tables of earlier steps.
"""

import importlib
import os
import sys

from dinov2_jax import cli, errors
from dinov2_jax.data.decode import pillow_setup

# Each is a module of this folder with `add_flags(parser)` and `run(args)`.
_STEPS = {
    "describe": "describe images with SSCD's weights, for `dedup`",
    "dedup": "find images that show the same, and which of them to keep",
    "retrieve": "choose the images of a pool that are close to images of your own",
    "cluster": "divide images into clusters, and clusters into larger ones",
    "sample": "choose images evenly from the clusters and write a list for training",
    "report": "draw what the steps did, in one HTML file",
}
_EVERYTHING = "everything"


def main(argv: list[str] | None = None) -> int:
    """Run the step that the flags name, or all; return the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] not in _STEPS and not argv[0].startswith("-"):
        hint = cli.suggestion(argv[0], _STEPS)
        if hint and not os.path.exists(argv[0]):
            print(f"error: there is no step {argv[0]}; {hint}", file=sys.stderr)
            return errors.BAD_INPUT
        parser = cli.Parser(prog="dinov2-jax curate")
        module = _add_flags(parser, _EVERYTHING)
    else:
        parser = cli.Parser(
            prog="dinov2-jax curate",
            description=__doc__.partition("\n\n")[0],
            epilog="dinov2-jax curate FOLDER --count N --out curated.csv does all.",
        )
        steps = parser.add_subparsers(dest="step", required=True, metavar="STEP")
        for name, about in _STEPS.items():
            step = steps.add_parser(name, help=about)
            if name in argv[:1]:  # the others are slow to import
                module = _add_flags(step, name)
    args = parser.parse_args(argv)
    return cli.exit_code(lambda: module.run(args))


def _add_flags(parser, name):
    """Import a step, let it declare its flags, and return it."""
    module = importlib.import_module(f"dinov2_jax.curate.{name}")
    parser.description = module.__doc__
    module.add_flags(parser)
    return module


if __name__ == "__main__":
    cli.keep_freed_memory()
    pillow_setup.configure()
    cli.exit_on_signals()
    cli.start(main)

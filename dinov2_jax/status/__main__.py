"""The status of a run in ten lines: python -m dinov2_jax.status WORKDIR.

Reads the files that the run writes. It works wherever the folder is mounted, and uses
no device.
"""

import datetime
import pathlib
import sys

from dinov2_jax import cli, errors
from dinov2_jax.status import summary


def main(argv: list[str] | None = None) -> int:
    """Print the status of the runs on the command line; return the exit code."""
    parser = cli.Parser(prog="dinov2-jax status", description=__doc__.splitlines()[0])
    parser.add_argument("workdir", nargs="+", type=cli.path)
    args = parser.parse_args(argv)
    return cli.exit_code(lambda: _print_all(args.workdir))


def _print_all(workdirs: list[pathlib.Path]) -> int:
    """Print the status of each run; return the exit code of the last error."""
    code, between = errors.DONE, ""
    for workdir in workdirs:
        try:
            report = summary.status(workdir, datetime.datetime.now(datetime.UTC))
        except errors.UserError as error:
            print(f"error: {error}", file=sys.stderr)
            code = error.exit_code
            continue
        print(between + report)
        between = "\n"
    return code


if __name__ == "__main__":
    cli.start(main)

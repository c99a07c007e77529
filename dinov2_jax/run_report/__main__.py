"""A page of curves about runs: python -m dinov2_jax.run_report WORKDIR...

Training writes the page of its run by itself, WORKDIR/report.html. This program does so
for runs of other versions and while nothing trains, and draws several runs together.
"""

import datetime
import pathlib

from dinov2_jax import cli, errors, files
from dinov2_jax.run_report import page


def main(argv: list[str] | None = None) -> int:
    """Write the page about the runs on the command line; return the exit code."""
    parser = cli.Parser(prog="dinov2-jax report", description=__doc__.splitlines()[0])
    parser.add_argument("workdir", nargs="+", type=cli.path)
    parser.add_argument(
        "--output",
        type=cli.path,
        help="the page; by default WORKDIR/report.html, of several runs report.html",
    )
    args = parser.parse_args(argv)
    return cli.exit_code(lambda: _write(args.workdir, args.output))


def _write(runs: list[pathlib.Path], output: pathlib.Path | None) -> int:
    """Write the page and print where it is."""
    if output is None:
        output = runs[0] / page.NAME if len(runs) == 1 else pathlib.Path(page.NAME)
    text = page.make(runs, datetime.datetime.now(datetime.UTC))
    with files.open_new(output) as file:
        file.write(text.encode(errors="backslashreplace"))  # paths need not be UTF-8
    print(output)
    return errors.DONE


if __name__ == "__main__":
    cli.start(main)

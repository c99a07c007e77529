"""Weights onto the Hugging Face hub: python -m dinov2_jax.hub SOURCE ORG/NAME."""

import argparse
import logging
import os
import pathlib
import sys
import tempfile

from dinov2_jax import cli, errors
from dinov2_jax.weights import flags, hub_repository


def main(argv: list[str] | None = None) -> int:
    """Push as the flags say and return the exit code."""
    args = _parser().parse_args(argv)
    return cli.exit_code(lambda: _push(args))


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog="dinov2-jax push",
        description="Writes weights as a model of transformers, verifies them, adds a "
        "model card, and uploads all to a repository of the Hugging Face hub.",
    )
    add = parser.add_argument
    add("source", type=os.path.expanduser, help="anything dinov2_jax.load accepts")
    add("repository", metavar="ORG/NAME", help="repository, made if it is missing")
    add("--out", type=cli.path, help="write this folder, and upload nothing")
    add("--private", action="store_true", help="make the repository private")
    add("--revision", help="branch of the repository (default: main)")
    add(
        "--heads",
        action="store_true",
        help="add the projection heads, in the folder native",
    )
    add(
        "--results",
        action="append",
        default=[],
        type=cli.path,
        metavar="DIR",
        help="results of `evaluate` for the card, its --out; may be repeated (default: "
        "those inside the run's folder)",
    )
    add(
        "--license",
        default="",
        metavar="ID",
        help="licence of the weights, as the hub writes it: apache-2.0, cc-by-4.0, ...",
    )
    flags.add(parser)
    add("--no-verify", action="store_true", help="do not verify the weights")
    add("--overwrite", action="store_true", help="replace the folder of --out")
    return parser


def _push(args: argparse.Namespace) -> None:
    name = args.repository.removeprefix(hub_repository.PREFIX)
    address = f"{hub_repository.PREFIX}{name}"
    if args.revision:
        address = f"{address}@{args.revision}"
    repository = hub_repository.parse(address)
    # These import jax.
    from dinov2_jax.convert import destination as destination_lib
    from dinov2_jax.hub import card, folder, upload
    from dinov2_jax.weights import reading

    if args.out:
        out = args.out.absolute()
        destination = destination_lib.Destination(
            out, is_file=False, target="huggingface"
        )
        destination.check(args.source, overwrite=args.overwrite)
    else:
        client = hub_repository.import_client("dinov2-jax push")
        upload.check_login(client)
    weights = reading.read(args.source, heads=args.heads, **flags.chosen(args))
    with tempfile.TemporaryDirectory(
        dir=args.out and out.parent, prefix=".push."
    ) as work:
        path = pathlib.Path(work) / (out.name if args.out else "repository")
        report = folder.write(
            path,
            repository.name,
            args.source,
            weights,
            results=args.results,
            license=args.license,
            skip="--no-verify" if args.no_verify else "",
        )
        if "warning" in report:
            print(f"warning: {report['warning']}", file=sys.stderr)
        if args.out:
            destination.replace_from(pathlib.Path(work))
            print(f"{args.out}: {card.describe_check(report)}")
            print(f"read {args.out / 'README.md'}; without --out all is uploaded")
            return
        if "skipped" in report["verified"] and not args.no_verify:
            raise errors.UserError(
                f"{card.describe_check(report)}: pip install 'dinov2-jax[export]', or "
                "upload unverified weights with --no-verify"
            )
        where = upload.upload(client, path, repository, private=args.private)
    print(f"{card.describe_check(report)}")
    print(f"pushed as {where}; load it as {repository}")


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # weights need no accelerator
    cli.exit_on_signals()
    cli.start(main, log_level=logging.INFO)

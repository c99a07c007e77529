"""Pod planning on a laptop: python -m dinov2_jax.aot --config=... --topology=v5e:16x16.

Compiles the train step for a machine that need not be there and reports whether it
fits, what its devices send to each other and how long the compiler expects it to take.
"""

import argparse
import functools
import json
import logging
import sys
import time

from dinov2_jax import cli, errors, files
from dinov2_jax.aot import machines, profiles
from dinov2_jax.config import checking, config_file


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code, 1 if the step does not fit."""
    args, overrides = _parser().parse_known_args(argv)
    return cli.exit_code(lambda: _plan(args, overrides))


def _plan(args: argparse.Namespace, overrides: list[str]) -> int:
    machine = machines.parse(args.topology)
    config = config_file.read(args.config, overrides)
    checking.check_devices(config, machine.num_devices)
    out = args.out
    if out and not out.parent.is_dir():
        raise errors.UserError(
            f"--out={out}: there is no folder {out.parent}: create it first"
        )
    machines.prepare(machine)
    # These import jax, which reads what `prepare` set.
    from dinov2_jax.aot import fit, report

    name = args.profile if machine.chip.platform == "tpu" else "default"
    options = profiles.PROFILES[name]
    profile = {"profile": name, "options": options}

    def compiled(config, machine, quick=args.quick):
        return _compile(config, machine, options, quick)

    program = compiled(config, machine)
    result = report.make_report(config, machine, program, **profile)
    print(report.describe(result))
    if options:
        print(f"\nrun it with  {profiles.environment(options)}")
    result["change"] = None
    if not program.memory.fits and not args.no_search:
        found = fit.smallest_change(
            config, machine, functools.partial(compiled, quick=True), _print_progress
        )
        if found is None:
            print("\nnone of the changes tried makes it fit")
        else:
            program = found.program
            if not args.quick:
                program = compiled(found.config, found.machine)
            changed = report.make_report(
                found.config, found.machine, program, **profile
            )
            verdict = "it fits with" if program.memory.fits else "it nearly fits with"
            print(f"\n{verdict}  {found.description}\n\n{report.describe(changed)}")
            result["change"] = {"flags": found.description, "report": changed}
    if out:
        files.write_text(out, json.dumps(result, indent=2) + "\n")
    return errors.DONE if result["memory"]["fits"] else errors.DOES_NOT_FIT


def _compile(config, machine, options, quick):
    """Compile the step, with a line of progress before it."""
    from dinov2_jax.aot import step

    _print_progress(
        f"{time.strftime('%H:%M:%S')} compiling {config.model.arch} for "
        f"{machine.name}, {'up to a minute' if quick else 'some minutes'}"
    )
    return step.compile_step(config, machine, options, quick=quick)


def _print_progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog="dinov2-jax aot",
        description="Compiles the train step for a machine that need not be at hand.",
        epilog="--config.SECTION.FIELD=VALUE overrides a field of the config.",
    )
    parser.add_argument("--config", required=True, help="a preset or a file")
    parser.add_argument(
        "--topology",
        required=True,
        help="chip and shape: v5e:16x16, v6e:4x4, v5p:2x2x2, tpu7x:2x2x1, h200:8, ...",
    )
    parser.add_argument(
        "--profile",
        choices=list(profiles.PROFILES),
        default="fsdp",
        help="named set of compiler options for TPUs; the report prints them",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="report only memory and collectives, in a fifth of the time: compiler "
        "optimisations are off, so no step time is predicted",
    )
    parser.add_argument(
        "--out", type=cli.path, help="write all numbers to this JSON file"
    )
    parser.add_argument(
        "--no-search",
        action="store_true",
        help="if the step does not fit, do not search for a change that makes it fit",
    )
    return parser


if __name__ == "__main__":
    cli.start(main, log_level=logging.ERROR)

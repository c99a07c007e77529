"""The command `dinov2-jax`, and what all programs share: start, end and parser.

`dinov2-jax embed ...` does the same as `python -m dinov2_jax.embed ...`. `errors` has
the exit codes.
"""

import argparse
import ctypes
import difflib
import errno
import logging
import os
import runpy
import select
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from dinov2_jax import errors

# Name: module, arguments inserted before the user's, and a one-line description.
_PROGRAMS = {
    "train": ("main", [], "train a model, or resume its training"),
    "preflight": ("main", ["--preflight"], "check everything that a run will need"),
    "embed": ("embed", [], "compute the features of all images in a folder"),
    "visualize": ("visualize", [], "draw features and attention of images"),
    "evaluate": ("eval", [], "measure how good frozen features are at tasks"),
    "search": ("eval.search", [], "find the images of a folder similar to yours"),
    "convert": ("convert", [], "export weights to other frameworks and verify them"),
    "data": ("data", [], "check, measure and pack data sets"),
    "status": ("status", [], "show the progress of runs"),
    "aot": ("aot", [], "compile a run for another machine: memory, traffic and time"),
    "launch": ("launch", [], "copy the scripts that start runs on clusters"),
}
# Failures of a disk, which are no fault of the command line.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)
_NOISY = ("jax", "orbax", "absl", "grain", "tensorstore", "httpx")  # loggers
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
_NEVER = -1  # converted to the largest size_t


def main() -> None:
    """Run the program that the command line names and exit with its code."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage(), file=sys.stdout if arguments else sys.stderr)
        sys.exit(errors.DONE if arguments else errors.BAD_INPUT)
    name = arguments.pop(0)
    if name not in _PROGRAMS:
        close = difflib.get_close_matches(name, _PROGRAMS, n=1)
        hint = f"did you mean {close[0]}?" if close else "dinov2-jax --help lists them"
        print(f"error: there is no command {name}; {hint}", file=sys.stderr)
        sys.exit(errors.BAD_INPUT)
    module, before, _ = _PROGRAMS[name]
    # `python -m` puts the current folder first. Put last, it cannot hide an installed
    # package, and a config in it can still import the modules beside it.
    sys.path.append(os.getcwd())
    sys.argv[1:] = before + arguments
    runpy.run_module(f"dinov2_jax.{module}", run_name="__main__", alter_sys=True)


def _usage() -> str:
    width = max(map(len, _PROGRAMS))
    lines = [f"  {name:{width}}  {about}" for name, (*_, about) in _PROGRAMS.items()]
    return "\n".join(
        [
            "usage: dinov2-jax COMMAND ...",
            "",
            *lines,
            "",
            "dinov2-jax COMMAND --help lists the flags of a command.",
        ]
    )


def start(
    program: Callable[[], int | None], *, log_level: int = logging.WARNING
) -> NoReturn:
    """Run a program as this process, and exit with its code.

    Sets up logging, and ends quietly if the reader of standard output has ended, as in
    `dinov2-jax status runs/a | head -1`.

    Args:
      program: The program's `main`; it returns an exit code or raises SystemExit.
      log_level: Least severe level of messages that are shown.
    """
    log_to_stderr(log_level)
    try:
        try:
            code: Any = program()
        except SystemExit as leaving:
            code = leaving.code
        if sys.stdout is not None:
            sys.stdout.flush()  # at exit, an error would be printed with a traceback
    except BrokenPipeError:
        if not _reader_has_ended():
            raise
        code = errors.CLOSED_OUTPUT
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _reader_has_ended() -> bool:
    """Return whether standard output is a pipe that nobody reads."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def exit_code(
    run: Callable[[], int | None],
    *,
    interrupted: str = "",
    process: Callable[[], str] = str,
    crash_on_file_errors: bool = False,
) -> int:
    """Run a program; report foreseen errors in one line, and return the exit code.

    Args:
      run: The program; it returns an exit code, or None for success.
      interrupted: What a user who presses Ctrl-C should know.
      process: Function that returns the prefix of errors of one process among several.
      crash_on_file_errors: Whether other file errors than a failing disk are raised,
        because the program has files of its own, not only those that users name.
    """
    try:
        return run() or errors.DONE
    except errors.UserError as error:
        kind = "" if error.exit_code == errors.REQUEUE else "error: "
        print(f"{kind}{process()}{error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # of standard output, see `start`
        raise
    except OSError as error:
        of_disk = error.errno in _DISK_ERRORS
        if crash_on_file_errors and not of_disk:
            raise
        text = error.strerror or str(error)
        if error.filename is not None or of_disk:
            text = f"{os.fsdecode(error.filename or 'a file')}: {text}"
        if of_disk:
            text = f"{text}; when that is put right, give the same command again"
        print(f"error: {process()}{text}", file=sys.stderr)
        return errors.TRY_AGAIN if of_disk else errors.BAD_INPUT
    except KeyboardInterrupt:
        print(f"interrupted{interrupted and ': '}{interrupted}", file=sys.stderr)
        return errors.INTERRUPTED


def exit_on_sigterm() -> None:
    """Let SIGTERM raise SystemExit, so that temporary files are removed.

    For programs that are soon back in Python: one that compiles for minutes, or waits
    for other processes, would not end before that.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(errors.TERMINATED))


def log_to_stderr(level: int) -> None:
    """Print the messages of loggers, but of some libraries only warnings."""
    logging.basicConfig(
        level=level, format="%(message)s", stream=sys.stderr, force=True
    )
    for name in _NOISY:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    warnings.filterwarnings("ignore", module="orbax|tensorflow_datasets")


class Parser(argparse.ArgumentParser):
    """An argparse parser without abbreviations and with one-line errors."""

    def __init__(self, **settings: Any):
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Print the message as one line and exit with code 2."""
        print(f"error: {message}; --help lists the flags", file=sys.stderr)
        sys.exit(errors.BAD_INPUT)


def positive(text: str) -> int:
    """Parse a whole number above 0, for use as the type of a flag."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def keep_freed_memory() -> None:
    """Tell glibc to reuse freed blocks of any size; do nothing on other platforms.

    glibc returns large freed blocks to the system, so the next allocation faults their
    pages in again; XLA allocates its temporaries anew at every step. On two cores a
    float32 ViT-S step at batch 4 took 10.2 s without this and 6.2 s with it.

    Call it before starting threads: memory of other arenas is not kept.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return  # not glibc
    mallopt(_M_ARENA_MAX, 1)
    mallopt(_M_MMAP_THRESHOLD, _NEVER)
    mallopt(_M_TRIM_THRESHOLD, _NEVER)


if __name__ == "__main__":
    main()

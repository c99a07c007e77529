"""The command `dinov2-jax`, and what all programs share: start, end and parser.

`dinov2-jax embed ...` does the same as `python -m dinov2_jax.embed ...`. `errors` has
the exit codes.
"""

import argparse
import ctypes
import difflib
import errno
import logging
import math
import os
import pathlib
import runpy
import select
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from dinov2_jax import console, errors, files, memory_errors

# Name: module, arguments inserted before the user's, and a one-line description.
_PROGRAMS = {
    "train": ("main", [], "train a model, or resume its training"),
    "preflight": ("main", ["--preflight"], "check everything that a run will need"),
    "recipe": ("recipe", [], "print a config for your images and one device"),
    "embed": ("embed", [], "compute the features of all images in a folder"),
    "curate": ("curate", [], "make a balanced training set without duplicates"),
    "visualize": ("visualize", [], "draw features and attention of images"),
    "evaluate": ("eval", [], "measure how good frozen features are at tasks"),
    "search": (
        "eval.retrieval.search",
        [],
        "find the images of a folder similar to yours",
    ),
    "demo": ("demo", [], "open a local page that shows what a model sees"),
    "export-page": (
        "export_page",
        [],
        "write a static page that runs a model in the browser",
    ),
    "convert": ("convert", [], "export weights to other frameworks and verify them"),
    "push": ("hub", [], "publish weights on the Hugging Face hub, with a model card"),
    "data": ("data", [], "check, measure and pack data sets"),
    "status": ("status", [], "show the progress of runs"),
    "report": ("run_report", [], "write a page of curves about one or more runs"),
    "aot": ("aot", [], "compile a run for another machine: memory, traffic and time"),
    "launch": ("launch", [], "copy the scripts that start runs on clusters"),
}
# Failures of a disk, which are no fault of the command line.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)
_NOISY = ("jax", "orbax", "absl", "grain", "tensorstore", "httpx2")  # loggers
_CLEANUP_SECONDS = 10.0  # from a signal to the end of the process, come what may
_LARGEST_SEED = 2**32 - 1
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
        hint = suggestion(name, _PROGRAMS) or "dinov2-jax --help lists them"
        print(f"error: there is no command {name}; {hint}", file=sys.stderr)
        sys.exit(errors.BAD_INPUT)
    module, before, _ = _PROGRAMS[name]
    # `python -m` puts the current folder first. Put last, it cannot hide an installed
    # package, and a config in it can still import the modules beside it.
    sys.path.append(os.getcwd())
    sys.argv[1:] = before + arguments
    runpy.run_module(f"dinov2_jax.{module}", run_name="__main__", alter_sys=True)


def suggestion(name: str, choices: Iterable[str]) -> str:
    """Return "did you mean X?", or "" if no choice is close to a name.

    Args:
      name: What the user wrote.
      choices: What could have been written.
    """
    close = difflib.get_close_matches(name, choices, n=1)
    return f"did you mean {close[0]}?" if close else ""


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
    `dinov2-jax status runs/a | head -1`. Messages that cannot be written to standard
    error are dropped. A second Ctrl-C ends the process at once, whatever it is at.

    Args:
      program: The program's `main`; it returns an exit code or raises SystemExit.
      log_level: Least severe level of messages that are shown.
    """
    console.guard()
    log_to_stderr(log_level)
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    code: Any = errors.DONE
    try:
        try:
            code = program()
        except SystemExit as leaving:
            code = leaving.code
        if sys.stdout is not None:
            sys.stdout.flush()  # at exit, an error would be printed with a traceback
    except BrokenPipeError:
        if not _reader_has_ended():
            raise
        code = errors.CLOSED_OUTPUT
        _drop_output()
    except OSError as error:
        if error.filename != console.OUTPUT:
            raise
        print(_describe(error, ""), file=sys.stderr)
        code = errors.TRY_AGAIN
        _drop_output()
    sys.exit(code)


def _interrupt(*_: Any) -> NoReturn:
    """Answer Ctrl-C; the next one ends the process at once."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(errors.INTERRUPTED))
    raise KeyboardInterrupt


def _drop_output() -> None:
    """Drop what standard output still holds, which Python would write at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
      interrupted: Message for a user who presses Ctrl-C.
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
        print(_describe(error, process()), file=sys.stderr)
        if error.filename == console.OUTPUT:
            _drop_output()  # what was not written will not be
        return errors.TRY_AGAIN if of_disk else errors.BAD_INPUT
    except (MemoryError, RuntimeError) as error:
        if (size := memory_errors.size_asked(error)) is None:
            raise
        print(
            f"error: {process()}out of memory{size}: use fewer or smaller images, a "
            "smaller model or a machine with more memory",
            file=sys.stderr,
        )
        return errors.BAD_INPUT
    except KeyboardInterrupt:
        print(f"interrupted{interrupted and ': '}{interrupted}", file=sys.stderr)
        return errors.INTERRUPTED


def _describe(error: OSError, process: str) -> str:
    """Return the line for a file error: the file, the reason and what to do."""
    text = error.strerror or str(error)
    of_disk = error.errno in _DISK_ERRORS
    if error.filename is not None or of_disk:
        text = f"{os.fsdecode(error.filename or _writer(error))}: {text}"
    if of_disk:
        text = f"{text}; fix that and repeat the command"
    return f"error: {process}{text}"


def _writer(error: OSError) -> str:
    """Return the name to put before an error that names no file."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" of {frames[-1].filename}, line {frames[-1].lineno}" if frames else ""
    return f"a file{where}"


def exit_on_signals() -> None:
    """Let SIGTERM and SIGHUP raise SystemExit, so that temporary files are removed.

    Further ones are ignored, and the process ends ten seconds later at the latest.

    For programs that are soon back in Python: one that compiles for minutes, or waits
    for other processes, would not end before that.
    """
    codes = {signal.SIGTERM: errors.TERMINATED, signal.SIGHUP: errors.HANGUP}
    # Under nohup SIGHUP is ignored, and stays so.
    codes = {n: c for n, c in codes.items() if signal.getsignal(n) != signal.SIG_IGN}

    def leave(number: int, _: Any) -> NoReturn:
        for each in codes:
            signal.signal(each, signal.SIG_IGN)
        code = codes[signal.Signals(number)]
        last = threading.Timer(_CLEANUP_SECONDS, os._exit, [code])
        last.daemon = True
        last.start()
        sys.exit(code)

    for number in codes:
        signal.signal(number, leave)


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
        end = " " if message.endswith("?") else "; "
        print(f"error: {message}{end}--help lists the flags", file=sys.stderr)
        sys.exit(errors.BAD_INPUT)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse what is no choice of a flag or command, with the nearest one."""
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            if hint := suggestion(str(value), map(str, action.choices or ())):
                error.message += f"; {hint}"
            raise


def positive(text: str) -> int:
    """Parse a whole number above 0, for use as the type of a flag."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def number(text: str) -> float:
    """Parse a finite number, for use as the type of a flag."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value


def positive_number(text: str) -> float:
    """Parse a finite number above 0, for use as the type of a flag."""
    value = number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def seed(text: str) -> int:
    """Parse a seed of 32 bits, which all random generators take, as a flag's type."""
    if not text.isdecimal() or int(text) > _LARGEST_SEED:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a whole number from 0 to {_LARGEST_SEED:,}"
        )
    return int(text)


def path(text: str) -> pathlib.Path:
    """Parse a local path, for use as the type of a flag; ~ is the home folder."""
    try:
        return files.local_path(text)
    except errors.UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


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

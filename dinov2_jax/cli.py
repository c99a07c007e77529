"""The command `dinov2-jax`, and command-line helpers that all programs share.

`dinov2-jax embed ...` does the same as `python -m dinov2_jax.embed ...`.
"""

import argparse
import ctypes
import difflib
import os
import runpy
import sys
from typing import Any, NoReturn

from dinov2_jax import errors

# Name: module, arguments inserted before the user's, and a one-line description.
_PROGRAMS = {
    "train": ("main", [], "train, or go on training, as a config says"),
    "preflight": ("main", ["--preflight"], "try what a run will need, and end"),
    "embed": ("embed", [], "write the features of every image in a folder"),
    "visualize": ("visualize", [], "draw what a model sees in photographs"),
    "evaluate": ("eval", [], "measure what frozen features are worth"),
    "search": ("eval.search", [], "find the images of a folder that look like yours"),
    "convert": ("convert", [], "write weights for other frameworks, verified"),
    "data": ("data", [], "scan, measure and pack data sets"),
    "status": ("status", [], "say how a run is doing"),
    "aot": ("aot", [], "compile a run for a machine that is not here: does it fit?"),
    "launch": ("launch", [], "copy the scripts that start runs on clusters"),
}
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
_NEVER = -1  # converted to the largest size_t


def main() -> None:
    """Run the program that the command line names and exit with its code."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage(), file=sys.stdout if arguments else sys.stderr)
        sys.exit(0 if arguments else errors.BAD_INPUT)
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
        ["usage: dinov2-jax COMMAND ...", "", *lines, "", "COMMAND --help tells more."]
    )


class Parser(argparse.ArgumentParser):
    """An argparse parser without abbreviations and with one-line errors."""

    def __init__(self, **settings: Any):
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Print the message as one line and exit with code 2."""
        print(f"error: {message}; --help tells more", file=sys.stderr)
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

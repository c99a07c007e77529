"""Flags of the programs; wrong ones are one line, like every foreseen error."""

import argparse
import sys
from typing import Any, NoReturn

from dinov2_jax import errors


class Parser(argparse.ArgumentParser):
    """As argparse's, without abbreviations and without the usage after an error."""

    def __init__(self, **settings: Any):
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Prints the message as one line and exits with code 2."""
        print(f"error: {message}; --help tells more", file=sys.stderr)
        sys.exit(errors.BAD_INPUT)


def positive(text: str) -> int:
    """A flag's type: a whole number above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)

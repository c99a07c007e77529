"""Trains DINOv2: python -m dinov2_jax.main --config=configs/vitg.py --workdir=DIR."""

import difflib
import logging
import pathlib
import re
import sys
import warnings

from absl import app, flags
from ml_collections import config_flags

from dinov2_jax import errors

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A file of configs/; override fields with --config.train.steps=10."
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "The run's folder; a checkpoint there is resumed. Default: runs/<config name>.",
)


def main(argv: list[str]) -> None:
    """Trains as the flags say; exits with an `errors` code on foreseen errors."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}: flags begin with --")
    if _CONFIG.value is None:
        raise app.UsageError("no config: set --config=configs/quickstart.py")
    config_path = config_flags.get_config_filename(flags.FLAGS["config"])
    workdir = pathlib.Path(_WORKDIR.value or f"runs/{pathlib.Path(config_path).stem}")
    _log_to_stderr()
    try:
        from dinov2_jax import train  # imports jax: after the flags are known good

        train.train(_CONFIG.value, workdir)
    except errors.UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the flags; a bad one is one line with the nearest field, exit code 2."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        message = " ".join(str(error).split())
        print(f"error: {message}{_suggestion(argv)}", file=sys.stderr)
        sys.exit(errors.BAD_INPUT)


def _suggestion(argv: list[str]) -> str:
    """Names the unknown --config fields and what may have been meant."""
    from configs import default
    from dinov2_jax import config_check

    known = list(config_check.flatten(default.get_config()))
    given = [m[1] for m in (re.match(r"--config\.([\w.]+)", a) for a in argv) if m]
    hints = []
    for field in given:
        if field not in known:
            close = difflib.get_close_matches(field, known, n=1)
            hint = f"; did you mean --config.{close[0]}?" if close else ""
            hints.append(f"unknown config field {field}{hint}")
    return f" ({', '.join(hints)})" if hints else ""


def _log_to_stderr() -> None:
    logging.basicConfig(
        level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True
    )
    for noisy in ("jax", "orbax", "absl", "grain", "tensorstore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="orbax|tensorflow_datasets")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)

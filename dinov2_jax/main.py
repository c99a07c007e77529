"""Trains DINOv2: dinov2-jax train --config=vitg --workdir=DIR."""

import contextlib
import logging
import os
import pathlib
import re
import sys
import traceback
from typing import Any

from absl import app, flags
from ml_collections import config_dict, config_flags

from dinov2_jax import cli, configs, errors, files
from dinov2_jax.checkpoint import orbax_logging
from dinov2_jax.config import converted_config, flattening
from dinov2_jax.configs import default
from dinov2_jax.data.decode import pillow_setup
from dinov2_jax.runtime import distributed

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "A preset, such as vits, or a file: Python, the config.json of a run, or YAML of "
    "the reference; override fields with --config.train.steps=10.",
)
_ADVICE = "begin as configs/vits.py does, and return the config"
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "The run's folder; a checkpoint there is resumed. Default: runs/<config name>.",
)
_PROFILE = flags.DEFINE_string(
    "profile", None, "FIRST:LAST steps to trace into WORKDIR/profile."
)
_PREFLIGHT = flags.DEFINE_bool(
    "preflight", False, "Check all that the run will need, report problems, and end."
)
# For several processes, where jax does not detect the cluster.
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT at which process 0 listens, the same for all."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of the run.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Of this process, from 0.")


def main(argv: list[str]) -> None:
    """Train as the flags say; exit with a code of `errors` on expected errors."""
    cli.log_to_stderr(logging.INFO)
    pillow_setup.configure()
    orbax_logging.hush_threads()
    try:
        code = cli.exit_code(
            lambda: _train(argv),
            interrupted="the same command resumes the run",
            process=distributed.name,
            crash_on_file_errors=True,
        )
    except Exception:
        if not distributed.joined():
            raise
        traceback.print_exc()
        code = errors.CRASHED
    distributed.leave(code)


def _train(argv: list[str]) -> int:
    """Train, or run the preflight checks, and return the exit code."""
    config, workdir = _config_and_workdir(argv)
    cluster = distributed.make_cluster(
        _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
    )
    profile = _steps_to_profile(_PROFILE.value)
    # These import jax, which is slow: check the flags first.
    if _PREFLIGHT.value:
        from dinov2_jax import preflight

        return preflight.preflight(config, workdir, cluster)
    from dinov2_jax import train

    train.train(config, workdir, cluster, profile)
    return errors.DONE


def _config_and_workdir(argv: list[str]) -> tuple[Any, pathlib.Path]:
    if len(argv) > 1:
        raise errors.UserError(f"unknown arguments {argv[1:]}: flags begin with --")
    if not flags.FLAGS["config"].present:
        raise errors.UserError("no config is set: add --config=quickstart")
    with contextlib.suppress(AttributeError):
        _CONFIG.value.items()  # raises here if the file failed to load
    if not isinstance(_CONFIG.value, config_dict.ConfigDict):
        raise errors.UserError(
            f"the config {_given_config(sys.argv)}: get_config() returned "
            f"{type(_CONFIG.value).__name__}, not a ConfigDict: {_ADVICE}"
        )
    name = config_flags.get_config_filename(flags.FLAGS["config"])
    path, _, argument = name.partition(":")
    workdir = _WORKDIR.value
    if path == converted_config.__file__:
        path = argument
        for line in converted_config.read(path)[1]:
            logging.info("%s", line)
        if workdir is None and path.endswith(".json"):
            folder = pathlib.Path(path).parent
            raise errors.UserError(
                f"--config={path} is of a run: add --workdir={folder} to resume it, or "
                "another --workdir to repeat it"
            )
    if workdir is None:
        workdir = f"runs/{pathlib.Path(path).stem}"
    return _CONFIG.value, files.local_path(workdir, name="--workdir")


def _steps_to_profile(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise errors.UserError(
            f"--profile={text}: write FIRST:LAST, steps counted from 1, such as 10:14"
        )
    return int(match[1]), int(match[2])


def parse_flags(argv: list[str]) -> list[str]:
    """Parse the flags; on a bad one, print one line with a hint and exit with 2."""
    given = argv
    try:
        given = argv[:1] + flags.FLAGS.read_flags_from_files(argv[1:], force_gnu=False)
        argv = _with_path_of_config(given)
        sys.argv = argv  # where config_flags looks
        return flags.FLAGS(argv)
    except SystemExit:  # absl exits with 1 after --help
        sys.exit(errors.DONE)
    except Exception as error:  # a config may raise anything
        message = (
            _lacks_get_config(error, argv)
            or _broken_config(error, argv)
            or _failed_call(error, argv)
            or _unknown_fields(given)
        )
        message = message or " ".join(str(error).split())
        print(f"error: {message}", file=sys.stderr)
        sys.exit(errors.BAD_INPUT)


def _with_path_of_config(argv: list[str]) -> list[str]:
    """Return the arguments with a preset's name in --config replaced by its path."""
    argv = list(argv)
    for i, text in enumerate(argv):
        if text in ("--config", "-config") and i + 1 < len(argv):
            argv[i + 1] = _path_of_config(argv[i + 1])
        elif match := re.match(r"--?config=", text):
            argv[i] = match[0] + _path_of_config(text[match.end() :])
    return argv


def _path_of_config(text: str) -> str:
    name, colon, argument = text.partition(":")  # the argument of get_config()
    path = configs.find(name)
    if converted_config.is_convertible(path):
        return f"{converted_config.__file__}:{path}"
    return f"{path}{colon}{argument}"


def _lacks_get_config(error: Exception, argv: list[str]) -> str:
    """Describe a config file without `get_config`; "" if something else failed."""
    if "has no attribute 'get_config'" not in str(error):
        return ""
    return f"the config {_given_config(argv)} has no function get_config(): {_ADVICE}"


def _failed_call(error: Exception, argv: list[str]) -> str:
    """Describe a `get_config` that cannot be called; "" if something else failed."""
    if "Error whilst parsing config file" not in str(error):  # ml_collections adds it
        return ""
    return f"the config {_given_config(argv)}: {str(error).strip().splitlines()[-1]}"


def _given_config(argv: list[str]) -> str:
    for text, following in zip(argv, [*argv[1:], ""]):
        if text in ("--config", "-config"):
            return following
        if match := re.match(r"--?config=(.*)", text):
            return match[1]
    return ""


def _broken_config(error: BaseException | None, argv: list[str]) -> str:
    """Describe where a config file failed to load; "" if something else failed."""
    given = {text.removeprefix("-").removeprefix("-config=") for text in argv[1:]}
    while error is not None:  # absl wraps some errors
        frames = traceback.extract_tb(error.__traceback__)
        lines = [(frame.filename, frame.lineno) for frame in frames]
        if isinstance(error, SyntaxError):
            lines.append((error.filename, error.lineno))
        for file, line in reversed(lines):
            if file in given:
                reason = " ".join(str(error).split())[:600]
                kind = type(error).__name__
                return f"the config {file} does not load, line {line}: {kind}: {reason}"
        error = error.__context__
    return ""


def _unknown_fields(argv: list[str]) -> str:
    """List the unknown --config fields, each with the closest known field."""
    known = list(flattening.flatten(default.get_config()))
    given = [m[1] for m in (re.match(r"--config\.([\w.]+)", a) for a in argv) if m]
    return ", ".join(
        flattening.unknown_field(field, known) for field in given if field not in known
    )


def _claim_gpu_memory() -> None:
    """Let jax take the share of a GPU's memory that plans count on; its own is 0.75."""
    if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:  # jax takes one of the two
        os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", "0.92")


if __name__ == "__main__":
    cli.keep_freed_memory()
    _claim_gpu_memory()
    # Seconds, instead of 0.005, until a saving thread yields to the training loop.
    sys.setswitchinterval(0.0005)
    cli.start(lambda: app.run(main, flags_parser=parse_flags), log_level=logging.INFO)

"""The training program in the tests' own process, which imports and compiles once.

It parses flags, logs and exits as `python -m dinov2_jax.main` does. Tests of what only
a process can do (be killed, have devices of its own, be one of several) start one, see
`processes`.
"""

import contextlib
import io
import logging
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import processes
import pytest
from absl import flags as absl_flags

from dinov2_jax import main, trainer
from dinov2_jax.config import flattening
from dinov2_jax.runtime import distributed

# What the compiled step does not depend on: schedules are its arguments.
_SECTIONS = ("checkpoint", "evaluation", "init", "log")
_FIELDS = (
    *("data.source", "data.path", "data.tfds_name", "data.workers"),
    *("data.max_bad_share", "mesh.devices", "mesh.heartbeat_timeout"),
    *("optim.base_lr", "optim.warmup_steps", "optim.freeze_last_layer_steps"),
    "teacher.momentum_teacher",
    *("train.steps", "train.max_nonfinite_steps", "train.max_rollbacks"),
)
_compile = trainer.Trainer.compile


class Trainer:
    """The training program, and the steps that it compiled so far."""

    def __init__(self):
        self._steps = {}

    def run(
        self, *flags: str, when: Mapping[str, Callable[[], Any]] | None = None
    ) -> processes.Finished:
        """Runs the program to its end.

        Args:
          *flags: The program's arguments.
          when: {beginning of a line of output: function called after that line}.
        """
        output = _Output(when or {})
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(output),
            _process_state(),
        ):
            patch.chdir(processes.ROOT)
            patch.setattr("sys.argv", [])
            patch.setattr(distributed, "_asked_to_end", False)
            patch.setattr(jax.distributed, "initialize", _find_no_cluster)
            patch.setattr(trainer.Trainer, "compile", self._compiler())
            _forget_flags()
            with pytest.raises(SystemExit) as left:
                main.main(main.parse_flags(["main", *flags]))
        return processes.Finished(left.value.code, output.getvalue())

    def _compiler(self) -> Callable[[trainer.Trainer], Any]:
        def compile_once(built):
            key = tuple(
                (name, str(value))
                for name, value in flattening.flatten(built._config).items()
                if name not in _FIELDS and name.split(".")[0] not in _SECTIONS
            )
            if key not in self._steps:
                self._steps[key] = _compile(built)
            return self._steps[key]

        return compile_once


class _Output(io.StringIO):
    def __init__(self, when: Mapping[str, Callable[[], Any]]):
        super().__init__()
        self._when, self._line = when, ""

    def write(self, text: str) -> int:
        count = super().write(text)
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            for beginning, call in self._when.items():
                if line.startswith(beginning):
                    call()
        return count


def _find_no_cluster(**_) -> None:
    """Does as jax does on a lone machine, also when devices are already in use."""
    raise ValueError("coordinator_address should be defined.")


def _forget_flags() -> None:
    """Resets all flags, and removes the config's module and changed fields."""
    sys.modules.pop("config_config", None)
    absl_flags.FLAGS.unparse_flags()
    for name in list(absl_flags.FLAGS):
        if name.startswith("config."):
            delattr(absl_flags.FLAGS, name)


@contextlib.contextmanager
def _process_state() -> Iterator[None]:
    """Restores logging, signal handlers and warnings, which the program changes."""
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, []
    levels = {
        logger: logger.level
        for logger in [root, *logging.Logger.manager.loggerDict.values()]
        if isinstance(logger, logging.Logger)
    }
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
    answers = {number: signal.getsignal(number) for number in numbers}
    collectives = jax.config.jax_cpu_collectives_implementation
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # as outside pytest
            yield
    finally:
        jax.config.update("jax_cpu_collectives_implementation", collectives)
        for number, answer in answers.items():
            signal.signal(number, answer)
        for logger, level in levels.items():
            logger.setLevel(level)
        root.handlers = handlers

"""Start and end of programs: exit codes, closed output, signals, --help."""

import argparse
import errno
import importlib
import os
import pathlib
import re
import signal
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from dinov2_jax import cli, errors

ROOT = pathlib.Path(__file__).parents[1]


def python(*arguments, **options):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, text=True, **options)


def os_error(number, filename=None):
    return OSError(number, os.strerror(number), filename)


@pytest.mark.parametrize(
    "error, code, line",
    [
        (errors.UserError("a: b"), 2, "error: process 3: a: b"),
        (errors.UserError("a", exit_code=3), 3, "error: process 3: a"),
        (errors.UserError("saved", exit_code=42), 42, "process 3: saved"),
        (
            os_error(errno.ENOSPC, "f"),
            75,
            "error: process 3: f: No space left on device; fix that and "
            "repeat the command",
        ),
        (
            os_error(errno.EIO),
            75,
            "error: process 3: a file of THIS, line N: Input/output error; fix that "
            "and repeat the command",
        ),
        (
            os_error(errno.ENOENT, b"f"),
            2,
            "error: process 3: f: No such file or directory",
        ),
        (OSError("no number"), 2, "error: process 3: no number"),
        (KeyboardInterrupt(), 130, "interrupted: nothing is lost"),
    ],
)
def test_foreseen_errors_are_one_line(capsys, error, code, line):
    def run():
        raise error

    found = cli.exit_code(
        run, interrupted="nothing is lost", process=lambda: "process 3: "
    )
    assert found == code
    said = re.sub(rf"{__file__}, line \d+", "THIS, line N", capsys.readouterr().err)
    assert said == f"{line}\n"


def allocate_with_python():
    bytearray(2**62)


def allocate_with_numpy():
    np.zeros(2**60, np.uint8)


def allocate_with_jax():
    jnp.zeros(2**45).block_until_ready()


@pytest.mark.parametrize(
    "run, size",
    [
        (allocate_with_python, ""),
        (allocate_with_numpy, " (for 1.00 EiB more)"),
        (allocate_with_jax, " (for 140,737.5 GB more)"),
    ],
)
def test_too_little_memory_is_one_line(capsys, run, size):
    assert cli.exit_code(run, process=lambda: "process 3: ") == errors.BAD_INPUT
    assert capsys.readouterr().err == (
        f"error: process 3: out of memory{size}: use fewer or smaller images, a "
        "smaller model or a machine with more memory\n"
    )


@pytest.mark.parametrize(
    "error", [ValueError(), RuntimeError(), BrokenPipeError(), SystemExit(4)]
)
def test_other_errors_pass(error):
    def run():
        raise error

    with pytest.raises(type(error)):
        cli.exit_code(run)


def test_a_missing_file_may_be_a_crash(capsys):
    def run(number):
        raise os_error(number, "f")

    with pytest.raises(FileNotFoundError):
        cli.exit_code(lambda: run(errno.ENOENT), crash_on_file_errors=True)
    found = cli.exit_code(lambda: run(errno.EROFS), crash_on_file_errors=True)
    assert found == errors.TRY_AGAIN
    assert cli.exit_code(lambda: None) == cli.exit_code(lambda: 0) == 0
    assert cli.exit_code(lambda: 1) == 1


PRINTS = """
from dinov2_jax import cli

def main():
    return cli.exit_code(lambda: print("an answer"))

cli.start(main)
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", [["-c", PRINTS], ["-m", "dinov2_jax.data", "-h"]])
def test_output_that_nobody_reads(command, unbuffered):
    """As with `| head -0`."""
    unread, output = os.pipe()
    os.close(unread)
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = python(*command, stdout=output, stderr=subprocess.PIPE, env=environment)
    os.close(output)
    if "-h" in command and unbuffered:
        assert done.returncode == 0  # argparse ignores the error
    else:
        assert done.returncode == errors.CLOSED_OUTPUT
    assert done.stderr == ""


TERMINATED = """
import signal, sys, tempfile
from dinov2_jax import cli

def main():
    with tempfile.TemporaryDirectory(dir=sys.argv[1]):
        print("half an answer")
        signal.raise_signal(signal.SIGTERM)

cli.exit_on_signals()
cli.start(main)
"""


def test_sigterm_removes_temporary_files(tmp_path):
    done = python("-c", TERMINATED, str(tmp_path), stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (143, "half an answer\n")
    assert not list(tmp_path.iterdir())


HANGS = """
import signal, sys, time
from dinov2_jax import cli

def main():
    try:
        print("ready", flush=True)
        time.sleep(100)
    finally:
        print("cleaning up", flush=True)
        time.sleep(100)

cli._CLEANUP_SECONDS = 0.5
cli.exit_on_signals()
cli.start(main)
"""


@pytest.mark.parametrize(
    "number, code, times",
    [(signal.SIGTERM, 143, 2), (signal.SIGHUP, 129, 1), (signal.SIGINT, 130, 2)],
)
def test_a_process_ends_though_its_clean_up_hangs(number, code, times):
    process = subprocess.Popen(
        [sys.executable, "-c", HANGS], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    for line in ["ready\n", "cleaning up\n"][:times]:
        assert process.stdout.readline() == line
        process.send_signal(number)
    assert process.wait(timeout=60) == code


IGNORE = (
    "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    "os.execv(sys.executable, [sys.executable, '-c', "
)


def test_under_nohup_a_closed_terminal_changes_nothing():
    program = (
        "import signal\nfrom dinov2_jax import cli\ncli.exit_on_signals()\n"
        "cli.start(lambda: signal.raise_signal(signal.SIGHUP))"
    )
    done = python("-c", f"import os, signal, sys\n{IGNORE}{program!r}])")
    assert done.returncode == 0


HELP = """
import contextlib, io, runpy, sys

for name, *more in [p.split() for p in sys.argv[1:]]:
    sys.argv = [name, *more, "--help"]
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        try:
            runpy.run_module(f"dinov2_jax.{name}", run_name="__main__", alter_sys=True)
        except SystemExit as left:
            assert left.code == 0, (name, left.code)
    assert "--help" in output.getvalue(), (name, output.getvalue())
    assert "jax" not in sys.modules, name
"""


def test_help_does_not_wait_for_jax():
    programs = {module for module, *_ in cli._PROGRAMS.values()}
    tools = [f"data {name}" for name in ("scan", "shard", "bench", "stats")]
    python("-c", HELP, *sorted(programs), *tools, check=True)


@pytest.mark.parametrize(
    "program, words, hint",
    [
        ("curate", ["retreive", "--features", "f.parquet"], "did you mean retrieve?"),
        ("curate", ["cluster", "--metric", "cosin"], "did you mean cosine?"),
        ("data", ["scna", "photos/"], "did you mean scan?"),
        ("eval", ["segmentaton"], "did you mean segmentation?"),
        ("data", ["xyz"], "; --help lists the flags"),
    ],
)
def test_mistyped_commands_and_choices(program, words, hint, capsys):
    main = importlib.import_module(f"dinov2_jax.{program}.__main__").main
    try:
        code = main(words)
    except SystemExit as left:
        code = left.code
    error = capsys.readouterr().err
    assert code == 2 and hint in error and error.count("\n") == 1


def test_a_folder_with_the_name_of_a_mistyped_step(tmp_path, monkeypatch, capsys):
    (tmp_path / "samples").mkdir()
    monkeypatch.chdir(tmp_path)
    main = importlib.import_module("dinov2_jax.curate.__main__").main
    with pytest.raises(SystemExit):
        main(["samples"])
    assert "did you mean" not in capsys.readouterr().err


def test_seeds_have_32_bits():
    assert cli.seed("0") == 0 and cli.seed("4294967295") == 2**32 - 1
    for text in ("-1", "4294967296", "1.5", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="0 to 4,294,967,295"):
            cli.seed(text)

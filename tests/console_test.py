"""Consoles that close or fill up: the work goes on, and the failure is noted once."""

import io
import os
import subprocess
import sys

import pytest

from dinov2_jax import console, errors, progress_bar

WORKS = """
import logging, sys
from dinov2_jax import cli, progress_bar

def main():
    with progress_bar.Bar(3, what="step") as bar:
        for step in (1, 2, 3):
            bar.show(step, "x" * 5000)
            bar.message("a message")
            logging.warning("a warning")
            print("said", file=sys.stderr, flush=True)
            open(sys.argv[1], "a").write(f"step {step}\\n")
    open(sys.argv[1], "a").write(sys.stderr.failure)

cli.start(main)
"""


@pytest.mark.parametrize(
    "redirection, why",
    [
        ("2>/dev/full", "No space left on device"),
        ("2>&-", "it is closed"),
        ("", "Broken pipe"),
        ("2>/dev/null", ""),
    ],
)
def test_standard_error_that_cannot_be_written(tmp_path, redirection, why):
    out = tmp_path / "out"
    command = f'"$0" -c "$1" "$2" {redirection}; echo code $?'
    unread, error = os.pipe()
    os.close(unread)  # the reader has ended, as `head` has
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, WORKS, str(out)],
        stdout=subprocess.PIPE,
        stderr=error,
        text=True,
    )
    os.close(error)
    assert done.stdout == "code 0\n", done
    assert out.read_text() == f"step 1\nstep 2\nstep 3\n{why}"


def test_a_closed_stream_gives_its_number_to_no_file():
    """What C++ libraries print would be written into that file."""
    program = (
        "import sys\nfrom dinov2_jax import cli\n"
        "cli.start(lambda: open(sys.argv[1], 'w').fileno())"
    )
    command = '"$0" -c "$1" /dev/null 0>&- 1>&- 2>&-; echo $?'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, program], capture_output=True, text=True
    )
    assert int(done.stdout) > 2


def test_names_that_are_no_utf_8_are_printed():
    program = "from dinov2_jax import cli\ncli.start(lambda: print('caf\\udce9'))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("caf\\udce9\n", "")


@pytest.mark.parametrize("text", ["short", "long" * 10_000])
def test_standard_output_that_is_full(text):
    program = (
        "import sys\nfrom dinov2_jax import cli\n"
        "cli.start(lambda: cli.exit_code(lambda: print(sys.argv[1])))"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program, text],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == errors.TRY_AGAIN
    assert done.stderr == (
        "error: standard output: No space left on device; fix that and "
        "repeat the command\n"
    )


class Broken(io.StringIO):
    """A stream that fails from its third write on."""

    count = 0

    def write(self, text):
        self.count += 1
        if self.count >= 3:
            raise OSError(5, os.strerror(5))
        return super().write(text)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_goes_on_without_its_stream(terminal):
    stream = Broken()
    stream.isatty = lambda: terminal
    with progress_bar.Bar(9, stream=stream) as bar:
        for step in range(9):
            bar.show(step, "a text")
            bar.message("a line")
    assert bar.failure == os.strerror(5)
    assert stream.count > 3  # tried again, since a disk may have room later


def test_a_stream_is_guarded_once():
    once = console.messages(io.StringIO())
    assert console.messages(once) is once and not once.failure
    once.close()
    once.write("nothing")
    assert "closed" in once.failure

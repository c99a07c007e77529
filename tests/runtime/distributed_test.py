"""The cluster that flags describe; the processes themselves are in tests/launch."""

import pathlib
import subprocess
import sys

import pytest

from dinov2_jax import errors
from dinov2_jax.runtime import distributed

ROOT = pathlib.Path(__file__).parents[2]


def test_three_flags_or_none():
    assert distributed.make_cluster(None, None, None) is None
    cluster = distributed.make_cluster("[::1]:8476", 2, 1)
    assert cluster == distributed.Cluster("[::1]:8476", 2, 1)


@pytest.mark.parametrize(
    "flags, words",
    [
        ((None, 2, 0), "--coordinator missing"),
        (("host:1", None, 0), "--num_processes missing"),
        (("host:1", 2, None), "--process_id missing"),
        (("host", 2, 0), "HOST:PORT"),
        (("host:1", 0, 0), "--num_processes=0"),
        (("host:1", 2, 2), "--process_id=2"),
        (("host:1", 2, -1), "--process_id=-1"),
    ],
)
def test_impossible_flags(flags, words):
    with pytest.raises(errors.UserError, match=words) as caught:
        distributed.make_cluster(*flags)
    assert caught.value.exit_code == errors.BAD_INPUT


def test_an_error_alone_is_not_one_of_a_cluster():
    assert not distributed.joined()
    assert distributed.name() == ""
    with pytest.raises(SystemExit) as left:
        distributed.leave(errors.BAD_INPUT)
    assert left.value.code == errors.BAD_INPUT


# Asks to end, and again before each line of the answer: signals come in bursts.
ASKED_AGAIN = """
import signal, sys
from dinov2_jax.runtime import distributed

def trace(frame, event, _):
    if event == "line":
        signal.raise_signal(signal.SIGTERM)
    return trace

distributed.initialize()
assert not distributed.preempted(0)
answer = signal.getsignal(signal.SIGTERM)
sys.settrace(trace)
answer(signal.SIGTERM, None)
sys.settrace(None)
assert distributed.preempted(1)
"""


def test_asked_to_end_while_it_answers():
    subprocess.run(
        [sys.executable, "-c", ASKED_AGAIN], check=True, timeout=300, cwd=ROOT
    )

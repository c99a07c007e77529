"""pytest, killed with everything that it started when its standard input is closed.

The program that starts it holds the other end, so that nothing outlives that program,
however it ends. To be started in a session of its own.
"""

import os
import signal
import sys
import threading

import pytest


def _kill_at_the_end_of(pipe: int) -> None:
    os.read(pipe, 1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    # Another descriptor, because pytest puts a file of its own in the place of 0.
    threading.Thread(target=_kill_at_the_end_of, args=(os.dup(0),), daemon=True).start()
    sys.exit(pytest.main())

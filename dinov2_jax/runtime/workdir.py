"""The folder of a run: made before anything is compiled, and told what runs in it."""

import fcntl
import json
import logging
import os
import pathlib
import socket
import tempfile
import time
from typing import Any, TextIO

from dinov2_jax import errors

_PATIENCE = 120  # seconds until a network file system forgets a host that is gone


def make_workdir(workdir: pathlib.Path) -> None:
    """Creates the run's folder.

    Raises:
      UserError: It cannot be written to.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise errors.UserError(
            f"cannot write to the folder {workdir} ({error.strerror}): choose another "
            "--workdir"
        ) from error


def lock(workdir: pathlib.Path) -> TextIO:
    """Takes the run's folder, as long as the file that is returned stays open.

    The kernel lets go of WORKDIR/run.lock when the process ends, however it does.

    A file system that knows no locks is trusted.

    Raises:
      UserError: Another process has it.
    """
    file = open(workdir / "run.lock", "a+")
    deadline = None
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            pass
        except OSError:
            break
        file.seek(0)
        holder = file.read().strip() or "another process"
        in_use = f"{workdir} is in use by {holder}"
        if deadline is None:
            elsewhere = f" on {socket.gethostname()} since " not in holder
            deadline = time.monotonic() + (_PATIENCE if elsewhere else 0)
            if elsewhere:
                logging.warning("%s: waiting up to %d s", in_use, _PATIENCE)
        if time.monotonic() >= deadline:
            file.close()
            raise errors.UserError(f"{in_use}: end it or choose another --workdir")
        time.sleep(1)
    file.truncate(0)
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    file.write(f"pid {os.getpid()} on {socket.gethostname()} since {since}\n")
    file.flush()
    return file


def write_config(config: Any, workdir: pathlib.Path) -> None:
    """Writes WORKDIR/config.json, whole or not at all."""
    fields = json.loads(config.to_json_best_effort())
    temporary = workdir / "config.json.tmp"
    temporary.write_text(json.dumps(fields, indent=2) + "\n")
    temporary.replace(workdir / "config.json")

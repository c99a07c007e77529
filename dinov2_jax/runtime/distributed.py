"""Start and end of one of several processes in a run."""

import contextlib
import dataclasses
import logging
import os
import re
import signal
import sys
from typing import NoReturn

from dinov2_jax import errors

_JOIN_TIMEOUT = 300  # seconds for all processes to start; jax's default
_asked_to_end = False
# Exit codes with which all processes leave together, waiting for each other.
_TOGETHER = (0, errors.NON_FINITE, errors.REQUEUE)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A cluster described by hand, for when jax does not detect one.

    Attributes:
      coordinator: HOST:PORT at which process 0 listens.
      num_processes: Number of processes in the cluster.
      process_id: Index of this process, from 0.
    """

    coordinator: str
    num_processes: int
    process_id: int


def make_cluster(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> Cluster | None:
    """Return the cluster that three flags describe, or None if none is given.

    Args:
      coordinator: The flag --coordinator.
      num_processes: The flag --num_processes.
      process_id: The flag --process_id.

    Raises:
      UserError: A flag is missing or invalid.
    """
    given = {
        "--coordinator": coordinator,
        "--num_processes": num_processes,
        "--process_id": process_id,
    }
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return None
    if missing:
        raise errors.UserError(
            f"{' and '.join(missing)} missing: give --coordinator=HOST:PORT, "
            "--num_processes=N and --process_id=I together, or none where jax "
            "finds the cluster (Cloud TPU, SLURM, GKE, Open MPI)"
        )
    if not re.fullmatch(r"\S+:\d+", coordinator):
        raise errors.UserError(
            f"--coordinator={coordinator}: write HOST:PORT, a port of process 0"
        )
    if num_processes < 1 or not 0 <= process_id < num_processes:
        raise errors.UserError(
            f"--process_id={process_id} of --num_processes={num_processes}: processes "
            "are counted from 0 to one below their number"
        )
    return Cluster(coordinator, num_processes, process_id)


def initialize(cluster: Cluster | None = None, *, heartbeat_timeout: int = 30) -> None:
    """Join the other processes. Call it before any device is used.

    Processes other than the first then log warnings and errors only.

    Args:
      cluster: The cluster that the flags describe. None: jax detects Cloud TPU pods,
        SLURM, Kubernetes and Open MPI; elsewhere there is only this process.
      heartbeat_timeout: Seconds without a heartbeat from one process after which all
        others end.

    Raises:
      UserError: The processes did not find each other.
    """
    import jax  # imported here, so that bad flags are rejected at once

    # For processes on CPUs. Set explicitly, in case jax's default changes.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    arguments = {}
    if cluster:
        arguments = dataclasses.asdict(cluster)
        arguments["coordinator_address"] = arguments.pop("coordinator")
        arguments["cluster_detection_method"] = "deactivate"
    try:
        jax.distributed.initialize(
            initialization_timeout=_JOIN_TIMEOUT,
            heartbeat_timeout_seconds=heartbeat_timeout,
            **arguments,
        )
    except ValueError as error:
        if "coordinator_address" not in str(error):  # jax found no cluster
            raise
    except jax.errors.JaxRuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise errors.UserError(
            f"the processes of the run did not find each other ({reason}): see that "
            "all of them started, and that process 0 can be reached from every host",
            exit_code=errors.TRY_AGAIN,
        ) from error
    if not joined():
        signal.signal(signal.SIGTERM, _ask_to_end)
    # The terminal of the run was closed. Under nohup the signal stays ignored.
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    if jax.process_index():
        logging.getLogger().setLevel(logging.WARNING)


def _ask_to_end(*_) -> None:
    """Set the flag; no lock, which a second signal during this one would wait for."""
    global _asked_to_end
    _asked_to_end = True


def preempted(step: int) -> bool:
    """Return whether to save and exit after a step, the same in every process.

    True after SIGTERM, which Cloud TPU hosts, GKE pods and SLURM tasks also get when
    they are preempted, and after SIGHUP, which closing a terminal sends. In a cluster,
    jax handles SIGTERM and makes the processes agree on a step.

    Args:
      step: Number of finished steps; call this after each.
    """
    if joined():
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)
    return _asked_to_end


def name() -> str:
    """Return the prefix of error messages: "process 3: ", or "" for process 0."""
    if not joined():
        return ""
    import jax

    return f"process {jax.process_index()}: " if jax.process_index() else ""


def leave(code: int) -> NoReturn:
    """End this process, without waiting for the others if only this one failed.

    A normal exit from a cluster waits up to five minutes for the other processes. They
    may be waiting for this one to compute, and the launcher for its exit code.
    """
    if joined() and code not in _TOGETHER:
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, AttributeError):  # closed, or None
                stream.flush()
        os._exit(code)
    if code == errors.REQUEUE:  # a second signal would change the exit code
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    sys.exit(code)


def joined() -> bool:
    """Return whether this process has joined a cluster."""
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()

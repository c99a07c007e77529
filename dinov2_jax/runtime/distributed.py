"""Joining the other processes of a run, and leaving them."""

import dataclasses
import logging
import os
import re
import signal
import sys
from typing import NoReturn

from dinov2_jax import errors

_JOIN_TIMEOUT = 300  # seconds for all processes to start, as jax has it
# With which all processes leave at once, and wait for each other.
_asked_to_end = False
_TOGETHER = (0, errors.NON_FINITE, errors.REQUEUE)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """What jax is told where it finds no cluster by itself.

    Attributes:
      coordinator: HOST:PORT at which process 0 listens.
      num_processes: All of them.
      process_id: Of this process, from 0.
    """

    coordinator: str
    num_processes: int
    process_id: int


def make_cluster(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> Cluster | None:
    """The cluster that three flags describe; None where none of them is given.

    Raises:
      UserError: One is missing or impossible.
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
            "--num_processes=N and --process_id=I together, or none of them where jax "
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
    """Joins the other processes, before a device is touched; only the first one logs.

    Args:
      cluster: From the flags. None: jax finds Cloud TPU pods, SLURM, Kubernetes and
        Open MPI by themselves; elsewhere the process stays alone.
      heartbeat_timeout: Seconds without a sign of life from one process, after which
        all others end.

    Raises:
      UserError: The other processes did not come.
    """
    import jax  # here, so that bad flags are refused without waiting for it

    # Between processes on CPUs; the default may not stay what it is.
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
        if "coordinator_address" not in str(error):  # what no cluster reads like
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
    if jax.process_index():
        logging.getLogger().setLevel(logging.WARNING)


def _ask_to_end(*_) -> None:
    """Takes no lock, which another signal, in the middle of this, would wait for."""
    global _asked_to_end
    _asked_to_end = True


def preempted(step: int) -> bool:
    """Whether to save and leave after a step: the same answer in every process.

    On SIGTERM, which is also how a Cloud TPU host, a pod of GKE or a SLURM task learns
    that it is taken away. Processes of a cluster agree on a step through jax, which
    then listens to the signal itself.

    Args:
      step: Finished steps; asked after each.
    """
    if joined():
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)
    return _asked_to_end


def name() -> str:
    """Stands before an error: of the first or only process "", else "process 3: "."""
    if not joined():
        return ""
    import jax

    return f"process {jax.process_index()}: " if jax.process_index() else ""


def leave(code: int) -> NoReturn:
    """Ends this process, without waiting for the others if it has failed alone.

    A process that joined others waits for them before it ends, up to five minutes; they
    may be waiting for it to compute, and whoever started them for its exit code.
    """
    if joined() and code not in _TOGETHER:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if code == errors.REQUEUE:  # which a second signal, at the very end, would change
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(code)


def joined() -> bool:
    """Whether this process is one of a cluster."""
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()

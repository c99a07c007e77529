"""Joining the other processes of a run."""

import jax


def initialize() -> None:
    """Joins the cluster that the environment describes, before a device is touched.

    jax finds Cloud TPU pods, SLURM, Open MPI and Kubernetes by themselves; elsewhere
    the process stays alone.
    """
    try:
        jax.distributed.initialize()
    except ValueError as error:
        if "coordinator_address" not in str(error):  # what no cluster reads like
            raise

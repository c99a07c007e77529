"""How the loader's worker processes begin and end.

They hold no accelerator, use one thread each, leave signals to the trainer, and do not
outlive it.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time

# grain imports jax in every worker; and there is a worker for each core.
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


@contextlib.contextmanager
def environment():
    """Sets what processes started inside inherit.

    This process is not affected: jax, which grain imports, has read its variables.
    """
    saved = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def initialise(index: int, count: int) -> None:
    """Runs first in every worker process."""
    del index, count
    # Signals to the whole process group are the trainer's to handle: it saves first,
    # needs a few more batches for that, and then closes the loader.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    logging.getLogger("absl").setLevel(logging.ERROR)
    # Not PR_SET_PDEATHSIG: it fires when the thread ends that started the process. Not
    # os.getppid() either: the trainer may have been killed while this process began.
    parent = multiprocessing.parent_process().pid

    def leave_with_parent():
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()

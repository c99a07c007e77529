"""Fixtures of the tests that run the training program or compile much."""

import fcntl
import pathlib
import pickle
import signal

import jax
import processes
import pytest

# A shell ignores Ctrl-C for what it starts in the background, and so would each process
# that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory) -> pathlib.Path:
    """A cache of this process's tests, instead of the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DINOV2_JAX_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory, worker_id) -> pathlib.Path:
    """A folder of this session that all of its pytest processes see."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder if worker_id == "master" else folder.parent) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def trainer(shared_folder) -> processes.Trainer:
    """The training program."""
    return processes.Trainer(shared_folder / "compilations")


@pytest.fixture(scope="session")
def uninterrupted(shared_folder, trainer):
    """(workdir, Finished) of one run from start to end, made once for the session."""
    workdir, record = shared_folder / "uninterrupted", shared_folder / "record"
    with open(shared_folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not record.exists():
            finished = trainer.run(
                *processes.DEBUG, f"--workdir={workdir}", JAX_LOG_COMPILES="1"
            )
            assert finished.code == 0, finished.output
            record.write_bytes(pickle.dumps(finished))
    return workdir, pickle.loads(record.read_bytes())


@pytest.fixture
def quick_compilation():
    """Half the compilation time, which is most of many tests; numbers stay exact."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)

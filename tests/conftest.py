"""How the tests compile, and fixtures of those that run the training program.

Most of their time is compilation. So programs are compiled with few optimizations,
which halves it, and once for all tests and the processes that they start. Tests of what
users run, as they compile it, say so: `full_compilation`, `processes.as_users`.
"""

import fcntl
import os
import pathlib
import pickle
import signal
import tempfile

if "PYTEST_XDIST_WORKER" not in os.environ:  # workers get these from the first process
    os.environ |= {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # else shared among sessions
        _COMPILATIONS = tempfile.TemporaryDirectory(prefix="dinov2_jax-compilations-")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILATIONS.name

# After what jax reads when it is imported.
import in_process as in_process_lib  # noqa: E402
import jax  # noqa: E402
import processes  # noqa: E402
import pytest  # noqa: E402

# A shell ignores Ctrl-C for what it starts in the background, and nohup a closed
# terminal, and so would each process that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


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
def trainer() -> processes.Trainer:
    """The training program, as processes."""
    return processes.Trainer()


@pytest.fixture(scope="session")
def in_process() -> in_process_lib.Trainer:
    """The training program within this process, which is much quicker."""
    return in_process_lib.Trainer()


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
def full_compilation():
    """Compiles in the test's process as users do."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)

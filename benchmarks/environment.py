"""Where and with what numbers were taken, and processes to take them in.

`python -m benchmarks.environment` prints the device, so that the process that calls the
others need not hold it.
"""

import contextlib
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

# What changes the numbers without being in the code.
VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_OPTIMIZATION_LEVEL")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch")
# glibc hands large arrays back to the system after each use and faults their pages in
# again at the next; keeping them made a PyTorch step at batch 4 about a sixth faster.
# Read by glibc when a process starts, so it belongs in the environment of a new one.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
}
_ERROR = re.compile(r"(\w+\.)*\w*(Error|Exception|error)\b")
_OUT_OF_MEMORY = re.compile(r"RESOURCE_EXHAUSTED|OutOfMemoryError|out of memory", re.I)


class WorkerFailed(RuntimeError):
    """A measurement that gave no number; the message says why in a few words."""


def describe(packages: Sequence[str] = PACKAGES) -> dict:
    """Date, commit, Python, machine and the versions of packages that are installed."""
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: _version(name) for name in packages if _version(name)},
        "variables": {
            name: os.environ[name] for name in VARIABLES if name in os.environ
        },
    }


def commit() -> str:
    """The checked-out commit, with "+" after it where files differ; "" if unknown."""
    found = []
    changed = ("status", "--porcelain", "-uno", ".", ":!benchmarks/results")
    for command in (("rev-parse", "--short", "HEAD"), changed):
        try:
            done = subprocess.run(["git", *command], capture_output=True, text=True)
        except OSError:
            return ""
        found.append(done.stdout.strip())
    return found[0] + "+" * bool(found[0] and found[1])


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def device() -> dict:
    """`platform` and `kind` of JAX's default device, asked in a process of its own."""
    return run_worker("environment", [], {})


def peak_host_bytes() -> int:
    """The most memory that this process has held; on Linux.

    Not `ru_maxrss`, which begins with that of the process that started this one.
    """
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


def run_worker(
    module: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    timeout: float | None = None,
) -> dict:
    """Runs `python -m benchmarks.<module>` and returns the JSON it prints.

    Raises:
      WorkerFailed: It failed, or took longer than `timeout` seconds.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", f"benchmarks.{module}", *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that what it started ends with it
    )
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        raise WorkerFailed("out of time") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode:
        if _OUT_OF_MEMORY.search(errors) or process.returncode == -signal.SIGKILL:
            raise WorkerFailed("out of memory")
        print(errors[-4000:], file=sys.stderr)
        raise WorkerFailed(last_error(errors) or f"exit code {process.returncode}")
    return json.loads(output)


def last_error(text: str) -> str:
    """The last line that names an error, or the last one, of what a program wrote."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if _ERROR.match(line)]
    return (named or lines or [""])[-1][:100]


def main() -> None:
    """Prints one JSON object."""
    import jax

    first = jax.devices()[0]
    print(json.dumps({"platform": first.platform, "kind": first.device_kind}))


if __name__ == "__main__":
    main()

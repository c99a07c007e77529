"""The environment in which numbers were measured.

`python -m benchmarks.environment` prints the device, so that the process that starts
the workers does not occupy it.
"""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import subprocess
from collections.abc import Sequence

# Variables that change the numbers.
VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_OPTIMIZATION_LEVEL")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch")


def describe(packages: Sequence[str] = PACKAGES) -> dict:
    """Return date, commit, Python, machine and versions of installed packages."""
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
    """Return the checked-out commit, with "+" if code differs; "" if unknown."""
    found = []
    written = (":!benchmarks/results", ":!docs")
    changed = ("status", "--porcelain", "-uno", ".", *written)
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


def peak_host_bytes() -> int:
    """Return the peak resident memory of this process, on Linux.

    `ru_maxrss` is not used, because it includes the peak of the parent process.
    """
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


def main() -> None:
    """Print one JSON object."""
    import jax

    first = jax.devices()[0]
    print(json.dumps({"platform": first.platform, "kind": first.device_kind}))


if __name__ == "__main__":
    main()

"""Where and with what numbers were taken, and processes to take them in."""

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence


def describe(packages: Sequence[str]) -> dict:
    """Date, commit, Python, machine and the versions of packages."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def run_worker(
    module: str, arguments: Sequence[str], environment: Mapping[str, str]
) -> dict:
    """Runs `python -m benchmarks.<module>` and returns the JSON it prints."""
    output = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *arguments],
        env={**os.environ, **environment},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(output.stdout)

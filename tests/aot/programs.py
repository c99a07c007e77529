"""Runs `python -m dinov2_jax.aot` as people do."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import processes
import pytest

from dinov2_jax import errors
from dinov2_jax.aot import machines

ROOT = pathlib.Path(__file__).parents[2]


def has_libtpu() -> bool:
    """Whether programs for TPUs can be compiled here."""
    try:
        return machines.libtpu() is not None
    except errors.UserError:
        return False


needs_libtpu = pytest.mark.skipif(
    not has_libtpu(), reason="needs libtpu: pip install -r requirements-aot.txt"
)


def run(*flags: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs the program to its end."""
    return subprocess.run(
        [sys.executable, "-m", "dinov2_jax.aot", *flags],
        cwd=ROOT,
        env=processes.as_users() | environment,
        capture_output=True,
        text=True,
        timeout=900,
    )


def report(folder: pathlib.Path, *flags: str) -> dict:
    """The report of a run that must not fail."""
    out = folder / "report.json"
    result = run(*flags, f"--out={out}")
    assert out.is_file(), result.stderr
    return json.loads(out.read_text()) | {"stdout": result.stdout}


def has_cuda() -> bool:
    """Whether programs for NVIDIA GPUs can be compiled here."""
    return importlib.util.find_spec("jax_cuda13_plugin") is not None


def devices(topology: str) -> int:
    """How many a slice has."""
    return machines.parse(topology).num_devices

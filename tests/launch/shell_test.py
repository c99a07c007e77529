"""What all launchers share: shellcheck, help, flag profiles that compilers know."""

import pathlib
import subprocess
import sys

import commands
import processes
import pytest

SCRIPTS = sorted(
    path
    for path in commands.LAUNCH.rglob("*")
    if path.suffix in (".sh", ".sbatch") and not path.name.endswith("common.sh")
)
GPU_PROFILES = sorted(commands.LAUNCH.glob("flags/gpu*.env"))
PROFILES = sorted(commands.LAUNCH.glob("flags/*.env"))


def name(path):
    return path.name


def test_shellcheck():
    program = pathlib.Path(sys.executable).with_name("shellcheck")
    finished = subprocess.run(
        [
            program,
            "-x",
            "-P",
            "SCRIPTDIR",
            *commands.LAUNCH.glob("*common.sh"),
            *SCRIPTS,
        ],
        capture_output=True,
        text=True,
    )
    assert finished.stdout + finished.stderr == ""


@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_help(script):
    finished = subprocess.run(
        ["bash", script, "--help"], capture_output=True, text=True
    )
    assert finished.returncode == 0
    assert f"launch/{script.relative_to(commands.LAUNCH)}" in finished.stdout
    assert "--dry-run" in finished.stdout
    assert "set -euo pipefail" in script.read_text()
    assert script.stat().st_mode & 0o111


def profile(path):
    """{variable: value}, as the launchers read it."""
    command = f"source {commands.LAUNCH}/common.sh; profile {path.stem}"
    finished = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(line.split("=", 1) for line in finished.stdout.splitlines())


@pytest.mark.parametrize("path", PROFILES, ids=name)
def test_variables_of_profiles_are_documented(path):
    explained = False
    for line in path.read_text().splitlines():
        assert line.startswith("#") or "=" in line
        if not line.startswith("#"):
            assert explained, f"no comment above {line}"
        explained = True
    values = profile(path)
    assert values and set(values) <= {
        "JAX_OPTIMIZATION_LEVEL",
        "LIBTPU_INIT_ARGS",
        "XLA_FLAGS",
    }
    documented = (processes.ROOT / "docs/launch.md").read_text()
    for value in values.values():
        for flag in value.split():
            assert flag.split("=")[0].lstrip("-") in documented or "=" not in flag


def known_to_xla(**environment):
    return subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"],
        env=commands.environment(JAX_PLATFORMS="cpu", **environment),
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("path", GPU_PROFILES, ids=name)
def test_xla_knows_the_flags_for_gpus(path):
    finished = known_to_xla(**profile(path))
    assert finished.returncode == 0, finished.stderr


def test_xla_refuses_flags_that_it_does_not_know():
    finished = known_to_xla(XLA_FLAGS="--xla_gpu_enable_magic=true")
    assert finished.returncode != 0 and "Unknown flag" in finished.stderr


def test_own_flags_win_over_a_profile():
    command = f"source {commands.LAUNCH}/common.sh; apply_profile gpu-deterministic"
    finished = subprocess.run(
        ["bash", "-c", f"{command}; echo $XLA_FLAGS"],
        env=commands.environment(XLA_FLAGS="--xla_gpu_autotune_level=4"),
        capture_output=True,
        text=True,
    )
    assert finished.stdout.split() == [
        "--xla_gpu_deterministic_ops=true",
        "--xla_gpu_autotune_level=0",
        "--xla_gpu_autotune_level=4",
    ]
    assert "--flags gpu-deterministic: XLA_FLAGS=" in finished.stderr

"""The wheel: what is in it, and its command in a folder of its own.

It is installed into an empty environment, which finds all other packages where these
tests find them. The folder has a package `configs` that nobody may import.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile

import processes
import pytest
from packaging import requirements, version

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# The folders that are installed, by where they are in the package.
FOLDERS = {"dinov2_jax": "", "configs": "configs/", "launch": "launch/"}


def run(*command, cwd):
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy of the tree: a build leaves files behind."""
    source = tmp_path_factory.mktemp("source")
    for name in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = (sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps")
    built = run(*pip, "--no-index", "--wheel-dir=dist", ".", cwd=source)
    assert built.returncode == 0, built.stdout + built.stderr
    return next(source.glob("dist/*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """(command, folder): `dinov2-jax` of an environment, and where to call it."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin/python"
    pip = (sys.executable, "-m", "pip", f"--python={python}", "install", "--no-deps")
    done = run(*pip, "--no-index", wheel, cwd=environment)
    assert done.returncode == 0, done.stderr
    packages = sysconfig.get_path("purelib", vars={"base": str(environment)})
    (pathlib.Path(packages) / "others.pth").write_text(sysconfig.get_path("purelib"))
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "configs").mkdir()
    (folder / "configs/__init__.py").write_text("raise ImportError('not for you')\n")
    (folder / "mine.py").write_text(
        "from dinov2_jax.configs import debug\n"
        "def get_config():\n    c = debug.get_config()\n"
        "    c.seed = 1\n    return c\n"
    )
    return environment / "bin/dinov2-jax", folder


def test_the_wheel_has_every_file_and_no_other_package(wheel):
    with zipfile.ZipFile(wheel) as archive:
        files = {info.filename: info for info in archive.infolist()}
        metadata = next(name for name in files if name.endswith("/METADATA"))
        text = archive.read(metadata).decode()
    expected = {
        f"dinov2_jax/{place}{path.relative_to(ROOT / name)}"
        for name, place in FOLDERS.items()
        for path in (ROOT / name).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {"dinov2_jax/py.typed", "dinov2_jax/aot/h200.txtpb"} < expected
    assert {name for name in files if ".dist-info/" not in name} == expected
    assert files["dinov2_jax/launch/local.sh"].external_attr >> 16 & 0o111
    assert "License-Expression: Apache-2.0" in text and "# dinov2_jax" in text


def test_trains_from_another_folder(installed):
    command, folder = installed
    flags = ("--config=debug", "--workdir=run", *processes.DEBUG[1:])
    done = run(command, "train", *flags, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert len((folder / "run/metrics.jsonl").read_text().splitlines()) >= 20
    assert (folder / "run/checkpoints/20").is_dir()
    done = run(command, "status", "run", cwd=folder)
    assert done.returncode == 0 and "step" in done.stdout, done.stderr


@pytest.mark.parametrize("config", ["mine.py", "vits.py", "configs/vits.py"])
def test_configs_by_path_and_by_name(installed, config):
    """Refused for a value of another type, which only a config that loads knows."""
    command, folder = installed
    flags = (f"--config={config}", "--config.train.steps=many")
    done = run(command, "train", *flags, cwd=folder)
    assert done.returncode == 2
    assert "train.steps" in done.stderr and "many" in done.stderr


def test_the_command_lists_its_programs(installed):
    command, folder = installed
    listed = run(command, "--help", cwd=folder)
    alone = run(command, cwd=folder)
    assert (listed.returncode, listed.stderr) == (0, "")
    assert (alone.returncode, alone.stderr) == (2, listed.stdout)
    wrong = run(command, "trian", cwd=folder)
    assert wrong.returncode == 2
    assert "did you mean train?" in wrong.stderr and wrong.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "program",
    [
        *("embed", "curate", "visualize", "demo", "export-page", "convert", "push"),
        *("data", "status", "report", "aot", "launch"),
    ],
)
def test_each_program_starts(installed, program):
    command, folder = installed
    done = run(command, program, "--help", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert f"usage: dinov2-jax {program}" in done.stdout


def test_preflight_is_a_flag_of_the_training_program(installed):
    command, folder = installed
    bad = "--config.data.path=nowhere"
    flags = ("--config=debug", "--workdir=run", "--config.data.source=folder", bad)
    done = run(command, "preflight", *flags, cwd=folder)
    assert done.returncode == 2
    assert re.search("WRONG .*nowhere does not exist", done.stdout), done.stderr


def test_launchers_are_copied(installed):
    command, folder = installed
    assert run(command, "launch", cwd=folder).returncode == 0
    assert os.access(folder / "launch/local.sh", os.X_OK)
    done = run("launch/local.sh", "2", "--dry-run", "--", "--config=vits", cwd=folder)
    assert done.returncode == 0 and done.stdout.count("-m dinov2_jax.main") == 2
    again = run(command, "launch", cwd=folder)
    assert again.returncode == 2 and "launch exists" in again.stderr


def test_tested_versions_are_in_the_ranges():
    pins = {}
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = requirements.Requirement(line)
            pins.setdefault(pin.name.lower(), []).extend(pin.specifier)
    core = PROJECT["dependencies"]
    more = PROJECT["optional-dependencies"]
    for text in [*core, *more["tfds"], *more["viz"]]:
        wanted = requirements.Requirement(text)
        for pin in pins[wanted.name]:
            assert version.Version(pin.version) in wanted.specifier, (text, pin)

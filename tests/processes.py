"""Starts, kills and compares runs of `python -m dinov2_jax.main` for the tests."""

import dataclasses
import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

import numpy as np
import orbax.checkpoint as ocp

ROOT = pathlib.Path(__file__).parents[1]
# Of the speed of the machine, so no two runs agree.
CLOCK = ("images_per_second", "data_wait")
DEBUG = (
    "--config=configs/debug.py",
    "--config.train.steps=20",
    "--config.checkpoint.every=4",
    "--config.checkpoint.keep_last=100",
    "--config.evaluation.max_images=64",
    "--config.evaluation.picture_size=64",
)


@dataclasses.dataclass(frozen=True)
class Finished:
    """The result of a finished process."""

    code: int
    output: str

    @property
    def error(self) -> str:
        """The one line of a foreseen error; fails where there is more or less."""
        assert "Traceback" not in self.output, self.output
        lines = [x for x in self.output.splitlines() if x.startswith("error:")]
        assert len(lines) == 1, self.output
        return lines[0]


def as_users() -> dict[str, str]:
    """The environment without the compilation settings of `conftest`."""
    ours = ("JAX_DISABLE_MOST_", "JAX_COMPILATION_CACHE_", "JAX_PERSISTENT_CACHE_")
    return {k: v for k, v in os.environ.items() if not k.startswith(ours)}


class Trainer:
    """Runs the training program.

    Args:
      environment: Environment of its processes.
      more: Additional environment variables.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ, **more: str):
        self.environment = {**environment, **more, "JAX_PLATFORMS": "cpu"}

    def start(self, *flags: str, devices: int = 1, **environment: str):
        """Starts a process of its own group; standard error goes to its output."""
        if devices > 1:
            number = f"--xla_force_host_platform_device_count={devices}"
            environment["XLA_FLAGS"] = number
        return subprocess.Popen(
            [sys.executable, "-m", "dinov2_jax.main", *flags],
            cwd=ROOT,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *flags: str, devices: int = 1, **environment: str) -> Finished:
        """Runs a process to its end."""
        process = self.start(*flags, devices=devices, **environment)
        try:
            output, _ = process.communicate(timeout=300)
        finally:
            process.kill()
        return Finished(process.returncode, output)

    def kill_when(self, condition: Callable[[], bool], *flags: str) -> Finished:
        """Runs a process and kills it, outright, as soon as the condition holds."""
        process = self.start(*flags)
        try:
            deadline = time.monotonic() + 300
            while not condition() and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.001)
        finally:
            process.kill()
        output, _ = process.communicate(timeout=60)  # its workers hold it too
        return Finished(process.returncode, output)


def pid_of(process: int, workdir: pathlib.Path) -> int | None:
    """Returns the pid of a training process, by its number in the cluster."""
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_text().split("\0")
        except OSError:
            continue
        if f"--process_id={process}" in words and f"--workdir={workdir}" in words:
            return int(path.parent.name)
    return None


def rows(workdir: pathlib.Path) -> list[dict]:
    """The objects of metrics.jsonl without what depends on the machine's speed."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    objects = [json.loads(line) for line in lines]
    return [{k: v for k, v in row.items() if k not in CLOCK} for row in objects]


def assert_close_losses(
    workdir: pathlib.Path, other: pathlib.Path, absolute: float = 0.0
) -> None:
    """Compares the losses of two runs of `DEBUG`, to 1e-5 relative by default."""
    actual, expected = rows(workdir), rows(other)
    assert [row["step"] for row in actual] == [*range(1, 21), 20]
    for row, reference in zip(actual[:20], expected[:20], strict=True):
        losses = {k: v for k, v in reference.items() if k.startswith("loss/")}
        assert len(losses) == 5
        for name, value in losses.items():
            close = math.isclose(row[name], value, rel_tol=1e-5, abs_tol=absolute)
            assert close, (name, row["step"], row[name], value)


def steps_logged(workdir: pathlib.Path) -> int:
    """Whole rows of metrics.jsonl at this moment."""
    try:
        return (workdir / "metrics.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def saved_steps(workdir: pathlib.Path) -> list[int]:
    """Steps of the finished checkpoints, ascending."""
    folders = (workdir / "checkpoints").glob("*")
    return sorted(int(p.name) for p in folders if p.name.isdigit())


def unfinished_saves(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Folders of saves under way or given up."""
    return list((workdir / "checkpoints").glob("*orbax-checkpoint-tmp*"))


def load(workdir: pathlib.Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint by its path, whatever devices wrote it."""
    folder = workdir / "checkpoints" / str(step) / "default"
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.metadata(folder).item_metadata.tree
        args = ocp.checkpoint_utils.construct_restore_args(tree)
        args = {k: _as_numpy(v) for k, v in args.items()}
        restored = checkpointer.restore(folder, restore_args=args)
    return _flatten(restored)


def _as_numpy(args):
    if isinstance(args, dict):
        return {k: _as_numpy(v) for k, v in args.items()}
    if isinstance(args, (list, tuple)):
        return type(args)(_as_numpy(v) for v in args)
    return ocp.RestoreArgs(restore_type=np.ndarray)


def _flatten(tree, path: str = "") -> dict[str, np.ndarray]:
    if isinstance(tree, (list, tuple)):
        tree = dict(enumerate(tree))
    if not isinstance(tree, dict):
        return {path: np.asarray(tree)} if tree is not None else {}
    flat = {}
    for name, value in tree.items():
        flat |= _flatten(value, f"{path}/{name}")
    return flat


def branch(source: pathlib.Path, target: pathlib.Path, step: int) -> None:
    """Copies a run's folder as it was when the checkpoint of `step` was the newest."""
    shutil.copytree(source, target)
    for later in saved_steps(target):
        if later > step:
            shutil.rmtree(target / "checkpoints" / str(later))
    lines = (target / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    (target / "metrics.jsonl").write_text("".join(kept))
    (target / "pca.png").unlink(missing_ok=True)


def assert_same_arrays(actual: dict, expected: dict) -> None:
    """Bit for bit."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        assert actual[name].tobytes() == value.tobytes(), name


def noise(output: str) -> list[str]:
    """Lines that no run should print."""
    expected = re.compile(
        r"devices  |images  |batch  |steps  |lr  |parameters  |compiled the step in|"
        r"resumed from step|initialised from |nothing to do|step \d+|wrote |"
        r"schedules before and now: |\d+% of the images |"
        r"done; look at|  /|error: |"
        r"unreadable image |(so far )?\d+ of \d+ images are unreadable"
    )
    return [line for line in output.splitlines() if not expected.match(line)]

"""Checks of everything that a long run needs, before it starts: main --preflight.

Every process runs every check and receives the results of all others; process 0 prints
one line a check. The run's folder is left as it was.
"""

import contextlib
import math
import pathlib
import shutil
import socket
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from dinov2_jax import cli, errors, files, several_students, sharding
from dinov2_jax.augment import crop_sizes
from dinov2_jax.checkpoint import checkpointer, disk_space
from dinov2_jax.config import checking, resuming
from dinov2_jax.data import loader
from dinov2_jax.data.sources import messages, registry
from dinov2_jax.distillation import frozen_teacher, students
from dinov2_jax.eval import evaluator
from dinov2_jax.runtime import distributed, same_inputs
from dinov2_jax.runtime import workdir as workdir_lib
from dinov2_jax.trackers import backends
from dinov2_jax.weights import initial

_MAX_SKEW = 10.0  # seconds between the clocks of two hosts
_MAX_DELAY = 15.0  # seconds until all hosts see a file that one of them wrote
_MAX_TEXT = 600  # bytes of one process's message


def preflight(
    config: Any,
    workdir: str | pathlib.Path,
    cluster: distributed.Cluster | None = None,
) -> int:
    """Try everything that the run described by a config will need.

    Args:
      config: A locked `ConfigDict`, as for `train.train`.
      workdir: The folder of the run.
      cluster: The other processes, where jax does not detect them.

    Returns:
      The exit code: 0, or `errors.BAD_INPUT` if a check fails.

    Raises:
      UserError: The config is invalid, or the processes do not find each other.
    """
    workdir = files.local_path(workdir, name="workdir")
    checking.check(config)
    students.configs(config)  # raises what is wrong with one of them
    backends.check_installed(config.log.trackers)
    distributed.initialize(cluster, heartbeat_timeout=config.mesh.heartbeat_timeout)
    if not distributed.joined():  # a single process can stop at once
        cli.exit_on_signals()
    checks = _Preflight(config, workdir)
    # Files of checks that were killed; all processes make theirs after an exchange.
    if jax.process_index() == 0:
        shutil.rmtree(checks.scratch, ignore_errors=True)
    try:
        passed = _try_all(checks)
    finally:
        checks.remove_scratch()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("all results are received")
    return 0 if passed else errors.BAD_INPUT


def _try_all(flight: "_Preflight") -> bool:
    """Run all checks, print their results and return whether all passed."""
    checks = {  # name: the check, and the checks that must pass before it
        "devices": (flight.devices, ()),
        "all-reduce": (flight.all_reduce, ()),
        "clocks": (flight.clocks, ()),
        "folder": (flight.folder, ("devices",)),
        "one folder": (flight.one_folder, ("folder",)),
        "data": (flight.data, ("devices",)),
        "weights": (flight.weights, ("devices",)),
        "step": (flight.step, ("data", "weights")),
        "saving": (flight.saving, ("step", "one folder")),
    }
    passed: dict[str, bool] = {}
    for name, (check, needs) in checks.items():
        missing = [need for need in needs if not passed[need]]
        if missing:
            _print_result("skipped", name, f"needs {' and '.join(missing)}")
        passed[name] = not missing and _agree(name, check)
    return all(passed.values())


def _agree(name: str, check: Callable[[], str]) -> bool:
    """Run a check in all processes, print the result, return whether all passed."""
    try:
        passed, text = True, check()
    except Exception as error:  # any error would have stopped the run
        passed, text = False, " ".join(str(error).split()) or type(error).__name__
    results = [
        (text[0] == "+", text[1:]) for text in _gather_texts("-+"[passed] + text)
    ]
    bad = [
        f"process {i}: {text}" if i else text
        for i, (passed, text) in enumerate(results)
        if not passed
    ]
    texts = {text for _, text in results}
    if len(bad) == len(results) and len(texts) == 1:  # found by all together
        bad = list(texts)
    if bad:
        _print_result("WRONG", name, "; ".join(bad))
    else:
        _print_result("ok", name, results[0][1])
    return not bad


def _print_result(result: str, name: str, text: str) -> None:
    if jax.process_index() == 0:
        print(f"{result:7}  {name:10}  {text}", flush=True)


def _gather_texts(text: str) -> list[str]:
    """Gather a text from each process, ordered by process index."""
    buffer = np.zeros(_MAX_TEXT, np.uint8)
    encoded = np.frombuffer(
        text.encode(errors="backslashreplace")[:_MAX_TEXT], np.uint8
    )
    buffer[: len(encoded)] = encoded
    rows = np.asarray(multihost_utils.process_allgather(buffer)).reshape(-1, _MAX_TEXT)
    return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in rows]


class _Preflight:
    """The checks; each returns its finding, or raises the problem and its fix."""

    def __init__(self, config: Any, workdir: pathlib.Path):
        self.config, self.workdir = config, workdir
        self.scratch = workdir / "preflight"  # shared by all processes
        self.made_workdir = not workdir.exists()

    def devices(self) -> str:
        processes, devices = jax.process_count(), jax.device_count()
        checking.check_cluster(self.config, processes, devices)
        checking.check_devices(self.config, devices)
        teacher = frozen_teacher.read(self.config)
        self.config = frozen_teacher.resolve(self.config, teacher)
        self.trainer = several_students.make_trainer(self.config, teacher)
        replica, fsdp = self.trainer.mesh.devices.shape
        return (
            f"{messages.counted(processes, 'process', 'processes')}, {devices} "
            f"{jax.devices()[0].device_kind}, mesh replica {replica} x fsdp {fsdp}"
        )

    def all_reduce(self) -> str:
        """Sum a different number from each device and check the result."""
        numbers = np.arange(jax.device_count(), dtype=np.float32)
        mesh = sharding.make_mesh()
        x = jax.make_array_from_callback(
            numbers.shape, sharding.batch_sharding(mesh), lambda i: numbers[i]
        )
        start = time.monotonic()
        add = jax.jit(jnp.sum, out_shardings=sharding.replicated(mesh))
        total = float(add(x))
        if total != numbers.sum():
            raise errors.UserError(
                f"the sum over all devices is {total:g} instead of {numbers.sum():g}: "
                "a device or a link is broken; run the vendor's diagnostics"
            )
        return f"the sum over all devices is correct, {time.monotonic() - start:.1f} s"

    def clocks(self) -> str:
        """Compare the clocks of the hosts, which time checkpoints and events."""
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("all are ready to read the clock")
        texts = _gather_texts(f"{time.time():.3f} {socket.gethostname()}")
        times = [float(text.split()[0]) for text in texts]
        late, early = min(times), max(times)
        if early - late > _MAX_SKEW:
            behind, ahead = (texts[times.index(t)].split()[1] for t in (late, early))
            raise errors.UserError(
                f"the clock of {behind} is {early - late:.0f} s behind that of "
                f"{ahead}: start chronyd or another time service on both"
            )
        return f"within {early - late:.1f} s of each other"

    def folder(self) -> str:
        """Check that each process can write to the folder and that it has room."""
        if checkpointer.has_checkpoint(self.workdir):
            resuming.check_resume(self.config, self.workdir)
        workdir_lib.make_workdir(self.workdir)
        self.scratch.mkdir(exist_ok=True)
        files.write_text(self._file(jax.process_index()), "written by --preflight\n")
        needed = disk_space.bytes_of(self.trainer.state)
        path = self.workdir / "checkpoints"
        path = path if path.is_dir() else self.workdir
        keep = self.config.checkpoint.keep_last
        warning = disk_space.check(path, needed=needed, keep_last=keep)
        if warning:
            raise errors.UserError(warning)
        room = disk_space.needed_and_free(path, needed)
        return f"files can be written, renamed and synced; per checkpoint {room}"

    def _file(self, process: int) -> pathlib.Path:
        return self.scratch / f"process-{process}"

    def one_folder(self) -> str:
        """Check that each process sees the files of all others."""
        deadline = time.monotonic() + _MAX_DELAY
        everyone = range(jax.process_count())
        while missing := [i for i in everyone if not self._file(i).exists()]:
            if time.monotonic() > deadline:
                raise errors.UserError(
                    f"{self.scratch} on {socket.gethostname()} is missing the files of "
                    f"{messages.counted(len(missing), 'process', 'processes')}, such "
                    f"as process {missing[0]}: --workdir must be the same folder for "
                    "all processes, on a shared file system"
                )
            time.sleep(0.1)
        return f"{self.workdir} is the same folder for all"

    def data(self) -> str:
        """Build this process's part of a batch, the first with the largest crops."""
        source = self.source = registry.make_source(self.config)
        evaluator.make_evaluator(
            self.config, self.trainer.meta_arch, self.trainer.mesh, source
        )
        if checkpointer.has_checkpoint(self.workdir):
            moved = resuming.moved(self.config, self.workdir)
            workdir_lib.check_images(source, self.workdir, moved)
        sizes = crop_sizes.make_crop_sizes(self.config)
        step = next(n for n in range(crop_sizes.CYCLE) if sizes(n) == sizes.largest)
        start = time.monotonic()
        batches = loader.make_loader(
            self.config,
            source,
            start_step=step,
            num_steps=1,
            process_index=sharding.process_rank(self.trainer.mesh),
            process_count=jax.process_count(),
        )
        with batches:
            self.batch = next(batches)
        seconds = time.monotonic() - start
        bad = self._judge_bad_images(self.batch.pop("bad_images"))
        warnings = "".join(f"; {line}" for line in source.warnings())
        return f"{source.describe()}{warnings}; a batch in {seconds:.1f} s{bad}"

    def _judge_bad_images(self, bad: np.ndarray) -> str:
        """Describe the unreadable images of the batch, which were replaced."""
        if not len(bad):
            return ""
        summary = (
            f"{messages.counted(len(bad), 'image')} of a batch cannot be read, "
            f"such as {bad[0]['name']} ({bad[0]['reason']})"
        )
        read = self.config.train.batch_size // jax.process_count()
        allowed = self.config.data.max_bad_share
        if len(bad) > allowed * (read + len(bad)):  # each was replaced by another
            raise errors.UserError(
                f"{summary}, more than data.max_bad_share = {allowed}: see `python -m "
                "dinov2_jax.data scan`"
            )
        return f"; {summary}, which data.max_bad_share = {allowed} allows"

    def weights(self) -> str:
        """Read the weights that the run starts from, unless it is resumed."""
        if checkpointer.has_checkpoint(self.workdir):
            self.first = self.gram = None
            return "those of the run's checkpoint"
        self.first = initial.read(self.config, self.trainer.meta_arch)
        self.gram = initial.read_gram(self.config, self.trainer.meta_arch)
        first = self.first.description if self.first else "from scratch"
        return f"{first}; {self.gram.description}" if self.gram else first

    def step(self) -> str:
        """Compile the step and run it twice."""
        # Not in `data`, which not all processes may pass: they wait for each other.
        same_inputs.check_images(self.source)
        state = self.trainer.first_state(
            self.first and self.first.params, self.gram and self.gram.params["backbone"]
        )
        batch, scalars = self.trainer.place(self.batch), self.trainer.scalars(0)
        with jax.set_mesh(self.trainer.mesh):
            start = time.monotonic()
            compiled = self.trainer.compile()
            frozen = self.trainer.place_teacher()
            times = [time.monotonic() - start]
            for _ in range(2):
                start = time.monotonic()
                state, metrics = compiled(state, batch, scalars, *frozen)
                values = {name: np.asarray(x).item() for name, x in metrics.items()}
                times.append(time.monotonic() - start)
        non_finite = [f"{k} = {v}" for k, v in values.items() if not math.isfinite(v)]
        if non_finite:
            raise errors.UserError(
                f"the first steps gave non-finite values ({', '.join(non_finite)}): "
                "check the images, --config.init.source and --config.model.dtype"
            )
        self.state = state
        return (
            f"compiled in {times[0]:.0f} s, then {times[2]:.2f} s a step; "
            f"loss {values['loss/total']:.2f}"
        )

    def saving(self) -> str:
        """Write a checkpoint of the real size and read it back."""
        start = time.monotonic()
        checkpoints = checkpointer.Checkpointer(self.scratch, keep_last=1)
        checkpoints.save(1, self.state)
        saved = time.monotonic() - start
        self.state = None  # free its memory first
        start = time.monotonic()
        checkpoints.set_aside_damaged()
        jax.block_until_ready(checkpoints.restore(self.trainer.state))
        checkpoints.close()
        read = time.monotonic() - start
        return f"a checkpoint saved in {saved:.1f} s, read back in {read:.1f} s"

    def remove_scratch(self) -> None:
        """Remove what the checks wrote, on each host if the folder is not shared."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        if self.made_workdir:
            with contextlib.suppress(OSError):  # another process removed it
                self.workdir.rmdir()

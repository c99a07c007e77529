"""A process that times steps with and without saves, or saving and restoring a state.

    python -m benchmarks.saving_jax --config=debug --turns=40

As in the loop of `dinov2_jax.train`, metrics are read one step later and checkpoints
are written by `Checkpointer`. Prints one JSON object.
"""

import argparse
import json
import os
import pathlib
import random
import sys
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import jax_step, workloads
from dinov2_jax import cli, trainer
from dinov2_jax.checkpoint import checkpointer, checksums, disk_space


def steps(config: Any, folder: str, turns: int, every: int) -> dict[str, Any]:
    """Time pairs of turns of `every` steps, one of which starts with a save.

    Returns:
      Seconds, one number per pair: `plain` and `saving`, a turn without and with a
      save; `blocked`, the call of `save`; `finished`, from that call to the sealed
      checkpoint.
    """
    found: dict[str, Any] = {"plain": [], "saving": [], "blocked": [], "finished": []}
    checkpoints = checkpointer.Checkpointer(folder, keep_last=3)
    draw = random.Random(0)
    run = trainer.Trainer(config)
    batch, scalars = run.place(jax_step.random_batch(config)), run.scalars(0)
    with jax.set_mesh(run.mesh):
        step_fn, state = run.compile(), run.first_state()
        state, metrics = step_fn(state, batch, scalars)
        count = 0
        for turn in range(turns + 1):
            for saves in draw.sample((False, True), 2):
                count += every
                start = time.perf_counter()
                if saves:
                    checkpoints.save(count, state, next_save=count + every)
                    blocked = time.perf_counter() - start
                for _ in range(every):
                    before = metrics
                    state, metrics = step_fn(state, batch, scalars)
                    jax.tree.map(np.asarray, before)
                jax.block_until_ready((state, metrics))
                seconds = time.perf_counter() - start
                if not saves:
                    if turn:  # the first pair warms up
                        found["plain"].append(seconds)
                    continue
                finished = _finish(checkpoints, count) - start
                if turn:
                    found["saving"].append(seconds)
                    found["blocked"].append(blocked)
                    found["finished"].append(finished)
        checkpoints.close()
    return found


def _finish(checkpoints: checkpointer.Checkpointer, step: int) -> float:
    """Wait for a step's sealed checkpoint; return when it was, by `perf_counter`."""
    folder = checkpoints.path / str(step)
    while not checksums.is_sealed(folder):
        time.sleep(0.005)
    sealed = (folder / checksums.NAME).stat().st_mtime
    return time.perf_counter() - (time.time() - sealed)


def state(config: Any, folder: str, times: int) -> dict[str, Any]:
    """Time saving a state and restoring it from the disk, not from the page cache.

    Returns:
      `bytes` of the state; seconds, one number per repetition: `blocked`, `finished`,
      `verified` (all checksums) and `restored` (without them).
    """
    run = trainer.Trainer(config)
    found: dict[str, Any] = {"bytes": disk_space.bytes_of(run.state)}
    found |= {name: [] for name in ("blocked", "finished", "verified", "restored")}
    checkpoints = checkpointer.Checkpointer(folder, keep_last=1)
    for step in range(1, times + 1):
        made = _noise(run.first_state())
        start = time.perf_counter()
        checkpoints.save(step, made, next_save=step + 1)
        found["blocked"].append(time.perf_counter() - start)
        found["finished"].append(_finish(checkpoints, step) - start)
        del made
        saved = checkpoints.path / str(step)
        _forget(saved)
        start = time.perf_counter()
        problem = checksums.problem(saved)
        found["verified"].append(time.perf_counter() - start)
        assert problem is None, problem
        _forget(saved)
        start = time.perf_counter()
        jax.block_until_ready(checkpoints.restore(run.state))
        found["restored"].append(time.perf_counter() - start)
    checkpoints.close()
    return found


def _noise(tree: Any) -> Any:
    """Fill the tree with noise, because moments of zero would take no space."""
    rng = np.random.default_rng(0)

    def noise(leaf):
        if leaf.dtype != jnp.float32:
            return leaf
        values = rng.random(leaf.shape, np.float32)
        return jax.device_put(values, leaf.sharding)

    return jax.block_until_ready(jax.tree.map(noise, tree))


def _forget(folder: pathlib.Path) -> None:
    """Drop the files of a folder from the page cache."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="debug", help="a file of configs/")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--every", type=int, default=50, help="steps a turn")
    parser.add_argument("--state", action="store_true", help="no steps")
    args = parser.parse_args()
    cli.keep_freed_memory()
    sys.setswitchinterval(0.0005)  # as main does
    config = workloads.make_config(args.config, args.batch_size, args.set)
    with tempfile.TemporaryDirectory() as folder:
        if args.state:
            found = state(config, folder, args.turns)
        else:
            found = steps(config, folder, args.turns, args.every)
    print(json.dumps(found))


if __name__ == "__main__":
    main()

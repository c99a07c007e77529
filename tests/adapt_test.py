"""Runs from trained weights that keep their best: one that falls, ones that improve."""

import jax
import numpy as np
import processes
import pytest
from peers import torch

import dinov2_jax
from dinov2_jax import errors
from dinov2_jax.convert import __main__ as convert
from dinov2_jax.runtime import event_log
from dinov2_jax.weights import reading

MEASURES = ("knn/top1", "matching/accuracy")


def flags(source, workdir, **changes):
    """Of a run of `debug` that keeps its best weights."""
    fields = {
        "train.steps": 4,
        "train.max_nonfinite_steps": 100,
        "evaluation.every": 2,
        "evaluation.tasks": "('knn','matching')",
        "checkpoint.keep_best": "all",
        "checkpoint.keep_last": 1,
        "init.source": source,
        "init.heads": "loaded",
        "optim.freeze_last_layer_steps": 0,
        "optim.warmup_steps": 0,
    } | changes
    return [
        *processes.DEBUG,
        *(f"--config.{name}={value}" for name, value in fields.items()),
        f"--workdir={workdir}",
    ]


def best_step(workdir):
    """The step that the metrics of the run say is the best."""
    measured = [row for row in processes.rows(workdir) if MEASURES[0] in row]
    gains = {
        row["step"]: min(row[name] - measured[0][name] for name in MEASURES)
        for row in measured
    }
    assert list(gains)[0] == 0 and len(gains) > 1
    return max(gains, key=lambda step: (gains[step], -step))


def tensors(source, path, *more):
    assert convert.main([str(source), str(path), "--to=torch-hub", *more]) == 0
    return torch.load(path)


def test_a_run_that_falls_is_read_as_its_start(uninterrupted, in_process, tmp_path):
    source, workdir = uninterrupted[0], tmp_path / "run"
    huge = {"optim.base_lr": 1.0, "teacher.momentum_teacher": 0.0}
    finished = in_process.run(*flags(source, workdir, **huge))
    assert finished.code == 0, finished.output
    assert best_step(workdir) == 0
    last = finished.output.splitlines()[-1]
    assert last.startswith("no better than where it began") and str(workdir) in last
    best = [e["step"] for e in event_log.read(workdir) if e["event"] == "best"]
    assert best == [0]

    start = tensors(source, tmp_path / "start.pth", "--no-verify")
    exported = tensors(workdir, tmp_path / "run.pth", "--no-verify")
    assert exported.keys() == start.keys()
    for name, tensor in exported.items():
        assert tensor.numpy().tobytes() == start[name].numpy().tobytes(), name
    # The newest on request; it has the heads too, as the best has.
    found = {
        path: dinov2_jax.load(path, heads=True)
        for path in (workdir, workdir / "checkpoints", workdir / "checkpoints/4")
    }
    best, newest, chosen = ((m.params, m.heads) for m in found.values())
    assert_same(newest, chosen)
    before = reading.read(source, heads=True).params
    assert_same(best[0], before["backbone"])
    assert_same(best[1], {k: v for k, v in before.items() if k != "backbone"})
    qkv = [m.params["blocks"]["attn"]["qkv"]["kernel"] for m in found.values()]
    assert (np.asarray(qkv[0]) != qkv[1]).any()
    with pytest.raises(errors.UserError, match="its best weights, which are the teach"):
        reading.read(workdir, which="student")
    assert reading.read(workdir / "checkpoints", which="student").which == "student"


def assert_same(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def test_a_run_that_improves_is_read_as_its_best(uninterrupted, in_process, tmp_path):
    """From weights of four steps; the last ones are made to fall."""
    source, workdir = uninterrupted[0] / "checkpoints/4", tmp_path / "run"
    more = {"train.steps": 16, "evaluation.every": 4, "teacher.momentum_teacher": 0.9}
    finished = in_process.run(*flags(source, workdir, **more))
    assert finished.code == 0, finished.output
    best = best_step(workdir)
    print(finished.output)
    assert best > 0
    assert f"step {best}: the best so far" in finished.output
    last = finished.output.splitlines()[-1]
    assert last.startswith("better than the start: knn/top1 ")
    assert f"at step {best}, the best; so {workdir} is read" in last

"""Runs from trained weights that keep their best: one that falls, ones that improve."""

import jax
import numpy as np
import processes
import pytest
from peers import torch

import dinov2_jax
from dinov2_jax import errors
from dinov2_jax.checkpoint import best_weights
from dinov2_jax.convert import __main__ as convert
from dinov2_jax.runtime import event_log
from dinov2_jax.weights import native, reading

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


def best_step(workdir, measures=MEASURES):
    """The step that the metrics of the run say is the best."""
    measured = [row for row in processes.rows(workdir) if MEASURES[0] in row]
    gains = {
        row["step"]: min(row[name] - measured[0][name] for name in measures)
        for row in measured
    }
    assert list(gains)[0] == 0 and len(gains) > 1
    return max(gains, key=lambda step: (gains[step], -step))


def tensors(source, path, *more):
    assert convert.main([str(source), str(path), "--to=torch-hub", *more]) == 0
    return torch.load(path)


@pytest.mark.slow
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


@pytest.fixture(scope="module")
def blind(uninterrupted, tmp_path_factory):
    """Weights that hardly see the image, so that any training improves them."""
    weights = reading.read(uninterrupted[0], heads=True)
    backbone = dict(weights.params["backbone"])
    backbone["patch_embed"] = jax.tree.map(lambda x: 1e-6 * x, backbone["patch_embed"])
    folder = tmp_path_factory.mktemp("blind") / "export"
    params = weights.params | {"backbone": backbone}
    native.write(folder, weights.module, params, weights.preprocessing, "teacher")
    return folder


LEARN = {
    "train.steps": 6,
    "checkpoint.keep_best": "knn",
    "checkpoint.keep_last": 100,
    "optim.base_lr": 0.03,
    "teacher.momentum_teacher": 0.5,
}


def assert_improved(workdir, finished):
    """The run says so, and the workdir is read as its best step."""
    assert finished.code == 0, finished.output
    best = best_step(workdir, MEASURES[:1])
    assert best > 0, finished.output
    assert f"step {best}: the best so far" in finished.output
    last = finished.output.splitlines()[-1]
    assert last.startswith("better than the start: knn/top1 "), last
    assert f"at step {best}, the best; so {workdir} is read" in last
    found = reading.read(workdir, heads=True).params
    chosen = reading.read(workdir / f"checkpoints/{best}", heads=True).params
    assert_same(found, chosen)


@pytest.mark.slow
def test_a_run_that_improves_is_read_as_its_best(blind, in_process, tmp_path):
    workdir = tmp_path / "run"
    finished = in_process.run(*flags(blind, workdir, **LEARN))
    assert_improved(workdir, finished)


@pytest.mark.slow
def test_killed_anywhere_the_best_is_that_of_a_run_without(blind, trainer, tmp_path):
    """Killed as soon as the second best is being written, then resumed."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert trainer.run(*flags(blind, whole, **LEARN)).code == 0
    best = best_weights.read(whole)

    def is_writing():
        written = (killed / "best").glob("[0-9]*")
        return any(p.name.partition(".")[0] != "0" for p in written)

    trainer.kill_when(is_writing, *flags(blind, killed, **LEARN))
    assert reading.read(killed).params  # whatever it is, it is whole
    finished = trainer.run(*flags(blind, killed, **LEARN))
    assert finished.code == 0, finished.output
    assert best_weights.read(killed) == best
    assert_same(*(reading.read(w, heads=True).params for w in (whole, killed)))


ADAPTED = [
    f"blocks/{name}/kernel" for name in ("attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2")
]


def changed(before, after):
    """Names of the arrays that differ, those of blocks by block."""
    names = set()
    for (path, old), new in zip(
        jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True
    ):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.startswith("blocks/"):
            names |= {f"{name}/{i}" for i in (0, 1) if (old[i] != new[i]).any()}
        elif (np.asarray(old) != new).any():
            names.add(name)
    return names


@pytest.mark.slow
@pytest.mark.parametrize("part", ["last", "lora"])
def test_a_part_learns_and_is_exported(blind, in_process, tmp_path, part):
    """The export is loaded strictly by torch and transformers, which agree."""
    workdir = tmp_path / "run"
    fields = LEARN | {
        "optim.trainable": part,
        "optim.last_blocks": 1,
        "optim.lora_rank": 4,
        "optim.lora_ffn": True,
        "checkpoint.keep_best": "",
    }
    finished = in_process.run(*flags(blind, workdir, **fields))
    assert finished.code == 0, finished.output
    learning = {"last": "the last 1 blocks learn", "lora": "LoRA of rank 4 learns"}
    assert f"only {learning[part]}" in finished.output
    assert "better" not in finished.output and not (workdir / "best").exists()
    start = reading.read(blind).params["backbone"]
    for which in ("teacher", "student"):
        found = reading.read(workdir, which=which).params["backbone"]
        names = changed(start, found)
        if part == "lora":
            assert names == {f"{name}/{i}" for name in ADAPTED for i in (0, 1)}
        else:
            assert "norm/scale" in names and f"{ADAPTED[0]}/1" in names
            assert all(n.endswith("/1") or n.startswith("norm/") for n in names)
        for target, name in (("torch-hub", "a.pth"), ("huggingface", "hf")):
            path = tmp_path / f"{which}_{name}"
            more = (f"--to={target}", f"--which={which}")
            assert convert.main([str(workdir), str(path), *more]) == 0
            assert_same(reading.read(path, num_heads=2).params["backbone"], found)

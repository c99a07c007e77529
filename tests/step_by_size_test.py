"""Runs of several resolutions: one compilation a size, and a run like any other."""

import jax
import numpy as np
import processes
import pytest
import tiny

from dinov2_jax import sharding, step_by_size
from dinov2_jax import trainer as trainer_lib
from dinov2_jax.augment import crop_sizes
from dinov2_jax.data import batch_builder
from dinov2_jax.data.sources import photos
from dinov2_jax.runtime import monitors

LARGE, SMALL = crop_sizes.Size(16, 8), crop_sizes.Size(8, 8)


def make_trainer(sizes):
    c = tiny.config(crops={"sizes": sizes}, train={"batch_size": 4, "group_size": 2})
    return c, trainer_lib.Trainer(c, mesh=sharding.make_mesh(devices=jax.devices()[:1]))


def batch_of(c, trainer, size):
    """A batch of the first step that has these sizes."""
    build = batch_builder.make_batch_builder(c, photos.PhotosSource("val"))
    sizes = crop_sizes.make_crop_sizes(c)
    batch = build(next(step for step in range(100) if sizes(step) == size))
    batch.pop("bad_images")
    return trainer.place(batch)


def leaves_of(tree):
    return [np.array(leaf) for leaf in jax.tree.leaves(tree)]


def test_the_step_of_the_batch_is_called():
    """With steps that only sum, which compile in no time."""

    def step(state, batch, scale):
        pixels = sum(jax.numpy.sum(crops) for crops in batch.values())
        return state + scale * pixels, {"pixels": pixels}

    def batch_of(size):
        shapes = {"global_crops": size.global_size, "local_crops": size.local_size}
        return {
            name: np.ones((1, 2, side, side, 3), np.float32)
            for name, side in shapes.items()
        }

    jitted = jax.jit(step, donate_argnums=0)
    sizes = (LARGE, SMALL, crop_sizes.Size(16, 4))
    compiled = step_by_size.compile_all(
        {size: jitted.lower(np.float32(0), batch_of(size), 2.0) for size in sizes}
    )
    state, expected = jax.numpy.float32(0), 0
    for size in (*sizes, *sizes):
        before = state
        state, metrics = compiled(state, batch_of(size), np.float32(2))
        pixels = 2 * 3 * (size.global_size**2 + size.local_size**2)
        expected += 2 * pixels
        assert before.is_deleted() and float(state) == expected
        assert metrics["pixels"] == pixels
        assert metrics["crops/global_size"] == size.global_size
        assert metrics["crops/local_size"] == size.local_size


@pytest.mark.slow
def test_one_compilation_a_size_and_donated_states():
    c, trainer = make_trainer(((*LARGE, 0.5), (*SMALL, 0.5)))
    compiled = trainer.compile()
    assert isinstance(compiled, step_by_size.StepBySize)
    assert set(compiled.steps) == {LARGE, SMALL}
    state = trainer.first_state()
    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    peaks = {}
    for size, step in compiled.steps.items():
        sizes = step.memory_analysis()
        # The state stays where it is, whatever the size.
        assert sizes.alias_size_in_bytes >= 0.99 * num_bytes
        peaks[size] = sizes.temp_size_in_bytes + sizes.argument_size_in_bytes
    assert peaks[LARGE] == max(peaks.values())

    batches = {size: batch_of(c, trainer, size) for size in (LARGE, SMALL)}
    scalars = trainer.scalars(10)
    monitor = monitors.CompilationMonitor()
    monitor.happened()
    positions = [np.array(state.params["backbone"]["pos_embed"])]
    with jax.set_mesh(trainer.mesh):
        for size in (LARGE, SMALL, LARGE):
            before = jax.tree.leaves(state.params)
            state, metrics = compiled(state, batches[size], scalars)
            assert all(leaf.is_deleted() for leaf in before)
            assert metrics["crops/global_size"] == size.global_size
            assert metrics["crops/local_size"] == size.local_size
            assert np.isfinite(metrics["loss/total"])
            positions.append(np.array(state.params["backbone"]["pos_embed"]))
    assert not monitor.happened()
    monitor.close()
    # The stored grid is the largest, and every size teaches all of it.
    for old, new in zip(positions, positions[1:]):
        assert new.shape == (1, 17, 32)
        assert np.all(np.any(old != new, axis=-1))


@pytest.mark.slow
def test_one_size_is_the_run_without_sizes():
    results = []
    for sizes in (((*LARGE, 1.0),), ()):
        c, trainer = make_trainer(sizes)
        compiled, state = trainer.compile(), trainer.first_state()
        batch = batch_of(c, trainer, LARGE)
        with jax.set_mesh(trainer.mesh):
            for step in range(3):
                state, metrics = compiled(state, batch, trainer.scalars(step))
        results.append((leaves_of(state), metrics))
    (state, metrics), (other, other_metrics) = results
    for array, expected in zip(state, other, strict=True):
        assert array.tobytes() == expected.tobytes()
    assert metrics.keys() - other_metrics.keys() == {
        "crops/global_size",
        "crops/local_size",
    }


RUN = (
    *processes.DEBUG,
    "--config.train.steps=8",
    "--config.crops.sizes=((32,16,0.5),(24,16,0.3),(32,8,0.2))",
)


@pytest.mark.slow
def test_a_run_resumes_and_moves_to_eight_devices(in_process, trainer, tmp_path):
    whole, resumed, eight = (tmp_path / n for n in ("whole", "resumed", "eight"))
    finished = in_process.run(*RUN, f"--workdir={whole}")
    assert finished.code == 0, finished.output
    assert "something was compiled" not in finished.output
    rows = processes.rows(whole)
    sizes = [
        (row["crops/global_size"], row["crops/local_size"])
        for row in rows
        if "loss/total" in row
    ]
    assert len(sizes) == 8 and len(set(sizes)) > 1
    processes.branch(whole, resumed, step=4)
    finished = in_process.run(*RUN, f"--workdir={resumed}")
    assert finished.code == 0 and "resumed from step 4" in finished.output
    assert processes.rows(resumed) == rows
    processes.assert_same_arrays(processes.load(resumed, 8), processes.load(whole, 8))
    finished = trainer.run(*RUN, f"--workdir={eight}", devices=8)
    assert finished.code == 0, finished.output
    for row, expected in zip(processes.rows(eight), rows, strict=True):
        if "loss/total" not in row:
            continue
        assert row["crops/global_size"] == expected["crops/global_size"]
        for name in (name for name in expected if name.startswith("loss/")):
            assert row[name] == pytest.approx(expected[name], rel=1e-5), name

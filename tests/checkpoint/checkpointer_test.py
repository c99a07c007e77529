"""What is kept, what a resumed run may change, and checkpoints that cannot be read."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import processes
import pytest

from dinov2_jax import errors
from dinov2_jax.checkpoint import checkpointer, checksums


@pytest.fixture
def resumable(uninterrupted, tmp_path):
    """A copy of the uninterrupted run as it was at step 16."""
    workdir = tmp_path / "run"
    processes.branch(uninterrupted[0], workdir, step=16)
    return workdir


def test_holds_the_whole_state(uninterrupted):
    arrays = processes.load(uninterrupted[0], 20)
    names = " ".join(arrays)
    for part in ("/params/", "/teacher_params/", "/opt_state/"):
        assert part in names
    assert "/mu/" in names and "/nu/" in names
    assert arrays["/step"] == 20
    student = arrays["/params/backbone/blocks/attn/qkv/kernel"]
    teacher = arrays["/teacher_params/backbone/blocks/attn/qkv/kernel"]
    assert student.dtype == teacher.dtype == np.float32
    assert not (student == teacher).all()


def test_steps_and_logging_may_change(uninterrupted, resumable, in_process):
    """The same run shows what is kept: the newest, multiples of 8, the last step."""
    finished = in_process.run(
        *processes.DEBUG,
        f"--workdir={resumable}",
        "--config.train.steps=22",
        "--config.log.every=3",
        "--config.log.tensorboard=False",
        "--config.checkpoint.every=2",
        "--config.checkpoint.keep_last=2",
        "--config.checkpoint.keep_every=8",
    )
    assert finished.code == 0, finished.output
    assert "resumed from step 16" in finished.output
    assert processes.saved_steps(resumable) == [8, 16, 20, 22]
    steps = [row["step"] for row in processes.rows(resumable) if "lr" in row]
    assert steps == [*range(1, 17), 18, 21, 22]
    assert not processes.noise(finished.output)


def test_changed_config_is_refused(resumable, in_process):
    before = (resumable / "config.json").read_bytes()
    finished = in_process.run(
        *processes.DEBUG,
        f"--workdir={resumable}",
        "--config.optim.base_lr=0.001",
        "--config.dino.head_n_prototypes=128",
        "--config.log.every=2",
    )
    assert finished.code == 2, finished.output
    assert finished.output == finished.error + "\n"
    assert "optim.base_lr: 0.002 -> 0.001" in finished.error
    assert "dino.head_n_prototypes: 64 -> 128" in finished.error
    assert "log.every" not in finished.error
    assert "choose another --workdir" in finished.error
    assert (resumable / "config.json").read_bytes() == before


def test_changed_config_without_a_checkpoint(resumable, in_process):
    """Without a checkpoint the run starts over."""
    shutil.rmtree(resumable / "checkpoints")
    finished = in_process.run(
        *processes.DEBUG,
        f"--workdir={resumable}",
        "--config.optim.base_lr=0.001",
        "--config.train.steps=4",
    )
    assert finished.code == 0, finished.output
    assert "resumed" not in finished.output
    steps = [row["step"] for row in processes.rows(resumable) if "lr" in row]
    assert steps == [1, 2, 3, 4]


def truncate(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def truncate_largest(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def remove_all_files(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def flip_a_bit(folder):
    """Flips a bit of the largest file, which orbax restores silently."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 8
    largest.write_bytes(content)


@pytest.mark.parametrize(
    "damage", [truncate, truncate_largest, remove_all_files, flip_a_bit]
)
def test_checkpoint_before_a_damaged_one_is_used(
    damage, uninterrupted, in_process, tmp_path
):
    workdir = tmp_path / "run"
    processes.branch(uninterrupted[0], workdir, step=20)
    damage(workdir / "checkpoints/20")
    finished = in_process.run(*processes.DEBUG, f"--workdir={workdir}")
    assert finished.code == 0, finished.output
    assert f"checkpoint {workdir / 'checkpoints/20'} " in finished.output
    assert "resumed from step 16" in finished.output
    moved = [path.name for path in (workdir / "damaged_checkpoints").iterdir()]
    assert len(moved) == 1 and moved[0].startswith("20-")
    assert processes.rows(workdir) == processes.rows(uninterrupted[0])
    assert 20 in processes.saved_steps(workdir)


def test_all_checkpoints_are_damaged(resumable, in_process):
    for step in processes.saved_steps(resumable):
        flip_a_bit(resumable / "checkpoints" / str(step))
    rows, steps = processes.rows(resumable), processes.saved_steps(resumable)
    finished = in_process.run(*processes.DEBUG, f"--workdir={resumable}")
    assert finished.code == 2, finished.output
    assert finished.output == finished.error + "\n"  # so nothing was compiled
    assert f"no checkpoint in {resumable / 'checkpoints'} is intact (16: " in (
        finished.error
    )
    assert "to start over" in finished.error
    assert processes.rows(resumable) == rows
    assert processes.saved_steps(resumable) == steps


def test_checkpoint_without_checksums_is_used_and_logged(
    uninterrupted, resumable, in_process
):
    (resumable / "checkpoints/16" / checksums.NAME).unlink()
    finished = in_process.run(*processes.DEBUG, f"--workdir={resumable}")
    assert finished.code == 0, finished.output
    assert "checkpoints/16 has no checksums" in finished.output
    assert checksums.is_sealed(resumable / "checkpoints/16")
    assert checksums.problem(resumable / "checkpoints/16") is None
    assert "resumed from step 16" in finished.output
    assert processes.rows(resumable) == processes.rows(uninterrupted[0])


def test_checkpoint_of_another_model(resumable, in_process):
    (resumable / "config.json").unlink()  # which would have named the field
    finished = in_process.run(
        *processes.DEBUG,
        f"--workdir={resumable}",
        "--config.dino.head_n_prototypes=128",
    )
    assert finished.code == 2, finished.output
    assert finished.output == finished.error + "\n"
    assert (
        f"{resumable / 'checkpoints/16'} belongs to a different model" in finished.error
    )
    assert "float32 [64, 1] -> float32 [128, 1]" in finished.error


def test_saves_and_restores(tmp_path):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    saved = {"a": jnp.arange(6.0), "b": jnp.ones((2, 3), jnp.int32)}
    checkpoints = checkpointer.Checkpointer(tmp_path)
    assert checkpoints.latest_step() is None
    checkpoints.save(3, saved)
    checkpoints.close()
    assert checkpointer.has_checkpoint(tmp_path)
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), saved
    )
    checkpoints = checkpointer.Checkpointer(tmp_path)
    assert checkpoints.latest_step() == 3
    restored = checkpoints.restore(abstract)
    jax.tree.map(np.testing.assert_array_equal, restored, saved)
    # As that of the queue on a device whose matmuls have another precision.
    abstract["a"] = jax.ShapeDtypeStruct((6,), jnp.bfloat16, sharding=device)
    cast = checkpoints.restore(abstract)["a"]
    assert cast.dtype == jnp.bfloat16 and np.array_equal(cast, saved["a"])
    abstract["a"] = jax.ShapeDtypeStruct((6,), jnp.int32, sharding=device)
    abstract["c"] = abstract.pop("b")
    with pytest.raises(errors.UserError) as refused:
        checkpoints.restore(abstract)
    checkpoints.close()
    for words in (
        str(tmp_path / "checkpoints/3"),
        "a: float32 [6] -> int32 [6]",
        "b: int32 [2, 3] -> none",
        "c: none -> int32 [2, 3]",
    ):
        assert words in str(refused.value)


def test_folder_without_a_checkpoint(tmp_path):
    assert not checkpointer.has_checkpoint(tmp_path)
    (tmp_path / "checkpoints/4.orbax-checkpoint-tmp").mkdir(parents=True)
    (tmp_path / "checkpoints/7").touch()
    assert not checkpointer.has_checkpoint(tmp_path)

"""Stray entries beside checkpoints: empty folders, files, abandoned saves."""

import jax
import jax.numpy as jnp
import pytest

from dinov2_jax import errors
from dinov2_jax.checkpoint import checkpointer


@pytest.fixture
def workdir(tmp_path):
    """With a checkpoint of step 3."""
    checkpoints = checkpointer.Checkpointer(tmp_path)
    checkpoints.save(3, {"a": jnp.arange(6.0)})
    checkpoints.close()
    return tmp_path


def restored(workdir):
    """Returns the messages, the step and the state at a start."""
    checkpoints = checkpointer.Checkpointer(workdir)
    lines = checkpoints.set_aside_damaged()
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = {"a": jax.ShapeDtypeStruct((6,), jnp.float32, sharding=device)}
    state = checkpoints.restore(abstract)
    checkpoints.close()
    return lines, checkpoints.latest_step(), state["a"].tolist()


def test_an_empty_folder_named_like_a_newer_step(workdir):
    (workdir / "checkpoints/7").mkdir()
    (line,), step, values = restored(workdir)
    assert "checkpoints/7 is damaged (is unfinished): moved to " in line
    assert step == 3 and values == [0, 1, 2, 3, 4, 5]
    assert not (workdir / "checkpoints/7").exists()


@pytest.mark.parametrize("name", ["9", "9.orbax-checkpoint-tmp", "notes", "-4", "4x"])
@pytest.mark.parametrize("is_folder", [False, True])
def test_other_names_and_files(workdir, name, is_folder):
    path = workdir / "checkpoints" / name
    if is_folder and name != "9":
        path.mkdir()
        (path / "something").write_text("else")
    else:
        path.write_text("no checkpoint")
    lines, step, values = restored(workdir)
    assert (lines, step, values) == ([], 3, [0, 1, 2, 3, 4, 5])


def test_only_an_empty_folder(workdir):
    """The content is unknown, so the run does not start over by itself."""
    folder = workdir / "checkpoints/3"
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    with pytest.raises(errors.UserError, match="3: is unfinished.*to start over"):
        checkpointer.Checkpointer(workdir).set_aside_damaged()
    assert folder.is_dir()

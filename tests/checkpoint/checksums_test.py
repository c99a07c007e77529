"""Checksums of checkpoints find damage that orbax does not."""

import errno
import os
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from dinov2_jax import errors
from dinov2_jax.checkpoint import checkpointer, checksums, saved_weights


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of one finished checkpoint."""
    workdir = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    state = {name: jnp.asarray(rng.normal(size=(64, 64))) for name in "abc"}
    checkpoints = checkpointer.Checkpointer(workdir)
    checkpoints.save(3, {"params": state})
    checkpoints.close()
    return workdir / "checkpoints/3"


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "3")


def files(folder):
    return [p for p in sorted(folder.rglob("*")) if p.is_file() and p.stat().st_size]


def test_a_finished_checkpoint_is_sealed_and_good(saved):
    assert checksums.is_sealed(saved) and checksums.problem(saved) is None
    assert not list(saved.rglob("*.tmp"))


def test_two_hundred_flipped_bits_are_detected(folder):
    rng = np.random.default_rng(0)
    found = [path for path in files(folder) if path.name != checksums.NAME]
    sizes = np.array([path.stat().st_size for path in found])
    for trial in range(200):
        # Half of them anywhere, half in any file, however small.
        weights = sizes / sizes.sum() if trial % 2 else None
        path = found[rng.choice(len(found), p=weights)]
        content = path.read_bytes()
        broken = bytearray(content)
        broken[rng.integers(len(broken))] ^= 1 << rng.integers(8)
        path.write_bytes(broken)
        problem = checksums.problem(folder)
        assert problem and str(path.relative_to(folder)) in problem, (trial, path)
        path.write_bytes(content)
    assert checksums.problem(folder) is None


@pytest.mark.parametrize("cut", ["emptied", "truncated", "removed", "longer"])
def test_truncated_files(folder, cut):
    for path in files(folder):
        content = path.read_bytes()
        if cut == "removed":
            path.unlink()
        else:
            path.write_bytes(
                {
                    "emptied": b"",
                    "truncated": content[: len(content) // 2],
                    "longer": content + b"x",
                }[cut]
            )
        problem = checksums.problem(folder)
        assert problem and path.name in problem, path
        path.write_bytes(content)
    assert checksums.problem(folder) is None


def test_a_changed_manifest(folder):
    path = folder / checksums.NAME
    content = path.read_text()
    for before, after in (('size": ', 'size": 1'), ("{", "["), ("digest", "dig")):
        path.write_text(content.replace(before, after, 1))
        assert checksums.problem(folder) == f"{checksums.NAME} is damaged"
    path.write_text("7")
    assert checksums.problem(folder) == f"{checksums.NAME} is damaged"


def test_weights_of_a_damaged_checkpoint_are_refused(folder):
    assert set(saved_weights.read(folder, "params")) == set("abc")
    largest = max(files(folder), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with pytest.raises(errors.UserError, match="is damaged .* use another step"):
        saved_weights.read(folder, "params")


@pytest.fixture
def failing_disk(monkeypatch):
    def fail(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(checksums, "_digest", fail)


@pytest.mark.usefixtures("failing_disk")
def test_a_disk_that_fails_is_no_damage(folder):
    workdir = folder.parent
    shutil.copytree(folder, workdir / "checkpoints/3")
    checkpoints = checkpointer.Checkpointer(workdir)
    with pytest.raises(errors.UserError, match="Input/output error.* none was") as one:
        checkpoints.set_aside_damaged()
    assert one.value.exit_code == errors.TRY_AGAIN
    assert checkpoints.steps() == [3]
    assert not (workdir / "damaged_checkpoints").exists()
    checkpoints.close()
    with pytest.raises(errors.UserError, match="is not damaged: this machine") as one:
        saved_weights.read(folder, "params")
    assert one.value.exit_code == errors.TRY_AGAIN


@pytest.mark.parametrize(
    "sealed, error, code",
    [
        (True, ValueError("zstd"), errors.TRY_AGAIN),
        (True, ValueError("RESOURCE_EXHAUSTED: out of memory"), errors.TRY_AGAIN),
        (False, OSError(errno.ESTALE, "Stale file handle"), errors.TRY_AGAIN),
        (False, ValueError("zstd"), errors.BAD_INPUT),
        (False, FileNotFoundError(errno.ENOENT, "no file"), errors.BAD_INPUT),
    ],
)
def test_only_a_damaged_checkpoint_is_to_be_removed(
    folder, monkeypatch, sealed, error, code
):
    workdir = folder.parent
    shutil.copytree(folder, workdir / "checkpoints/3")
    if not sealed:
        (workdir / "checkpoints/3" / checksums.NAME).unlink()
    checkpoints = checkpointer.Checkpointer(workdir)
    checkpoints.set_aside_damaged()

    def fail(*args):
        raise error

    monkeypatch.setattr(checkpoints._manager, "item_metadata", fail)
    with pytest.raises(errors.UserError) as caught:
        checkpoints.restore({})
    checkpoints.close()
    assert caught.value.exit_code == code
    assert ("remove that folder" in str(caught.value)) == (code == errors.BAD_INPUT)


def test_weights_without_the_branch_are_no_fault_of_the_machine(folder):
    with pytest.raises(errors.UserError, match="use another step") as caught:
        saved_weights.read(folder, "teacher_params")
    assert caught.value.exit_code == errors.BAD_INPUT

"""Checksums of checkpoints find damage that orbax does not."""

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

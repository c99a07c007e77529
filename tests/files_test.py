"""Atomic writes, and locks between processes."""

import os
import pathlib
import socket

import pytest

from dinov2_jax import errors, files


def test_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    files.write_text(path, "old")
    with pytest.raises(KeyError):
        with files.whole(path) as file:
            file.write(b"half of the n")
            raise KeyError
    assert path.read_text() == "old"
    files.write_text(path, "new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_published_file_replaces_the_old_one(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "b").write_text("new")
    files.publish(tmp_path / "b", tmp_path / "a")
    assert (tmp_path / "a").read_text() == "new"
    assert os.listdir(tmp_path) == ["a"]


def test_a_lock_names_its_owner_until_it_is_closed(tmp_path):
    path = tmp_path / "lock"
    path.write_text("pid 1 of long ago, which has a longer description than most\n" * 9)
    with files.lock(path, what="X", fix="go away"):
        assert path.read_text().count("\n") == 1
        with pytest.raises(errors.UserError) as refused:
            files.lock(path, what="X", fix="go away")
    owner = f"pid {os.getpid()} on {socket.gethostname()} since "
    assert str(refused.value).startswith(f"X is in use by {owner}")
    assert str(refused.value).endswith(": go away")
    files.lock(path, what="X", fix="go away").close()
    assert path.exists()


def test_a_lock_without_an_owner(tmp_path):
    """As that of a process that has just taken it."""
    with open(tmp_path / "lock", "w") as file:
        assert files.try_lock(file.fileno())
        with pytest.raises(errors.UserError, match="^X is in use by another process: "):
            files.lock(tmp_path / "lock", what="X", fix="wait")


def test_folders_can_be_locked(tmp_path):
    first, second = (os.open(tmp_path, os.O_RDONLY) for _ in range(2))
    assert files.try_lock(first)
    assert not files.try_lock(second)
    os.close(first)
    assert files.try_lock(second)
    os.close(second)


def test_cache_folder(monkeypatch):
    monkeypatch.setenv("DINOV2_JAX_CACHE", "/somewhere/else")
    assert files.cache_folder() == pathlib.Path("/somewhere/else")
    monkeypatch.delenv("DINOV2_JAX_CACHE")
    monkeypatch.setenv("HOME", "/home/someone")
    assert files.cache_folder() == pathlib.Path("/home/someone/.cache/dinov2_jax")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 9)  # of no known user
    with pytest.raises(files.NoHomeError, match="set DINOV2_JAX_CACHE"):
        files.cache_folder()


@pytest.mark.parametrize(
    "text",
    ["gs://bucket/x", "s3://b", "gs:/b/x", pathlib.Path("hf://b"), "file:///x", ""],
)
def test_a_path_that_is_no_local_one(text):
    with pytest.raises(errors.UserError, match="--out") as caught:
        files.local_path(text, name="--out")
    assert "\n" not in str(caught.value) and str(text) in str(caught.value)


def test_a_local_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DINOV2_JAX_CACHE", "~/cache")
    assert files.local_path("~/x", name="--out") == pathlib.Path("/home/me/x")
    assert files.local_path("a:b/c:/d") == pathlib.Path("a:b/c:/d")
    assert files.cache_folder() == pathlib.Path("/home/me/cache")


def test_a_write_that_fails_names_the_file(tmp_path):
    with pytest.raises(OSError, match="a.json") as caught:
        with files.whole(tmp_path / "a.json"):
            raise OSError(28, "No space left on device")  # as `write` does
    assert caught.value.filename == str(tmp_path / "a.json")

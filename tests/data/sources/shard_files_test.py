"""Which files below a folder are shards: links, hidden and unreadable folders."""

import os

import pytest

from dinov2_jax import errors
from dinov2_jax.data.sources import shard_files


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def find(root):
    found = shard_files.find(
        str(root), shard_files.TAR, what=".tar files", field="data.path"
    )
    return [os.path.relpath(path, root) for path in found]


def test_linked_folders_are_followed_once(tmp_path):
    root = tmp_path / "root"
    touch(root, "a.tar", "own/b.tar", "own/note.jpg")
    touch(tmp_path / "other disk", "c.tar", "deep/d.tar", "e.jpg")
    (root / "link").symlink_to(tmp_path / "other disk")
    (root / "again").symlink_to(tmp_path / "other disk")
    (root / "also own").symlink_to(root / "own")  # keeps its own path
    (root / "own" / "loop").symlink_to(root)
    (root / "broken.tar.gz").symlink_to(tmp_path / "nowhere")
    assert find(root) == ["a.tar", "again/c.tar", "again/deep/d.tar", "own/b.tar"]
    left_out = shard_files.left_out(str(root), shard_files.TAR)
    assert left_out[".jpg"] == 2


def test_a_link_to_itself_is_no_folder(tmp_path):
    touch(tmp_path, "a.tar")
    (tmp_path / "self").symlink_to(tmp_path / "self")
    assert find(tmp_path) == ["a.tar"]


def test_hidden_folders_are_not_entered(tmp_path):
    hidden = (".Trash/b.tar", ".c.tar", "sub/.cache/d.jpg", "lost+found/e.tar")
    touch(tmp_path, "a.tar", *hidden)
    assert find(tmp_path) == ["a.tar"]
    assert not shard_files.left_out(str(tmp_path), shard_files.TAR)


def test_a_hidden_folder_may_be_named(tmp_path):
    touch(tmp_path / ".data", "a.tar")
    assert find(tmp_path / ".data") == ["a.tar"]


def test_an_unreadable_folder_is_refused(tmp_path, monkeypatch):
    touch(tmp_path, "a.tar", "closed/b.tar")
    scandir = os.scandir

    def deny(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)  # root may read everything
    with pytest.raises(errors.UserError) as caught:
        find(tmp_path)
    said = str(caught.value)
    assert f"cannot list {tmp_path}/closed below data.path" in said
    assert "\n" not in said

"""What a conversion replaces, and the state after an interruption."""

import os
import pathlib
import shutil
import signal
import sys
import threading

import conversions
import pytest

from dinov2_jax import errors


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return conversions.make_sources(tmp_path_factory.mktemp("sources"))


def test_foreign_folder_is_never_replaced(folder, tmp_path, capsys):
    path = tmp_path / "photographs"
    path.mkdir()
    (path / "mine.txt").write_text("mine")
    for target in ("huggingface", "stablehlo", "orbax"):
        flags = ["--to", target, "--overwrite", "--no-verify"]
        assert conversions.run(folder / "vits14.pth", path, *flags) == errors.BAD_INPUT
        assert "not written by a conversion" in capsys.readouterr().err
        assert (path / "mine.txt").read_text() == "mine"
        assert (
            conversions.run(folder / "vits14.pth", folder, *flags) == errors.BAD_INPUT
        )
        assert (
            conversions.run(folder / "vits14.pth", "a.pth", *flags) == errors.BAD_INPUT
        )
        capsys.readouterr()
        again = tmp_path / target  # what a conversion wrote is
        assert [
            conversions.run(folder / "vits14.pth", again, *flags) for _ in range(2)
        ] == [0, 0]


def test_a_source_is_never_replaced(folder, tmp_path, capsys):
    source = tmp_path / "a.pth"
    shutil.copy(folder / "vits14.pth", source)
    (tmp_path / "link.pth").symlink_to(source)
    hf = tmp_path / "hf"
    assert conversions.run(source, hf, "--to", "huggingface", "--no-verify") == 0
    before = conversions.digests(tmp_path)
    always = ["--overwrite", "--no-verify"]
    for given, path, target in (
        (source, source, "torch-hub"),
        (source, tmp_path / "link.pth", "torch-hub"),
        (tmp_path / "link.pth", source, "timm"),
        (source, tmp_path / "hf" / ".." / "a.pth", "torch-hub"),
        (hf, hf, "huggingface"),
        (hf, hf / "model.safetensors", "safetensors"),
        (hf / "model.safetensors", hf, "huggingface"),
    ):
        capsys.readouterr()
        assert conversions.run(given, path, "--to", target, *always) == errors.BAD_INPUT
        message = capsys.readouterr().err
        assert "is or contains the source" in message and message.count("\n") == 1
    assert conversions.digests(tmp_path) == before
    # What an earlier conversion left in a source may be replaced.
    inside = hf / "again.pth"
    assert [
        conversions.run(hf, inside, "--to", "torch-hub", *always) for _ in range(2)
    ] == [0, 0]


@pytest.mark.parametrize("target", ["huggingface", "torch-hub", "onnx"])
def test_a_signal_between_two_moves_leaves_the_old_or_the_new(
    folder, tmp_path, target, monkeypatch, capsys
):
    """At every move there is: whole, with its own report, and nothing lies about."""
    path = tmp_path / conversions.TARGETS[target]
    (tmp_path / f"{path.name}.json").write_text("mine")  # beside a folder it stays
    flags = ["--to", target, "--no-verify", "--overwrite"]
    assert conversions.run(folder / "vits14.pth", path, *flags) == 0
    old = conversions.digests(tmp_path)
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    assert conversions.run(folder / "vits14_reg4.pth", fresh / path.name, *flags) == 0
    new = {
        name.replace("fresh", tmp_path.name, 1): digest
        for name, digest in conversions.digests(fresh).items()
        if not name.endswith(".json")
    }
    shutil.rmtree(fresh)
    replace, left = pathlib.Path.replace, 0

    def replace_and_die(self, goal):
        nonlocal left
        result = replace(self, goal)
        left -= 1
        if left == 0 and threading.current_thread() is threading.main_thread():
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    monkeypatch.setattr(pathlib.Path, "replace", replace_and_die)
    try:
        for moves in range(1, 12):
            left = moves
            try:
                assert conversions.run(folder / "vits14_reg4.pth", path, *flags) == 0
            except SystemExit as interrupted:
                assert interrupted.code == 143
            found = conversions.digests(tmp_path)
            if found != old:
                assert {k: v for k, v in found.items() if k in new} == new
                assert found.keys() == old.keys()
            assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    finally:
        signal.signal(signal.SIGTERM, before)
    assert left > 0  # the last conversion had fewer moves
    if path.is_dir():
        assert (tmp_path / f"{path.name}.json").read_text() == "mine"

"""The fingerprint of a source is of its images, not of their place."""

import shutil
import tarfile

import pytest
from PIL import Image

from dinov2_jax.data.decode import image_decoder
from dinov2_jax.data.sources import array_record, registry


@pytest.mark.parametrize("kind", ["folder", "list", "tar", "array_record"])
def test_fingerprints_are_of_content_not_of_place(kind, tmp_path):
    first, second = tmp_path / "first", tmp_path / "mnt" / "second"
    first.mkdir()
    Image.new("RGB", (4, 4)).save(first / "0.png")
    name = {"folder": "", "list": "l.txt", "tar": "", "array_record": ""}[kind]
    if kind == "list":
        (first / name).write_text("0.png\n")
    elif kind == "tar":
        for number in range(2):
            with tarfile.open(first / f"{number}.tar", "w") as tar:
                tar.add(first / "0.png", "0.png")
        (first / "0.png").unlink()
    elif kind == "array_record":
        record = array_record.pack((first / "0.png").read_bytes(), name="0", label=None)
        (first / "0.png").unlink()
        writer = array_record.module().ArrayRecordWriter(
            str(first / "0.array_record"), "group_size:1"
        )
        writer.write(record)
        writer.close()
    source = registry.open_path(str(first / name), image_decoder.Decoder())
    shutil.copytree(first, second)  # keeps the times
    copy = registry.open_path(str(second / name), image_decoder.Decoder())
    assert copy.fingerprint == source.fingerprint

"""A change of the images between two starts of a run is said in one line."""

import json

import pytest

from dinov2_jax.runtime import data_record


class Images:
    def __init__(self, length, fingerprint):
        self._length, self.fingerprint = length, fingerprint

    def __len__(self):
        return self._length

    def describe(self):
        return f"{self._length} images"


def test_changes_are_said_once(tmp_path):
    def update(source, resumed=True):
        return data_record.update(source, tmp_path, resumed=resumed, write=True)

    assert update(Images(1000, "a")) == ""
    assert update(Images(1000, "a")) == ""
    said = update(Images(1234, "b"))
    assert "1,000 images then, 1,234 now" in said and "\n" not in said
    assert update(Images(1234, "b")) == ""
    assert "1,234 images then and now, but other names" in update(Images(1234, "c"))
    assert update(Images(7, "d"), resumed=False) == ""
    record = json.loads((tmp_path / "data.json").read_text())
    assert record == {"fingerprint": "d", "images": 7, "description": "7 images"}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"fingerprint": 1}'])
def test_a_damaged_record_is_replaced(tmp_path, content):
    (tmp_path / "data.json").write_text(content)
    source = Images(3, "a")
    assert not data_record.update(source, tmp_path, resumed=True, write=False)
    assert (tmp_path / "data.json").read_text() == content
    assert not data_record.update(source, tmp_path, resumed=True, write=True)
    assert json.loads((tmp_path / "data.json").read_text())["images"] == 3

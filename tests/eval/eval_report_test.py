"""Results as files: JSON that any program reads, and folders that cannot be written."""

import json

import numpy as np
import pytest

from dinov2_jax import errors
from dinov2_jax.eval import protocol_card, report


def refuse(name):
    raise AssertionError(f"{name} is not JSON")


def test_numbers_that_json_does_not_have_are_null(tmp_path):
    card = protocol_card.Card(
        "segmentation", "ours", {"lr": np.inf}, {"path": tmp_path}
    )
    rows = [("sky", float("nan"), np.float32("nan"), np.float32(0.5), np.int64(3))]
    table = report.Table("By class", ("class", *"abcd"), rows)
    report.write(report.Result(card, {"mIoU": np.nan}, [], [table]), tmp_path)
    text = (tmp_path / "results.json").read_text()
    found = json.loads(text, parse_constant=refuse)
    assert found["numbers"] == {"mIoU": None} and found["changed"] == {"lr": None}
    assert found["tables"][0]["rows"] == [["sky", None, None, 0.5, 3]]
    assert found["card"] == {"path": str(tmp_path)}


def test_a_folder_for_results_is_made_and_left_empty(tmp_path):
    report.check_folder(tmp_path / "a/b")
    assert not list((tmp_path / "a/b").iterdir())
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file/out"):
        with pytest.raises(errors.UserError, match="choose another --out"):
            report.check_folder(path)

import json

import pytest

from dinov2_jax.eval import partial_rows


def rows(asked, stop=None):
    def compute(start):
        for i in range(start, 5):
            if i == stop:
                raise RuntimeError("killed")
            asked.append(i)
            yield [float(i), i * 0.1]

    return compute


WANTED = [[float(i), i * 0.1] for i in range(5)]


def test_a_killed_evaluation_goes_on_where_it_was(tmp_path):
    path, asked = tmp_path / "out/rows.jsonl", []
    with pytest.raises(RuntimeError):
        partial_rows.collect(path, "a", rows(asked, stop=3), 5)
    with open(path, "a") as file:
        file.write("[3.0, 0.")  # a line that was cut short
    assert partial_rows.collect(path, "a", rows(asked), 5) == WANTED
    assert asked == [0, 1, 2, 3, 4]
    assert partial_rows.collect(path, "a", rows(asked), 5) == WANTED
    assert len(asked) == 5
    assert [json.loads(x) for x in path.read_text().splitlines()][1:] == WANTED


def test_rows_of_another_evaluation_are_not_taken(tmp_path):
    asked = []
    for fingerprint in ("a", "b"):
        partial_rows.collect(tmp_path / "rows", fingerprint, rows(asked), 5)
    assert len(asked) == 10

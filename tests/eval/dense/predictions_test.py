"""Names of predictions: no file is written twice."""

import pathlib

from dinov2_jax.eval.dense import predictions


def test_names_are_unique():
    paths = "x/a.png y/a.png a_2.png a.jpg results.png predictions.png b.png".split()
    paths = [pathlib.Path(path) for path in paths]
    found = list(predictions.unique_names(paths))
    assert [path for _, path in found] == paths
    names = [name for name, _ in found]
    assert names[:4] == ["a", "a_2", "a_2_2", "a_3"] and names[-1] == "b"
    assert len({*names, "results", "predictions"}) == len(names) + 2

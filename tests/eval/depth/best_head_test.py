import functools

import dense_pairs
import numpy as np
import pytest

from dinov2_jax.eval.depth import (
    best_head,
    depth_data,
    depth_head,
    depth_metrics,
    depth_model,
)
from dinov2_jax.eval.heads import head_files, head_names


@pytest.mark.slow  # the task is tested with heads to choose from
def test_the_best_of_some_heads_outlives_a_killed_run(tmp_path, capsys):
    test = depth_data.depth_pairs(dense_pairs.write(tmp_path, {"test": 2}))
    spec = head_names.Spec("depth", 16, 1, depth_range=(0.001, 10.0))
    heads = [head_files.Head(spec, depth_head.init(seed, 16, 1)) for seed in range(3)]
    make = functools.partial(
        best_head.BestHead,
        functools.partial(depth_model.DepthEstimator, dense_pairs.model(), flip=False),
        test,
        depth_metrics.PROTOCOLS["pairs"],
        path=tmp_path / "best.npz",
    )
    best = make(fingerprint="a run")
    assert best.of(heads[2]) is heads[2]  # before the first is measured
    for step, head in enumerate(heads, 1):
        best(step, head)
    values = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert best.step == 1 + np.argmin(values)
    assert best.abs_rel == pytest.approx(min(values), abs=1e-4)
    again = make(fingerprint="a run")
    assert (again.step, again.abs_rel) == (best.step, best.abs_rel)
    for name, values in heads[best.step - 1].params.items():
        np.testing.assert_array_equal(again.of(heads[0]).params[name], values)
    assert make(fingerprint="another").step == 0

"""The best weights of a run: which are kept, what is on disk, what is promised."""

import json
import math
import shutil

import numpy as np
import pytest

from dinov2_jax import errors
from dinov2_jax.checkpoint import best_weights, checksums, saved_weights

NAMES = ("knn/top1", "matching/accuracy")


def weights(step):
    return {"backbone": {"norm": {"scale": np.full(3, step, np.float32)}}}


def offer(kept, step, *values):
    metrics = dict(zip(NAMES, values), **{"knn/top1_pixels": 1.0})
    return kept.offer(step, metrics, weights(step))


def stored(workdir):
    """The step of the only weights in the folder, which are its own."""
    record = best_weights.read(workdir)
    (folder,) = [p for p in (workdir / "best").iterdir() if p.is_dir()]
    assert folder == best_weights.folder(workdir, record)
    assert checksums.is_sealed(folder) and checksums.problem(folder) is None
    scale = saved_weights.read(folder)["backbone"]["norm"]["scale"]
    np.testing.assert_array_equal(
        scale, weights(record.step)["backbone"]["norm"]["scale"]
    )
    return record.step


def test_the_measure_that_gained_least_decides(tmp_path):
    kept = best_weights.BestWeights(tmp_path, NAMES, judges=("a", "b"), resumed=False)
    assert kept.promise() == ""
    assert offer(kept, 0, 0.5, 0.8) and stored(tmp_path) == 0
    assert not offer(kept, 1, 0.9, 0.79)  # one below the start
    assert not offer(kept, 2, 0.5, 0.9)  # one as at the start
    assert not offer(kept, 3, math.nan, 0.9) and not offer(kept, 3, 0.9, math.nan)
    assert "no better than where it began" in kept.promise()
    assert offer(kept, 4, 0.6, 0.82) and stored(tmp_path) == 4
    assert not offer(kept, 5, 0.9, 0.81)
    assert offer(kept, 6, 0.55, 0.83) and stored(tmp_path) == 6
    assert not offer(kept, 7, 0.55, 0.83)  # the first of equals
    promise = kept.promise()
    assert promise.startswith("better than the start: knn/top1 55.0% (+5.0 points)")
    assert "matching/accuracy 83.0% (+3.0 points) at step 6" in promise
    assert str(tmp_path) in promise and "\n" not in promise


def test_a_rollback_to_the_start_keeps_the_best(tmp_path):
    """The run measures its start again, and goes on from its record."""
    kept = best_weights.BestWeights(
        tmp_path, NAMES[:1], judges=("a", "b"), resumed=False
    )
    offer(kept, 0, 0.5)
    offer(kept, 100, 0.7)
    assert not offer(kept, 0, 0.5) and stored(tmp_path) == 100
    assert not offer(kept, 50, 0.6)
    assert "(+20.0 points) at step 100" in kept.promise()


def test_a_step_that_is_measured_again_does_not_overwrite_itself(tmp_path, monkeypatch):
    """A kill in the write leaves the weights before."""
    kept = best_weights.BestWeights(
        tmp_path, NAMES[:1], judges=("a", "b"), resumed=False
    )
    offer(kept, 0, 0.5)
    offer(kept, 4, 0.7)
    with monkeypatch.context() as patch:
        patch.setattr(checksums, "write", lambda folder: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            offer(kept, 4, 0.8)
    record = best_weights.read(tmp_path)
    assert (record.step, record.best[NAMES[0]]) == (4, 0.7)
    assert checksums.problem(best_weights.folder(tmp_path, record)) is None
    for value in (0.8, 0.9):
        again = best_weights.BestWeights(
            tmp_path, NAMES[:1], judges=("a", "b"), resumed=True
        )
        assert offer(again, 4, value) and stored(tmp_path) == 4


def test_a_new_start_puts_learned_weights_aside(tmp_path):
    kept = best_weights.BestWeights(
        tmp_path, NAMES[:1], judges=("a", "b"), resumed=False
    )
    offer(kept, 0, 0.5)
    assert best_weights.forget(tmp_path) == "" and not list(tmp_path.iterdir())
    kept = best_weights.BestWeights(
        tmp_path, NAMES[:1], judges=("a", "b"), resumed=False
    )
    offer(kept, 0, 0.5)
    offer(kept, 6, 0.7)
    line = best_weights.forget(tmp_path)
    (aside,) = tmp_path.iterdir()
    assert aside.name.startswith("best.old-") and str(aside) in line
    assert (aside / "6").is_dir() and best_weights.read(tmp_path) is None


def test_a_resumed_run_goes_on_from_its_record(tmp_path):
    kept = best_weights.BestWeights(
        tmp_path, NAMES[:1], judges=("a", "b"), resumed=False
    )
    offer(kept, 0, 0.5)
    offer(kept, 4, 0.7)
    # As a kill in a save leaves it.
    shutil.copytree(tmp_path / "best/4", tmp_path / "best/5.orbax-checkpoint-tmp")
    again = best_weights.BestWeights(
        tmp_path, NAMES[:1], judges=("a", "b"), resumed=True
    )
    assert sorted(p.name for p in (tmp_path / "best").iterdir()) == ["4", "record.json"]
    assert not offer(again, 5, 0.65)
    assert offer(again, 6, 0.75) and stored(tmp_path) == 6
    assert "+25.0 points" in again.promise()
    # A new run in the folder begins a record of its own.
    assert offer(
        best_weights.BestWeights(tmp_path, NAMES, judges=("a", "b"), resumed=False),
        0,
        0.1,
        0.1,
    )
    assert stored(tmp_path) == 0
    best_weights.forget(tmp_path)
    assert best_weights.read(tmp_path) is None and not list(tmp_path.iterdir())
    best_weights.forget(tmp_path)


def test_a_kill_before_the_record_keeps_the_old_best(tmp_path, monkeypatch):
    kept = best_weights.BestWeights(
        tmp_path, NAMES[:1], judges=("a", "b"), resumed=False
    )
    offer(kept, 0, 0.5)
    with monkeypatch.context() as patch:
        patch.setattr(checksums, "write", lambda folder: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            offer(kept, 4, 0.7)
    assert best_weights.read(tmp_path).step == 0
    again = best_weights.BestWeights(
        tmp_path, NAMES[:1], judges=("a", "b"), resumed=True
    )
    assert offer(again, 4, 0.7) and stored(tmp_path) == 4


def test_a_save_that_fails_leaves_nothing(tmp_path, monkeypatch):
    """Else a full disk would stay full."""
    kept = best_weights.BestWeights(
        tmp_path, NAMES[:1], judges=("a", "b"), resumed=False
    )
    offer(kept, 0, 0.5)

    def full(self, path, *args, **options):
        left = path.with_name(f"{path.name}.orbax-checkpoint-tmp")
        left.mkdir()
        (left / "data").write_bytes(b"x")
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(saved_weights.ocp.PyTreeCheckpointer, "save", full)
        with pytest.raises(errors.UserError, match="cannot write .*No space left"):
            offer(kept, 10, 0.7)
    assert stored(tmp_path) == 0
    assert offer(kept, 20, 0.7) and stored(tmp_path) == 20


@pytest.mark.parametrize(
    "text", ["", "[]", '{"step": 4}', '{"step": "x", "start": {}}']
)
def test_a_missing_or_damaged_record(tmp_path, text):
    path = tmp_path / "best/record.json"
    path.parent.mkdir()
    with pytest.raises(errors.UserError, match="is missing") as caught:
        best_weights.BestWeights(tmp_path, NAMES, judges=("a", "b"), resumed=True)
    assert "--config.init.source=" in str(caught.value)
    path.write_text(text)
    with pytest.raises(errors.UserError, match="cannot read .*restore it"):
        best_weights.read(tmp_path)


def test_the_record_is_for_people_too(tmp_path):
    kept = best_weights.BestWeights(
        tmp_path, NAMES[:1], judges=("a", "b"), resumed=False
    )
    offer(kept, 0, 0.5)
    record = json.loads((tmp_path / "best/record.json").read_text())
    measured = {NAMES[0]: 0.5}
    assert record.pop("judges") == ["a", "b"]
    assert record == {"step": 0, "start": measured, "best": measured}


def test_other_images_are_no_judges(tmp_path):
    """Moved, they keep the first text; copied anew to the same place, the second."""
    kept = best_weights.BestWeights(
        tmp_path, NAMES[:1], judges=("a", "b"), resumed=False
    )
    offer(kept, 0, 0.5)
    for judges in (("a", "c"), ("c", "b")):
        best_weights.BestWeights(tmp_path, NAMES[:1], judges=judges, resumed=True)
    with pytest.raises(errors.UserError, match="no longer those that its start"):
        best_weights.BestWeights(tmp_path, NAMES[:1], judges=("c", "d"), resumed=True)
    path = tmp_path / "best/record.json"
    record = json.loads(path.read_text())
    del record["judges"]  # as in older runs
    path.write_text(json.dumps(record))
    best_weights.BestWeights(tmp_path, NAMES[:1], judges=("c", "d"), resumed=True)

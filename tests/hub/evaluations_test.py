"""Results for a card: of these weights, and with their protocol."""

import json

import pytest

from dinov2_jax import errors
from dinov2_jax.eval import protocol_card, report
from dinov2_jax.hub import evaluations, run_record

DIGEST = "0123456789abcdef" * 4


def write(folder, digest=DIGEST, task="knn"):
    fields = {"weights": "/home/ann/run", "digest": f"sha256 {digest[:16]}", "k": 20}
    card = protocol_card.Card(task, "ours", {"k": 20}, fields)
    numbers = {"top1": 0.75, "nan": float("nan")}
    report.write(report.Result(card, numbers, ["a note"]), folder)
    return folder


def make_run(workdir, step=20, is_best=False, student=""):
    config = {
        "evaluation.knn_k": [20],
        "evaluation.train_path": "",
        "evaluation.every": 5,
        "optim.base_lr": 0.1,
    }
    return run_record.Run(workdir, step, is_best, config, {}, {}, student)


def test_what_evaluate_writes(tmp_path):
    (found,) = evaluations.given([write(tmp_path / "out")], DIGEST)
    assert (found.task, found.protocol) == ("knn", "the reference's, changed (k 20)")
    assert found.settings == {"k": 20}
    assert found.numbers == {"top1": 0.75, "nan": None}
    assert found.notes == ["a note"]


def test_results_of_other_weights_are_refused(tmp_path):
    write(tmp_path, digest="f" * 64)
    with pytest.raises(errors.UserError, match="measures other weights"):
        evaluations.given([tmp_path / "results.json"], DIGEST)


def test_what_is_no_result(tmp_path):
    (tmp_path / "results.json").write_text('{"task": "knn"}')
    with pytest.raises(errors.UserError, match="is no results.json"):
        evaluations.given([tmp_path], DIGEST)


def test_results_inside_a_run_are_those_of_its_weights(tmp_path):
    write(tmp_path / "evaluation" / "a", task="linear")
    write(tmp_path / "knn")
    write(tmp_path / "old", digest="f" * 64)
    found = evaluations.inside(tmp_path, DIGEST)
    assert [e.task for e in found] == ["linear", "knn"]


def test_the_step_of_the_weights_counts(tmp_path):
    events = [
        {"event": "evaluate", "step": 10, "accuracies": {"knn/top1": 0.1}},
        {"event": "evaluate", "step": 20, "accuracies": {"knn/top1": 0.2}},
        {"event": "save", "step": 20},
        {"event": "evaluate", "step": 20, "accuracies": {"knn/top1": 0.3}},
    ]
    lines = [json.dumps(event) for event in events]
    (tmp_path / "events.jsonl").write_text("\n".join([*lines, '{"event": "ev']))
    (found,) = evaluations.during_training(make_run(tmp_path))
    assert found.numbers == {"knn/top1": 0.3}
    assert found.settings == {"knn_k": [20]}
    assert not found.notes
    (best,) = evaluations.during_training(make_run(tmp_path, step=10, is_best=True))
    assert best.numbers == {"knn/top1": 0.1}
    assert "chosen by these numbers" in best.notes[0]
    assert evaluations.during_training(make_run(tmp_path, step=15)) == []


def test_each_of_several_students_gets_its_own_numbers(tmp_path):
    events = [
        {"event": "evaluate", "step": 20, "accuracies": {f"{name}/knn/top1": value}}
        for name, value in (("small", 0.1), ("base", 0.2))
    ]
    (tmp_path / "events.jsonl").write_text("\n".join(map(json.dumps, events)))
    for name, value in (("small", 0.1), ("base", 0.2)):
        (found,) = evaluations.during_training(make_run(tmp_path, student=name))
        assert found.numbers == {"knn/top1": value}

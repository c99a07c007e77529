"""When a run evaluates, and what it does when an evaluation fails."""

import contextlib
import json
import types

import pytest

from dinov2_jax import errors
from dinov2_jax.eval import run_evaluations

NAME = "knn/top1"


def make(workdir, *, every=0, source="", best=None, said=None, **evaluators):
    """The evaluations of a run of 8 steps without a model, whose log is a list."""
    config = types.SimpleNamespace(
        seed=0,
        train=types.SimpleNamespace(steps=8),
        init=types.SimpleNamespace(source=source),
        evaluation=types.SimpleNamespace(batch_size=64, every=every),
    )
    said = [] if said is None else said
    quiet = types.SimpleNamespace(during=lambda *_: contextlib.nullcontext())
    log = types.SimpleNamespace(
        message=said.append,
        save_failed=lambda step, how: said.append(how),
        evaluated=lambda step, numbers, student: None,
    )
    return run_evaluations.RunEvaluations(
        config,
        workdir,
        types.SimpleNamespace(students=lambda state: {"": (None, state)}),
        evaluators=evaluators,
        best=best,
        log=log,
        account=quiet,
        hang_watchdog=quiet,
    )


def write(workdir, rows):
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (workdir / "metrics.jsonl").write_text(lines)


MEASURES = types.SimpleNamespace(
    tasks=("knn",), evaluate=lambda weights, seed: {NAME: 0.5}
)


@pytest.mark.parametrize("every, due", [(0, [8]), (3, [3, 6, 8]), (4, [4, 8])])
def test_evaluations_are_due_after_the_last_step_and_regularly(tmp_path, every, due):
    def steps(**evaluators):
        found = make(tmp_path, every=every, **evaluators)
        return [step for step in range(1, 9) if found.due(step)]

    assert steps(model=MEASURES) == due
    assert steps() == []


@pytest.mark.parametrize(
    "start, every, evaluated, owes",
    [(4, 4, [], True), (4, 4, [4], False), (5, 4, [4], False)]
    + [(4, 0, [], False), (8, 4, [4], True), (8, 0, [], True), (8, 0, [8], False)],
)
def test_an_evaluation_that_a_stop_left_out(tmp_path, start, every, evaluated, owes):
    """A run that is preempted saves at once, and measures when it goes on."""
    rows = [{"step": step, "loss/total": 1.0} for step in range(1, start + 1)]
    rows += [{"step": step, f"small/{NAME}": 0.5} for step in evaluated]
    rows += [{"step": step, f"base/{NAME}": 0.5} for step in (4, 8)]
    write(tmp_path, rows)
    found = make(tmp_path, every=every, small=MEASURES, base=MEASURES)
    assert found.owed(start) == owes
    assert not make(tmp_path, every=every).owed(start)


def test_the_start_is_measured_if_there_is_something_to_lose(tmp_path):
    assert not make(tmp_path, model=MEASURES).owed(0)
    assert make(tmp_path, model=MEASURES, source="a_run").owed(0)
    assert make(tmp_path, model=MEASURES, best=object()).owed(0)
    assert not make(tmp_path, source="a_run").owed(0)


def fail(*_):
    raise errors.UserError("the disk is gone")


@pytest.mark.parametrize("step", [0, 4, 8])
@pytest.mark.parametrize("what", ["evaluation", "best"])
def test_what_fails_within_the_run_does_not_end_it(tmp_path, step, what):
    """At its start and end there is no later try."""
    state = types.SimpleNamespace(teacher_params={"backbone": {}})
    broken = types.SimpleNamespace(tasks=("knn",), evaluate=fail, offer=fail)
    said = []
    working = {"": MEASURES if what == "best" else broken}
    found = make(tmp_path, best=broken, said=said, **working)
    write(tmp_path, [{"step": 1, "loss/total": 1.0}])  # for the report
    ends = pytest.raises(errors.UserError, match="the disk is gone")
    with contextlib.nullcontext() if step == 4 else ends:
        found.measure(step, state)
    assert len(said) == (step == 4)
    assert all(x.startswith("step 4: ") and x.endswith("is gone") for x in said)


def test_what_a_kill_interrupts_is_owed(tmp_path):
    """The numbers are logged after the best weights are on disk."""
    happened = []
    best = types.SimpleNamespace(offer=lambda *_: happened.append("kept") or True)
    found = make(tmp_path, best=best, **{"": MEASURES})
    found._log.events = types.SimpleNamespace(add=lambda *_, **__: None)
    found._log.evaluated = lambda *_, **__: happened.append("logged")
    state = types.SimpleNamespace(teacher_params={"backbone": {}})
    found.measure(4, state)
    assert happened == ["kept", "logged"]

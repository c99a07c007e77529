"""Too little memory: jax is asked for more than any machine has."""

import itertools

import jax
import jax.numpy as jnp
import processes
import pytest
import tiny

from dinov2_jax import errors, trainer
from dinov2_jax.config import less_memory
from dinov2_jax.eval import evaluator
from dinov2_jax.runtime import event_log, out_of_memory


def fill_memory():
    jnp.zeros((2**45,)).block_until_ready()


def test_other_errors_pass():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        with out_of_memory.explained("here", lambda: "use less"):
            raise jax.errors.JaxRuntimeError("INTERNAL: something else")


@pytest.fixture
def short_of_memory(monkeypatch):
    """Makes a method run out of memory from one of its calls on."""

    def patch(owner, name, call):
        method, calls = getattr(owner, name), itertools.count(1)

        def short(*args):
            if next(calls) >= call:
                fill_memory()
            return method(*args)

        monkeypatch.setattr(owner, name, short)

    return patch


@pytest.mark.parametrize("step, code", [(1, errors.BAD_INPUT), (3, errors.TRY_AGAIN)])
def test_a_step(in_process, short_of_memory, tmp_path, step, code):
    short_of_memory(trainer.Trainer, "place", step)
    finished = in_process.run(*processes.DEBUG, f"--workdir={tmp_path}")
    assert finished.code == code
    assert finished.output.splitlines()[-1] == (
        "error: out of memory in the training step (for 140,737.5 GB more): add "
        "--config.model.remat=selective, which changes the results by rounding "
        "alone"
    )


def test_an_evaluation_does_not_end_the_run(
    in_process, short_of_memory, monkeypatch, tmp_path
):
    short_of_memory(evaluator.Evaluator, "evaluate", 1)
    flags = (*processes.DEBUG, "--config.evaluation.every=10", f"--workdir={tmp_path}")
    finished = in_process.run(*flags)
    line = (
        "out of memory in the evaluation (for 140,737.5 GB more): add "
        "--config.evaluation.batch_size="
    )
    assert f"step 10: not evaluated: {line}" in finished.output
    assert f"error: {line}" in finished.output  # after the last step
    assert finished.code == errors.BAD_INPUT
    monkeypatch.undo()
    finished = in_process.run(*flags)  # the last step is saved, and is evaluated now
    assert finished.code == 0 and "resumed from step 20" in finished.output
    assert [r["step"] for r in processes.rows(tmp_path) if "knn/top1" in r] == [20]
    assert (tmp_path / "pca.png").exists()
    happened = [event["event"] for event in event_log.read(tmp_path)]
    assert happened[-1] == "end" and happened.count("start") == 2
    assert "nothing to do" in in_process.run(*flags).output


def test_a_picture_does_not_cost_the_numbers(in_process, short_of_memory, tmp_path):
    short_of_memory(evaluator.Evaluator, "picture", 1)
    finished = in_process.run(*processes.DEBUG, f"--workdir={tmp_path}")
    assert finished.code == 0
    assert "more): lower --config.evaluation.picture_size" in finished.output
    assert "knn/top1" in processes.rows(tmp_path)[-1]


def flags_of(found):
    return [" ".join(flags) for flags, _ in found]


def test_changes_that_keep_the_results():
    train = {"batch_size": 48, "group_size": 2, "micro_batches": 2}
    c = tiny.config(train=train, model={"remat": "selective"})
    full = "--config.model.remat=full"
    # Each divides the twelve groups of a device and is at least twice the one before.
    assert flags_of(less_memory.keeping_results(c, 2)) == [
        full,
        *(f"{full} --config.train.micro_batches={n}" for n in (4, 12)),
    ]


def test_advice_ends_with_fewer_images_and_a_smaller_model():
    train = {"batch_size": 8, "group_size": 4}
    c = tiny.config(train=train, model={"remat": "full"})
    assert out_of_memory.of_step(c, 2).startswith(
        "add --config.train.batch_size=4 --config.train.group_size=2, or use more"
    )
    c.train.update(batch_size=4, group_size=2)
    assert out_of_memory.of_step(c, 2) == "use more devices or a smaller model"

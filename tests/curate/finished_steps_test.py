"""Steps are done again if their flags, inputs or outputs changed, and not otherwise."""

import dataclasses

import pytest

from dinov2_jax.curate import finished_steps


@pytest.fixture
def step(tmp_path):
    return finished_steps.Step("a", ["--x=1"], {"in": "5"}, tmp_path / "out")


def read(folder):
    return finished_steps.FinishedSteps(folder)


def test_a_finished_step(step, tmp_path):
    assert not read(tmp_path).has(step) and not read(tmp_path).has_begun(step)
    assert not (tmp_path / "steps.json").exists()
    read(tmp_path).begin(step)
    assert read(tmp_path).has_begun(step) and not read(tmp_path).has(step)
    step.output.write_text("result")
    assert not read(tmp_path).has(step)  # killed before it was recorded
    assert read(tmp_path).wrote("a", step.output)
    read(tmp_path).finish(step)
    assert read(tmp_path).has(step) and read(tmp_path).wrote("a", step.output)
    for change in ({"arguments": ["--x=2"]}, {"inputs": {"in": "6"}}):
        other = dataclasses.replace(step, **change)
        assert not read(tmp_path).has(other) and not read(tmp_path).has_begun(other)
    step.output.write_text("changed")
    assert not read(tmp_path).has(step) and not read(tmp_path).wrote("a", step.output)
    step.output.unlink()
    assert not read(tmp_path).has(step) and read(tmp_path).has_begun(step)


def test_a_damaged_record(step, tmp_path):
    step.output.write_text("result")
    read(tmp_path).finish(step)
    (tmp_path / "steps.json").write_text('{"a": ')
    assert not read(tmp_path).has(step)
    assert not read(tmp_path).wrote("a", step.output)

"""The high-resolution stage: its config, its messages and a run from end to end."""

import json

import numpy as np
import processes
import pytest
import tiny
from peers import torch

import dinov2_jax
from configs import highres, quickstart, vitl, vitl16_short
from dinov2_jax import errors, schedules
from dinov2_jax.config import checking, flattening
from dinov2_jax.convert import __main__ as convert
from dinov2_jax.convert import torch_twin

# Steps before and now, and a length before and now.
NUMBERS = [
    (625_000, 10_000, 100_000, 1600),
    (125_000, 10_000, 37_500, 3000),
    (625_000, 10_000, 1250, 20),
    (625_000, 10_000, 0, 0),
    (625_000, 10_000, 7, 1),  # not nothing
    (600, 600, 60, 60),
]


@pytest.mark.parametrize("before, now, length, expected", NUMBERS)
def test_the_rule(before, now, length, expected):
    fields = {
        "optim.warmup_steps": length,
        "a.b.some_steps": length,
        "train.max_nonfinite_steps": 5,
        "train.steps": before,
        "optim.base_lr": 0.1,
    }
    found = schedules.compress(fields, steps_before=before, steps=now)
    assert found == {"optim.warmup_steps": expected, "a.b.some_steps": expected}


def test_the_lengths_of_a_gram_teacher_in_use():
    fields = {"gram.start": 2000, "gram.refresh_every": 500, "gram.loss_weight": 2.0}
    found = schedules.compress(fields, steps_before=3000, steps=300)
    assert found == {"gram.start": 200, "gram.refresh_every": 50}
    fields["gram.loss_weight"] = 0.0
    assert not schedules.compress(fields, steps_before=3000, steps=300)


@pytest.mark.parametrize("steps", ["1e4", "0", "many"])
def test_steps_that_are_no_number(steps):
    with pytest.raises(errors.UserError, match=f"'{steps}' is no number of steps"):
        highres.get_config(f"quickstart:{steps}")


def test_a_stage_of_vitl():
    before = flattening.flatten(vitl.get_config())
    c = highres.get_config("vitl")
    assert flattening.flatten(highres.get_config()) == flattening.flatten(c)
    changed = {n: v for n, v in flattening.flatten(c).items() if v != before[n]}
    assert changed.pop("optim.base_lr") == pytest.approx(2e-5, rel=1e-12)
    lengths = {
        "train.steps": 10_000,
        "optim.warmup_steps": 1600,
        "teacher.warmup_teacher_temp_steps": 600,
        "optim.freeze_last_layer_steps": 20,
    }
    # Both numbers are stated where the config is read.
    for name, value in lengths.items():
        (line,) = [x for x in highres.__doc__.splitlines() if f" {name} " in x]
        assert line.split()[1:] == [f"{before[name]:,}", "->", f"{value:,}"]
    assert changed == lengths | {
        "init.heads": "loaded",
        "crops.global_crops_size": 518,
        "evaluation.image_size": 518,
        "evaluation.resize_size": 592,
        "evaluation.other_sizes": (224,),
        "evaluation.every": 1000,
        "checkpoint.every": 1000,
    }


def test_stages_of_other_runs(tmp_path):
    c = highres.get_config("vitl16_short")  # the paper's ablation
    assert (c.crops.global_crops_size, c.crops.local_crops_size) == (416, 96)
    assert c.teacher.warmup_teacher_temp_steps == 3000
    assert c.train.steps == 10_000 and vitl16_short.get_config().train.steps == 125_000
    small = highres.get_config("quickstart:60")
    assert flattening.flatten(small) == flattening.flatten(
        highres.get_config("quickstart")
    )
    assert small.crops.global_crops_size == 9 * 12
    assert highres.get_config("quickstart:300").optim.warmup_steps == 30
    # The config that a run had, and its weights.
    run = quickstart.get_config()
    run.dino.head_n_prototypes = 77
    (tmp_path / "config.json").write_text(run.to_json_best_effort())
    c = highres.get_config(f"{tmp_path}:30")
    assert c.init.source == str(tmp_path) and c.dino.head_n_prototypes == 77
    assert (c.train.steps, c.optim.warmup_steps) == (30, 3)


def test_the_run_must_be_given():
    with pytest.raises(errors.UserError) as raised:
        checking.check(highres.get_config("vitl"))
    assert "init.source is empty" in str(raised.value)
    assert "--config.init.source=WORKDIR" in str(raised.value)


def test_messages_of_the_program(in_process, tmp_path):
    def refused(*flags):
        finished = in_process.run(*flags, f"--workdir={tmp_path}")
        assert finished.code == 2, finished.output
        return finished.error

    assert "init.source is empty" in refused("--config=highres:vits")
    assert "there is no config vitx" in refused("--config=highres:vitx")
    flags = ("--config=highres:quickstart", "--config.init.source=x")
    error = refused(*flags, "--config.crops.global_crops_size=100")
    assert "crops.global_crops_size = 100 is not a multiple of model.patch" in error
    error = refused(*flags, "--config.train.steps=5")
    assert "optim.warmup_steps = 6 exceeds train.steps = 5" in error


PRETRAINING = tiny.config(
    crops={"global_crops_size": 56, "local_crops_size": 28},
    model={"patch_size": 14, "dtype": "auto"},
    train={"batch_size": 32, "steps": 3},
    optim={"warmup_steps": 1},
    teacher={"warmup_teacher_temp_steps": 1},
    data={"source": "photos", "workers": 0, "augmentation": "device"},
    evaluation={
        "image_size": 56,
        "resize_size": 64,
        "picture_size": 56,
        "max_images": 32,
    },
)


@pytest.mark.slow
def test_pretraining_then_a_stage_then_an_export(in_process, tmp_path):
    config = json.loads(PRETRAINING.to_json_best_effort())
    (tmp_path / "pretraining.json").write_text(json.dumps(config))
    run, stage = tmp_path / "run", tmp_path / "stage"
    finished = in_process.run(
        f"--config={tmp_path / 'pretraining.json'}", f"--workdir={run}"
    )
    assert finished.code == 0, finished.output
    finished = in_process.run(
        f"--config=highres:{run}:2",
        f"--workdir={stage}",
        "--config.train.batch_size=4",
        "--config.train.group_size=2",
    )
    assert finished.code == 0, finished.output
    output = finished.output
    assert f"initialised from {run}: position embeddings 4x4 -> 37x37, heads load" in (
        output
    )
    assert "schedules before and now: train.steps 3 -> 2" in output
    assert "100% of the images (64 of 64 looked at) have a short side below" in output
    rows = processes.rows(stage)
    assert {"knn/top1", "knn/top1_at_56"} < set(rows[0])  # both, at step 0
    # Both sides start as the teacher of the run.
    state = processes.load(stage, 2)
    assert state["/teacher_params/backbone/pos_embed"].shape == (1, 1370, 32)
    # The export is one of 518 px, as the released files are.
    path = tmp_path / "stage.pth"
    assert convert.main([str(stage), str(path), "--to=torch-hub"]) == 0
    tensors = torch.load(path)
    assert tuple(tensors["pos_embed"].shape) == (1, 1370, 32)
    images = np.random.default_rng(0).standard_normal((1, 518, 518, 3), np.float32)
    theirs = torch_twin.features(tensors, images, 2)
    ours = dinov2_jax.load(stage)(images)
    for name in ("cls", "patches"):
        difference = np.asarray(getattr(ours, name)) - theirs[name]
        assert np.linalg.norm(difference) <= 1e-4 * np.linalg.norm(theirs[name])
    # A backbone alone has no heads to go on with.
    finished = in_process.run(
        f"--config=highres:{run}:2",
        f"--workdir={tmp_path / 'other'}",
        f"--config.init.source={path}",
    )
    assert finished.code == 2
    assert "has no projection heads" in finished.error
    assert "--config.init.heads=fresh" in finished.error

"""Distillation from the command line: runs, resumes and exports."""

import json

import numpy as np
import processes
import pytest

import dinov2_jax
from configs import distill

pytestmark = pytest.mark.slow

SMALL = (
    "--config=configs/distill.py",
    "--config.data.source=photos",
    "--config.data.workers=0",
    "--config.crops.global_crops_size=24",
    "--config.crops.local_crops_size=12",
    "--config.crops.local_crops_number=1",
    "--config.model.arch=custom",
    "--config.model.patch_size=12",
    "--config.model.embed_dim=16",
    "--config.model.depth=1",
    "--config.model.num_heads=2",
    "--config.dino.koleo_loss_weight=0",  # large for so few and small features
    "--config.dino.head_hidden_dim=16",
    "--config.dino.head_bottleneck_dim=32",
    "--config.ibot.head_hidden_dim=16",
    "--config.ibot.head_bottleneck_dim=32",
    "--config.dino.head_n_prototypes=32",
    "--config.ibot.head_n_prototypes=32",
    "--config.train.batch_size=8",
    "--config.train.group_size=8",
    "--config.train.steps=4",
    "--config.optim.warmup_steps=1",
    "--config.evaluation.tasks=()",
    "--config.evaluation.image_size=24",
    "--config.evaluation.resize_size=24",
    "--config.evaluation.picture_size=48",
)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, in_process):
    """A pretraining run, wider than its students, and one with another seed."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        found = in_process.run(
            *SMALL,
            f"--workdir={folder / str(seed)}",
            f"--config.seed={seed}",
            "--config.model.embed_dim=32",
            "--config.distill.source=",
            "--config.ibot.mask_sample_probability=0.5",
        )
        assert found.code == 0, found.output
    return folder


def test_a_run_resumes_to_the_bit_and_keeps_its_teacher(teacher, tmp_path, in_process):
    def train(name, *flags):
        workdir = f"--workdir={tmp_path / name}"
        every = "--config.checkpoint.every=2"
        return in_process.run(*SMALL, workdir, every, *flags)

    source = f"--config.distill.source={teacher / '0'}"
    whole = train("whole", source)
    assert whole.code == 0, whole.output
    assert "teacher: " in whole.output and "digest" in whole.output
    assert processes.saved_steps(tmp_path / "whole") == [2, 4]
    record = json.loads((tmp_path / "whole" / "teacher.json").read_text())
    assert record["digest"] in whole.output
    processes.branch(tmp_path / "whole", tmp_path / "half", 2)
    other = train("half", f"--config.distill.source={teacher / '1'}")
    assert record["digest"] in other.error
    assert "set --config.distill.source to that teacher" in other.error
    assert train("half", source).code == 0
    found, expected = (processes.load(tmp_path / n, 4) for n in ("half", "whole"))
    processes.assert_same_arrays(found, expected)
    student = sum(x.nbytes for k, x in expected.items() if k.startswith("/params"))
    every = sum(x.nbytes for x in expected.values())
    assert every < 4.1 * student  # parameters, EMA and two moments, but no teacher


@pytest.mark.parametrize("objective", ["prototypes", "features"])
def test_several_students(teacher, tmp_path, in_process, objective):
    flags = [
        *SMALL,
        f"--workdir={tmp_path}",
        f"--config.distill.source={teacher / '0'}",
        f"--config.distill.objective={objective}",
        "--config.distill.students=(('narrow', 'model.embed_dim=8'), ('deep', "
        "'model.depth=2 optim.base_lr=0.001'))",
        "--config.evaluation.tasks=('knn',)",
        *["--config.crops.local_crops_number=0"] * (objective == "features"),
    ]
    found = in_process.run(*flags)
    assert found.code == 0, found.output
    assert "narrow, step 4:" in found.output and "deep, step 4:" in found.output
    for name, width in (("narrow", 8), ("deep", 16)):
        model = dinov2_jax.load(tmp_path / name)
        assert model(np.zeros((1, 24, 24, 3), np.float32)).cls.shape == (1, width)
        assert model.preprocessing.crop_size == 24  # that of the run's evaluations
        assert (tmp_path / name / "pca.png").is_file()
    rows = processes.rows(tmp_path)
    assert {"narrow/loss/total", "deep/loss/total"} <= set().union(*rows)
    assert {"narrow/knn/top1", "deep/knn/top1"} <= set().union(*rows)
    ratio = 0.001 / distill.get_config().optim.base_lr
    for row in rows:
        if row.get("lr"):
            assert row["narrow/lr"] == row["lr"]
            assert row["deep/lr"] == pytest.approx(ratio * row["lr"])
    if objective == "features":  # as after a kill in the export
        (tmp_path / "deep" / "model.json").unlink()
        assert in_process.run(*flags).code == 0
        assert dinov2_jax.load(tmp_path / "deep").config.depth == 2
        assert len(processes.rows(tmp_path)) == len(rows)

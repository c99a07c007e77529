"""Bad input: one line that names the fix, exit code 2, nothing compiled."""

import os

import numpy as np
import pytest
from PIL import Image

from configs import debug
from dinov2_jax import main

DEBUG = "--config=configs/debug.py"
FOLDER = "--config.data.source=folder"


def refused(trainer, *flags, no_output=True, **more):
    """Runs with bad input; returns the line of the error."""
    finished = trainer.run(*flags, **more)
    assert finished.code == 2, finished.output
    assert "compiled" not in finished.output
    assert not no_output or finished.output == finished.error + "\n"
    return finished.error


@pytest.fixture
def workdir(tmp_path):
    return f"--workdir={tmp_path / 'run'}"


def test_missing_folder(in_process, tmp_path, workdir):
    path = tmp_path / "nowhere"
    error = refused(in_process, DEBUG, workdir, FOLDER, f"--config.data.path={path}")
    assert f"{path} does not exist" in error
    assert "--config.data.path=/path/to/images" in error
    assert not (tmp_path / "run").exists()


def test_empty_folder(in_process, tmp_path, workdir):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/notes.txt").write_text("no image")
    path = f"--config.data.path={tmp_path / 'images'}"
    error = refused(in_process, DEBUG, workdir, FOLDER, path)
    assert f"no images below data.path = {tmp_path / 'images'}" in error
    assert ".jpeg" in error


def test_fewer_images_than_a_batch(in_process, tmp_path, workdir):
    (tmp_path / "images").mkdir()
    for i in range(31):
        pixels = np.full((40, 40, 3), i, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"images/{i}.png")
    path = f"--config.data.path={tmp_path / 'images'}"
    error = refused(in_process, DEBUG, workdir, FOLDER, path)
    assert "31 images" in error and "train.batch_size = 32" in error
    assert "--config.train.batch_size" in error


def test_no_data_set(in_process, workdir):
    error = refused(in_process, "--config=configs/vitg.py", workdir)
    assert "no training images are set" in error
    assert "--config.data.path=/path/to/images" in error


def test_unknown_fields(in_process, workdir):
    error = refused(
        in_process,
        DEBUG,
        workdir,
        "--config.optim.base_lrr=1",
        "--config.init.source=x",
        "--config.init.sorce=x",
        "--config.init.from=x",
        "--config.train.sinkhorn_queue=8",
        "--config.train.step=2",
    )
    assert "init.sorce; did you mean --config.init.source?" in error
    assert "init.from is called --config.init.source now" in error
    queues = "--config.dino.sinkhorn_queue and --config.ibot.sinkhorn_queue now"
    assert f"train.sinkhorn_queue is called {queues}" in error
    assert "field init.source" not in error
    assert "optim.base_lrr; did you mean --config.optim.base_lr?" in error
    assert "train.step; did you mean --config.train.steps?" in error


def test_value_of_another_type(in_process, workdir):
    error = refused(in_process, DEBUG, workdir, "--config.train.steps=many")
    assert "train.steps" in error and "many" in error


def test_values_out_of_range_all_at_once(in_process, workdir):
    error = refused(
        in_process,
        DEBUG,
        workdir,
        "--config.optim.base_lr=inf",
        "--config.data.workers=-1",
        "--config.train.centering=none",
    )
    assert "optim.base_lr = inf" in error
    assert "data.workers = -1" in error
    assert "train.centering = 'none'" in error and "sinkhorn_knopp" in error


def test_image_size_that_patches_do_not_divide(in_process, workdir):
    error = refused(in_process, DEBUG, workdir, "--config.crops.global_crops_size=33")
    assert "crops.global_crops_size = 33" in error and "use 32 or 40" in error


def test_groups_that_devices_do_not_divide(trainer, workdir):
    """In a process of its own, whose exit code it is."""
    error = refused(trainer, DEBUG, workdir, "--config.train.group_size=8", devices=8)
    assert "8 devices do not divide the 4 groups" in error
    assert "--config.train.group_size=4" in error


def test_replicas_that_do_not_divide_devices(in_process, workdir):
    error = refused(in_process, DEBUG, workdir, "--config.mesh.replica=2")
    assert "mesh.replica = 2" in error


def test_config_that_does_not_exist(in_process, workdir):
    error = refused(in_process, "--config=configs/vith.py", workdir)
    assert "no config configs/vith.py: use one of adapt, debug" in error


@pytest.mark.parametrize(
    "text, said",
    [
        ("def get_config():\n    return 1 +\n", "line 2: SyntaxError"),
        ("import json\nVALUE = json.loads('{')\n", "line 2: JSONDecodeError"),
        (
            "from configs import default\n"
            "def get_config():\n    c = default.get_config()\n"
            "    c.train.batchsize = 3\n    return c\n",
            'Did you mean "batch_size"',
        ),
        (
            "from ml_collections import ConfigDict\n"
            "def get_config():\n    return ConfigDict({'seed': 1})\n",
            "the config is missing checkpoint.every, ",
        ),
    ],
)
def test_config_that_does_not_load(in_process, tmp_path, workdir, text, said):
    path = tmp_path / "broken.py"
    path.write_text(text)
    assert said in refused(in_process, f"--config={path}", workdir)


@pytest.mark.parametrize(
    "text, said",
    [
        ("x = 1\n", "no function get_config()"),
        ("def get_config(size):\n    return size\n", "get_config() missing"),
        ("def get_config():\n    pass\n", "get_config() returned None"),
        ("def get_config():\n    return {'seed': 1}\n", "get_config() returned"),
    ],
)
def test_config_without_a_config(in_process, tmp_path, workdir, text, said):
    path = tmp_path / "mine.py"
    path.write_text(text)
    for given in ([f"--config={path}"], ["--config", str(path)]):
        error = refused(in_process, *given, workdir, no_output=False)
        assert said in error and str(path) in error


@pytest.mark.parametrize(
    "before, after",
    [
        ({}, {"XLA_CLIENT_MEM_FRACTION": "0.92"}),
        ({"XLA_CLIENT_MEM_FRACTION": ".5"}, {"XLA_CLIENT_MEM_FRACTION": ".5"}),
        (
            {"XLA_PYTHON_CLIENT_MEM_FRACTION": ".5"},
            {"XLA_PYTHON_CLIENT_MEM_FRACTION": ".5"},
        ),
    ],
)
def test_share_of_a_gpus_memory(monkeypatch, before, after):
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", dict(before))
        main._claim_gpu_memory()
        assert os.environ == after


def test_attention_of_other_devices(in_process, workdir):
    flag = "--config.model.attention=cudnn"
    error = refused(in_process, DEBUG, workdir, flag, no_output=False)
    assert "model.attention = 'cudnn': it does not run on cpu" in error


def test_config_of_a_run(in_process, tmp_path):
    path = tmp_path / "run/config.json"
    path.parent.mkdir()
    path.write_text(debug.get_config().to_json_best_effort())
    error = refused(in_process, f"--config={path}", no_output=False)
    assert f"add --workdir={path.parent} to resume it" in error
    error = refused(
        in_process,
        f"--config={path}",
        f"--workdir={tmp_path / 'other'}",
        "--config.train.steps=0",
        no_output=False,
    )
    assert "train.steps = 0" in error


def test_config_of_the_reference(in_process, tmp_path, workdir):
    path = tmp_path / "vitx.yaml"
    path.write_text("student: {patch_size: 15}\noptim: {epochs: 3}\n")
    finished = in_process.run(f"--config={path}", workdir)
    assert finished.code == 2 and "patch_size = 15: use 210 or 225" in finished.error
    assert "  optim.epochs = 3 x 1250 -> train.steps = 3750" in finished.output


@pytest.mark.parametrize("value", ["4e19", "40000000000000000000", "3000000000"])
def test_steps_without_end(in_process, workdir, value):
    error = refused(in_process, DEBUG, workdir, f"--config.train.steps={value}")
    assert "train.steps" in error


@pytest.mark.parametrize(
    "text, said",
    [
        ("gs://bucket/x", "is not on a local file system"),
        ("s3:/bucket", "gcsfuse"),
        ("", "--workdir is empty"),
    ],
)
def test_workdir_that_is_no_local_folder(in_process, text, said):
    assert said in refused(in_process, DEBUG, f"--workdir={text}")


@pytest.mark.parametrize(
    "name, kind",
    [
        ("tensorboard", "a file"),
        ("checkpoints", "a file"),
        ("metrics.jsonl", "a folder"),
        ("events.jsonl", "a folder"),
        ("config.json", "a folder"),
        ("data.json", "a folder"),
        ("run.lock", "a folder"),
        ("bad_images.txt", "a folder"),
    ],
)
def test_workdir_with_something_in_the_way(in_process, tmp_path, name, kind):
    path = tmp_path / "run" / name
    path.parent.mkdir()
    path.mkdir() if kind == "a folder" else path.write_text("")
    error = refused(in_process, DEBUG, f"--workdir={path.parent}")
    assert f"{path} is {kind}" in error


def test_no_config(in_process, workdir):
    assert "--config=quickstart" in refused(in_process, workdir)


def test_flag_that_does_not_exist(in_process):
    error = refused(in_process, DEBUG, "--workdirr=x")
    assert "workdirr" in error and "workdir" in error.replace("workdirr", "")


def test_arguments_without_dashes(in_process, workdir):
    error = refused(in_process, DEBUG, workdir, "train.steps=3")
    assert "train.steps=3" in error and "--" in error


def test_workdir_that_is_a_file(in_process, tmp_path):
    (tmp_path / "run").write_text("a file")
    error = refused(in_process, DEBUG, f"--workdir={tmp_path / 'run'}")
    assert str(tmp_path / "run") in error and "--workdir" in error


def test_workdir_that_cannot_be_made(in_process, tmp_path):
    # Below a file: root, as which tests may run, may write to any folder.
    (tmp_path / "file").write_text("a file")
    error = refused(in_process, DEBUG, f"--workdir={tmp_path / 'file/run'}")
    assert "cannot write to" in error and "choose another --workdir" in error


def test_missing_folder_of_the_evaluation(in_process, tmp_path, workdir):
    error = refused(
        in_process,
        DEBUG,
        workdir,
        f"--config.evaluation.train_path={tmp_path / 'nowhere'}",
        f"--config.evaluation.val_path={tmp_path}",
    )
    assert f"evaluation.train_path = {tmp_path / 'nowhere'} does not exist" in error


def test_tfds_without_a_name(in_process, workdir):
    error = refused(in_process, DEBUG, workdir, "--config.data.source=tfds")
    assert "--config.data.tfds_name" in error


def test_fewer_processes_and_devices_than_expected(in_process, workdir):
    error = refused(
        in_process,
        DEBUG,
        workdir,
        "--config.mesh.processes=2",
        "--config.mesh.devices=16",
    )
    assert "mesh.processes = 2, but there are 1" in error
    assert "mesh.devices = 16, but there are 1" in error
    assert "--coordinator" in error


def test_one_flag_of_several_processes(in_process, workdir):
    error = refused(in_process, DEBUG, workdir, "--num_processes=2")
    assert "--coordinator and --process_id missing" in error

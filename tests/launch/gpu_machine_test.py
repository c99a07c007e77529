"""launch/gpu.sh: a process for each GPU that nvidia-smi lists."""

import commands


def test_one_process_for_each_gpu(tmp_path):
    programs = commands.Programs(tmp_path, "nvidia-smi")
    programs.answer("nvidia-smi", "0 GPU 0: H100\\nGPU 1: H100\\nGPU 2: H100")
    options = ["--flags", "gpu", "--port", "7000", "--dry-run"]
    finished = programs.run("gpu.sh", *options, "--", "--config=configs/vitl.py")
    assert finished.returncode == 0, finished.stderr
    commands.assert_as_recorded(finished.stdout + finished.stderr, "gpu")
    assert programs.calls() == ["nvidia-smi --list-gpus"]


def test_a_number_of_gpus(tmp_path):
    programs = commands.Programs(tmp_path, "nvidia-smi")
    options = ["--count", "2", "--port", "7000", "--dry-run"]
    finished = programs.run("gpu.sh", *options, "--", "--config=configs/vitl.py")
    assert len(finished.stdout.splitlines()) == 2
    assert programs.calls() == []


def test_no_gpu(tmp_path):
    programs = commands.Programs(tmp_path, "nvidia-smi")
    programs.answer("nvidia-smi", "9")
    finished = programs.run("gpu.sh", "--", "--config=configs/vitl.py")
    assert finished.returncode == 2
    assert finished.stderr == "error: nvidia-smi lists no GPU\n"

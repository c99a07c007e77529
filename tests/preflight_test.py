"""main --preflight as people run it: unreadable images, and a signal to end."""

import re
import signal
import subprocess
import sys

import numpy as np
import processes
import pytest
from PIL import Image


@pytest.fixture
def flags(tmp_path):
    """A run whose first batch holds all images, of which one is bad."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(8):
        pixels = rng.integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    (tmp_path / "images" / "3.png").write_bytes(b"no image")
    return [
        "--preflight",
        "--config=configs/debug.py",
        f"--config.data.path={tmp_path / 'images'}",
        "--config.data.source=folder",
        "--config.data.workers=0",
        "--config.model.depth=1",
        "--config.train.batch_size=8",
        "--config.train.group_size=8",
        f"--workdir={tmp_path / 'run'}",
    ]


def results(finished):
    """{check: (result, text)}."""
    rows = [re.split("  +", x, maxsplit=2) for x in finished.output.splitlines()]
    return {row[1]: (row[0], row[2]) for row in rows if len(row) == 3}


@pytest.mark.slow
def test_bad_images_within_the_allowed_share(in_process, flags):
    finished = in_process.run(*flags)
    assert finished.code == 0, finished.output
    found = results(finished)
    assert {result for result, _ in found.values()} == {"ok"} and "saving" in found
    text = found["data"][1]
    assert "cannot be read, such as 3.png (not an image" in text
    assert text.endswith(", which data.max_bad_share = 0.5 allows")


def test_bad_images_beyond_the_allowed_share(in_process, flags):
    finished = in_process.run(*flags, "--config.data.max_bad_share=0.05")
    assert finished.code == 2, finished.output
    result, text = results(finished)["data"]
    assert result == "WRONG" and "more than data.max_bad_share = 0.05: see" in text
    assert results(finished)["step"][0] == "skipped"


@pytest.mark.slow
def test_a_run_that_resumes_needs_its_first_weights_no_more(uninterrupted, in_process):
    """Nor does it keep what a preflight left that was killed."""
    (uninterrupted[0] / "preflight/checkpoints/1").mkdir(parents=True)
    gone = "--config.init.source=gone.pth"
    flags = ("--preflight", *processes.DEBUG, f"--workdir={uninterrupted[0]}")
    found = results(in_process.run(*flags, gone, "--config.train.steps=30"))
    assert found["weights"] == ("ok", "those of the run's checkpoint"), found
    assert found["saving"][0] == "ok", found


def test_preflight_stops_on_sigterm(flags, tmp_path):
    command = [sys.executable, "-m", "dinov2_jax.main", *flags]
    process = subprocess.Popen(
        command, cwd=processes.ROOT, stdout=subprocess.PIPE, text=True
    )
    with process:
        for line in process.stdout:
            if line.startswith("ok       one folder"):
                process.send_signal(signal.SIGTERM)
                break
        rest = process.stdout.read()
    assert process.returncode == 128 + signal.SIGTERM, rest
    assert "saving" not in rest
    assert not (tmp_path / "run").exists()

"""What a run writes of a step, with and without a device whose peak is known."""

import json

import jax
import pytest
from tensorboard.backend.event_processing import event_file_loader

from configs import debug
from dinov2_jax.runtime import flops, logger, timing


def one_row(workdir):
    """The row of a logged step."""
    account, c = timing.TimeAccount(timing.STEP), debug.get_config()
    log = logger.make_run_log(c, workdir, 0, account, 1e6)
    log.step(1, {"skipped_in_a_row": 0, "loss/total": 8.0}, {"lr": 0.1})
    log.end(None)
    (line,) = (workdir / "metrics.jsonl").read_text().splitlines()
    return json.loads(line)


def tags(workdir):
    """What TensorBoard shows."""
    (path,) = (workdir / "tensorboard").iterdir()
    events = event_file_loader.LegacyEventFileLoader(str(path)).Load()
    return {value.tag for event in events for value in event.summary.value}


def test_mfu_of_a_device_with_a_known_peak(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(flops, "peak_flops", {"cpu": 1e12}.get)
    row = one_row(tmp_path)
    peak = jax.device_count() * 1e12
    assert row["mfu"] == pytest.approx(row["images_per_second"] * 1e6 / peak)
    assert "mfu" in tags(tmp_path)
    assert " MFU " in capsys.readouterr().err


def test_no_mfu_on_the_cpu(tmp_path, capsys):
    row = one_row(tmp_path)
    assert row["images_per_second"] > 0 and "mfu" not in row
    assert tags(tmp_path) >= {"images_per_second"} and "mfu" not in tags(tmp_path)
    assert "MFU" not in capsys.readouterr().err

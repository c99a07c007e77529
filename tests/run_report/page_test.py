"""The report of runs: what it shows of whole, damaged and foreign folders."""

import datetime
import json
import re

import numpy as np
import pytest
from PIL import Image

from configs import debug, quickstart
from dinov2_jax import errors
from dinov2_jax.run_report import __main__ as program
from dinov2_jax.run_report import page, panels, series
from dinov2_jax.runtime import event_log

NOW = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
EVIL = "<script>alert('x')</script>"


def write_rows(folder, rows):
    folder.mkdir(exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(text)


def row(step):
    return {
        "step": step,
        "loss/total": 10.0 - step / 7,
        "student_a/loss/koleo": 0.5,
        "grad_norm/backbone": 0.25 * step,
        "lr": 0.125,
        "images_per_second": 333.0,
        "mfu": 0.512,
        "data_wait": 0.024,
        "skipped": int(step > 8),
        EVIL: 77.0,
    }


def add_events(folder, *events):
    log = event_log.Events(folder)
    for name, fields in events:
        log.add(name, **fields)
    log.close()


START = {"step": 0, "host": EVIL, "processes": 1, "devices": 8, "device": "H200"}
START |= {"pid": 1, "jax": "0.0.1", "python": "3.11.0", "seconds": {"start": 1.0}}


@pytest.fixture
def run(tmp_path):
    """A run with every kind of trouble, written by hand."""
    folder = tmp_path / "run&1"
    rows = [row(step) for step in range(1, 11)]
    write_rows(folder, [*rows, {"step": 10, "knn/top1": 0.625, "knn/top1_pixels": 0.5}])
    c = quickstart.get_config()
    c.optim.base_lr = 0.0123
    (folder / "config.json").write_text(c.to_json_best_effort())
    add_events(
        folder,
        ("start", START),
        ("skip", {"step": 3, "terms": EVIL, "lr": 0.1}),
        ("skip", {"step": 4, "terms": "loss", "lr": 0.1}),
        ("rollback", {"step": 4, "to": 2, "why": "loss nan"}),
        ("start", START | {"step": 2}),
        ("tracker", {"step": 5, "name": "wandb", "why": "no network"}),
        (
            "end",
            {"step": 9, "code": 42, "reason": "stopped on request", "seconds": {}},
        ),
        ("start", START | {"step": 9}),
        ("end", {"step": 10, "code": 0, "reason": "done", "seconds": {"step": 5.0}}),
    )
    (folder / "damaged_checkpoints/4-20260101T000000").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 255, (400, 400, 3), np.uint8)
    Image.fromarray(noise).save(folder / "pca.png")  # too large to be taken as it is
    return folder


def test_everything_is_shown(run):
    assert page.write(run) == ""
    text = (run / "report.html").read_text()
    for name, value in row(10).items():
        if name not in ("step", EVIL):
            shown = f"{value:.1%}" if name in ("mfu", "data_wait") else f"{value:.4g}"
            assert f"<b>{shown}</b>" in text, name
    assert "top1 <b>62.5%</b>" in text and "<b>77</b>" in text
    for words in (
        "2 steps skipped up to step 4",
        "rolled back to step 2: loss nan",
        "ended without a word, probably killed",
        "restarted on",
        "wandb: no network",
        "preempted: stopped on request",
        "damaged_checkpoints/4-20260101T000000",
        "The closest preset is quickstart",
        "<td>optim.base_lr</td>",
        "<td>0.0123</td>",
        "<td>H200</td>",
        "useful steps",
        "<tr><th>state</th><td>finished, ",
        "data:image/jpeg;base64,",
        "run&amp;1",
    ):
        assert words in text, words
    assert "<script" not in text and "&lt;script&gt;" in text
    assert not re.search(r"(src|href)='(?!data:)|url\(|@import|http", text)


def test_a_reason_of_several_lines(run):
    reason = "two fields are wrong:\n  optim.base_lr = 0\n  train.steps = 0"
    end = {"step": 10, "code": 2, "reason": reason, "seconds": {"step": 5.0}}
    add_events(run, ("start", START | {"step": 10}), ("end", end))
    rows = re.findall("<tr><th>(.*?)</th><td>", page.make([run], NOW))
    names = "run state step loss speed saved accuracy goodput trouble last"
    assert rows == names.split()


def test_many_events_of_one_run_hide_none_of_others(run, tmp_path):
    noisy = tmp_path / "noisy"
    noisy.mkdir()
    skips = [("skip", {"step": n, "terms": "loss", "lr": 0.1}) for n in range(300)]
    between = ("recompiled", {"step": 0})
    add_events(noisy, ("start", START), *(e for s in skips for e in (s, between)))
    text = page.make([run, noisy], NOW)
    assert "rolled back to step 2" in text and "The last 200 of each run" in text


def test_damaged_and_foreign_runs(tmp_path):
    with pytest.raises(errors.UserError, match="there is no run in"):
        page.make([tmp_path], NOW)
    assert "cannot write" in page.write(tmp_path)
    write_rows(tmp_path, [row(1), row(2)])
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'\n[1]\n7\n{"loss/total": 3}\n{"step": "x"}\n\xff\xfe\n')
        file.write(b'{"step": 3, "loss/total": NaN, "lr": null, "mfu": "odd"}\n')
        file.write(b'{"step": 4, "loss/to')
    text = page.make([tmp_path], NOW)
    assert f"loss/total <b>{10 - 2 / 7:.4g}</b>" in text or "<b>nan</b>" in text
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "pca.png").write_text("no picture")
    (tmp_path / "data.json").write_text("[]")
    add_events(tmp_path, ("start", {}), ("end", {}), ("rollback", {"step": "x"}))
    text = page.make([tmp_path], NOW)
    assert "config.json cannot be read" in text and "pca.png cannot be read" in text


def test_series(tmp_path):
    write_rows(tmp_path, [{"step": s, "a": s / 3, "b": "text"} for s in (3, 1, 2)])
    (found,) = series.read(tmp_path).items()
    assert found[0] == "a" and found[1].steps.tolist() == [1, 2, 3]
    assert found[1].values.tolist() == [1 / 3, 2 / 3, 1.0]
    assert series.read(tmp_path / "nowhere") == {}


def test_counters_of_students_are_no_evaluations():
    def values(*numbers):
        return np.array(numbers, float)

    found = panels.arrange(
        {
            "loss/total": values(1, 2),
            "small/loss/total": values(1, 2),
            "small/skipped": values(0, 1),
            "small/skipped_in_a_row": values(0, 1),
            "base/skipped": values(0, 0),
            "small/knn/top1": values(0.5, 0.6),
        }
    )
    shown = {s: [m for p in ps for m in p.metrics] for s, ps in found.items()}
    assert shown["Evaluation"] == ["small/knn/top1"]
    assert shown["Stability"] == ["small/skipped"]


def test_skipped_steps_of_any_run_are_shown(tmp_path):
    for name, skipped in (("quiet", 0), ("noisy", 9)):
        rows = [row(step) | {"skipped": skipped * step} for step in (1, 2)]
        write_rows(tmp_path / name, rows)
    for names in (("quiet", "noisy"), ("noisy", "quiet")):
        text = page.make([tmp_path / name for name in names], NOW)
        assert "Skipped steps" in text
    assert "Skipped steps" not in page.make([tmp_path / "quiet"], NOW)


def test_a_folder_whose_name_is_no_utf_8(tmp_path):
    folder = tmp_path / "run\udce9"
    write_rows(folder, [row(1)])
    assert page.write(folder) == "" and program.main([str(folder)]) == 0
    assert "run\\udce9" in (folder / "report.html").read_text()


def test_several_runs(run, tmp_path, capsys):
    other = tmp_path / "other"
    write_rows(other, [row(step) | {"loss/total": 2.5} for step in range(1, 4)])
    output = tmp_path / "both.html"
    assert program.main([str(run), str(other), f"--output={output}"]) == 0
    assert capsys.readouterr().out == f"{output}\n"
    text = output.read_text()
    assert "2 runs compared" in text
    assert "other <b>2.5</b>" in text and f"run&amp;1 <b>{10 - 10 / 7:.4g}</b>" in text
    assert program.main([str(tmp_path / "nowhere")]) == errors.BAD_INPUT
    assert "there is no run in" in capsys.readouterr().err


def test_the_closest_preset_has_no_difference(tmp_path):
    write_rows(tmp_path, [row(1)])
    (tmp_path / "config.json").write_text(debug.get_config().to_json_best_effort())
    assert "The config is the preset debug." in page.make([tmp_path], NOW)

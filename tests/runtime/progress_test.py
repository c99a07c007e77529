"""The console shows the same facts on a terminal and in a log."""

import io

from dinov2_jax.runtime import progress as progress_lib


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def _show(stream, monkeypatch, seconds=(0.0, 60.0)):
    progress = progress_lib.Progress(100, 10, stream=stream)
    for step, now in zip((20, 40), seconds):
        monkeypatch.setattr(progress_lib.time, "monotonic", lambda now=now: now)
        progress.update(step, loss=9.8765432, images_per_second=12.34, data_wait=0.031)
    progress.message("saved")
    progress.close()
    return stream.getvalue()


def test_progress_without_a_terminal_prints_plain_lines(monkeypatch):
    assert _show(io.StringIO(), monkeypatch).splitlines() == [
        "step 20/100  loss 9.8765  12.3 images/s  data wait 3%  ETA --:--",
        # 20 steps took 60 s, 60 are left.
        "step 40/100  loss 9.8765  12.3 images/s  data wait 3%  ETA 3:00",
        "saved",
    ]


def test_mfu_is_shown_where_it_is_known():
    stream = io.StringIO()
    progress = progress_lib.Progress(100, stream=stream)
    progress.update(1, loss=1.0, images_per_second=2.0, data_wait=0.0, mfu=0.4567)
    assert "  2.0 images/s  MFU 45.7%  data wait 0%  " in stream.getvalue()


def test_progress_on_a_terminal_is_a_bar(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    shown = _show(_Terminal(), monkeypatch)
    last = shown.split("\r")[-1]
    text = " 40% 40/100 loss 9.8765  12.3 images/s  data wait 3%  ETA 3:00 |"
    assert last.startswith(text) and "#" in last  # StringIO: ASCII
    assert len(last.rstrip("\n")) == 99
    assert "saved\n" in shown


def test_accuracies_at_several_sizes_are_named():
    metrics = {"knn/top1_at_224": 0.5, "knn/top1": 0.6, "knn/top1_k10": 0.6}
    metrics |= {"knn/top1_pixels": 0.1, "matching/accuracy": 0.25}
    assert progress_lib.describe_evaluation(7, metrics) == (
        "step 7: k-NN top-1: trained 60.0%, pixels 10.0%, at 224 px 50.0%; "
        "patches matched: trained 25.0%"
    )


def test_outputs_that_are_there_and_the_report_that_is_written_last(tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    first, *listed = progress_lib.list_outputs(tmp_path).splitlines()
    names = [line.split(":")[0].rsplit("/", 1)[1] for line in listed]
    assert first == "done; look at" and names == ["metrics.jsonl", "report.html"]

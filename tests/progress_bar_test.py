"""The bar of all programs, on a terminal and in a log."""

import io

from dinov2_jax import progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    """A clock that is set by hand."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(progress_bar.time, "monotonic", lambda: self.now)


def test_lines_of_a_log_come_now_and_then(monkeypatch):
    clock, stream = Clock(monkeypatch), io.StringIO()
    bar = progress_bar.Bar(5000, what="scanning", done=1000, stream=stream)
    for seconds in (9.9, 10.0, 15.0, 20.0):
        clock.now = 100.0 + seconds
        bar.update(500)
    bar.message("between")
    bar.close()
    assert stream.getvalue().splitlines() == [
        # 1,000 images in 10 s, not the 1,000 of an earlier process; 3,000 are left.
        "scanning: 2,000/5,000 images  100.0 images/s  ETA 00:30",
        "scanning: 3,000/5,000 images  100.0 images/s  ETA 00:20",
        "between",
    ]


def test_an_unknown_total_and_short_numbers(monkeypatch):
    clock, stream = Clock(monkeypatch), io.StringIO()
    bar = progress_bar.Bar(None, what="w.pth", unit="B", scaled=True, stream=stream)
    clock.now += 20.0
    bar.update_to(40_000_000)
    assert stream.getvalue() == "w.pth: 40.0M B  2,000,000.0 B/s\n"


def test_a_short_work_leaves_no_line():
    stream = io.StringIO()
    with progress_bar.Bar(3, stream=stream) as bar:
        for _ in range(3):
            bar.update()
    assert stream.getvalue() == ""


def test_a_terminal_shows_a_bar(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    stream = Terminal()
    with progress_bar.Bar(4, what="packing", done=1, stream=stream) as bar:
        bar.message("a line")
        bar.update_to(4)
    shown = stream.getvalue()
    assert "a line\n" in shown
    assert "packing" in shown.split("\r")[-1] and "4/4" in shown.split("\r")[-1]


def test_nothing_where_it_is_disabled(capfd):
    bar = progress_bar.Bar(1, enabled=False)
    bar.message("not here")
    bar.show(1, "nor here")
    assert capfd.readouterr() == ("", "")


def test_tracked_items_are_all_there():
    assert list(progress_bar.track(range(5), what="counting")) == [0, 1, 2, 3, 4]

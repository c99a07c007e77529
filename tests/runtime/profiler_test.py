"""Traces and memory on demand, of a run under way."""

import signal

import processes
import pytest

from dinov2_jax.runtime import event_log, profiler

FLAGS = (*processes.DEBUG, "--config.checkpoint.every=100")


def written(workdir):
    return [(e["step"], e["path"]) for e in event_log.read(workdir) if "path" in e]


@pytest.mark.slow
def test_asked_for_before_and_under_way(uninterrupted, in_process, tmp_path):
    """Beside them the run goes on as it would have, to the bit."""
    ask = {"step 5/": lambda: signal.raise_signal(signal.SIGUSR1)}
    flags = (*FLAGS, f"--workdir={tmp_path}", "--profile=2:3")
    finished = in_process.run(*flags, when=ask)
    assert finished.code == 0, finished.output
    output = finished.output
    (first, second) = written(tmp_path)
    assert first == (3, str(tmp_path / "profile/step-2"))
    assert second[0] >= 4 + 5
    for _, path in (first, second):
        assert f"wrote a trace of steps and of memory to {path}" in output
        folder = tmp_path / "profile" / path.rpartition("/")[2]
        assert list(folder.rglob("*.xplane.pb")) and list(
            folder.rglob("*.trace.json.gz")
        )
        assert (folder / "memory.prof").stat().st_size > 100
        assert "host " in (folder / "memory.txt").read_text()
    assert len(list((tmp_path / "profile").iterdir())) == 2
    processes.assert_same_arrays(
        processes.load(tmp_path, 20), processes.load(uninterrupted[0], 20)
    )


@pytest.fixture
def started(monkeypatch):
    """The folders of the traces that are started, none of which is real."""
    folders = []
    monkeypatch.setattr(profiler.jax.profiler, "start_trace", folders.append)
    monkeypatch.setattr(profiler.jax.profiler, "stop_trace", lambda: None)
    monkeypatch.setattr(
        profiler.jax.profiler, "save_device_memory_profile", lambda path: None
    )
    before = signal.getsignal(signal.SIGUSR1)
    yield folders
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize(
    "steps, folder, words",
    [
        ((2, 6), "step-5", "only 5:6 is traced"),  # resumed after step 4
        ((8, 12), "step-8", "only 8:9 is traced"),
        ((2, 4), None, "nothing is traced"),
        ((10, 11), None, "nothing is traced"),
        ((5, 9), "step-5", None),
        (None, None, None),
    ],
)
def test_steps_that_a_run_does_not_train(tmp_path, started, steps, folder, words):
    traces = profiler.Profiler(tmp_path, steps=steps, process=0)
    warning = traces.untraced(5, 9)
    assert words in warning if words else warning == ""
    for step in range(5, 10):
        traces.before_step(step)
    traces.close()
    assert [path.name for path in started] == ([folder] if folder else [])


def test_a_rollback_does_not_trace_again(tmp_path, started):
    (tmp_path / "profile/step-2").mkdir(parents=True)
    traces = profiler.Profiler(tmp_path, steps=(2, 3), process=0)
    for step in (1, 2, 3, 4, 2, 3, 4):
        traces.before_step(step)
    assert len(started) == 1


@pytest.mark.parametrize("failing", ["start_trace", "stop_trace"])
def test_a_trace_that_fails_does_not_end_the_run(
    tmp_path, monkeypatch, caplog, failing
):
    def full(*_):
        raise RuntimeError("RESOURCE_EXHAUSTED: No space left on device")

    monkeypatch.setattr(profiler.jax.profiler, "start_trace", lambda folder: None)
    monkeypatch.setattr(profiler.jax.profiler, failing, full)
    before = signal.getsignal(signal.SIGUSR1)
    try:
        traces = profiler.Profiler(tmp_path, steps=(2, 3), process=0)
        assert [traces.before_step(step) for step in range(1, 6)] == [None] * 5
        assert traces.close() is None
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert f"there is no trace in {tmp_path / 'profile/step-2'}: " in caplog.text


@pytest.mark.parametrize("text", ["5", "0:3", "4:3", "a:b"])
def test_no_steps(in_process, text, tmp_path):
    finished = in_process.run(*FLAGS, f"--workdir={tmp_path}", f"--profile={text}")
    assert finished.code == 2
    assert f"--profile={text}: write FIRST:LAST" in finished.error

"""Rows survive a crash at any write, whole or torn, and end with the same bytes."""

import errno
import json
import os

import numpy as np
import pytest

from dinov2_jax import errors
from dinov2_jax.embed import resumable_output

SETTINGS = {"features": "cls", "weights": "a", "sizes": (3, 4)}
COUNT, BATCH = 23, 4
ROWS = np.random.default_rng(0).standard_normal((COUNT, 5)).astype(np.float32)
BAD = {2: "empty file", 9: "torn", 22: "x\ny"}


class Crash(BaseException):
    """The process ends here."""


def opened(out, **changes):
    arguments = dict(
        settings=SETTINGS,
        row_shape=(5,),
        dtype=np.float32,
        count=COUNT,
        overwrite=False,
    )
    return resumable_output.Unfinished(out, **{**arguments, **changes})


def resume(out):
    """Does what is left; returns the bytes of the rows and the bad images."""
    with opened(out) as rows:
        for start in range(rows.done, COUNT, BATCH):
            chosen = range(start, min(start + BATCH, COUNT))
            rows.append(
                ROWS[[i for i in chosen if i not in BAD]],
                done=chosen.stop,
                bad={i: BAD[i] for i in chosen if i in BAD},
            )
        path = rows.finish_rows()
        return path.read_bytes(), rows.bad


@pytest.fixture
def save_at_once(monkeypatch):
    monkeypatch.setattr(resumable_output, "SAVE_SECONDS", 0.0)


def test_the_rows_are_a_npy_file(tmp_path):
    _, bad = resume(tmp_path / "f.npy")
    rows = np.load(tmp_path / "f.npy.partial" / "rows.npy")
    np.testing.assert_array_equal(rows, np.delete(ROWS, sorted(BAD), axis=0))
    assert bad == BAD
    resumable_output.remove(tmp_path / "f.npy")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_crash_at_any_write_loses_nothing(tmp_path, monkeypatch, save_at_once, share):
    expected = resume(tmp_path / "expected")
    write = resumable_output._write
    crashes = 0
    for crash_at in range(100):
        out = tmp_path / f"{crash_at}"
        calls = iter(range(100))

        def crashing_write(file, data, calls=calls, crash_at=crash_at):
            if next(calls) != crash_at:
                return write(file, data)
            write(file, memoryview(data)[: int(share * len(data))])
            # Nothing runs after a kill, so nothing may be saved on the way out.
            monkeypatch.setattr(resumable_output.Unfinished, "save", lambda self: None)
            raise Crash

        monkeypatch.setattr(resumable_output, "_write", crashing_write)
        save = resumable_output.Unfinished.save
        try:
            first = resume(out)
        except Crash:
            crashes += 1
            monkeypatch.setattr(resumable_output, "_write", write)
            monkeypatch.setattr(resumable_output.Unfinished, "save", save)
            assert resume(out) == expected
        else:
            assert first == expected
            break
    assert crashes > 2 * COUNT // BATCH


def test_work_is_kept_when_a_step_fails(tmp_path):
    with pytest.raises(Crash), opened(tmp_path / "f") as rows:
        rows.append(ROWS[:3], done=4, bad={3: "bad"})
        raise Crash
    with opened(tmp_path / "f") as rows:
        assert (rows.done, rows.rows, rows.bad) == (4, 3, {3: "bad"})


def test_journal_without_its_rows_is_ignored(tmp_path, save_at_once):
    expected = resume(tmp_path / "f")
    rows = tmp_path / "f.partial" / "rows.npy"
    os.truncate(rows, rows.stat().st_size // 2)
    assert resume(tmp_path / "f") == expected
    rows.unlink()  # took its final name, and then came the kill
    assert resume(tmp_path / "f") == expected


def test_data_after_the_last_complete_save_is_removed(tmp_path, save_at_once):
    folder = tmp_path / "f.partial"
    with opened(tmp_path / "f") as rows:
        for done in (4, 8):
            rows.append(ROWS[done - 4 : done], done=done, bad={})
    journal = (folder / "journal").read_bytes()
    whole = (folder / "rows.npy").read_bytes()
    for torn in (journal[:-1], journal + b'{"done": 12, "rows": 12, "bad"' + b" " * 99):
        (folder / "journal").write_bytes(torn)
        (folder / "rows.npy").write_bytes(whole + b"rows nobody counted" * 9)
        with opened(tmp_path / "f") as rows:
            assert rows.done == (4 if torn == journal[:-1] else 8)
            rows.append(ROWS[rows.done : 8], done=8, bad={})
            rows.append(ROWS[:0], done=9, bad={8: "gone"})
        lines = (folder / "journal").read_bytes().splitlines()
        assert [json.loads(line)["done"] for line in lines] == [4, 8, 9]
        assert (folder / "rows.npy").read_bytes() == whole


def test_another_run_is_refused_or_discarded(tmp_path):
    resume(tmp_path / "f")
    other = SETTINGS | {"features": "patches", "weights": "b"}
    with pytest.raises(errors.UserError, match="features and weights.*--overwrite"):
        with opened(tmp_path / "f", settings=other):
            pass
    with opened(tmp_path / "f", settings=other, overwrite=True) as rows:
        assert (rows.done, rows.rows, rows.bad) == (0, 0, {})
        rows.append(ROWS[:4], done=4, bad={})
    with opened(tmp_path / "f", settings=other, overwrite=True) as rows:
        assert rows.done == 4  # its own, which it keeps


def test_only_its_own_run_is_removed(tmp_path):
    out = tmp_path / "f.npy"
    with opened(out):  # a run works there
        resumable_output.remove_finished(out, SETTINGS)
        assert resumable_output.folder_of(out).exists()
    resumable_output.remove_finished(out, SETTINGS | {"features": "all"})
    assert resumable_output.folder_of(out).exists()
    resumable_output.remove_finished(out, SETTINGS)
    assert not list(tmp_path.iterdir())
    resumable_output.remove_finished(out, SETTINGS)


def test_two_processes_do_not_share_it(tmp_path):
    with opened(tmp_path / "f"):
        with pytest.raises(errors.UserError, match="f is in use by pid .*--out"):
            with opened(tmp_path / "f"):
                pass
    with opened(tmp_path / "f"):
        pass


def test_full_disk_is_one_line_and_loses_nothing(tmp_path, monkeypatch, save_at_once):
    expected = resume(tmp_path / "expected")
    write = resumable_output._write
    calls = iter(range(100))

    def full(file, data):
        if next(calls) >= 6:
            write(file, memoryview(data)[:7])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(file, data)

    monkeypatch.setattr(resumable_output, "_write", full)
    with pytest.raises(errors.UserError, match="No space left.*to resume"):
        resume(tmp_path / "f")
    monkeypatch.setattr(resumable_output, "_write", write)
    with opened(tmp_path / "f") as rows:
        assert rows.done > 0
    assert resume(tmp_path / "f") == expected


def test_saved_files_are_readable(tmp_path):
    resume(tmp_path / "f")
    found = json.loads((tmp_path / "f.partial" / "run.json").read_text())
    assert found == {"features": "cls", "weights": "a", "sizes": [3, 4]}

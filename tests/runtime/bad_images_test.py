"""The account of unreadable images, of one process and of several in one folder."""

import numpy as np
import pytest

from dinov2_jax import errors
from dinov2_jax.runtime import bad_images


def bad(*names):
    fields = [("name", object), ("reason", object)]
    return np.array([(name, "empty file") for name in names], fields)


def make(folder, process, share=0.5, total=10):
    return bad_images.BadImages(folder, range(total), share, process)


@pytest.fixture
def always_look(monkeypatch):
    monkeypatch.setattr(bad_images, "_LOOK_EVERY", 0.0)


def test_an_image_is_named_once(tmp_path, caplog, always_look):
    first, third = make(tmp_path, 0), make(tmp_path, 3)
    third.add(bad("a.jpg", "b.jpg"))
    first.add(bad("a.jpg", "c.jpg", "a.jpg"))
    third.add(bad("c.jpg", "b.jpg"))
    files = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert files == {
        "bad_images.txt": "c.jpg\tempty file\n",
        "bad_images-3.txt": "a.jpg\tempty file\nb.jpg\tempty file\n",
    }
    assert first.count == third.count == 3
    assert bad_images.names(tmp_path) == {"a.jpg", "b.jpg", "c.jpg"}
    # One warning, which says whose it is.
    (record,) = caplog.records
    said = record.getMessage()
    assert said == "process 3: unreadable image a.jpg: empty file"
    assert first.summary() == (
        "3 of 10 images are unreadable and were replaced; they are named in "
        f"{tmp_path}/bad_images*.txt"
    )


def test_who_met_it_at_once_counts_it_once(tmp_path):
    first, second = make(tmp_path, 0), make(tmp_path, 1)
    for account in (first, second):
        account.add(bad("a.jpg"))  # looks, and not again for seconds
    for account in (first, second):
        account.add(bad("b.jpg"))
    assert first.count == second.count == make(tmp_path, 0).count == 2


def test_the_share_is_that_of_all_processes(tmp_path, always_look):
    first, second = make(tmp_path, 0), make(tmp_path, 1)
    for i in range(3):
        first.add(bad(f"{i}.jpg"))
        second.add(bad(f"{i}.jpg"))  # the same ones: three of ten
    second.add(bad("3.jpg", "4.jpg"))
    with pytest.raises(errors.UserError, match="6 of 10 images .*max_bad_share = 0.5"):
        first.add(bad("5.jpg"))


@pytest.mark.parametrize("processes", [1, 4])
def test_a_restart_goes_on_counting(tmp_path, processes):
    for process in range(3):
        make(tmp_path, process).add(bad("a.jpg", f"{process}.jpg"))
    for process in range(processes):
        account = make(tmp_path, process)
        account.add(bad("a.jpg", "1.jpg"))
        assert account.count == 4
    assert bad_images.names(tmp_path) == {"a.jpg", "0.jpg", "1.jpg", "2.jpg"}


def test_repaired_images_do_not_count(tmp_path):
    """A run that was stopped by too many goes on; those that are still bad stop it."""
    six = [f"{i}.jpg" for i in range(6)]
    with pytest.raises(errors.UserError, match="6 of 10 images"):
        make(tmp_path, 0).add(bad(*six))
    account = make(tmp_path, 0)
    account.add(bad())
    account.add(bad(*six[:5]))
    assert account.count == 6
    with pytest.raises(errors.UserError, match="6 of 10 images"):
        account.add(bad(six[5]))
    bad_images.forget(tmp_path)
    assert make(tmp_path, 0).count == 0 and not list(tmp_path.iterdir())


def test_a_line_that_is_being_written_is_left_for_later(tmp_path, always_look):
    account = make(tmp_path, 0)
    with open(tmp_path / "bad_images-1.txt", "w") as file:
        file.write("a.jpg\tempty file\nb.j")
        file.flush()
        assert account.count == 1
        file.write("pg\tempty file\n")
        file.flush()
        assert account.count == 2
    account.add(bad("b.jpg"))
    assert bad_images.names(tmp_path) == {"a.jpg", "b.jpg"}


def test_their_number_is_logged_as_it_grows(tmp_path, caplog):
    account = make(tmp_path, 0, share=1.0, total=71)
    for i in range(18):
        account.add(bad(f"{i}.jpg"))
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "unreadable image 0.jpg: empty file"
    assert [text.split(" images")[0] for text in said[1:]] == [
        "so far 4 of 71",
        "so far 8 of 71",
        "so far 16 of 71",
    ]
    caplog.clear()
    make(tmp_path, 0, share=1.0, total=71).add(bad("18.jpg"))  # a restart
    assert not caplog.records

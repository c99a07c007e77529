"""Workers that die, hang or raise: real processes, and the name of the image."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from dinov2_jax import errors
from dinov2_jax.data import batch_builder, loader
from dinov2_jax.data import workers as workers_lib
from tests.data.loader_test import Noise, small_config

ROOT = pathlib.Path(__file__).parents[2]


class Trap(Noise):
    """Something happens at one image, once there is a file, if one is named."""

    def __init__(self, length, at, what, armed=None):
        super().__init__(length)
        self.at, self.what, self.armed = at, what, armed

    def open(self, index):
        if index == self.at and (self.armed is None or self.armed.exists()):
            self.what()
        return super().open(index)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def leave():
    os._exit(7)


def hang():
    time.sleep(1000)


def stumble():
    raise ZeroDivisionError("a fault of ours")


def first_error(source, **settings):
    """The error that ends the loading."""
    config = small_config(**settings)
    with loader.make_loader(config, source, start_step=0, num_steps=50) as batches:
        with pytest.raises(Exception) as caught:
            list(batches)
    return caught.value


def test_an_image_that_takes_long_is_named(monkeypatch, caplog):
    monkeypatch.setattr(loader, "_SLOW", 0.0)
    monkeypatch.setattr(loader, "_LOOK_EVERY", 0.01)
    monkeypatch.setattr(batch_builder, "_LARGE", 1000)  # pixels
    caplog.set_level("WARNING")
    source = Trap(40, 17, lambda: time.sleep(0.3))
    config = small_config(data__workers=0)
    with loader.make_loader(config, source, start_step=0, num_steps=20) as batches:
        list(batches)
    said = [r.getMessage() for r in caplog.records if "training waits" in r.message]
    assert any("training waits for image 17, for" in text for text in said)
    assert len(said) == len({text.split(",")[0] for text in said})


@pytest.mark.parametrize(
    "workers, what, how",
    [
        (1, leave, "exit code 7"),
        (2, die, "signal 9"),
        pytest.param(1, die, "signal 9", marks=pytest.mark.slow),
        pytest.param(2, leave, "exit code 7", marks=pytest.mark.slow),
    ],
)
def test_a_worker_that_dies(workers, what, how):
    error = first_error(Trap(40, 17, what), data__workers=workers)
    assert isinstance(error, errors.UserError) and error.exit_code == errors.TRY_AGAIN
    assert f"died of {how} at image 17: " in str(error)
    assert "lower --config.data.workers" in str(error) and "\n" not in str(error)


@pytest.mark.parametrize(
    "workers",
    [
        pytest.param(0, marks=pytest.mark.slow),
        1,
        pytest.param(2, marks=pytest.mark.slow),
    ],
)
def test_a_file_system_that_hangs(workers, tmp_path):
    source = Trap(40, 17, hang, armed=tmp_path / "armed")
    config = small_config(data__workers=workers, data__timeout=200.0)
    with loader.make_loader(config, source, start_step=0, num_steps=50) as batches:
        for _ in range(max(workers, 1)):  # one of each worker: all have started
            next(batches)
        batches._timeout = 8.0
        source.armed.touch()
        with pytest.raises(Exception) as caught:
            list(batches)
    error = caught.value
    assert isinstance(error, errors.UserError) and error.exit_code == errors.TRY_AGAIN
    assert "the loader is reading image 17 for" in str(error), error
    assert "--config.data.timeout" in str(error)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_exception_names_the_image(workers):
    error = first_error(Trap(40, 17, stumble), data__workers=workers)
    assert type(error) is RuntimeError
    assert str(error) == (
        "image 17 could not be prepared: ZeroDivisionError: a fault of ours"
    )


SCRIPT = """
import sys
sys.path.insert(0, {root!r})
from absl import app
from tests.data import loader_health_test as test
from dinov2_jax import errors
from dinov2_jax.data import batch_builder, loader

def main(argv):
    config = test.small_config(data__workers=int(argv[1]), data__timeout=3.0)
    source = test.Trap(40, 17, test.hang)
    try:
        with loader.make_loader(config, source, start_step=0, num_steps=50) as batches:
            list(batches)
    except errors.UserError as error:
        sys.exit(error.exit_code)

if __name__ == "__main__":
    app.run(main)
"""


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_the_program_ends_although_something_hangs(workers, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(root=str(ROOT)))
    result = subprocess.run(
        [sys.executable, str(script), str(workers)], capture_output=True, timeout=300
    )
    assert result.returncode == errors.TRY_AGAIN, result.stderr.decode()[-2000:]


def test_activity_is_read_by_others(tmp_path):
    here = workers_lib.Activity(str(tmp_path))
    assert here.of(os.getpid()) == ("", 0.0)
    here.begin("a/" + "x" * 5000 + "/é.jpg")
    name, seconds = workers_lib.Activity(str(tmp_path)).of(os.getpid())
    assert name.endswith("/é.jpg") and 4000 < len(name) < 4096 and seconds >= 0
    here.begin("short")
    assert here.of(os.getpid())[0] == "short"
    here.begin("")
    assert here.of(os.getpid()) == ("", 0.0)

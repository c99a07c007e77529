"""Five hundred damaged files; `make fuzz` takes ten thousand."""

import pathlib
import subprocess
import sys

import pytest

from tests.data.decode import fuzz_images

ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)  # where the campaign's processes find `tests`


def test_damaged_files_are_decoded_or_refused():
    report = fuzz_images.run(seed=0, count=500)
    assert not report.failures, str(report)
    assert report.decoded > 100 and sum(report.reasons.values()) > 100, str(report)
    assert report.decoded + sum(report.reasons.values()) == 500
    assert report.grown < 100 * 1024, str(report)  # KiB
    assert report.stderr == 0, str(report)


@pytest.mark.filterwarnings("ignore")  # which pytest shows again
def test_whole_files_are_decoded():
    refused = {
        name
        for name, content in fuzz_images.seeds().items()
        if all(fuzz_images.try_to_decode(d, content, 1) for d in fuzz_images.DECODERS)
    }
    assert not refused


def test_the_damage_is_the_same_every_time():
    whole = fuzz_images.seeds()
    files = [fuzz_images.damaged_file(0, number, whole) for number in range(50)]
    again = [fuzz_images.damaged_file(0, number, whole) for number in range(50)]
    assert files == again
    assert all(content != whole[name] for name, content in files[:20])


@pytest.mark.parametrize(
    "harm, how",
    [
        ("os.abort()", "exit -6"),
        ("raise KeyError(7)", "exit 1 KeyError: 7"),
        ("time.sleep(99)", "longer than 5 s"),
    ],
)
def test_a_file_that_does_harm_is_named(monkeypatch, harm, how):
    """The decoding process does harm at its fifth file."""
    code = (
        "import os, sys, time; from tests.data.decode import fuzz_images as f\n"
        "real, f.damaged_file = f.damaged_file, lambda s, n, w: (\n"
        "  ('jpeg', b'harm') if n == 5 else real(s, n, w))\n"
        "decode = f.try_to_decode\n"
        "def try_to_decode(decoder, content, reduce):\n"
        f"  if content == b'harm': {harm}\n"
        "  return decode(decoder, content, reduce)\n"
        "f.try_to_decode = try_to_decode\n"
        "sys.exit(f.main())"
    )
    real = subprocess.Popen

    def popen(command, **options):
        return real([sys.executable, "-c", code, *command[3:]], **options)

    monkeypatch.setattr(fuzz_images, "TIME_LIMIT", 5)
    monkeypatch.setattr(subprocess, "Popen", popen)
    report = fuzz_images.run(seed=0, count=8)
    assert len(report.failures) == 1
    assert report.failures[0].startswith("file 5 (") and how in report.failures[0]
    assert report.decoded + sum(report.reasons.values()) == 7

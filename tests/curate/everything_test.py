"""One command from a folder of photographs to a list that training takes."""

import csv
import json
import tarfile

import numpy as np
import processes
import pyarrow.parquet as pq
import pytest
import random_weights
from PIL import Image

from dinov2_jax.curate import __main__ as curate
from dinov2_jax.data.decode import image_decoder
from dinov2_jax.data.sources import photos, registry
from dinov2_jax.weights import torch_writer

IMAGES, PLANTED, COUNT = 48, 8, 40


@pytest.fixture
def folder(tmp_path):
    """Tiles of photographs, and copies of some with other names and encodings."""
    source, folder = photos.PhotosSource("train"), tmp_path / "photos"
    folder.mkdir()
    for number, index in enumerate(np.linspace(0, len(source) - 1, IMAGES).astype(int)):
        image = Image.fromarray(source.open(index).pixels())
        image.save(folder / f"{number:02}.png")
        if number < PLANTED:
            image.save(folder / f"copy{number:02}.jpg", quality=60 + number)
    (folder / "broken.png").write_bytes(b"not an image")
    return folder


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_nothing_is_lost_by_a_wrong_command(tmp_path, capfd):
    """--overwrite replaces files only once images and model were found."""
    out, work = tmp_path / "mine.csv", tmp_path / "mine.steps"
    work.mkdir()
    out.write_text("mine")
    (work / "features.parquet").write_text("mine")
    shards = tmp_path / "shards"
    shards.mkdir()
    with tarfile.open(shards / "0.tar", "w") as tar:
        Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
        tar.add(tmp_path / "a.png", "a.png")
    twice = tmp_path / "twice.txt"
    twice.write_text("a.png\na.png\n")
    model = f"--model={write_weights(tmp_path)}", "--num-heads=2", "--size=56"
    for data, flags, words in (
        (tmp_path / "nowhere", model, "nowhere does not exist"),
        (tmp_path, ["--model=none.pth"], "none.pth"),
        (shards, model, "has shards, but the list"),
        (twice, model, "'a.png' is listed twice"),
        (tmp_path, (*model, f"--out={tmp_path / 'x.parquet'}"), "must end in .csv"),
        (tmp_path, (*model, "--out=."), "must end in .csv"),
    ):
        flags = ("--count=3", f"--out={out}", "--overwrite", *flags)
        code = curate.main([str(data), *flags])
        error = capfd.readouterr().err
        assert code == 2 and words in error, error
        assert out.read_text() == (work / "features.parquet").read_text() == "mine"
    with pytest.raises(SystemExit):
        curate.main([str(tmp_path), "--count=3", f"--out={out}", "--seed=-1"])
    assert "'-1' is not a whole number from 0 to" in capfd.readouterr().err


def write_weights(folder):
    path = folder / "small.pth"
    drawn = random_weights.tensors(random_weights.small_shapes("vits14"))
    torch_writer.write(path, drawn)
    return path


@pytest.mark.slow
def test_from_a_folder_to_training(folder, tmp_path, in_process, capfd):
    weights, out = write_weights(tmp_path), tmp_path / "curated.csv"

    def run(*more, count=COUNT):
        flags = (f"--model={weights}", "--num-heads=2", "--size=56", f"--out={out}")
        code = curate.main([str(folder), f"--count={count}", *flags, *more])
        return code, capfd.readouterr().err

    code, printed = run()
    assert code == 0, printed
    work = tmp_path / "curated.steps"
    dups = pq.read_table(work / "dups.parquet").to_pydict()
    component = dict(zip(dups["name"], dups["component"]))
    kept = {name for name, keep in zip(dups["name"], dups["kept"]) if keep}
    for number in range(PLANTED):
        pair = f"{number:02}.png", f"copy{number:02}.jpg"
        assert component[pair[0]] == component[pair[1]] >= 0
        assert len(kept & set(pair)) <= 1
    chosen = rows_of(out)
    names = [row["name"] for row in chosen]
    assert len(chosen) == COUNT and len(set(names)) == min(COUNT, len(kept))
    assert set(names) <= kept
    assert all(row["path"] == str(folder / row["name"]) for row in chosen)
    page = (work / "report.html").read_text()
    assert "Planted duplicates" in page and "files that could not be read" in page
    assert "<script" not in page and page.count("data:image/jpeg") > 2 * PLANTED

    # Nothing is done again; another count needs only another choice.
    before = out.read_bytes()
    code, printed = run()
    assert code == 0 and printed.count("done before") == 4
    assert out.read_bytes() == before
    (work / "clusters.parquet").unlink()
    code, printed = run()
    assert code == 0 and printed.count("done before") >= 1
    assert out.read_bytes() == before
    code, printed = run(count=8)
    assert code == 0 and printed.count("done before") == 2
    assert len(rows_of(out)) == 8
    run()
    assert out.read_bytes() == before

    # Training starts from the list and records it.
    finished = in_process.run(
        "--config=configs/debug.py",
        f"--workdir={tmp_path / 'run'}",
        "--config.data.source=auto",
        f"--config.data.path={out}",
        "--config.data.workers=0",
        "--config.log.tensorboard=False",
        "--config.train.steps=2",
        "--config.optim.warmup_steps=1",
    )
    assert finished.code == 0, finished.output
    assert f"images listed in {out}" in finished.output
    assert len(processes.rows(tmp_path / "run")) >= 2
    record = json.loads((tmp_path / "run" / "data.json").read_text())
    source = registry.open_path(str(out), image_decoder.Decoder())
    assert record["fingerprint"] == source.fingerprint and record["images"] == COUNT

    # An image that comes later is embedded with the others.
    Image.new("RGB", (90, 90), "teal").save(folder / "later.png")
    code, printed = run()
    assert code == 0 and "embedding again" in printed
    assert "later.png" in pq.read_table(work / "features.parquet")["name"].to_pylist()
    (folder / "later.png").unlink()
    run()
    assert out.read_bytes() == before

    # The user's own file is not replaced.
    out.write_text("path\nmine.png\n")
    code, printed = run()
    assert code == 2 and "exists" in printed and "mine.png" in out.read_text()
    code, printed = run("--overwrite")
    assert code == 0 and out.read_bytes() == before

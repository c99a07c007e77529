"""A whole run: what it prints and leaves, bad images, steps that are not finite."""

import json
import math

import numpy as np
import processes
import pytest
import skimage.data
from PIL import Image, ImageDraw
from tensorboard.backend.event_processing import event_file_loader

from configs import debug

KEYS = """
    step loss/total loss/dino_local loss/dino_global loss/koleo loss/ibot lr
    backbone_lr last_layer_lr weight_decay momentum_teacher teacher_temp
    grad_norm/backbone grad_norm/dino_head images_per_second data_wait
""".split()
ACCURACIES = """
    knn/top1 knn/top1_random_init knn/top1_pixels knn/top1_color_histogram
""".split()


def all_rows(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_banner(uninterrupted):
    _, finished = uninterrupted
    for words in (
        "devices     1 cpu, mesh replica 1 x fsdp 1",
        "images of 16 embedded photographs, split train",
        "batch       32 in 8 groups of 4",
        "steps       20 = ",
        "lr          0.000354 = 0.002 x sqrt(32 / 1024)",
        "parameters  0.1 M",
    ):
        assert words in finished.output


def test_metrics(uninterrupted):
    workdir, _ = uninterrupted
    rows = all_rows(workdir)
    steps = [row for row in rows if "loss/total" in row]
    assert [row["step"] for row in steps] == list(range(1, 21))
    for row in steps:
        assert set(KEYS) <= row.keys()
        assert all(math.isfinite(row[key]) for key in KEYS)
        assert 0 <= row["data_wait"] <= 1 and row["images_per_second"] > 0
        parts = [row[f"loss/{n}"] for n in ("dino_local", "dino_global", "koleo")]
        assert row["loss/total"] == pytest.approx(sum(parts) + row["loss/ibot"])
    assert steps[-1]["loss/total"] < steps[0]["loss/total"]
    (accuracies,) = [row for row in rows if "knn/top1" in row]
    assert accuracies["step"] == 20
    assert all(0 <= accuracies[key] <= 1 for key in ACCURACIES)


def test_tensorboard_has_the_same_values(uninterrupted):
    workdir, _ = uninterrupted
    (path,) = (workdir / "tensorboard").glob("events.out.tfevents.*")
    losses = {
        event.step: value.simple_value
        for event in event_file_loader.LegacyEventFileLoader(str(path)).Load()
        for value in event.summary.value
        if value.tag == "loss/total"
    }
    rows = [row for row in all_rows(workdir) if "loss/total" in row]
    assert losses == {row["step"]: np.float32(row["loss/total"]) for row in rows}


def test_files(uninterrupted):
    workdir, finished = uninterrupted
    assert processes.saved_steps(workdir) == [4, 8, 12, 16, 20]
    config = json.loads((workdir / "config.json").read_text())
    assert config["train"]["steps"] == 20
    assert config["model"]["embed_dim"] == debug.get_config().model.embed_dim
    with Image.open(workdir / "pca.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.std() > 20  # neither blank nor one colour
    names = ("pca.png", "metrics.jsonl", "checkpoints", "tensorboard", "report.html")
    for name in names:
        assert str(workdir / name) in finished.output.split("done; look at")[1]


def test_report(uninterrupted):
    """It is written again after the end, and shows the last values."""
    workdir, _ = uninterrupted
    page = (workdir / "report.html").read_text()
    assert "finished, 0:0" in page and "<td>finished</td>" in page
    last = [row for row in all_rows(workdir) if "loss/total" in row][-1]
    for name in ("loss/total", "loss/koleo", "lr"):
        assert f"{name} <b>{last[name]:.4g}</b>" in page
    assert "k-NN</figcaption>" in page and "data:image/" in page
    assert "The closest preset is debug" in page
    assert "<td>checkpoint.keep_last</td><td>3</td><td>100</td>" in page


def test_step_compiles_once(uninterrupted):
    """Of all compilations, which the run was told to log, one is of the step."""
    _, finished = uninterrupted
    lines = finished.output.splitlines()
    compilations = [i for i, x in enumerate(lines) if x.startswith("Compiling ")]
    ours = [i for i in compilations if "jit(step)" in lines[i]]
    assert len(ours) == 1
    first, last = (
        next(i for i, x in enumerate(lines) if x.startswith(start))
        for start in ("compiled the step in", "step 20/20")
    )
    assert ours[0] < first
    assert not [lines[i] for i in compilations if first < i < last]


@pytest.mark.slow
def test_compiled_as_users_compile_it(uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    finished = processes.Trainer(processes.as_users()).run(
        *processes.DEBUG, f"--workdir={workdir}"
    )
    assert finished.code == 0, finished.output
    # Seen: 2e-6 in one of 20 steps, of a KoLeo loss of 0.1; 5e-7 in most.
    processes.assert_close_losses(workdir, uninterrupted[0], absolute=1e-5)


def test_same_command_again(uninterrupted, in_process, tmp_path):
    workdir = tmp_path / "run"
    processes.branch(uninterrupted[0], workdir, step=20)
    before = (workdir / "metrics.jsonl").read_bytes()
    finished = in_process.run(*processes.DEBUG, f"--workdir={workdir}")
    assert finished.code == 0
    assert "nothing to do: step 20 of 20" in finished.output
    assert "compiled" not in finished.output
    assert not processes.noise(finished.output)
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_not_finite(uninterrupted, in_process, tmp_path):
    """The learning rate is 0 at step 1, sane in no later one."""
    finished = in_process.run(
        *processes.DEBUG,
        f"--workdir={tmp_path}",
        "--config.optim.base_lr=1e30",
        "--config.checkpoint.every=1",
        "--config.train.max_nonfinite_steps=3",
        "--config.train.max_rollbacks=1",
    )
    assert finished.code == 3, finished.output
    assert "step 3: skipped, not finite: " in finished.output
    assert "weights untouched (1 in a row, 1 in all)" in finished.output
    assert "back to the checkpoint of step 2, leaving out the 3 b" in finished.output
    error = finished.error
    assert "stopped at step 5: the loss blew up (" in error
    assert "after 1 rollback;" in error
    assert "loss/total = nan" in error and "lr 1.77e+29" in error
    assert f"last good checkpoint: {tmp_path / 'checkpoints/2'}." in error
    assert "--config.optim.base_lr" in error
    assert not processes.noise(finished.output)
    # What was saved before is finite; nothing was saved since.
    assert processes.saved_steps(tmp_path) == [1, 2]
    for step in (1, 2):
        for name, value in processes.load(tmp_path, step).items():
            assert np.isfinite(value).all(), name
    rows = processes.rows(tmp_path)
    assert [row["skipped_in_a_row"] for row in rows] == [0, 0, 1, 2, 3]
    # The remedy is another config, which the same folder takes only from the start.
    again = in_process.run(*processes.DEBUG, f"--workdir={tmp_path}")
    assert again.code == 2 and "optim.base_lr: 1e+30 -> 0.002" in again.error


def test_skipped_steps_leave_the_state(uninterrupted, in_process, tmp_path):
    finished = in_process.run(
        *processes.DEBUG,
        f"--workdir={tmp_path}",
        "--config.optim.base_lr=1e30",
        "--config.checkpoint.every=2",
        "--config.train.steps=5",
    )
    assert finished.code == 0, finished.output
    assert "step 5: skipped, not finite: " in finished.output
    assert not processes.noise(finished.output)
    # Of step 4 nothing is saved, for it was skipped; of the last step always.
    assert processes.saved_steps(tmp_path) == [2, 5]
    before, after = processes.load(tmp_path, 2), processes.load(tmp_path, 5)
    assert (before.pop("/step"), after.pop("/step")) == (2, 5)
    for name in ("/skipped", "/skipped_in_a_row"):
        assert (before.pop(name), after.pop(name)) == (0, 3)
    processes.assert_same_arrays(after, before)


@pytest.fixture(scope="module")
def photographs():
    """Tiles of a photograph, RGB."""
    image = skimage.data.astronaut()
    corners = [(y, x) for y in range(0, 500, 90) for x in range(0, 500, 90)]
    tiles = [image[y : y + 90, x : x + 90] for y, x in corners]
    return [Image.fromarray(tile) for tile in tiles]


def make_folder_of_horrors(folder, photographs):
    """48 files, 7 of which nobody can read; returns their names."""
    (folder / "deeper/still").mkdir(parents=True)
    for i in range(33):
        photographs[i].save(folder / f"deeper/good_{i}.jpg")
    one = photographs[34]
    one.convert("CMYK").save(folder / "cmyk.jpg")
    one.quantize(16).save(folder / "palette.png")
    one.convert("L").save(folder / "gray.jpg")
    one.convert("1").save(folder / "one_bit.png")
    gray = np.asarray(one.convert("L")).astype(np.uint16) * 257
    Image.fromarray(gray).save(folder / "sixteen_bit.png")
    alpha = one.convert("RGBA")
    alpha.putalpha(Image.linear_gradient("L").resize(one.size))
    alpha.save(folder / "deeper/still/alpha.PNG")
    one.resize((1, 90)).save(folder / "one_pixel_wide.png")
    one.resize((1, 1)).save(folder / "one_pixel.gif")

    bad = ["zero.jpg", "text.jpg", "truncated.jpg", "truncated.png", "corrupt.png"]
    (folder / "zero.jpg").touch()
    (folder / "text.jpg").write_text("This is not a picture.")
    whole = (folder / "deeper/good_0.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    one.save(folder / "truncated.png")
    whole = bytearray((folder / "truncated.png").read_bytes())
    (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    whole[len(whole) // 3 : len(whole) // 3 + 64] = bytes(64)
    (folder / "corrupt.png").write_bytes(whole)
    # A few kilobytes that unfold to more pixels than are allowed.
    huge = Image.new("1", (20_000, 10_000))
    ImageDraw.Draw(huge).line((0, 0, 19_999, 9_999), fill=1)
    huge.save(folder / "huge.png")
    (folder / "dangling.jpg").symlink_to(folder / "nowhere.jpg")
    return sorted([*bad, "huge.png"])


def test_folder_of_horrors(uninterrupted, in_process, tmp_path, photographs):
    images, workdir = tmp_path / "images", tmp_path / "run"
    bad = make_folder_of_horrors(images, photographs)
    flags = [
        *processes.DEBUG,
        f"--workdir={workdir}",
        "--config.data.source=folder",
        f"--config.data.path={images}",
        "--config.train.steps=6",  # four passes
    ]
    finished = in_process.run(*flags)
    assert finished.code == 0, finished.output
    assert f"images      47 images in 3 folders below {images} (1 sk" in finished.output
    log = (workdir / "bad_images.txt").read_text().splitlines()
    assert sorted(line.split("\t")[0] for line in log) == bad
    assert all(len(line.split("\t")[1]) > 5 for line in log)
    assert (
        "6 of 47 images are unreadable and were replaced; they are named in "
        f"{workdir / 'bad_images.txt'}"
    ) in finished.output
    assert not processes.noise(finished.output)
    rows = processes.rows(workdir)
    assert [row["step"] for row in rows] == list(range(1, 7))
    assert all(math.isfinite(row["loss/total"]) for row in rows)

    # Resumed without worker processes: the same rows, no image named twice.
    again = tmp_path / "again"
    processes.branch(workdir, again, step=4)
    flags[flags.index(f"--workdir={workdir}")] = f"--workdir={again}"
    finished = in_process.run(*flags, "--config.data.workers=0")
    assert finished.code == 0, finished.output
    assert processes.rows(again) == rows
    assert (again / "bad_images.txt").read_text().splitlines() == log


def test_too_many_bad_images(uninterrupted, in_process, tmp_path, photographs):
    images, workdir = tmp_path / "images", tmp_path / "run"
    make_folder_of_horrors(images, photographs)
    finished = in_process.run(
        *processes.DEBUG,
        f"--workdir={workdir}",
        "--config.data.source=folder",
        f"--config.data.path={images}",
        "--config.data.max_bad_share=0.01",
    )
    assert finished.code == 2, finished.output
    assert "of 47 images are unreadable" in finished.error
    assert str(workdir / "bad_images.txt") in finished.error
    assert "--config.data.max_bad_share" in finished.error
    assert (workdir / "bad_images.txt").stat().st_size
    assert not processes.noise(finished.output)


def test_only_bad_images(uninterrupted, in_process, tmp_path):
    for i in range(40):
        (tmp_path / f"{i}.jpg").write_text("This is not a picture.")
    finished = in_process.run(
        *processes.DEBUG,
        f"--workdir={tmp_path / 'run'}",
        "--config.data.source=folder",
        f"--config.data.path={tmp_path}",
    )
    assert finished.code == 2, finished.output
    assert ".jpg (not an image" in finished.error
    assert not processes.noise(finished.output)

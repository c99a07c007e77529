"""Segmentation, depth, matching and predictions as commands, on drawn images."""

import json
import re
import shutil

import dense_pairs
import numpy as np
import pytest
import random_weights
from peers import torch
from PIL import Image

import dinov2_jax
from dinov2_jax.eval import __main__ as program
from dinov2_jax.eval.segmentation import segmentation_data
from dinov2_jax.eval.tasks import dense_flags


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A file of weights of a ViT with 4 blocks, 128 wide."""
    shapes = random_weights.small_shapes("vits14", depth=4)
    tensors = random_weights.tensors(shapes)
    path = tmp_path_factory.mktemp("model") / "small.pth"
    torch.save({k: torch.from_numpy(v) for k, v in tensors.items()}, path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    counts = {"train": 4, "val": 2, "test": 2}
    return dense_pairs.write(tmp_path_factory.mktemp("data"), counts)


def evaluate(capsys, task, model, out, *flags):
    common = (f"--model={model}", "--num-heads=2", f"--out={out}")
    code = program.main([task, *common, *map(str, flags)])
    assert code == 0, capsys.readouterr().err
    return json.loads((out / "results.json").read_text())


TRAINING = ("--steps=6", "--train-batch-size=2", "--save-every=3")


def test_segmentation_trains_and_takes_its_head_again(model, data, tmp_path, capsys):
    flags = (f"--data={data}", "--short=28", "--stride=14", *TRAINING)
    first = evaluate(capsys, "segmentation", model, tmp_path / "a", *flags)
    assert first["protocol"] == "ours" and first["changed"]["steps"] == 6
    assert 0 <= first["numbers"]["segmentation/mIoU"] <= 1
    head = tmp_path / "a/head.pth"
    again = evaluate(
        capsys, "segmentation", model, tmp_path / "b", *flags[:3], f"--head={head}"
    )
    assert again["numbers"] == first["numbers"]
    assert again["card"]["selected on"] == "unknown: the head was given"
    # Rows of another dtype are not taken as this run's.
    flags = (*flags[:3], f"--head={head}")
    rows = tmp_path / "b/images.jsonl"
    known = rows.read_text().splitlines()[0]
    evaluate(capsys, "segmentation", model, tmp_path / "b", *flags, "--dtype=bfloat16")
    assert rows.read_text().splitlines()[0] != known
    keys = torch.load(head, weights_only=True)["state_dict"]
    assert keys["decode_head.conv_seg.weight"].shape == (2, 128, 1, 1)
    assert "<img" in (tmp_path / "a/report.html").read_text()


def test_notes_on_images_that_are_not_all_or_not_new(data):
    every = segmentation_data.open_data(data, split="train").pairs
    some = every.spaced(2)
    assert dense_flags.notes(None, every, every) == []
    few, shared = dense_flags.notes(every, some, every)
    assert few == "only 2 of 4 images were evaluated"
    assert shared.startswith("the head was trained on 2 of the 2 test images: ")


def test_depth_trains_and_predicts(model, data, tmp_path, capsys):
    flags = (f"--data={data}", "--crop", 28, 42, *TRAINING)
    select = ("--select=abs_rel", "--select-every=2")
    found = evaluate(capsys, "depth", model, tmp_path / "a", *flags, *select)
    printed = re.findall(r"^step (\d): abs_rel (.*)$", capsys.readouterr().out, re.M)
    assert [step for step, _ in printed] == ["2", "4", "6"]
    best = min(float(value) for _, value in printed)
    assert found["numbers"]["depth/abs_rel"] == pytest.approx(best, abs=1e-4)
    assert "selected on the test images, by their best" in found["notes"][0]
    assert set(found["numbers"]) >= {"depth/rmse", "depth/abs_rel", "depth/a1"}
    # The last step is another run, not the same file with another choice.
    common = (f"--model={model}", "--num-heads=2", f"--out={tmp_path / 'a'}")
    assert program.main(["depth", *common, *map(str, flags)]) == 2
    assert "belongs to another run" in capsys.readouterr().err
    head = tmp_path / "a/head.pth"
    assert dinov2_jax.load_head(head).spec.layers == 4
    # --max-depth says which pixels count; the head predicts as it was trained.
    near = evaluate(
        *(capsys, "depth", model, tmp_path / "n", f"--data={data}", f"--head={head}"),
        "--max-depth=5",
    )
    assert near["card"]["depth"] == "0.001 to 10 m"
    assert near["changed"]["pixels up to"] == "5 m"
    image = data / "test/images/0.png"
    predicted = evaluate(
        capsys, "predict", model, tmp_path / "p", f"--head={head}", "--images", image
    )
    assert predicted["protocol"] == "none" and predicted["numbers"] == {}
    entry = json.loads((tmp_path / "p/0.json").read_text())
    values = np.asarray(Image.open(tmp_path / "p/0.png"))
    assert values.shape == (40, 48)
    depth = values / entry["values_of_a_metre"]
    assert np.median(depth) == pytest.approx(entry["median"], abs=0.002)
    flags = (f"--head={head}", "--images", image, "--top=2", f"--out={tmp_path / 'q'}")
    given = ["predict", f"--model={model}", "--num-heads=2", *map(str, flags)]
    assert program.main(given) == 2
    assert "--top has no effect on heads for depth" in capsys.readouterr().err


def test_predictions_of_classes(model, data, tmp_path, capsys):
    rng = np.random.default_rng(0)
    weights = {"weight": rng.standard_normal((3, 256)), "bias": np.zeros(3)}
    head = tmp_path / "classes.pth"
    torch.save({k: torch.tensor(v).float() for k, v in weights.items()}, head)
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\nhorse\n")
    flags = (f"--head={head}", "--images", data / "test/images", "--top=2")
    evaluate(capsys, "predict", model, tmp_path / "p", *flags, f"--class-names={names}")
    found = json.loads((tmp_path / "p/predictions.json").read_text())
    assert len(found) == 2
    backbone = dinov2_jax.load(model, num_heads=2)
    out = backbone(backbone.preprocess(data / "test/images/0.png"))
    x = np.concatenate([out.cls[0], out.patches[0].mean((0, 1))])
    logits = weights["weight"] @ x
    wanted = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    common = (f"--model={model}", "--num-heads=2", f"--out={tmp_path / 'q'}")
    for flag, value in (("--short", "56"), ("--nyu-range", "80")):
        assert program.main(["predict", *common, *map(str, flags), flag, value]) == 2
        assert (
            f"{flag} has no effect on heads for classification"
            in capsys.readouterr().err
        )
    best = found[0]["classes"][0]
    assert best["name"] == ("cat", "dog", "horse")[wanted.argmax()]
    assert best["probability"] == pytest.approx(wanted.max(), abs=1e-3)


@pytest.fixture
def damaged(data, tmp_path):
    """Two images, one that cannot be read, and a hidden file."""
    folder = tmp_path / "damaged"
    shutil.copytree(data / "test/images", folder)
    (folder / "00.png").write_bytes(b"no image")
    (folder / "._0.png").write_bytes(b"of another system")
    return folder


@pytest.mark.parametrize(
    "task, flags",
    [
        ("cluster", ("--images", "{}", "--clusters=2", "--short=28")),
        ("matching", ("--data={}", "--size=28", "--crops=1")),
        ("predict", ("--images", "{}", "--head={}/../classes.pth", "--top=1")),
    ],
)
def test_unreadable_images_are_left_out(model, damaged, tmp_path, capsys, task, flags):
    weights = {"weight": torch.zeros(3, 256), "bias": torch.zeros(3)}
    torch.save(weights, tmp_path / "classes.pth")
    flags = [flag.format(damaged) for flag in flags]
    card = evaluate(capsys, task, model, tmp_path / "out", *flags)["card"]
    assert card["images left out"] == 1
    assert card.get("images", 2) == 2
    for path in damaged.iterdir():
        path.write_bytes(b"no image")
    common = (f"--model={model}", "--num-heads=2", f"--out={tmp_path / 'out'}")
    assert program.main([task, *common, *flags]) == 2
    assert "replace or remove it" in capsys.readouterr().err


def test_matching_runs_on_a_folder(model, data, tmp_path, capsys):
    flags = (f"--data={data / 'train/images'}", "--size=28", "--crops=2")
    result = evaluate(capsys, "matching", model, tmp_path, *flags)
    assert result["protocol"] == "ours"
    found = result["numbers"]
    assert 0 <= found["matching/accuracy"] <= 1
    assert -1 <= found["matching/patch_cosine"] <= 1


def test_clusters_of_a_folder(model, data, tmp_path, capsys):
    flags = ("--images", data / "test/images", "--clusters=2", "--short=56")
    evaluate(capsys, "cluster", model, tmp_path, *flags)
    for i in range(2):
        found = np.asarray(Image.open(tmp_path / f"{i}.png"))
        assert found.shape == (40, 48) and set(np.unique(found)) <= {0, 1}


@pytest.mark.parametrize(
    "task, flags, message",
    [
        ("segmentation", ("--head=dinov2_vits14_ade20k_linaer",), "did you mean"),
        ("segmentation", ("--window=28", "--stride=29"), "use --stride=28 or less"),
        ("depth", ("--depth-unit=1", "--max-depth=10"), "--depth-unit=1000"),
        ("matching", ("--size=30",), "use --size=28"),
    ],
)
def test_bad_input_is_one_line(model, data, tmp_path, capsys, task, flags, message):
    path = data / "train/images" if task == "matching" else data
    common = (f"--model={model}", "--num-heads=2", f"--out={tmp_path}")
    assert program.main([task, *common, f"--data={path}", *flags]) == 2
    printed = capsys.readouterr().err.strip().splitlines()[-1]
    assert printed.startswith("error: ") and message in printed

"""The program on scikit-learn's digits: numbers, files, cache, resumption, errors."""

import functools
import json
import os
import subprocess
import sys

import digits
import numpy as np
import pytest
from PIL import Image
from sklearn import linear_model, neighbors

import dinov2_jax
from dinov2_jax.eval import feature_cache


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Small weights, 200 training digits and 100 others."""
    root = tmp_path_factory.mktemp("digits")
    return digits.write_all(root, train=range(200), val=range(900, 1000))


@pytest.fixture(scope="module")
def evaluate(files):
    """`digits.evaluate` of these images."""
    return functools.partial(digits.evaluate, files)


@pytest.fixture(scope="module")
def features(files):
    """Class tokens and labels of both sets, by the public interface."""
    model = dinov2_jax.load(files / "small.pth", num_heads=2)
    found = []
    for part in ("train", "val"):
        paths = sorted((files / part).glob("*/*.png"))
        images = np.stack([np.asarray(Image.open(path)) for path in paths])
        found.append(np.asarray(model(model.preprocessing.normalize(images)).cls))
        found.append(np.array([int(path.parent.name) for path in paths]))
    return found


def test_knn_equals_scikit_learn(evaluate, features, capsys):
    code, result = evaluate("knn", "--ks", "5", "20", "--per-class", "3", out="knn")
    assert code == 0
    train, train_labels, val, val_labels = features
    for k in (5, 20):
        peer = neighbors.KNeighborsClassifier(
            k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07)
        ).fit(train, train_labels)
        expected = peer.score(val, val_labels)
        assert result["numbers"][f"knn/top1_k{k}"] == pytest.approx(expected)
    assert result["numbers"]["knn/top1_k5"] > 0.5  # of ten classes
    assert "knn/3_per_class/top1_k3" in result["numbers"]
    assert result["protocol"] == "ours" and result["changed"]["ks"] == [5, 20]
    printed = capsys.readouterr().out
    assert "protocol" in printed and "sha256" in printed and "knn/top5_k20" in printed


def test_logreg_equals_scikit_learn(evaluate, features):
    code, result = evaluate("logreg", "--cs", "0.01", "0.1", out="logreg")
    assert code == 0
    train, train_labels, val, val_labels = features
    c = float(result["card"]["C"].split(",")[0])
    peer = linear_model.LogisticRegression(C=c, tol=1e-8, max_iter=5000)
    peer.fit(train.astype(np.float64), train_labels)
    expected = peer.score(val, val_labels)
    assert result["numbers"]["logreg/accuracy"] == pytest.approx(expected, abs=0.011)
    assert "held-out tenth of train, 20 images" in result["card"]["selected on"]
    assert len(result["tables"][0]["rows"]) == 2


LINEAR = (
    "--blocks",
    "1",
    "2",
    "--grid=paper",
    "--steps=40",
    "--train-batch-size=32",
    "--every=20",
)


def test_linear_learns_and_says_what_it_selected_on(evaluate, files):
    code, result = evaluate("linear", *LINEAR, "--augmentation=none", out="linear")
    assert code == 0
    assert result["numbers"]["linear/top1"] > 0.6
    assert "selected on the test data" in result["notes"][0]
    (classifiers,) = [t for t in result["tables"] if "classifiers" in t["title"]]
    assert len(classifiers["rows"]) == 52
    best = max(row[-1] for row in classifiers["rows"])
    assert result["numbers"]["linear/top1"] == pytest.approx(best)
    with np.load(files / "linear/best_head.npz") as head:
        assert head["weight"].shape[0] == 10
        assert list(head["classes"]) == [str(i) for i in range(10)]
    page = (files / "linear/report.html").read_text()
    assert "All classifiers" in page and "selected on the test data" in page
    # Chosen on held-out training images instead.
    flags = (*LINEAR, "--augmentation=none", "--select-on=train")
    code, result = evaluate("linear", *flags, out="held_out")
    assert code == 0 and not result["notes"]
    assert result["card"]["selected on"] == "20 images of train, held out"


def test_a_probe_on_crops_resumes_to_the_same_numbers(evaluate, files, monkeypatch):
    flags = [*LINEAR, "--steps=4", "--every=2", "--train-batch-size=16"]
    code, whole = evaluate("linear", *flags, out="whole")
    assert code == 0

    def die(*_):
        raise KeyboardInterrupt

    # The second measurement is the one after the last step, its state unsaved.
    from dinov2_jax.eval.classification import probe_training

    save, saved = probe_training.Trainer._save, []

    def save_once(self, done, state):
        if saved:
            die()
        saved.append(done)
        save(self, done, state)

    with monkeypatch.context() as patch:
        patch.setattr(probe_training.Trainer, "_save", save_once)
        assert evaluate("linear", *flags, out="resumed")[0] == 130
    assert saved == [2]
    code, resumed = evaluate("linear", *flags, out="resumed")
    assert code == 0 and resumed["numbers"] == whole["numbers"]
    for name in ("weight", "bias"):
        np.testing.assert_array_equal(
            np.load(files / "resumed/best_head.npz")[name],
            np.load(files / "whole/best_head.npz")[name],
        )


TWO_DEVICES = """
import pathlib, sys
import jax, numpy as np
from dinov2_jax.eval import features
from dinov2_jax.eval.classification import linear_probe, probe_training

folder = pathlib.Path(sys.argv[1])
backbone = features.load(str(folder / "small.pth"), num_heads=2, cache=folder)
trainer = probe_training.Trainer(
    linear_probe.Probe((0.1, 1.0), 100, 600, (1, 2)),
    backbone,
    backbone.prepare(28, 28),
    32,
    0,
    folder / "two_devices.npz",
    {},
)
batch = np.zeros((32, 28, 28, 3), np.uint8), np.arange(32)
trainer.train(lambda _: (batch for _ in range(600)), every=600, after=lambda *_: None)
print(len(jax.devices()), "devices")
"""


@pytest.mark.slow  # six hundred steps
def test_two_cpu_devices_do_not_wait_for_each_other_for_ever(files):
    done = subprocess.run(
        [sys.executable, "-c", TWO_DEVICES, files],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "2 devices\n"


def test_a_probe_of_other_settings_is_not_resumed(evaluate, capsys):
    flags = (*LINEAR, "--augmentation=none", "--steps=1")
    assert evaluate("linear", *flags, out="other")[0] == 0
    assert evaluate("linear", *flags, "--seed=1", out="other")[0] == 2
    assert "probe with other settings: choose another --out" in capsys.readouterr().err


def test_features_are_extracted_once(evaluate, monkeypatch):
    assert evaluate("knn", "--ks", "5", out="first")[0] == 0

    def refuse(*_):
        raise AssertionError("extracted again")

    monkeypatch.setattr(feature_cache, "_compute", refuse)
    code, result = evaluate("knn", "--ks", "5", out="second")
    assert code == 0 and result["numbers"]["knn/top1_k5"] > 0.5
    with pytest.raises(AssertionError, match="extracted again"):
        evaluate("knn", f"--size={digits.SIZE * 2}", f"--resize={digits.SIZE * 2}")


def test_an_image_that_can_be_read_again(files, evaluate):
    """As after a permission was given or a decoder installed: the file is the same."""
    path = digits.write(files / "again", range(30)) / "0" / "0000.png"
    content, time = path.read_bytes(), path.stat().st_mtime_ns
    for now, left_out in ((b"?" * len(content), 1), (content, 0)):
        path.write_bytes(now)
        os.utime(path, ns=(time, time))
        code, result = evaluate("knn", "--ks", "5", train=files / "again", out="again")
        assert code == 0 and int(result["card"]["images left out"]) == left_out


def test_a_part_of_the_images_is_not_the_references_protocol(evaluate):
    code, result = evaluate("logreg", "--max-images=60", "--cs=1", out="part")
    assert code == 0 and result["changed"]["images of a set"] == "at most 60"
    code, result = evaluate("logreg", "--max-images=999", "--cs=1", out="part")
    assert code == 0 and "images of a set" not in result["changed"]


def test_a_folder_that_cannot_be_written_is_found_first(evaluate, files, capsys):
    (files / "file").write_text("")
    assert evaluate("knn", "--size=30", out="file")[0] == 2  # neither is right
    assert "cannot write the results into" in capsys.readouterr().err


def test_wrong_values_of_c_are_found_first(evaluate, capsys):
    assert evaluate("logreg", "--cs=0", out="bad", val="nowhere")[0] == 2
    assert "every C must be above 0" in capsys.readouterr().err


def test_folders_against_each_other(evaluate, files):
    flags = [f"--database={files / 'train'}", f"--queries={files / 'val'}"]
    code, result = evaluate("retrieval", *flags, out="retrieval")
    assert code == 0
    assert 0.2 < result["numbers"]["retrieval/map"] < 1
    assert result["numbers"]["retrieval/found_in_1"] > 0.5
    assert "data:image/png;base64" in (files / "retrieval/report.html").read_text()
    # Images do not find themselves.
    flags[0] = f"--database={files / 'val'}"
    code, result = evaluate("retrieval", *flags, out="retrieval")
    assert code == 0 and result["numbers"]["retrieval/found_in_1"] < 1


def test_other_test_sets(evaluate, files):
    some = digits.write(files / "some", range(1000, 1060), classes=4)
    named = digits.write(files / "named", range(900, 1000))
    labels = {}
    for path in named.glob("*/*.png"):
        number = int(path.stem) - 899  # not in the order of the classes
        labels[number] = [int(path.parent.name)]
        path.rename(path.with_name(f"ILSVRC2012_val_{number:08}.JPEG"))
    real = files / "real.json"
    real.write_text(json.dumps([labels[i + 1] for i in range(99)] + [[]]))
    for name in ("fog", "snow"):
        for severity in range(1, 6):
            digits.write(files / "c" / name / str(severity), range(1000, 1010))
    code, result = evaluate(
        "linear",
        *LINEAR,
        "--augmentation=none",
        f"--test-path={some}",
        f"--real={real}",
        f"--imagenet-c={files / 'c'}",
        out="sets",
        val=named,
    )
    assert code == 0
    assert result["card"]["images left out"] == "0"
    numbers = result["numbers"]
    # Four classes of ten are easier, as the others are left out.
    assert numbers["linear/some/top1"] >= 0.7
    assert numbers["linear/real_top1"] == pytest.approx(
        numbers["linear/top1"], abs=0.011
    )
    (table,) = [t for t in result["tables"] if "ImageNet-C" in t["title"]]
    assert [row[0] for row in table["rows"]] == ["snow", "fog"]


@pytest.mark.parametrize(
    "task, flags, paths, text",
    [
        ("knn", [], {"val": "three"}, "7 are in only one of them, such as '3'"),
        ("knn", [], {"val": "nowhere"}, "nowhere does not exist"),
        ("knn", [], {"val": "empty"}, "no images"),
        ("knn", ["--size=30"], {}, "multiple of the patch size 14: use --size=28"),
        ("knn", ["--size=42"], {}, "--resize=28 is less than --size=42"),
        ("linear", [], {}, "--blocks has 4 and the model 2 blocks: use --blocks 1 2"),
        ("logreg", ["--cs", "0"], {}, "every C must be above 0"),
        ("retrieval", [], {}, "needs --database and --queries"),
        ("retrieval", ["--benchmark=met", "--data=x"], {}, "ground_truth"),
        ("retrieval", ["--benchmark=revisited", "--data=x"], {}, "gnd_*.pkl"),
    ],
)
def test_bad_input_gives_one_line(evaluate, files, capsys, task, flags, paths, text):
    digits.write(files / "three", range(40), classes=3)
    (files / "empty").mkdir(exist_ok=True)
    paths = {name: files / path for name, path in paths.items()}
    code, _ = evaluate(task, *flags, out="bad", **paths)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2 and error.startswith("error: ") and text in error


def test_help_needs_no_jax():
    code = (
        "import sys; from dinov2_jax.eval import __main__ as program\n"
        "try: program.parse_arguments(['linear', '--help'])\n"
        "finally: assert 'jax' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--select-on" in done.stdout


def test_baselines_beside_the_model(evaluate, files):
    code, result = evaluate("knn", "--ks=5", "--baselines", out="baselines")
    numbers = result["numbers"]
    assert code == 0
    assert {"knn/top1_k5", "knn/top1_k5_random_init"} < numbers.keys()
    # Pixels: by scikit-learn, of digits at the size of a patch less their mean.
    sets = []
    for part in ("train", "val"):
        paths = sorted((files / part).glob("*/*.png"))
        images = [Image.open(p).resize((14, 14), Image.Resampling.BOX) for p in paths]
        pixels = np.stack([np.ravel(image) for image in images]).astype(float)
        sets += [pixels - pixels.mean(axis=1, keepdims=True)]
        sets += [[path.parent.name for path in paths]]
    peer = neighbors.KNeighborsClassifier(
        5, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07)
    ).fit(*sets[:2])
    expected = peer.score(*sets[2:])
    assert numbers["knn/top1_k5_pixels"] == pytest.approx(expected, abs=0.03)
    assert [row[0] for row in result["tables"][0]["rows"]] == [
        "knn/top1_k5",
        "knn/top5_k5",
    ]

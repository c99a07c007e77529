"""Data of the demonstration: what is said of them; and its table."""

import json

import numpy as np
import pytest
from PIL import Image
from skimage import transform

from dinov2_jax.eval import protocol_card, report
from dinov2_jax.eval.demo import __main__ as demo
from dinov2_jax.eval.demo import labelled_images, pair_images
from dinov2_jax.eval.depth import depth_data
from dinov2_jax.eval.retrieval import retrieval_data
from dinov2_jax.eval.segmentation import segmentation_data


def test_masks_are_read_as_they_were_drawn(tmp_path):
    labelled_images.write_masks(tmp_path)
    opened = segmentation_data.open_data(tmp_path, split="val")
    assert opened.class_names == labelled_images.TEXTURES
    image, labels = opened.pairs.sample(0)
    assert image.shape == (*labels.shape, 3)
    assert set(np.unique(labels)) == {0, 1, 2, 255}
    assert 0.01 < (labels == 255).mean() < 0.2
    # Of every class as bright as by chance, so that brightness tells little.
    means = [[], [], []]
    for index in range(len(opened.pairs)):
        image, labels = opened.pairs.sample(index)
        for label in range(3):
            means[label].append(image[labels == label].mean())
    assert np.ptp(np.mean(means, axis=1)) < 60


def test_depth_of_both_parts_is_plausible_and_apart(tmp_path):
    labelled_images.write_depth(tmp_path)
    names = []
    for split in ("train", "test"):
        opened = depth_data.depth_pairs(tmp_path, split=split, max_depth=6.0)
        image, depth = opened.sample(0)
        known = depth[depth > 0]
        assert image.shape[:2] == depth.shape and known.size > depth.size / 2
        assert 2.0 < known.min() < known.max() < 5.1  # metres, of Middlebury's scene
        names.append([int(path.stem[4:]) for path in opened.images])
    side = Image.open(tmp_path / f"train/images/000_{max(names[0]):03}.png").width
    assert max(names[0]) + side <= min(names[1])


def test_homography_equals_scikit_image():
    rng = np.random.default_rng(0)
    points = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * 100.0
    images = points + rng.uniform(-10, 10, (4, 2))
    peer = transform.ProjectiveTransform.from_estimate(points, images)
    np.testing.assert_allclose(
        pair_images.homography(points, images), peer.params, atol=1e-6
    )


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    pair_images.write(folder)
    return retrieval_data.read_revisited(str(folder), query_crop=True)


def test_every_setup_has_positives(benchmark):
    kinds = {"easy": 0, "hard": 0, "junk": 0}
    for entry in benchmark.truth:
        for kind in kinds:
            kinds[kind] += bool(len(entry[kind]))
    assert min(kinds.values()) > len(benchmark.truth) / 3


def test_easy_images_show_the_query(benchmark):
    """By correlation of small gray pictures, for the highest of the easy images."""

    def small(source, index):
        pixels = Image.fromarray(source.open(index).pixels()).convert("L")
        values = np.asarray(pixels.resize((12, 12), Image.Resampling.BOX), float)
        return (values - values.mean()).ravel() / max(values.std(), 1e-6) / 12

    count = len(benchmark.database)
    database = np.stack([small(benchmark.database, i) for i in range(count)])
    found = []
    for index, entry in enumerate(benchmark.truth):
        if len(entry["easy"]):
            scores = database @ small(benchmark.queries, index)
            shown = np.concatenate([entry[kind] for kind in ("easy", "hard", "junk")])
            others = np.delete(scores, shown)
            found.append(scores[entry["easy"]].max() > np.quantile(others, 0.9))
    assert len(found) > 10 and np.mean(found) > 0.7


def test_the_page_has_every_backbone_beside_the_other(tmp_path):
    names = "retrieval/easy/map retrieval/medium/map retrieval/hard/map".split()
    backbones = ("", "_random_init", "_pixels")
    numbers = {
        f"{n}{b}": i + j / 10
        for i, n in enumerate(names)
        for j, b in enumerate(backbones)
    }
    kept = "weights digest backbone baselines versions devices".split()
    card = protocol_card.Card("retrieval", "ours", {}, dict.fromkeys(kept, "x"))
    pictures = [
        report.Picture(f"{b}: {i}", b"") for b in ("a", "pixels") for i in range(5)
    ]
    (case,) = [case for case in demo.CASES if case.task == "retrieval"]
    found = demo._summary([(case, report.Result(card, numbers, pictures=pictures))])
    assert [row[1:4] for row in found.summary.rows] == [
        (i, i + 0.1, i + 0.2) for i in range(3)
    ]
    assert len(found.pictures) == 6  # three of the model and three of a baseline
    report.write(found, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<table>") == 2 and "All tasks" in page  # and the protocol
    (table,) = json.loads((tmp_path / "results.json").read_text())["tables"]
    assert table["title"] == "All tasks"


def test_a_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out"
    assert demo.main([f"--model={tmp_path}", f"--out={out}"]) == 2
    assert "choose another --out" in capsys.readouterr().err

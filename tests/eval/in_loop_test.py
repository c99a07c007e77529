"""The table of evaluations in the loop, against scikit-learn and the tasks."""

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn import datasets, linear_model

from configs import debug
from dinov2_jax import errors, pretrained, sharding, ssl_meta_arch
from dinov2_jax.config import checking, combinations
from dinov2_jax.data import preprocessing
from dinov2_jax.eval import evaluator, in_loop
from dinov2_jax.eval.classification import splits
from dinov2_jax.eval.dense import dense_quality, pairs
from dinov2_jax.runtime import progress

SETTINGS = in_loop.Settings(ks=(5, 1), temperature=0.07, size=16)


def test_the_config_names_them_all():
    needs_labels = dict.fromkeys(in_loop.LABELLED, True)
    assert combinations.EVALUATIONS == needs_labels | dict.fromkeys(
        in_loop.DENSE, False
    )


@pytest.fixture(scope="module")
def labelled():
    images, labels = datasets.load_digits(return_X_y=True)
    return in_loop.Labelled(
        images[:300] / 16, labels[:300], images[900:1100] / 16, labels[900:1100], 10
    )


def test_logreg_equals_scikit_learn(labelled):
    found = in_loop.measure_logreg(labelled, SETTINGS)
    inner, outer = splits.hold_out(300, seed=0)

    def fit(c, x, y):
        return linear_model.LogisticRegression(C=c, tol=1e-6, max_iter=2000).fit(x, y)

    x, y = labelled.bank, labelled.bank_labels
    scores = [
        fit(c, x[inner], y[inner]).score(x[outer], y[outer])
        for c in (1e-3, 1e-2, 1e-1, 1.0, 10.0)
    ]
    best = 10.0 ** (int(np.argmax(scores)) - 3)
    expected = fit(best, x, y).score(labelled.queries, labelled.query_labels)
    assert found == {"logreg/top1": pytest.approx(expected, abs=0.006)}
    assert expected > 0.75


def test_logreg_of_few_images():
    rows = np.eye(3)
    few = in_loop.Labelled(rows, np.arange(3), rows, np.arange(3), 3)
    assert in_loop.measure_logreg(few, SETTINGS) == {"logreg/top1": 1.0}


def make(config, path, **fields):
    config.data.source = "auto"
    config.model.update(depth=1)
    config.evaluation.update(val_path=f"{path}", batch_size=4, **fields)
    config.evaluation.update(image_size=16, resize_size=16, picture_size=16)
    checking.check(config)
    meta_arch = ssl_meta_arch.make_ssl_meta_arch(config, np.float32)
    return evaluator.make_evaluator(config, meta_arch, sharding.make_mesh(1)), meta_arch


def test_matching_without_labels_is_that_of_the_task(tmp_path):
    paths = []
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(pixels).resize((32, 32)).save(paths[-1])
    made, meta_arch = make(debug.get_config(), tmp_path, tasks=("matching",))
    backbone = meta_arch.student.backbone
    params = jax.jit(backbone.init)(jax.random.key(0), np.zeros((1, 16, 16, 3)))
    found = made.evaluate(params["params"], 0)
    student = meta_arch.student
    model = pretrained.Model(
        backbone,
        params["params"],
        {},
        preprocessing.Preprocessing(16, 16, student.mean, student.std),
    )
    images = map(pairs.read_image, paths)
    expected = dense_quality.measure(model, images, size=16, crops=in_loop.CROPS)
    for name, value in expected.items():
        assert found[f"matching/{name}"] == pytest.approx(value, abs=1e-4)
    assert found.keys() - {f"matching/{name}" for name in expected} == {
        "matching/accuracy_random_init"
    }
    line = progress.describe_evaluation(7, found)
    assert line.startswith("step 7: patches matched: trained ") and "k-NN" not in line
    assert "cosines: class token to patches" in line


def test_several_tasks_at_once(tmp_path):
    for i in range(12):
        path = tmp_path / str(i % 2) / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    made, meta_arch = make(
        debug.get_config(),
        tmp_path,
        train_path=f"{tmp_path}",
        tasks=("knn", "matching", "logreg"),
        knn_k=(1,),
    )
    backbone = meta_arch.student.backbone
    params = jax.jit(backbone.init)(jax.random.key(0), np.zeros((1, 16, 16, 3)))
    found = made.evaluate(params["params"], 0)
    wanted = "knn/top1 knn/top1_pixels knn/top1_random_init logreg/top1 "
    wanted += "logreg/top1_random_init matching/accuracy matching/patch_cosine"
    assert set(wanted.split()) < found.keys()
    assert found["knn/top1"] == 1.0  # each is its own nearest


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"tasks": ("matchin",)}, "'matchin' is none of knn, logreg, matching"),
        ({"val_path": "/a", "tasks": ("matching", "logreg")}, "logreg needs labelled"),
        ({"train_path": "/a", "tasks": ("matching",)}, "set evaluation.val_path too"),
        ({"matching_images": 0}, "evaluation.matching_images = 0: must be above 0"),
    ],
)
def test_bad_configs(fields, message):
    config = debug.get_config()
    config.evaluation.update(fields)
    with pytest.raises(errors.UserError, match=message):
        checking.check(config)

"""Studies of learning: their arithmetic, what is run again, and their configs."""

import collections
import filecmp
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import random_weights
from PIL import Image
from scipy import stats

from benchmarks.learning import __main__ as program
from benchmarks.learning import (
    catalogue,
    damage,
    long_tail,
    results,
    selections,
    shifted,
    statistics,
    study,
    tables,
)
from dinov2_jax.config import checking
from dinov2_jax.curate import tables as curate_tables
from dinov2_jax.data.sources import photos
from dinov2_jax.weights import native, reading, torch_writer

ROOT = pathlib.Path(__file__).parents[2]
SETTING = study.Setting(pathlib.Path("/runs"), seed=3, steps=200)
ARMS = [
    (name, arm) for name in catalogue.STUDIES for arm in catalogue.STUDIES[name].arms
]


def row(arm, seed, knn, matching=0.5, steps=600, **fields):
    run = {"steps": steps, "images": 64 * steps, "flops_per_image": 1e8, "seconds": 9.0}
    metrics = {"knn/top1": knn, "matching/accuracy": matching}
    made = {"date": "today", "commit": "abc", "machine": "cpu"}
    key = {"arm": arm, "seed": seed, "steps": steps}
    return key | {"runs": [run], "test": metrics} | made | fields


def test_intervals_are_those_of_t_tests():
    a, b = [0.61, 0.58, 0.66, 0.6, 0.63], [0.55, 0.6, 0.59, 0.52, 0.58]
    found = statistics.mean(a)
    expected = stats.ttest_1samp(a, 0).confidence_interval(0.95)
    assert found.value - found.half == pytest.approx(expected.low)
    assert found.value + found.half == pytest.approx(expected.high)
    paired = statistics.differences(
        dict(enumerate(a)), {9: 0.1, **dict(reversed(list(enumerate(b))))}
    )
    found = statistics.mean(paired)
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert found.value - found.half == pytest.approx(expected.low)
    assert found.count == 5


def test_shares_leave_out_seeds_without_a_gap():
    low, high = {0: 0.2, 1: 0.5, 2: 0.1}, {0: 0.6, 1: 0.5}
    found = statistics.shares({0: 0.5, 1: 0.5, 2: 0.3}, low, high)
    assert found == pytest.approx([0.75])


def test_tables_of_a_partial_study():
    made = study.Study(
        question="Which?",
        arms=dict.fromkeys(("old", "new", "never", "broken")),
        pairs=(("new", "old"), ("never", "old")),
        shares={"regained": ("new", "old", "broken")},
    )
    rows = [row("old", 0, 0.5), row("old", 1, 0.6), row("old", 2, 0.9)]
    rows += [row("new", 0, 0.52), row("new", 1, 0.58), row("broken", 0, 0, failed="x")]
    rows += [row("old", 0, 0.4, steps=100)]
    text = tables.markdown(made, rows)
    assert (
        "| old | 3 | 600 | 38,400 | 100 | 3.8 | 9 | 66.7 ± 51.7 | 50.0 ± 0.0 |" in text
    )
    assert "| broken | 1, 1 failed |" in text
    assert "| new - old | 2 | +0.0 ± 25.4 | 1 of 2 | +0.0 ± 0.0 | 0 of 2 |" in text
    assert "never" not in text and "regained" not in text
    assert "`--steps 100`, of 600 in the full study" in text and "| 40.0 |" in text
    assert tables.markdown(made, []) == f"Which?\n\n{tables.NOT_RUN}"


def test_a_row_replaces_that_of_the_same_run(tmp_path):
    path, lock = tmp_path / "results" / "x.json", tmp_path / "x.lock"
    for made in (row("a", 0, 0.1), row("a", 1, 0.2), row("a", 0, 0.3)):
        results.add(path, made, lock)
    found = {r["seed"]: r["test"]["knn/top1"] for r in results.read(path)}
    assert found == {0: 0.3, 1: 0.2}


def test_what_is_finished_is_not_run_again(tmp_path, monkeypatch, capsys):
    for seed in (0, 1):
        results.add(
            tmp_path / "distill.json", row("scratch", seed, 0.5), tmp_path / "l"
        )

    def run(*flags):
        flags = ("distill", "--arms=scratch", f"--results={tmp_path}", *flags)
        monkeypatch.setattr(sys, "argv", ["learning", *flags])
        return program.main()

    monkeypatch.setattr(sys, "executable", "/bin/false")  # fails if it is started
    assert run("--seeds", "0", "1") == 0
    assert run("--seeds", "0", "2") == 1
    assert run("--seeds", "0", "--steps=100") == 1
    assert run("--table") == 0
    assert "| scratch | 2 |" in capsys.readouterr().out


def test_arms_are_chosen_by_patterns(capsys):
    flags = program.parse(["distill", "--arms", "pro*", "scratch"])
    assert flags.arms == ["scratch", "prototypes"] and list(flags.seeds) == [*range(5)]
    with pytest.raises(SystemExit):
        program.parse(["distill", "--arms", "none"])
    assert "features" in capsys.readouterr().err


@pytest.mark.parametrize("name, arm", ARMS, ids=map("-".join, ARMS))
def test_arms_have_valid_configs(name, arm):
    made = catalogue.STUDIES[name].arms[arm](SETTING)
    for config in (*(run.config for run in made.runs), made.judge):
        if config is not None:
            checking.check(config)


def test_runs_in_one_folder_are_one_run():
    configs = {}
    for name, arm in ARMS:
        for run in catalogue.STUDIES[name].arms[arm](SETTING).runs:
            text = run.config.to_json_best_effort()
            assert configs.setdefault(run.workdir, text) == text, run.workdir
            assert run.workdir.name == "seed3" and run.config.seed == 3


def test_pairs_and_shares_name_arms():
    for made in catalogue.STUDIES.values():
        named = {arm for pair in (*made.pairs, *made.shares.values()) for arm in pair}
        assert named <= made.arms.keys()


def test_the_guide_has_the_tables_of_all_results():
    text = program.PAGE.read_text()
    assert set(tables.on_page(text)) == catalogue.STUDIES.keys()
    found = {
        name: tables.markdown(made, results.read(results.FOLDER / f"{name}.json"))
        for name, made in catalogue.STUDIES.items()
    }
    assert tables.fill(text, found) == text
    for name in catalogue.STUDIES:
        assert name in program.__doc__


def test_damage_is_in_the_matrices_of_the_last_block_alone():
    rng = np.random.default_rng(0)
    fc2 = {"kernel": rng.normal(0, [[[0.1]], [[2.0]]], (2, 64, 64)), "bias": np.ones(2)}
    backbone = {"blocks": {"mlp": {"fc2": fc2}}, "norm": {"kernel": np.ones(3)}}
    found = damage.add_noise(backbone, 1, 0.5)
    change = found["blocks"]["mlp"]["fc2"]["kernel"] - fc2["kernel"]
    assert not change[0].any() and change[1].std() == pytest.approx(1.0, rel=0.05)
    assert found["norm"] == backbone["norm"]
    assert found["blocks"]["mlp"]["fc2"]["bias"] is fc2["bias"]


def test_shifted_images():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
    grey = shifted.grey(pixels)
    expected = pixels @ np.array([0.299, 0.587, 0.114])
    assert np.abs(grey - expected[..., None]).max() <= 1
    quarters = np.kron(np.arange(4).reshape(2, 2), np.ones((4, 4)))
    square = np.repeat(np.uint8(60 * quarters)[..., None], 3, axis=-1)
    found = shifted.texture(square)
    assert (
        found.shape == square.shape and found[0, 0, 0] == 0 and found[-1, -1, 0] == 180
    )
    ends = np.array([[[255, 255, 255], [0, 0, 0]]], np.uint8)
    light, dark = shifted.histology(ends)[0].astype(int)
    assert light[0] > light[1] < light[2] and light.min() > 180  # pink
    assert dark[2] > dark[0] > dark[1]  # violet


def test_tables_of_training_images():
    made = study.Study(question="Which?", arms=dict.fromkeys(("old", "new")))
    rows = [row("old", seed, 0.5) for seed in (0, 1)]
    rows += [row("new", 0, 0.5, training_images={"duplicates": 0.25, "faces": 0.5})]
    text = tables.markdown(made, rows)
    assert "| training images, in % | seeds | duplicates | faces |" in text
    assert "| new | 1 | 25.0 | 50.0 |" in text and "| old | 2 | nan" not in text


def test_numbers_of_images_follow_zipfs_law():
    found = long_tail.counts(16, long_tail.IMAGES)
    assert found.sum() == 4000 and found[0] == 2024 and found[-1] == 24
    expected = found[0] / np.arange(1, 17) ** 1.6
    assert np.abs(found - expected).max() <= 1


@pytest.fixture
def painted(monkeypatch):
    """Photographs whose held-out columns are white, and all others black."""
    columns = np.arange(400) // 64 % 6
    held_out = np.where((columns == 2) | (columns == 5), 255, 0).astype(np.uint8)
    pixels = np.broadcast_to(held_out[None, :, None], (200, 400, 3))
    photographs = (pixels,) * len(photos.photograph_names())
    monkeypatch.setattr(photos, "load_photographs", lambda: photographs)


def test_no_pixel_of_a_long_tailed_set_is_held_out(tmp_path, painted):
    long_tail.write(tmp_path / "pool", seed=0, images=80)
    names = long_tail.names(tmp_path / "pool")
    assert len(names) == 80
    for name in names:
        assert np.asarray(Image.open(tmp_path / "pool" / name)).max() <= 1, name


def test_known_selections_of_a_long_tailed_set(tmp_path):
    pool = tmp_path / "pool"
    long_tail.write(pool, seed=1, images=240)
    names = long_tail.names(pool)
    shown = collections.Counter(map(long_tail.photograph, names))
    assert sorted(shown.values()) == sorted(long_tail.counts(16, 240))
    copies = [name for name in names if long_tail.original(name) != name]
    heads = dict(shown.most_common(long_tail.HEADS))
    assert len(copies) == sum(count // 2 for count in heads.values())
    assert {long_tail.photograph(name) for name in copies} == heads.keys()
    same = [
        filecmp.cmp(pool / name, pool / long_tail.original(name), shallow=False)
        for name in copies
    ]
    assert 0.3 < np.mean(same) < 0.7
    sizes = [Image.open(pool / name).size for name in names]
    assert min(map(min, sizes)) >= 48

    for name in selections.KNOWN:
        selections.write_known(pool, tmp_path / f"{name}.csv", 60, seed=0)
    random, oracle = (
        selections.read(tmp_path / f"{name}.csv", pool) for name in ("random", "oracle")
    )
    assert len(set(random)) == len(set(oracle)) == 60
    assert not set(oracle) & set(copies) and set(random) <= set(names)
    per_photograph = collections.Counter(map(long_tail.photograph, oracle))
    most = max(per_photograph.values())
    for name, count in per_photograph.items():
        assert count >= most - 1 or count == shown[name]
    found = selections.describe(random, oracle)
    evenness, duplicates = found.values()
    assert evenness < 0.9 and duplicates > 0
    assert list(selections.describe(oracle, oracle).values()) == [1.0, 0.0]


@pytest.fixture
def exported(tmp_path):
    """An export of a small random model."""
    weights, folder = tmp_path / "small.pth", tmp_path / "small"
    shapes = random_weights.small_shapes("vits14")
    torch_writer.write(weights, random_weights.tensors(shapes))
    read = reading.read(weights, num_heads=2)
    native.write(folder, read.module, read.params, read.preprocessing, "teacher")
    return folder


@pytest.mark.slow  # features of 1,500 images, twice
def test_curated_selections_are_equal_in_size_and_repeatable(tmp_path, exported):
    pool, made = tmp_path / "pool", []
    long_tail.write(pool, seed=0, images=160)
    for folder in (tmp_path / "first", tmp_path / "second"):
        selections.write_curated(pool, folder, exported, size=56, count=50, seed=0)
        lists = [folder / f"{name}.csv" for name in ("curated", "flat")]
        made.append([selections.read(path, pool) for path in lists])
    assert made[0] == made[1]
    curated, flat = made[0]
    assert len(set(curated)) == len(set(flat)) == 50
    dups, _ = curate_tables.read(tmp_path / "first/curated.steps/dups.parquet")
    kept = set(dups["name"][dups["kept"]])
    assert set(curated) <= kept and len(kept) < 160


@pytest.mark.slow  # starts of programs, two trainings
def test_a_study_of_two_steps(tmp_path):
    flags = ["distill", "--arms", "features", "--seeds", "0", "--steps=2"]
    flags += [f"--folder={tmp_path / 'runs'}", f"--results={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.learning", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "| features | 1 | 2 | 128 |" in done.stdout
    (found,) = json.loads((tmp_path / "distill.json").read_text())["rows"]
    assert [made["steps"] for made in found["runs"]] == [4, 2]
    for split in ("val", "test"):
        assert 0 < found[split]["knn/top1"] < 1
    assert found["val"]["knn/top1"] != found["test"]["knn/top1"]

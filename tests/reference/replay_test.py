"""The recorded runs of the reference, and that a wrong number is noticed."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import replay

HERE = pathlib.Path(__file__).parent
FILES = {  # and how many quantities they hold at least
    "train_sinkhorn": 180,
    "train_centering": 120,
    "vit_mlp": 25,
    "vit_swiglu_reg4": 20,
}


EVALUATIONS = {
    "accuracy": 10,
    "imagenet_c": 4,
    "knn": 20,
    "linear_features": 12,
    "linear_probe_sgd": 49,
    "logreg": 23,
    "retrieval_amstertime_met": 18,
    "retrieval_revisitop": 14,
    "schedules": 1,
}


def recording(name):
    with np.load(HERE / f"{name}.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


def exceeded(path):
    """Quantities beyond their tolerance, and the number of all."""
    checks = list(replay.replay(path))
    return [quantity for quantity, *_, passed in checks if not passed], len(checks)


@pytest.mark.parametrize("name, checks", FILES.items())
def test_equals_the_reference(name, checks, request):
    if name == "train_centering":
        request.getfixturevalue("full_compilation")
    failed, total = exceeded(HERE / f"{name}.npz")
    assert not failed
    assert total >= checks


@pytest.mark.parametrize("name, checks", EVALUATIONS.items())
def test_evaluations_equal_the_reference(name, checks):
    failed, total = exceeded(HERE / f"evaluation/{name}_a.npz")
    assert not failed
    assert total >= checks


def test_wrong_numbers_of_an_evaluation_are_reported(tmp_path):
    with np.load(HERE / "evaluation/retrieval_revisitop_a.npz") as file:
        arrays = {key: file[key] for key in file.files}
    arrays["H/prs"][0, 1] += 1e-8
    arrays["ranks"] = arrays["ranks"][::-1]
    np.savez(tmp_path / "retrieval_revisitop_other.npz", **arrays)
    failed, _ = exceeded(tmp_path / "retrieval_revisitop_other.npz")
    assert failed == ["ranks (elements that differ)", "H/prs"]


def test_an_unknown_kind_of_recording_is_named(tmp_path):
    np.savez(tmp_path / "weather_a.npz", config="{}")
    with pytest.raises(ValueError, match="weather_a.npz is of no known kind: accur"):
        list(replay.replay(tmp_path / "weather_a.npz"))


def test_tolerances_are_those_of_the_recordings():
    assert replay.TOLERANCES == {
        "schedule": 1e-12,
        "loss": 2e-5,
        "gradient": 1e-4,
        "weight": 1e-4,
        "qkv.bias": 5e-3,
        "exact": 0.0,
        "forward": 1e-5,
    }


# Compiled like the right numbers: the compilation cache holds the step already.
@pytest.mark.usefixtures("full_compilation")
def test_only_wrong_numbers_are_reported(tmp_path):
    arrays = recording("train_centering")
    groups = json.loads(str(arrays["param_groups_json"]))
    group = groups["backbone/cls_token"]
    group["wd_multiplier"] = 1.0 - group["wd_multiplier"]
    arrays["param_groups_json"] = np.array(json.dumps(groups))
    arrays["schedule/lr"][1] += 1e-11
    arrays["step0/loss/koleo_loss"] = arrays["step0/loss/koleo_loss"] * 1.0001
    arrays["step1/grad_norm/backbone"] = arrays["step1/grad_norm/backbone"] * 1.001
    weight = "final/teacher/backbone/norm.weight"
    arrays[weight] = arrays[weight] * 1.01
    gradient = "step0/clipped_grad/dino_head/last_layer.weight_g"
    arrays[gradient] = np.roll(arrays[gradient], 1)
    arrays["final/center/ibot"] = arrays["final/center/ibot"] * np.nan
    path = tmp_path / "wrong.npz"
    np.savez(path, **arrays)
    failed, _ = exceeded(path)
    assert failed == [
        "schedule/lr",
        "param_groups/wd_multiplier (parameters that differ)",
        gradient,
        "step0/loss/koleo_loss",
        "step1/grad_norm/backbone",
        weight,
        "final/center/ibot",
    ]


def one_size(tmp_path, name, change=None):
    """A copy of a forward file with its smallest image size only."""
    arrays = recording("vit_swiglu_reg4")
    sizes = {k.split("/")[0]: v.size for k, v in arrays.items() if "/images" in k}
    smallest = min(sizes, key=sizes.get)
    kept = {
        key: value
        for key, value in arrays.items()
        if key.startswith((f"{smallest}/", "params/", "config_json"))
    }
    if change:
        kept[change] = kept[change] * 1.01
    np.savez(tmp_path / name, **kept)
    return tmp_path / name


def program(*paths):
    return subprocess.run(
        [sys.executable, HERE / "replay.py", *paths], capture_output=True, text=True
    )


def test_exit_codes_of_the_program(tmp_path, capsys):
    good = one_size(tmp_path, "good.npz")
    bad = one_size(tmp_path, "bad.npz", change="params/blocks.1.attn.proj.weight")
    assert replay.main([good]) == 0
    printed = capsys.readouterr().out
    assert "all within tolerance" in printed and "FAILED" not in printed
    done = program(bad, good)
    assert done.returncode == 1, done.stderr
    assert "x_norm_clstoken" in done.stdout and "FAILED" in done.stdout
    first, second = done.stdout.split(str(good))
    assert "FAILED" in first and "FAILED" not in second


def test_missing_argument_prints_the_usage():
    done = program()
    assert done.returncode == 1 and "replay.py FILE.npz" in done.stderr

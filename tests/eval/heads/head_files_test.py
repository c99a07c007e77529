import json
import pathlib
import re

import numpy as np
import pytest
from peers import torch

import dinov2_jax
from dinov2_jax import errors
from dinov2_jax.eval.heads import head_files, head_names

RECORDED = json.loads(
    (
        pathlib.Path(__file__).parents[2] / "reference/evaluation/head_keys.json"
    ).read_text()
)


def recorded_name(name):
    return f"{name}_head"


def test_every_released_file_has_its_recorded_keys_and_shapes():
    assert {recorded_name(name) for name in head_names.names()} == set(RECORDED)
    assert len(RECORDED) == 56
    for file, recorded in RECORDED.items():
        spec = head_names.spec(file)
        prefix = "" if spec.kind == "classification" else head_names.PREFIX
        found = {
            prefix + name: list(shape)
            for name, shape in head_names.shapes(spec).items()
        }
        assert found == recorded, file
        assert head_names.url(file).endswith(f"/{file}.pth")


def test_addresses():
    assert head_names.url("dinov2_vitb14_nyu_linear") == (
        "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/"
        "dinov2_vitb14_nyu_linear_head.pth"
    )
    assert head_names.url("dinov2_vitg14_reg4_linear_head") == (
        "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitg14/"
        "dinov2_vitg14_reg4_linear_head.pth"
    )


def released(folder, file, wrap=True):
    """A file as mmcv's runner saves it: numbers of NumPy and Adam's state beside it."""
    rng = np.random.default_rng(0)
    tensors = {}
    for name, shape in RECORDED[file].items():
        value = torch.tensor(rng.standard_normal(shape), dtype=torch.float32)
        tensors[name] = torch.tensor(7) if name.endswith("tracked") else value
    tree = tensors
    if wrap:
        tree = {
            "meta": {
                "epoch": 1,
                "loss": np.float64(0.25),
                "lr": [np.float32(0.5), np.int64(3)],
                "config": "norm_cfg = dict(type='SyncBN')",
            },
            "state_dict": tensors,
            "optimizer": {
                "state": {0: {"step": 1, "exp_avg": torch.zeros(3)}},
                "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "params": [0]}],
            },
        }
    path = folder / f"{file}.pth"
    torch.save(tree, path)
    return path, tensors


@pytest.mark.parametrize(
    "name, kind",
    [
        ("dinov2_vits14_voc2012_ms", "segmentation"),
        ("dinov2_vits14_kitti_linear4", "depth"),
        ("dinov2_vits14_nyu_dpt", "dpt"),
    ],
)
def test_files_of_mmcv_load_under_their_names(name, kind, tmp_path, monkeypatch):
    monkeypatch.setenv("DINOV2_JAX_CACHE", str(tmp_path))
    path, tensors = released(tmp_path, recorded_name(name))
    for source in (name, path):
        head = dinov2_jax.load_head(source)
        assert head.spec == head_names.spec(name)
        for key, value in tensors.items():
            mine = head.params[key.removeprefix(head_names.PREFIX)]
            np.testing.assert_array_equal(mine, value.numpy())


def test_heads_are_written_as_they_were_read(tmp_path):
    path, tensors = released(tmp_path, "dinov2_vits14_voc2012_linear_head")
    head = head_files.load_head(path)
    head_files.save_head(tmp_path / "mine.pth", head)
    written = torch.load(tmp_path / "mine.pth", weights_only=True)
    assert list(written["state_dict"]) == list(tensors)
    for key, value in tensors.items():
        assert written["state_dict"][key].dtype == value.dtype
        assert torch.equal(written["state_dict"][key], value)
    again = head_files.load_head(tmp_path / "mine.pth")
    assert again.spec == head.spec


def test_classifiers_are_flat(tmp_path):
    path, tensors = released(tmp_path, "dinov2_vits14_linear4_head", wrap=False)
    renamed = path.rename(tmp_path / "renamed.pth")
    head = head_files.load_head(renamed)
    assert head.spec == head_names.Spec("classification", 384, 4, num_classes=1000)
    head_files.save_head(tmp_path / "mine.pth", head)
    written = torch.load(tmp_path / "mine.pth", weights_only=True)
    assert {k: v.shape for k, v in written.items()} == {
        k: v.shape for k, v in tensors.items()
    }


def test_the_range_of_the_hub_is_a_choice(tmp_path):
    path, _ = released(tmp_path, "dinov2_vits14_nyu_linear_head")
    assert head_files.load_head(path).spec.depth_range == (0.001, 10.0)
    hub = head_files.load_head(path, hub_range=True)
    assert hub.spec.depth_range == (0.001, 80.0)
    other = head_files.load_head(path, depth_range=(0.1, 5.0))
    assert other.spec.depth_range == (0.1, 5.0)


def change(path, edit):
    tree = torch.load(path, weights_only=False)
    edit(tree["state_dict"])
    torch.save(tree, path)


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda d: d.pop("decode_head.bn.bias"), "bn.bias is missing"),
        (lambda d: d.update({"decode_head.a": torch.ones(1)}), "a is unknown"),
        (
            lambda d: d.update({"decode_head.bn.bias": torch.ones(3)}),
            "bn.bias is [3] instead of [384]",
        ),
        (lambda d: d["decode_head.bn.bias"].fill_(np.nan), "bn.bias of"),
        (lambda d: d.update({"backbone.x": torch.ones(1)}), "also contains a backbone"),
    ],
)
def test_what_is_not_exactly_the_head_is_refused(edit, message, tmp_path):
    path, _ = released(tmp_path, "dinov2_vits14_voc2012_linear_head")
    change(path, edit)
    with pytest.raises(errors.UserError, match=re.escape(message)):
        head_files.load_head(path)


def test_code_in_a_file_is_not_run(tmp_path):
    path, _ = released(tmp_path, "dinov2_vits14_voc2012_linear_head")
    torch.save({"state_dict": {}, "meta": pathlib.PurePosixPath("x")}, path)
    with pytest.raises(errors.UserError, match="nothing was executed"):
        head_files.load_head(path)


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(errors.UserError, match="did you mean dinov2_vits14_nyu_dpt"):
        head_files.load_head("dinov2_vits14_nyu_dtp")


def test_a_head_of_another_width_names_both(tmp_path):
    path, _ = released(tmp_path, "dinov2_vits14_voc2012_linear_head")
    head = head_files.load_head(path)
    head_files.check_backbone(head, 384, 12)
    with pytest.raises(errors.UserError, match=r"384 wide \(vits14\).*768 wide"):
        head_files.check_backbone(head, 768, 12)


def test_widths_are_guessed_only_where_one_fits(tmp_path):
    shape = (7, 1536, 1, 1)  # of four blocks of ViT-S, or one of ViT-g
    found = {"conv_seg.weight": shape, "conv_seg.bias": (7,)}
    assert head_names.guess(found, None) is None
    assert head_names.guess(found, 768) is None
    for width, layers in ((384, 4), (1536, 1)):
        spec = head_names.guess(found, width)
        assert spec == head_names.Spec("segmentation", width, layers, num_classes=7)
    only = {"conv_depth.weight": (256, 2048, 1, 1)}
    assert head_names.guess(only, 384) == head_names.Spec("depth", 1024, 1)

"""Configs of runs and of the reference against those of this project."""

import json

import pytest

from configs import adapt, debug, default, vitg, vitl
from dinov2_jax import errors
from dinov2_jax.config import checking, converted_config, flattening, resuming

# What the reference's vitl14.yaml and vitg14.yaml set, and fields without effect here.
LONG = """
dino: {head_n_prototypes: 131072, head_bottleneck_dim: 384}
ibot: {separate_head: true, head_n_prototypes: 131072}
train:
  batch_size_per_gpu: %d
  dataset_path: ImageNet22k
  centering: sinkhorn_knopp
student:
  arch: %s
  patch_size: 14
  drop_path_rate: 0.4
  ffn_layer: swiglufused
  block_chunks: 4
teacher: {momentum_teacher: 0.994}
optim:
  epochs: 500
  weight_decay_end: 0.2
  base_lr: 2.0e-04 # learning rate for a batch size of 1024
  warmup_epochs: 80
  layerwise_decay: 1.0
crops: {local_crops_size: 98}
"""


@pytest.mark.parametrize("arch, group", [("vit_large", 32), ("vit_giant2", 12)])
def test_the_long_runs_of_the_reference(tmp_path, arch, group):
    path = tmp_path / "vit14.yaml"
    path.write_text(LONG % (group, arch))
    config, lines = converted_config.read(path)
    expected = {"vit_large": vitl, "vit_giant2": vitg}[arch].get_config()
    assert config.train.batch_size % group == 0
    config.train.batch_size = expected.train.batch_size  # the file does not say
    assert flattening.flatten(config) == flattening.flatten(expected)
    checking.check(config)
    text = "\n".join(lines)
    assert "  optim.epochs = 500 x 1250 -> train.steps = 625000" in lines
    assert f"  train.batch_size_per_gpu = {group} -> train.group_size" in lines
    assert "without effect here: student.block_chunks" in text
    assert f"set --config.train.batch_size={group} x GPUs" in text
    assert "ImageNet22k -> data.path = (nothing: set --config.data.path" in text


def test_an_empty_file_is_the_reference_s_default(tmp_path):
    path = tmp_path / "a.yml"
    path.write_text("student: {}\n")
    config, _ = converted_config.read(path)
    assert flattening.flatten(config) == flattening.flatten(default.get_config())


def test_numbers_and_folders(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(
        "train: {OFFICIAL_EPOCH_LENGTH: 100, seed: 3,\n"
        "  dataset_path: 'ImageNet:split=TRAIN:root=/data/in1k:extra=/data/extra'}\n"
        "optim: {epochs: 2.5, min_lr: 1e-5, clip_grad: 3, scaling_rule: "
        "sqrt_wrt_1024}\n"
        "crops: {global_crops_scale: [0.4, 1]}\n"
        "student: {layerscale: 1e-4, pretrained_weights: /w.pth}\n"
        "compute_precision: {teacher: {backbone: {sharding_strategy: SHARD_GRAD_OP}}}\n"
    )
    config = converted_config.get_config(str(path))
    assert (config.train.steps, config.seed) == (250, 3)
    assert config.data.path == "/data/in1k/train"
    assert config.optim.min_lr == 1e-5 and config.model.layerscale == 1e-4
    assert config.optim.clip_grad == 3.0 and config.init.source == "/w.pth"
    assert tuple(config.crops.global_crops_scale) == (0.4, 1)


@pytest.mark.parametrize(
    "name, text, said",
    [
        ("a.yaml", "student: {archh: x, patch_size: 14}", "do not have: student.archh"),
        ("a.yaml", "student: [1", "cannot read the config"),
        ("a.yaml", "- a", "needs sections"),
        ("a.yaml", "optim: {epochs: many}", "optim.epochs = 'many': not a number"),
        ("a.yaml", "optim: {scaling_rule: linear}", "only sqrt_wrt_1024 is known"),
        ("a.yaml", "student: {patch_size: 14.5}", "patch_size = 14.5: not a int"),
        ("a.yaml", "student: {qkv_bias: 3}", "qkv_bias = 3: not a bool"),
        ("a.json", '{"seed": 1, "optim": {"lr": 2}}', "unknown config field optim.lr"),
        ("a.json", "[]", "is not valid JSON"),
        ("a.json", "{", "is not valid JSON"),
        ("a.json", '{"train": {"steps": "x"}}', "train.steps = 'x': not a"),
    ],
)
def test_files_that_are_no_config(tmp_path, name, text, said):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(errors.UserError) as caught:
        converted_config.read(path)
    assert said in str(caught.value) and str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("preset", [debug, adapt, vitg])
def test_the_config_of_a_run_is_read_back(tmp_path, preset):
    config = preset.get_config()
    config.data.mixture = (("/a", 3.0), ("/b*.tar", 1.0))
    config.crops.brightness = 0.5
    path = tmp_path / "config.json"
    path.write_text(config.to_json_best_effort())
    again, lines = converted_config.read(path)
    assert flattening.flatten(again) == flattening.flatten(config)
    assert again.is_locked and len(lines) == 1
    assert resuming.differing(again, tmp_path) == []


def test_the_config_of_an_older_run(tmp_path):
    """It lacks fields: they get what such runs used, or the default and a line."""
    fields = json.loads(debug.get_config().to_json_best_effort())
    del fields["data"]["augmentation"], fields["model"]["scan_unroll"]
    fields["init"] = {"from": "w.pth"}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(fields))
    config, lines = converted_config.read(path)
    assert config.data.augmentation == "host" and config.init.source == "w.pth"
    assert lines[1].endswith("configs/default.py: model.scan_unroll")

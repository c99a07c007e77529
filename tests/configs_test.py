"""The configs that mirror the reference's YAML files, value by value."""

import dataclasses
import importlib
import pathlib

import pytest

from configs import default
from dinov2_jax import schedules
from dinov2_jax.augment import policies
from dinov2_jax.config import checking, flattening

EPOCH = 1250  # the reference's OFFICIAL_EPOCH_LENGTH
NAMES = sorted(
    path.stem
    for path in (pathlib.Path(__file__).parents[1] / "configs").glob("*.py")
    if path.stem != "__init__"
)

# The reference's ssl_default_config.yaml, which vitl16_short.yaml does not change
# except for what sharding needs.
SHORT = {
    "seed": 0,
    "crops.global_crops_size": 224,
    "crops.global_crops_scale": (0.32, 1.0),
    "crops.local_crops_number": 8,
    "crops.local_crops_size": 96,
    "crops.local_crops_scale": (0.05, 0.32),
    "crops.blur": "reference",
    "crops.sizes": (),
    "model.arch": "vit_large",
    "model.patch_size": 16,
    "model.in_chans": 3,
    "model.ffn_layer": "mlp",
    "model.ffn_ratio": 4.0,
    "model.qkv_bias": True,
    "model.proj_bias": True,
    "model.ffn_bias": True,
    "model.layerscale": 1e-5,
    "model.num_register_tokens": 0,
    "model.interpolate_offset": 0.1,
    "model.interpolate_antialias": False,
    "model.drop_path_rate": 0.3,
    "model.drop_path_uniform": True,
    "dino.loss_weight": 1.0,
    "dino.head_n_prototypes": 65536,
    "dino.head_bottleneck_dim": 256,
    "dino.head_nlayers": 3,
    "dino.head_hidden_dim": 2048,
    "dino.koleo_loss_weight": 0.1,
    "dino.local_loss_weight": 1.0,
    "ibot.loss_weight": 1.0,
    "ibot.mask_sample_probability": 0.5,
    "ibot.mask_ratio_min_max": (0.1, 0.5),
    "ibot.separate_head": False,
    "ibot.head_n_prototypes": 65536,
    "ibot.head_bottleneck_dim": 256,
    "ibot.head_nlayers": 3,
    "ibot.head_hidden_dim": 2048,
    "init.source": "",
    "init.which": "",
    "init.heads": "fresh",
    "init.heads_only_steps": 0,
    "train.batch_size": 32 * 64,
    "train.group_size": 64,
    "train.steps": 100 * EPOCH,
    "train.objective": "prototypes",
    "train.centering": "centering",
    "dino.sinkhorn_queue": 0,
    "ibot.sinkhorn_queue": 0,
    "teacher.momentum_teacher": 0.992,
    "teacher.final_momentum_teacher": 1.0,
    "teacher.warmup_teacher_temp": 0.04,
    "teacher.teacher_temp": 0.07,
    "teacher.warmup_teacher_temp_steps": 30 * EPOCH,
    "optim.name": "adamw",
    "optim.base_lr": 0.004,
    "optim.min_lr": 1e-6,
    "optim.warmup_steps": 10 * EPOCH,
    "optim.weight_decay": 0.04,
    "optim.weight_decay_end": 0.4,
    "optim.clip_grad": 3.0,
    "optim.freeze_last_layer_steps": EPOCH,
    "optim.patch_embed_lr_mult": 0.2,
    "optim.layerwise_decay": 0.9,
    "optim.adamw_beta1": 0.9,
    "optim.adamw_beta2": 0.999,
    "optim.trainable": "all",
    "checkpoint.every": 3 * EPOCH,
    "checkpoint.keep_last": 3,
    "evaluation.every": 12500,
}
# What vitl14.yaml and vitg14.yaml share.
LONG = SHORT | {
    "crops.local_crops_size": 98,
    "model.patch_size": 14,
    "model.ffn_layer": "swiglufused",
    "model.drop_path_rate": 0.4,
    "dino.head_n_prototypes": 131072,
    "dino.head_bottleneck_dim": 384,
    "ibot.separate_head": True,
    "ibot.head_n_prototypes": 131072,
    "train.batch_size": 3072,
    "train.steps": 500 * EPOCH,
    "train.centering": "sinkhorn_knopp",
    "teacher.momentum_teacher": 0.994,
    "optim.base_lr": 2e-4,
    "optim.weight_decay_end": 0.2,
    "optim.warmup_steps": 80 * EPOCH,
    "optim.layerwise_decay": 1.0,
}
# The options of the first DINO's program and their defaults, at 8 GPUs of 64 images.
DINO_EPOCH = 1_281_167 // 512
DINO = SHORT | {
    "crops.global_crops_scale": (0.4, 1.0),
    "crops.local_crops_scale": (0.05, 0.4),
    "crops.blur": "intended",
    "model.arch": "vit_small",
    "model.layerscale": 0.0,
    "model.drop_path_rate": 0.1,
    "model.drop_path_uniform": False,
    "dino.koleo_loss_weight": 0.0,
    "ibot.loss_weight": 0.0,
    "ibot.mask_sample_probability": 0.0,
    "train.batch_size": 8 * 64,
    "train.steps": 100 * DINO_EPOCH,
    "teacher.momentum_teacher": 0.996,
    "teacher.teacher_temp": 0.04,
    "teacher.warmup_teacher_temp_steps": 0,
    "optim.base_lr": 0.001 * 2**0.5,
    "optim.warmup_steps": 10 * DINO_EPOCH,
    "optim.freeze_last_layer_steps": DINO_EPOCH,
    "optim.patch_embed_lr_mult": 1.0,
    "optim.layerwise_decay": 1.0,
}
BLUR = {"reference": (0.0, 0.9, 0.5), "intended": (1.0, 0.1, 0.5)}
EXPECTED = {
    "dino": DINO,
    "default": SHORT,
    "vitl16_short": SHORT,
    "vitl": LONG | {"model.arch": "vit_large", "train.group_size": 32},
    "vitg": LONG | {"model.arch": "vit_giant2", "train.group_size": 12},
}


def load(name):
    return importlib.import_module(f"configs.{name}").get_config()


@pytest.mark.parametrize("name", EXPECTED)
def test_equals_the_reference(name):
    flat = flattening.flatten(load(name))
    differing = {
        field: (flat[field], value)
        for field, value in EXPECTED[name].items()
        if flat[field] != value
    }
    assert not differing
    # Every field outside the loop's own affairs is compared above.
    own = ("data.", "mesh.", "log.", "evaluation.", "checkpoint.", "coding_rate.")
    assert not flat["distill.source"]
    own += ("distill.", "train.micro_batches", "optim.last_blocks", "optim.lora_")
    own += ("model.embed_dim", "model.depth", "model.num_heads", "model.dtype")
    own += (
        "model.block",
        "model.attention",
        "model.remat",
        "model.scan_unroll",
        "train.max_nonfinite_steps",
        "train.max_rollbacks",
        "train.hang_timeout",
    )
    own += ("gram.", "crops.policy", *(f"crops.{field}" for field in policies.FIELDS))
    assert {f for f in flat if not f.startswith(own)} <= set(EXPECTED[name])
    # Constants of the reference's data/augmentations.py.
    policy = dataclasses.asdict(policies.make_policy(load(name)))
    assert policy.pop("in_color")
    assert policy == {
        "flip_probability": 0.5,
        "vertical_flip_probability": 0.0,
        "quarter_turn_probability": 0.0,
        "jitter_probability": 0.8,
        "brightness": 0.4,
        "contrast": 0.4,
        "saturation": 0.2,
        "hue": 0.1,
        "grayscale_probability": 0.2,
        "solarize_probability": 0.2,
        "blur_probabilities": BLUR[EXPECTED[name]["crops.blur"]],
    }


@pytest.mark.parametrize("name", NAMES)
def test_passes_the_check_and_is_locked(name):
    c = load(name)
    if name == "highres":  # a stage after a run, which must be given
        c.init.source = "runs/vitl"
    checking.check(c)
    assert c.is_locked
    assert set(flattening.flatten(c)) == set(flattening.flatten(default.get_config()))
    with pytest.raises(AttributeError):
        c.optim.learning_rate = 1.0


def test_the_first_dino_has_its_learning_rate():
    """Twice 0.0005 at the batch of 512, by its linear rule."""
    base = load("dino").optim.base_lr
    assert schedules.scaled_lr(base, 512) == pytest.approx(0.001, rel=1e-12)


def test_all_configs_are_found():
    assert {"default", "vits", "vitb", "vitl", "vitg", "quickstart", "debug"} < set(
        NAMES
    )

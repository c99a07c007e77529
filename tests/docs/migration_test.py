"""The tables of docs/migration.md against what the code does."""

import dataclasses
import fnmatch
import re

import guides
import pytest
import yaml

from dinov2_jax.config import converted_config, flattening
from dinov2_jax.configs import default
from dinov2_jax.models import model_config
from dinov2_jax.weights import huggingface

DEFAULTS = flattening.flatten(default.get_config())
PAGE = (guides.ROOT / "docs/migration.md").read_text()
# The fields of the reference's ssl_default_config.yaml, with a value that is not the
# default where they have a counterpart of another name.
REFERENCE = {
    "student.arch": "vit_base",
    "student.patch_size": 14,
    "student.drop_path_rate": 0.25,
    "student.drop_path_uniform": False,
    "student.layerscale": 0.5,
    "student.ffn_layer": "swiglufused",
    "student.qkv_bias": False,
    "student.proj_bias": False,
    "student.ffn_bias": False,
    "student.num_register_tokens": 4,
    "student.interpolate_offset": 0.0,
    "student.interpolate_antialias": True,
    "student.pretrained_weights": "a.pth",
    "train.batch_size_per_gpu": 32,
    "train.centering": "sinkhorn_knopp",
    "train.num_workers": 3,
    "train.seed": 7,
    "train.dataset_path": "ImageNet:split=TRAIN:root=/data:extra=/extra",
    "evaluation.eval_period_iterations": 99,
    "optim.epochs": 7,
    "optim.warmup_epochs": 7,
    "optim.freeze_last_layer_epochs": 7,
    "teacher.warmup_teacher_temp_epochs": 7,
    "optim.scaling_rule": "sqrt_wrt_1024",
    "MODEL.WEIGHTS": "",
    "compute_precision.grad_scaler": True,
    "optim.lr": 0.0,
    "student.block_chunks": 4,
    "train.output_dir": ".",
    "train.saveckp_freq": 20,
    "train.cache_dataset": True,
}
SAME = """
crops: global_crops_scale local_crops_number local_crops_scale global_crops_size
  local_crops_size
dino: loss_weight head_n_prototypes head_bottleneck_dim head_nlayers head_hidden_dim
  koleo_loss_weight
ibot: loss_weight mask_sample_probability mask_ratio_min_max separate_head
  head_n_prototypes head_bottleneck_dim head_nlayers head_hidden_dim
optim: weight_decay weight_decay_end base_lr min_lr clip_grad
  patch_embed_lr_mult layerwise_decay adamw_beta1 adamw_beta2
teacher: momentum_teacher final_momentum_teacher warmup_teacher_temp teacher_temp
"""


def table(head: str) -> list[list[str]]:
    """The cells of the rows below a head, without those of the dashes."""
    rows = PAGE.partition(head)[2].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


ROWS = table("| field of the reference |")
RENAMED = [row for row in ROWS if not row[0].startswith("all other fields")]


def fields_of(row: list[str]) -> list[str]:
    """The fields of the reference that a row is about."""
    return [n for named in names(row[0]) for n in fnmatch.filter(REFERENCE, named)]


@pytest.mark.parametrize("row", RENAMED, ids=lambda row: row[0])
def test_fields_of_the_reference(row, tmp_path):
    assert fields_of(row)
    for name in fields_of(row):
        section, field = name.split(".")
        path = tmp_path / "a.yaml"
        path.write_text(yaml.dump({section: {field: REFERENCE[name]}}))
        values = flattening.flatten(converted_config.read(path)[0])
        changed = [n for n in values if values[n] != DEFAULTS[n]]
        assert changed == names(row[1])


def test_every_field_of_the_reference_is_in_the_table():
    assert sorted(n for row in RENAMED for n in fields_of(row)) == sorted(REFERENCE)


def test_fields_of_the_same_name():
    (row,) = [row for row in ROWS if row not in RENAMED]
    sections = yaml.safe_load(SAME)
    assert sorted(names(row[0])) == sorted(sections)
    for section, fields in sections.items():
        assert {f"{section}.{field}" for field in fields.split()} <= DEFAULTS.keys()


CHANGES = {
    "embed_dim": 768,
    "depth": 3,
    "num_heads": 12,
    "patch_size": 16,
    "image_size": 112,
    "in_chans": 4,
    "ffn_ratio": 2.0,
    "qkv_bias": False,
    "ffn_layer": "swiglufused",
    "num_register_tokens": 5,
}


def test_fields_of_transformers():
    released = model_config.released("vit_small", registers=True)
    before = huggingface.config(released)
    rows = {names(here)[0]: names(there)[0] for there, here, *_ in table("| `Dinov2C")}
    assert rows.keys() == CHANGES.keys()
    for here, there in rows.items():
        changed = dataclasses.replace(released, **{here: CHANGES[here]})
        after = huggingface.config(changed)
        assert [n for n in after if after[n] != before[n]] == [there]
        if here != "ffn_layer":
            assert after[there] == CHANGES[here]

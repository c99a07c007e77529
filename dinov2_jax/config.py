"""Checks of a config, made before a device is used or data is opened."""

import difflib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from dinov2_jax import errors
from dinov2_jax.augment import crop_sizes, policies
from dinov2_jax.data.sources import registry
from dinov2_jax.losses import dino
from dinov2_jax.models import model_config

# Fields, or prefixes of fields, that may change when a run is resumed.
HARMLESS = (
    "train.steps",
    "train.max_nonfinite_steps",
    "train.max_rollbacks",
    "train.hang_timeout",
    "train.micro_batches",
    "data.workers",
    "data.prefetch",
    "data.timeout",
    "data.max_bad_share",
    "model.attention",
    "model.block",
    "model.remat",
    "model.scan_unroll",
    "mesh.",
    "distill.source",  # WORKDIR/teacher.json tells whether it is the same
    "checkpoint.every",
    "checkpoint.minutes",
    "checkpoint.keep_last",
    "checkpoint.keep_every",
    "log.",
    "evaluation.",
)
# Evaluations of `evaluation.tasks` and whether they need labels; `eval.in_loop` has a
# function for each.
EVALUATIONS = {"knn": True, "logreg": True, "matching": False}
# Fields of `evaluation` that change no measure, so a run that keeps its best may too.
_UNMEASURED = ("evaluation.every", "evaluation.batch_size", "evaluation.picture_size")
_PLACES = ("data.path", "data.mixture")  # of the images; a run may follow them
_PATHS = (
    *("data.path", "init.source", "gram.source"),
    *("evaluation.train_path", "evaluation.val_path"),
)
_CHOICES = {
    "data.source": registry.CHOICES,
    "data.augmentation": ("device", "host"),
    "crops.policy": tuple(policies.POLICIES),
    "crops.blur": tuple(policies.BLUR_PROBABILITIES),
    "distill.which": ("", "teacher", "student"),
    "distill.objective": ("prototypes", "features"),
    "distill.patches": ("all", "masked"),
    "distill.views": tuple(dino.VIEWS),
    "distill.features.loss": ("mse", "cosine"),
    "distill.features.standardize": ("global", "channel", "none"),
    "distill.features.head": ("linear", "mlp"),
    "model.dtype": ("auto", "float32", "bfloat16"),
    "model.attention": (
        *("auto", "xla", "by_image", "by_block", "cudnn"),
        *("pallas_tpu", "pallas_gpu"),
    ),
    "model.remat": ("none", "selective", "full"),
    "model.arch": (*model_config.ARCHS, "custom"),
    "model.block": ("plain", "folded"),
    "init.which": ("", "teacher", "student"),
    "init.heads": ("fresh", "loaded"),
    "optim.name": ("adamw",),
    "train.objective": ("prototypes", "coding_rate"),
    "optim.trainable": ("all", "last", "lora"),
    "checkpoint.keep_best": ("", "all", *EVALUATIONS),
    "train.centering": ("centering", "sinkhorn_knopp"),
    "evaluation.photos_split": ("val", "test"),
}
_POSITIVE = (
    "crops.global_crops_size crops.local_crops_size model.scan_unroll "
    "train.batch_size train.group_size train.micro_batches train.steps "
    "train.max_nonfinite_steps dino.head_n_prototypes dino.head_bottleneck_dim "
    "dino.head_nlayers dino.head_hidden_dim ibot.head_n_prototypes "
    "ibot.head_bottleneck_dim ibot.head_nlayers ibot.head_hidden_dim "
    "mesh.heartbeat_timeout checkpoint.every checkpoint.keep_last log.every "
    "data.max_pixels teacher.warmup_teacher_temp teacher.teacher_temp "
    "evaluation.batch_size evaluation.image_size evaluation.resize_size "
    "evaluation.picture_size evaluation.knn_temperature evaluation.matching_images "
    "optim.base_lr optim.layerwise_decay distill.patch_share "
    "distill.features.calibration_images coding_rate.weight coding_rate.eps "
    "gram.refresh_every optim.last_blocks optim.lora_rank optim.lora_alpha"
).split()
_NOT_NEGATIVE = (
    "data.workers data.prefetch data.timeout train.max_rollbacks train.hang_timeout "
    "train.sinkhorn_queue "
    "crops.local_crops_number "
    "dino.loss_weight "
    "dino.koleo_loss_weight dino.local_loss_weight ibot.loss_weight "
    "gram.loss_weight gram.start gram.refreshes "
    "optim.min_lr optim.warmup_steps optim.weight_decay optim.weight_decay_end "
    "optim.clip_grad optim.freeze_last_layer_steps optim.patch_embed_lr_mult "
    "teacher.warmup_teacher_temp_steps checkpoint.keep_every evaluation.every seed "
    "checkpoint.minutes evaluation.max_images init.heads_only_steps mesh.replica "
    "mesh.fsdp mesh.processes mesh.devices distill.teacher_size "
    "distill.features.cls_weight distill.features.patch_weight"
).split()
_SHARES = (
    "data.max_bad_share model.drop_path_rate ibot.mask_sample_probability "
    "teacher.momentum_teacher teacher.final_momentum_teacher optim.adamw_beta1 "
    "optim.adamw_beta2 distill.patch_share"
).split()
_LISTS = (
    "data.mean data.std data.value_range crops.global_crops_scale "
    "crops.local_crops_scale crops.sizes ibot.mask_ratio_min_max evaluation.knn_k "
    "evaluation.tasks evaluation.other_sizes"
).split()
# Options of the architecture; `model.arch` and `crops` give the others.
_ARCHITECTURE = {
    f"model.{name}": rule
    for name, rule in model_config.RULES.items()
    if name not in (*model_config.SIZES, "image_size")
}
_FLOAT32_MAX = 3.4e38
_INT32, _INT64 = 2**31, 2**63  # of arrays and of sizes
_SEEDS = 2**32  # jax takes seeds below this
# Names that fields had before: old runs resume, and old flags are told the new name.
_RENAMED = {"init.from": "init.source"}
# Fields missing from the config.json of older runs, with the values those runs used.
_STARTS_FROM = {
    "init.source": "",
    "init.which": "",
    "init.heads": "fresh",
    "init.heads_only_steps": 0,
}
_DISTILL = {
    "distill.source": "",
    "distill.which": "",
    "distill.objective": "prototypes",
    "distill.patches": "all",
    "distill.patch_share": 1.0,
    "distill.views": "other",
    "distill.teacher_size": 0,
    "distill.students": [],
    "distill.features.cls_weight": 1.0,
    "distill.features.patch_weight": 1.0,
    "distill.features.loss": "mse",
    "distill.features.standardize": "global",
    "distill.features.head": "linear",
    "distill.features.calibration_images": 4096,
}
_ADDED = {
    **_STARTS_FROM,
    "data.mixture": [],
    "data.augmentation": "host",
    "data.exif_orientation": False,
    "data.value_range": [],
    "data.mean": [],
    "data.std": [],
    "crops.policy": "rgb",
    "crops.sizes": [],
    "evaluation.other_sizes": [],
    "optim.name": "adamw",
    "optim.trainable": "all",
    "optim.last_blocks": 4,
    "optim.lora_rank": 16,
    "optim.lora_alpha": 16.0,
    "optim.lora_ffn": False,
    "checkpoint.keep_best": "",
    "model.block": "folded",
    "train.micro_batches": 1,
    **_DISTILL,
    "train.objective": "prototypes",
    "train.sinkhorn_queue": 0,
    "coding_rate.weight": 1.0,
    "coding_rate.eps": 0.05,
    "dino.local_loss_weight": 1.0,
    "gram.loss_weight": 0.0,
    "gram.source": "",
    "gram.start": 0,
    "gram.refresh_every": 10_000,
    "gram.refreshes": 3,
    "gram.scale": 1.0,
    "gram.undistorted": True,
    **{f"crops.{name}": None for name in policies.FIELDS},
}


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten a ConfigDict or nested dict to {"optim.base_lr": 0.004, ...}."""
    flat = {}
    for name, value in config.items():
        if hasattr(value, "items"):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def unknown_field(name: str, known: Iterable[str]) -> str:
    """Return the message for a field that no config has.

    Args:
      name: The field, such as "optim.base_lrr".
      known: The fields that there are.
    """
    if name in _RENAMED:
        return f"config field {name} is called --config.{_RENAMED[name]} now"
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean --config.{close[0]}?" if close else ""
    return f"unknown config field {name}{hint}"


def check(config: Any) -> None:
    """Raise one `UserError` that lists all problems of a config, if it has any."""
    problems = list(_problems(config))
    if problems:
        raise errors.UserError("; ".join(problems))


def _problems(config: Any) -> Iterator[str]:
    flat = flatten(config)
    required = {*_CHOICES, *_POSITIVE, *_NOT_NEGATIVE, *_SHARES, *_LISTS}
    missing_fields = {*required, *_ARCHITECTURE} - flat.keys()
    if missing_fields:
        more = f" and {len(missing_fields) - 3} more" if len(missing_fields) > 3 else ""
        yield (
            f"the config is missing {', '.join(sorted(missing_fields)[:3])}{more}: "
            "start it with `c = default.get_config()` from configs/default.py"
        )
        return
    num_problems = 0

    def bad(name: str, fix: str) -> str:
        nonlocal num_problems
        num_problems += 1
        return f"{name} = {flat[name]!r}: {fix}"

    for name, choices in _CHOICES.items():
        if flat[name] not in choices:
            yield bad(name, f"choose one of {', '.join(filter(None, choices))}")
    for name, rule in _ARCHITECTURE.items():
        if not rule.is_valid(flat[name]):
            yield bad(name, f"must be {rule.words}")
    for name in _POSITIVE:
        if not flat[name] > 0:
            yield bad(name, "must be above 0")
    for name in _NOT_NEGATIVE:
        if not flat[name] >= 0:
            yield bad(name, "must not be negative")
    for name in _SHARES:
        if not 0 <= flat[name] <= 1:
            yield bad(name, "must be between 0 and 1")
    for name in ("crops.global_crops_scale", "crops.local_crops_scale"):
        if not _is_range(flat[name]) or not flat[name][0] > 0:
            yield bad(name, "must be two fractions of the area, 0 < low <= high <= 1")
    for name in ("optim.adamw_beta1", "optim.adamw_beta2"):
        if flat[name] == 1:
            yield bad(name, "must be below 1: the bias correction divides by 1 - beta")
    for name, value in flat.items():
        most = (
            _SEEDS
            if name == "seed"
            else _INT64
            if name == "data.max_pixels"
            else _INT32
        )
        if isinstance(value, int) and value >= most:
            yield bad(name, f"must be below {most}")
    neighbours = flat["evaluation.knn_k"]
    if not neighbours or not all(isinstance(k, int) and k > 0 for k in neighbours):
        yield bad("evaluation.knn_k", "must be numbers of neighbours, each above 0")
    if not all(isinstance(x, int) and x > 0 for x in flat["evaluation.other_sizes"]):
        yield bad("evaluation.other_sizes", "must be sizes in px, each above 0")
    for task in flat["evaluation.tasks"]:
        if task not in EVALUATIONS:
            choices = ", ".join(EVALUATIONS)
            yield bad("evaluation.tasks", f"{task!r} is none of {choices}")
    for name, value in flat.items():
        if isinstance(value, float) and abs(value) >= _FLOAT32_MAX:
            yield bad(name, "must be a finite float32")
    value_range = flat["data.value_range"]
    if len(value_range) and not (len(value_range) == 2 and _ascending(value_range)):
        yield bad("data.value_range", "must be () or two numbers, (low, high)")
    for name in ("data.mean", "data.std"):
        if not all(map(_is_finite, flat[name])):
            yield bad(name, "must be finite numbers, one per channel")
        elif name == "data.std" and not all(value > 0 for value in flat[name]):
            yield bad(name, "must be above 0")
    if not _is_range(flat["ibot.mask_ratio_min_max"]):
        yield bad(
            "ibot.mask_ratio_min_max", "must be two fractions, 0 <= low <= high <= 1"
        )
    if num_problems:
        return  # the checks below divide by these numbers
    yield from _combinations(flat)


def _is_range(value: Any) -> bool:
    return (
        len(value) == 2
        and all(map(_is_finite, value))
        and 0 <= value[0] <= value[1] <= 1
    )


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < _FLOAT32_MAX


def _ascending(values: Any) -> bool:
    return all(map(_is_finite, values)) and values[0] < values[1]


def _combinations(flat: dict[str, Any]) -> Iterator[str]:
    patch = flat["model.patch_size"]
    names = [
        "crops.global_crops_size",
        "evaluation.image_size",
        "evaluation.picture_size",
    ]
    if flat["crops.local_crops_number"]:
        names.append("crops.local_crops_size")
    sizes = [(name, flat[name]) for name in names]
    sizes += [("evaluation.other_sizes", x) for x in flat["evaluation.other_sizes"]]
    for name, size in sizes:
        if size % patch:
            lower = size // patch * patch
            near = f"{lower} or {lower + patch}" if lower else f"{patch}"
            yield (
                f"{name} = {size} is not a multiple of model.patch_size = {patch}: "
                f"use {near}"
            )
    batch, group = flat["train.batch_size"], flat["train.group_size"]
    if batch % group:
        yield (
            f"train.batch_size = {batch} is not a multiple of train.group_size = "
            f"{group}: use {max(batch // group, 1) * group}"
        )
    if flat["dino.koleo_loss_weight"] and group < 2:
        yield (
            "train.group_size = 1 leaves KoLeo without a neighbour: raise it or set "
            "--config.dino.koleo_loss_weight=0"
        )
    if not any(
        flat[f"{name}"]
        for name in (
            *("dino.loss_weight", "ibot.loss_weight", "dino.koleo_loss_weight"),
            "gram.loss_weight",
        )
    ):
        yield "every loss weight is 0: set --config.dino.loss_weight=1"
    yield from _objective(flat)
    yield from _fixed_sizes(flat)
    if flat["model.arch"] == "custom":
        dim, heads = flat["model.embed_dim"], flat["model.num_heads"]
        sizes = {name: flat[f"model.{name}"] for name in model_config.SIZES}
        valid = all(model_config.RULES[n].is_valid(v) for n, v in sizes.items())
        if not valid or model_config.inconsistency(sizes):
            yield (
                f"model.arch = 'custom' with embed_dim = {dim}, num_heads = {heads}, "
                f"depth = {flat['model.depth']}: all must be above 0 and heads must "
                "divide embed_dim"
            )
    elif any(flat[f"model.{name}"] for name in model_config.SIZES):
        yield (
            f"model.embed_dim, depth and num_heads are set by model.arch = "
            f"{flat['model.arch']!r}: leave them 0 or set --config.model.arch=custom"
        )
    for name in ("data.path", "data.tfds_name"):
        if flat["data.source"] == "photos" and flat[name]:
            yield (
                f"{name} = {flat[name]!r} has no effect with data.source = 'photos': "
                "set --config.data.source=auto"
            )
    yield from policies.problems(flat)
    yield from crop_sizes.problems(flat)
    yield from _channels(flat)
    yield from _gram(flat)
    if flat["optim.warmup_steps"] > flat["train.steps"]:
        yield (
            f"optim.warmup_steps = {flat['optim.warmup_steps']} exceeds train.steps = "
            f"{flat['train.steps']}: lower --config.optim.warmup_steps"
        )
    if not flat["init.source"] and flat["init.heads"] == "loaded":
        yield (
            "init.source is empty, but init.heads = 'loaded' continues a run: set "
            "--config.init.source=WORKDIR, or another source of weights with heads"
        )
    elif not flat["init.source"]:
        for name, value in _STARTS_FROM.items():
            if flat[name] != value:
                yield (
                    f"{name} = {flat[name]!r} has no effect without initial weights: "
                    "set --config.init.source=..."
                )
    yield from _distillation(flat)
    if flat["init.heads_only_steps"] > flat["train.steps"]:
        yield (
            f"init.heads_only_steps = {flat['init.heads_only_steps']} exceeds "
            f"train.steps = {flat['train.steps']}: lower --config.init.heads_only_steps"
        )
    if flat["optim.trainable"] != "all" and not flat["init.source"]:
        yield (
            f"optim.trainable = {flat['optim.trainable']!r} would keep random weights: "
            "set --config.init.source=..., or --config.optim.trainable=all"
        )
    depth = (
        flat["model.depth"]
        or dict(
            zip(
                model_config.SIZES,
                model_config.ARCHS.get(flat["model.arch"], (0, 0, 0)),
            )
        )["depth"]
    )
    if flat["optim.trainable"] == "last" and flat["optim.last_blocks"] > depth:
        yield (
            f"optim.last_blocks = {flat['optim.last_blocks']} exceeds the {depth} "
            "blocks of the model: lower --config.optim.last_blocks"
        )
    yield from _keep_best(flat)
    if flat["evaluation.resize_size"] < flat["evaluation.image_size"]:
        yield (
            f"evaluation.resize_size = {flat['evaluation.resize_size']} is below "
            f"evaluation.image_size = {flat['evaluation.image_size']}: raise it"
        )
    train, val = (flat[f"evaluation.{name}_path"] for name in ("train", "val"))
    if train and not val:
        yield "set evaluation.val_path too, or leave evaluation.train_path empty"
    labelled = [task for task in flat["evaluation.tasks"] if EVALUATIONS[task]]
    if val and not train and labelled:
        yield (
            f"{labelled[0]} needs labelled images to learn from: set both "
            "evaluation.train_path and evaluation.val_path, or neither"
        )


def _distillation(flat: dict[str, Any]) -> Iterator[str]:
    students, source = flat["distill.students"], flat["distill.source"]
    if students and not source:
        yield "distill.students has no effect without a teacher: set distill.source=..."
    if students and flat["checkpoint.keep_best"]:
        yield (
            f"checkpoint.keep_best = {flat['checkpoint.keep_best']!r} is for one "
            "student: set --config.checkpoint.keep_best= for several"
        )
    if students and flat["init.source"]:
        yield (
            "init.source starts one student, but distill.students names "
            f"{len(students)}: leave one of them empty"
        )
    if not source:
        return
    if flat["distill.patches"] == "all" and flat["ibot.mask_sample_probability"]:
        yield (
            "distill.patches = 'all' has no use for masks: set "
            "--config.ibot.mask_sample_probability=0"
        )
    if flat["distill.patches"] == "masked" and not flat["ibot.mask_sample_probability"]:
        yield (
            "distill.patches = 'masked', but nothing is masked: set "
            "--config.ibot.mask_sample_probability=0.5 or distill.patches=all"
        )
    if flat["distill.objective"] == "features" and flat["crops.local_crops_number"]:
        yield (
            "distill.objective = 'features' learns from global crops only: set "
            "--config.crops.local_crops_number=0"
        )
    if flat["train.objective"] != "prototypes":
        yield (
            f"train.objective = {flat['train.objective']!r} has no effect with a "
            "frozen teacher, for which distill.objective is: set "
            "--config.train.objective=prototypes"
        )
    if flat["gram.loss_weight"]:
        yield (
            f"gram.loss_weight = {flat['gram.loss_weight']}: a frozen teacher needs no "
            "anchor, set --config.gram.loss_weight=0"
        )
    if flat["train.sinkhorn_queue"]:
        yield (
            f"train.sinkhorn_queue = {flat['train.sinkhorn_queue']}: a frozen teacher "
            "has no queue, set --config.train.sinkhorn_queue=0"
        )


def _objective(flat: dict[str, Any]) -> Iterator[str]:
    simdino = flat["train.objective"] == "coding_rate"
    if simdino and flat["dino.koleo_loss_weight"]:
        yield (
            f"dino.koleo_loss_weight = {flat['dino.koleo_loss_weight']} has no effect "
            "with train.objective = 'coding_rate', which spreads features itself: set "
            "--config.dino.koleo_loss_weight=0"
        )
    if simdino and not flat["dino.loss_weight"]:
        yield (
            "dino.loss_weight = 0 switches the coding rate off, without which all "
            "features become equal: set --config.dino.loss_weight=1"
        )
    if flat["train.sinkhorn_queue"] and (
        simdino or flat["train.centering"] != "sinkhorn_knopp"
    ):
        balanced = "--config.train.centering=sinkhorn_knopp"
        fix = "--config.train.sinkhorn_queue=0" if simdino else balanced
        yield (
            f"train.sinkhorn_queue = {flat['train.sinkhorn_queue']} has no effect "
            f"without Sinkhorn-Knopp: set {fix}"
        )


def _fixed_sizes(flat: dict[str, Any]) -> Iterator[str]:
    """Yield what crops of several sizes exclude."""
    if not flat["crops.sizes"]:
        return
    if flat["train.sinkhorn_queue"]:
        yield (
            f"train.sinkhorn_queue = {flat['train.sinkhorn_queue']} needs batches of "
            "one size: set --config.crops.sizes=() or --config.train.sinkhorn_queue=0"
        )
    if flat["gram.loss_weight"] and flat["gram.scale"] != 1:
        yield (
            f"gram.scale = {flat['gram.scale']} needs crops of one size: set "
            "--config.crops.sizes=() or --config.gram.scale=1"
        )


def _keep_best(flat: dict[str, Any]) -> Iterator[str]:
    keep_best, tasks = flat["checkpoint.keep_best"], flat["evaluation.tasks"]
    if not keep_best:
        return
    if keep_best != "all" and keep_best not in tasks:
        yield (
            f"checkpoint.keep_best = {keep_best!r} is not measured: add it to "
            "evaluation.tasks"
        )
    has_labels = flat["evaluation.train_path"] or flat["data.source"] == "photos"
    judges = tasks if keep_best == "all" else [keep_best]
    if not has_labels and all(EVALUATIONS[task] for task in judges):
        yield (
            f"checkpoint.keep_best = {keep_best!r} needs labelled images: set "
            "evaluation.train_path and evaluation.val_path, or measure without labels: "
            "--config.evaluation.tasks=\"('matching',)\" "
            "--config.checkpoint.keep_best=matching"
        )


def _channels(flat: dict[str, Any]) -> Iterator[str]:
    channels = flat["model.in_chans"]
    if channels not in (1, 3) and flat["data.source"] == "photos":
        yield (
            f"model.in_chans = {channels}: the photos source has 3 channels or 1: set "
            "--config.model.in_chans=3 or another --config.data.source"
        )
    for name in ("data.mean", "data.std"):
        given = len(flat[name])
        if given != channels and (given or channels != 3):
            yield (
                f"{name} has {given} values for model.in_chans = {channels}: set "
                f"--config.{name} to what `python -m dinov2_jax.data stats PATH "
                f"--channels {channels}` prints"
            )


def _gram(flat: dict[str, Any]) -> Iterator[str]:
    source, start, scale = (flat[f"gram.{n}"] for n in ("source", "start", "scale"))
    if not flat["gram.loss_weight"]:
        if source:
            yield (
                f"gram.source = {source!r} has no effect without the loss: set "
                "--config.gram.loss_weight=2"
            )
        return
    if start >= flat["train.steps"]:
        yield (
            f"gram.start = {start} is not below train.steps = {flat['train.steps']}: "
            "lower it"
        )
    if flat["gram.undistorted"] and flat["data.augmentation"] == "host":
        yield (
            "gram.undistorted = True needs crops that the device augments: set "
            "--config.data.augmentation=device or --config.gram.undistorted=False"
        )
    if scale != 1 and not flat["gram.undistorted"]:
        yield (
            f"gram.scale = {scale} is for undistorted crops: set "
            "--config.gram.undistorted=True or --config.gram.scale=1"
        )
    size, patch = flat["crops.global_crops_size"], flat["model.patch_size"]
    side = round(size * scale)
    if scale < 1:
        yield f"gram.scale = {scale}: must be at least 1"
    elif size % patch == 0 and (side % patch or abs(size * scale - side) > 1e-3):
        near = round(size * scale / patch) * patch / size
        yield (
            f"gram.scale = {scale} makes crops of {size * scale:g} px, not a multiple "
            f"of model.patch_size = {patch}: use {near:.9g}"
        )


def check_cluster(config: Any, num_processes: int, num_devices: int) -> None:
    """Raise `UserError` unless processes and devices are as many as the config says.

    Without this check, every host that finds no cluster would train its own model.
    """
    actual = {"processes": num_processes, "devices": num_devices}
    mismatches = [
        f"mesh.{name} = {config.mesh[name]}, but there are {actual[name]}"
        for name in actual
        if config.mesh[name] and config.mesh[name] != actual[name]
    ]
    if not mismatches:
        return
    fix = "find out why the others are missing (docs/launch.md) or change the field"
    if num_processes == 1 < config.mesh.processes:
        fix = (
            "jax found no cluster here: start the run with launch/, or give "
            "--coordinator, --num_processes and --process_id"
        )
    raise errors.UserError(f"{'; '.join(mismatches)}: {fix}")


def check_devices(config: Any, num_devices: int) -> None:
    """Raise `UserError` unless the devices fill the mesh and divide the groups."""
    replica, fsdp = config.mesh.replica, config.mesh.fsdp
    if replica and fsdp and replica * fsdp != num_devices:
        raise errors.UserError(
            f"mesh.replica = {replica} times mesh.fsdp = {fsdp} is {replica * fsdp}, "
            f"but there are {num_devices} devices: set one of them to 0 to infer it"
        )
    for name, size in (("replica", replica), ("fsdp", fsdp)):
        if size and num_devices % size:
            raise errors.UserError(
                f"mesh.{name} = {size} does not divide the {num_devices} devices: use "
                f"a divisor of {num_devices}"
            )
    batch, group = config.train.batch_size, config.train.group_size
    groups, parts = batch // group, config.train.micro_batches
    if groups % num_devices:
        valid_sizes = [
            size
            for size in range(2, batch + 1)
            if batch % size == 0 and batch // size % num_devices == 0
        ]
        nearest = min(valid_sizes, key=lambda size: abs(size - group), default=None)
        fix = (
            f"use --config.train.group_size={nearest}"
            if nearest
            else f"use a --config.train.batch_size that is a multiple of {num_devices}"
        )
        raise errors.UserError(
            f"{num_devices} devices do not divide the {groups} groups of a batch "
            f"(train.batch_size = {batch}, train.group_size = {group}): {fix}"
        )
    if groups // num_devices % parts:
        on_device = groups // num_devices
        fitting = max(n for n in range(1, parts) if on_device % n == 0)
        raise errors.UserError(
            f"train.micro_batches = {parts} does not divide the {on_device} groups of "
            f"a device (train.batch_size = {batch}, train.group_size = {group}, "
            f"{num_devices} devices): use --config.train.micro_batches={fitting} or "
            "smaller groups"
        )


def _same_kind(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether `data.source` went from "auto" to a kind it may detect, or back."""
    kinds = {before.get("data.source"), now.get("data.source")}
    return "auto" in kinds and "photos" not in kinds


def check_resume(config: Any, workdir: pathlib.Path) -> None:
    """Refuse to resume a run with a config that would make it a different run.

    Raises:
      UserError: Fields outside `HARMLESS` differ from WORKDIR/config.json.
    """
    fields = differing(config, workdir)
    if fields:
        raise errors.UserError(
            f"the run in {workdir} was started with another config "
            f"({'; '.join(fields)}): undo the change or choose another --workdir"
        )


def differing(config: Any, workdir: pathlib.Path) -> list[str]:
    """List the fields that differ from WORKDIR/config.json and make another run.

    Those in `HARMLESS` and the places of the images do not. The list is empty if there
    is no such file.

    Raises:
      UserError: The file is damaged.
    """
    return [text for name, text in _changes(config, workdir) if name not in _PLACES]


def moved(config: Any, workdir: pathlib.Path) -> list[str]:
    """List the fields that name other places of the images than WORKDIR/config.json.

    Whether the images are the same, their fingerprint tells. Raises as `differing`.
    """
    return [text for name, text in _changes(config, workdir) if name in _PLACES]


def _changes(config: Any, workdir: pathlib.Path) -> list[tuple[str, str]]:
    """Return (name, description) of the fields that differ and are not harmless."""
    path = pathlib.Path(workdir) / "config.json"
    if not path.exists():
        return []
    before = read_saved(path)
    now = flatten(json.loads(config.to_json_best_effort()))
    keeps_best = before["checkpoint.keep_best"] and now.get("checkpoint.keep_best")
    # All values that choose the best weights must be measured alike.
    harmless = (
        (*(n for n in HARMLESS if n != "evaluation."), *_UNMEASURED)
        if keeps_best
        else HARMLESS
    )
    return [
        (
            name,
            f"{name}: {before.get(name, 'not set')!r} -> {now.get(name, 'not set')!r}",
        )
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
        and not name.startswith(harmless)
        and not (name == "data.source" and _same_kind(before, now))
        and not (name in _PATHS and _same_path(before.get(name), now.get(name)))
    ]


def read_saved(path: pathlib.Path) -> dict[str, Any]:
    """Read the config.json of a run, flattened, with the names of today.

    Fields that it lacks because it is older have the values that such runs used.

    Raises:
      UserError: The file is damaged.
    """
    try:
        saved = flatten(json.loads(path.read_text()))
    except (ValueError, AttributeError) as error:  # no object
        raise errors.UserError(
            f"{path} is not valid JSON ({error}): restore it or use another --workdir"
        ) from error
    return _ADDED | {_RENAMED.get(name, name): v for name, v in saved.items()}


def _same_path(before: Any, now: Any) -> bool:
    """Return whether two paths name the same file or folder, perhaps by a link."""
    if not (isinstance(before, str) and isinstance(now, str) and before and now):
        return False
    paths = (os.path.realpath(os.path.expanduser(path)) for path in (before, now))
    return len(set(paths)) == 1

"""Checks of a config, made before a device is used or data is opened."""

from collections.abc import Iterator
from typing import Any

from dinov2_jax import errors
from dinov2_jax.augment import policies
from dinov2_jax.config import combinations, flattening
from dinov2_jax.data.sources import registry
from dinov2_jax.losses import views
from dinov2_jax.models import model_config
from dinov2_jax.trackers import backends

_CHOICES = {
    "data.source": registry.CHOICES,
    "data.augmentation": ("device", "host"),
    "crops.policy": tuple(policies.POLICIES),
    "crops.blur": tuple(policies.BLUR_PROBABILITIES),
    "distill.which": ("", "teacher", "student"),
    "distill.objective": ("prototypes", "features"),
    "distill.patches": ("all", "masked"),
    "distill.views": tuple(views.VIEWS),
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
    "checkpoint.keep_best": ("", "all", *combinations.EVALUATIONS),
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
    "gram.refresh_every gram.scale optim.last_blocks optim.lora_rank optim.lora_alpha"
).split()
_NOT_NEGATIVE = (
    "data.workers data.prefetch data.timeout train.max_rollbacks train.hang_timeout "
    "dino.sinkhorn_queue ibot.sinkhorn_queue "
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
    "evaluation.tasks evaluation.other_sizes log.trackers distill.students"
).split()
_TEXTS = ("log.project", "log.run_name")
# Options of the architecture; `model.arch` and `crops` give the others.
_ARCHITECTURE = {
    f"model.{name}": rule
    for name, rule in model_config.RULES.items()
    if name not in (*model_config.SIZES, "image_size")
}
_FLOAT32_MAX = 3.4e38
_INT32, _INT64 = 2**31, 2**63  # of arrays and of sizes
_SEEDS = 2**32  # jax takes seeds below this


def check(config: Any) -> None:
    """Raise one `UserError` that lists all problems of a config, if it has any."""
    problems = list(_problems(config))
    if problems:
        raise errors.UserError("; ".join(problems))


def _problems(config: Any) -> Iterator[str]:
    flat = flattening.flatten(config)
    required = {*_CHOICES, *_POSITIVE, *_NOT_NEGATIVE, *_SHARES, *_LISTS, *_TEXTS}
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

    for name in sorted(required.difference(_TEXTS)):
        if flat[name] is None:  # the one value of another type that a config takes
            yield bad(name, "must have a value; what is off is 0, () or ''")
    if num_problems:
        return
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
        if task not in combinations.EVALUATIONS:
            choices = ", ".join(combinations.EVALUATIONS)
            yield bad("evaluation.tasks", f"{task!r} is none of {choices}")
    for tracker in flat["log.trackers"]:
        if tracker not in backends.NAMES:
            choices = ", ".join(backends.NAMES)
            yield bad("log.trackers", f"{tracker!r} is none of {choices}")
    if len(set(flat["log.trackers"])) < len(flat["log.trackers"]):
        yield bad("log.trackers", "names a tracker twice")
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
    yield from combinations.problems(flat)


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
            else f"use a --config.train.batch_size that is a multiple of {num_devices} "
            f"from {2 * num_devices} on"
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

"""Fields that do not fit together, each valid by itself."""

from collections.abc import Iterator
from typing import Any

from dinov2_jax.augment import crop_sizes, policies
from dinov2_jax.models import model_config

# Evaluations of `evaluation.tasks` and whether they need labels; `eval.in_loop` has a
# function for each.
EVALUATIONS = {"knn": True, "logreg": True, "matching": False}
# What depends on a frozen teacher, with the values of a run without one.
OF_TEACHER = {
    "distill.objective": "prototypes",
    "distill.patches": "all",
    "distill.patch_share": 1.0,
    "distill.views": "other",
    "distill.teacher_size": 0,
    "distill.which": "",
    "distill.features.cls_weight": 1.0,
    "distill.features.patch_weight": 1.0,
    "distill.features.loss": "mse",
    "distill.features.standardize": "global",
    "distill.features.head": "linear",
    "distill.features.calibration_images": 4096,
}
# Initial weights, with the values of a run without any.
STARTS_FROM = {
    "init.source": "",
    "init.which": "",
    "init.heads": "fresh",
    "init.heads_only_steps": 0,
}


def problems(flat: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with a flat config whose fields are all valid."""
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
    yield from _losses(flat)
    yield from _masking(flat)
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
        for name, value in STARTS_FROM.items():
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


def _losses(flat: dict[str, Any]) -> Iterator[str]:
    """Yield a problem if nothing is learned."""
    if flat["distill.source"] and flat["distill.objective"] == "features":
        if not (
            flat["distill.features.cls_weight"] or flat["distill.features.patch_weight"]
        ):
            yield (
                "distill.features.cls_weight and patch_weight are both 0: set "
                "--config.distill.features.cls_weight=1"
            )
        return
    names = ["dino.loss_weight", "dino.koleo_loss_weight", "gram.loss_weight"]
    if flat["distill.source"] or _masks(flat):
        names.append("ibot.loss_weight")
    if any(flat[name] for name in names):
        return
    if flat["ibot.loss_weight"] and _asks_for_masks(flat):
        return  # `_masking` tells why there are none
    if flat["ibot.loss_weight"]:
        yield (
            "ibot.loss_weight is the only loss, but nothing is masked: set "
            "--config.ibot.mask_sample_probability=0.5"
        )
    else:
        yield "every loss weight is 0: set --config.dino.loss_weight=1"


def _asks_for_masks(flat: dict[str, Any]) -> bool:
    highest = flat["ibot.mask_ratio_min_max"][1]
    return bool(flat["ibot.mask_sample_probability"] and highest)


def _masks(flat: dict[str, Any]) -> bool:
    """Whether any patch is masked in a group: the counts are rounded down."""
    crops = 2 * flat["train.group_size"] * flat["ibot.mask_sample_probability"]
    grid = flat["crops.global_crops_size"] // flat["model.patch_size"]
    return int(crops) >= 1 and int(grid**2 * flat["ibot.mask_ratio_min_max"][1]) >= 1


def _masking(flat: dict[str, Any]) -> Iterator[str]:
    """Yield a problem if masks are asked for, but rounding leaves none."""
    if not _asks_for_masks(flat) or _masks(flat):
        return
    off = "--config.ibot.loss_weight=0"
    needed = flat["ibot.loss_weight"]
    if flat["distill.source"]:
        off = "--config.distill.patches=all --config.ibot.mask_sample_probability=0"
        needed = flat["distill.patches"] == "masked"
    if needed:
        yield (
            f"ibot.mask_sample_probability = {flat['ibot.mask_sample_probability']} "
            f"masks no patch in groups of {flat['train.group_size']} images with "
            f"ibot.mask_ratio_min_max = {flat['ibot.mask_ratio_min_max']}: raise one "
            f"of them, or set {off}"
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
        for name, value in OF_TEACHER.items():
            if flat[name] != value:
                yield (
                    f"{name} = {flat[name]!r} has no effect without a frozen teacher: "
                    "set --config.distill.source=..."
                )
        return
    centering = flat["train.centering"]
    if (
        students
        and flat["distill.objective"] == "prototypes"
        and centering != "sinkhorn_knopp"
    ):
        yield (
            f"train.centering = {centering!r}: several students share their targets, "
            "so set --config.train.centering=sinkhorn_knopp"
        )
    if flat["distill.patches"] == "masked" and flat["distill.patch_share"] != 1:
        yield (
            f"distill.patch_share = {flat['distill.patch_share']} has no effect with "
            "distill.patches = 'masked': set --config.distill.patch_share=1"
        )
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
    for queue in _queues(flat):
        yield (
            f"{queue} = {flat[queue]}: a frozen teacher has no queue, set "
            f"--config.{queue}=0"
        )


def _queues(flat: dict[str, Any]) -> list[str]:
    """Return the fields that ask for a queue."""
    names = ("dino.sinkhorn_queue", "ibot.sinkhorn_queue")
    return [name for name in names if flat[name]]


def _objective(flat: dict[str, Any]) -> Iterator[str]:
    simdino = flat["train.objective"] == "coding_rate"
    if simdino and flat["dino.koleo_loss_weight"]:
        yield (
            f"dino.koleo_loss_weight = {flat['dino.koleo_loss_weight']} has no effect "
            "with train.objective = 'coding_rate', which spreads features itself: set "
            "--config.dino.koleo_loss_weight=0"
        )
    if simdino and flat["gram.loss_weight"]:
        yield (
            f"gram.loss_weight = {flat['gram.loss_weight']} has no effect with "
            "train.objective = 'coding_rate': set --config.gram.loss_weight=0"
        )
    if simdino and flat["dino.local_loss_weight"] != 1:
        yield (
            f"dino.local_loss_weight = {flat['dino.local_loss_weight']} has no effect "
            "with train.objective = 'coding_rate': set "
            "--config.dino.local_loss_weight=1"
        )
    if simdino and flat["train.group_size"] < 2:
        yield (
            "train.group_size = 1: the coding rate of one image does not depend on its "
            "features, which then become equal: raise it"
        )
    if simdino and not flat["dino.loss_weight"]:
        yield (
            "dino.loss_weight = 0 switches the coding rate off, without which all "
            "features become equal: set --config.dino.loss_weight=1"
        )
    if simdino or flat["train.centering"] != "sinkhorn_knopp":
        balanced = "--config.train.centering=sinkhorn_knopp"
        for queue in _queues(flat):
            yield (
                f"{queue} = {flat[queue]} has no effect without Sinkhorn-Knopp: set "
                f"{f'--config.{queue}=0' if simdino else balanced}"
            )


def _fixed_sizes(flat: dict[str, Any]) -> Iterator[str]:
    """Yield what crops of several sizes exclude."""
    if not flat["crops.sizes"]:
        return
    for queue in _queues(flat):
        yield (
            f"{queue} = {flat[queue]} needs batches of one size: set "
            f"--config.crops.sizes=() or --config.{queue}=0"
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
    if keep_best != "all" and tasks and keep_best not in tasks:
        yield (
            f"checkpoint.keep_best = {keep_best!r} is not measured: add it to "
            "evaluation.tasks"
        )
    if not tasks:
        yield (
            f"checkpoint.keep_best = {keep_best!r} needs something to measure: set "
            "--config.evaluation.tasks=\"('knn','matching')\""
        )
        return
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

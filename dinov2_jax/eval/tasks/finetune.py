"""Supervised fine-tuning for classification.

The paper (section 7.1, table 5) uses the recipe of Touvron et al. 2022 with its numbers
untouched and states none of them; the reference has no code. So the protocol is `ours`,
with values that are usual for ViTs.
"""

import argparse
import dataclasses
from typing import Any

from dinov2_jax import cli
from dinov2_jax.eval.tasks import data_flags

_NUMBERS = (  # flag, type, default, help
    ("--steps", cli.positive, 2000, "(default: %(default)s)"),
    (
        "--train-batch-size",
        cli.positive,
        64,
        "images in a step, over all devices (default: %(default)s)",
    ),
    (
        "--group-size",
        cli.positive,
        8,
        "images that are mixed with each other and among which blocks skip some; it "
        "divides the batch, and as many devices are used as divide the number of "
        "groups (default: %(default)s)",
    ),
    ("--lr", float, 1e-4, "after the warm-up (default: %(default)s)"),
    ("--min-lr", float, 1e-6, "at the end of the cosine (default: %(default)s)"),
    ("--warmup-steps", cli.positive, None, "default: a tenth of --steps"),
    (
        "--layerwise-decay",
        float,
        0.75,
        "factor of the learning rate from each block to the one below (default: "
        "%(default)s)",
    ),
    ("--weight-decay", float, 0.05, "(default: %(default)s)"),
    (
        "--clip-grad",
        float,
        1.0,
        "largest norm of the gradients of the backbone and of the head; 0 for any "
        "(default: %(default)s)",
    ),
    (
        "--drop-path",
        float,
        0.1,
        "share of the images that each half of a block skips (default: %(default)s)",
    ),
    ("--smoothing", float, 0.1, "of the labels (default: %(default)s)"),
    ("--mixup", float, 0.8, "alpha of mixup, 0 for none (default: %(default)s)"),
    ("--cutmix", float, 1.0, "alpha of CutMix, 0 for none (default: %(default)s)"),
    (
        "--ema",
        float,
        0.0,
        "decay of an average of the weights, such as 0.999, which is then evaluated "
        "and saved; 0 for none (default: %(default)s)",
    ),
    ("--lora-alpha", float, 16.0, "the change is scaled by alpha / rank (16)"),
    ("--every", cli.positive, 500, "steps between saves (default: %(default)s)"),
    ("--seed", int, 0, "of head, order, crops and the rest (default: %(default)s)"),
)
_BELOW_ONE = ("drop_path", "smoothing", "ema")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the task.

    Args:
      parser: The task's parser.
    """
    data_flags.add_labelled(parser)
    data_flags.add_transform(parser)
    for flag, kind, default, about in _NUMBERS:
        parser.add_argument(flag, type=kind, default=default, help=about)
    data_flags.add_augmentation(parser)
    part = parser.add_mutually_exclusive_group()
    part.add_argument(
        "--last-blocks",
        type=cli.positive,
        default=0,
        metavar="N",
        help="train the last N blocks, the last norm and the head; default: everything",
    )
    part.add_argument(
        "--lora-rank",
        type=cli.positive,
        default=0,
        metavar="R",
        help="train the head and rank-R updates of the attention weights, such as "
        "8, with a larger --lr, such as 1e-3",
    )


def run(args: argparse.Namespace, backbone: Any) -> Any:
    """Fine-tune, evaluate, save and return a `report.Result`.

    Args:
      args: The parsed flags.
      backbone: The model, a `features.Backbone`.

    Raises:
      UserError: The images, the model and the flags do not fit.
    """
    import jax.numpy as jnp
    import numpy as np

    from dinov2_jax.data import preprocessing
    from dinov2_jax.eval import protocol_card, report
    from dinov2_jax.eval.classification import labelled, test_sets, train_crops
    from dinov2_jax.eval.finetuning import adaptation, finetuner, training

    prepare = backbone.prepare(args.resize, args.size)
    _check(args, backbone.model.module.config.depth)
    recipe = _recipe(args)
    train_source, val_source = labelled.open_train_and_val(args)
    classes = list(train_source.label_names)
    module, params = finetuner.at_size(
        backbone.model.module, backbone.model.params, args.size
    )
    part = adaptation.Adaptation(args.last_blocks, args.lora_rank, args.lora_alpha)
    tuner = finetuner.FineTuner(
        module.clone(dtype=jnp.dtype(backbone.dtype)),
        recipe,
        part,
        len(classes),
        tuple(prepare.mean),
        tuple(prepare.std),
    )
    order = train_crops.TrainOrder(len(train_source), recipe.batch_size, recipe.seed)

    def central(image, rng, size):
        return preprocessing.resize_and_crop(image.pixels(), args.resize, size)

    def batches(start):
        return train_crops.batches(
            train_source,
            order,
            size=args.size,
            seed=recipe.seed,
            start=start,
            stop=recipe.steps,
            workers=backbone.workers,
            cut=central if args.augmentation == "none" else train_crops.random_crop,
        )

    settings = {name: getattr(args, name) for name in ("resize", "size")}
    settings |= {"augmentation": args.augmentation}
    settings |= dataclasses.asdict(recipe) | dataclasses.asdict(part)
    identity = {
        "weights": backbone.digest,
        "dtype": backbone.dtype,
        "images": train_source.fingerprint,
    }
    tuned, course = training.fit(
        tuner,
        params,
        batches,
        path=args.out / "finetuning_state.npz",
        settings=settings | identity,
        every=args.every,
    )
    rows, labels, skipped = _features(
        args, backbone, module, tuned["backbone"], val_source, prepare
    )
    scores = rows @ np.asarray(tuned["head"]["kernel"])
    scores += np.asarray(tuned["head"]["bias"])
    numbers = {
        f"finetune/{name}": value
        for name, value in test_sets.accuracies(scores, labels, None).items()
    }
    model_path, note = _save(args.out, module, tuned, prepare, classes)
    card = protocol_card.make_card(
        "finetune",
        backbone,
        settings,
        reference={"size": None},  # it has no code for this
        prepare=prepare,
        fields={
            "trained": _trained(part),
            "optimizer": "AdamW, betas 0.9 and 0.999, cosine",
            "evaluated": "average of the weights" if recipe.ema else "last weights",
            "selected on": "nothing: the last step is evaluated",
            "train": f"{len(train_source)} images of {args.train_path}",
            "test": f"{len(labels)} images of {args.val_path}",
            "images left out": skipped,
            "saved": f"{model_path} and {args.out / 'head.pth'}",
        },
    )
    tables = [report.Table("Course", ("step", "mean loss"), course)]
    return report.Result(card, numbers, [note] if note else [], tables)


def _check(args: argparse.Namespace, depth: int) -> None:
    from dinov2_jax import errors

    batch, group = args.train_batch_size, args.group_size
    if batch % group:
        raise errors.UserError(
            f"--train-batch-size={batch} is not a multiple of --group-size={group}: "
            f"use --train-batch-size={-(-batch // group) * group}"
        )
    if args.last_blocks > depth:
        raise errors.UserError(
            f"--last-blocks={args.last_blocks} and the model has {depth} blocks: use "
            "fewer, or leave it out to train everything"
        )
    for name in _BELOW_ONE:
        value = getattr(args, name)
        if not 0 <= value < 1:
            flag = "--" + name.replace("_", "-")
            raise errors.UserError(f"{flag}={value:g}: use a number from 0 to below 1")
    for name in ("lr", "layerwise_decay", "lora_alpha"):
        value = getattr(args, name)
        if not 0 < value < float("inf"):
            flag = "--" + name.replace("_", "-")
            raise errors.UserError(f"{flag}={value:g}: use a number above 0")
    for name in ("min_lr", "weight_decay", "clip_grad", "mixup", "cutmix"):
        value = getattr(args, name)
        if not 0 <= value < float("inf"):
            flag = "--" + name.replace("_", "-")
            raise errors.UserError(f"{flag}={value:g}: use 0 or more")


def _recipe(args: argparse.Namespace) -> Any:
    from dinov2_jax.eval.finetuning import recipe

    return recipe.Recipe(
        steps=args.steps,
        batch_size=args.train_batch_size,
        group_size=args.group_size,
        lr=args.lr,
        min_lr=args.min_lr,
        warmup_steps=args.warmup_steps or args.steps // 10,
        layerwise_decay=args.layerwise_decay,
        weight_decay=args.weight_decay,
        clip_grad=args.clip_grad,
        drop_path=args.drop_path,
        smoothing=args.smoothing,
        mixup_alpha=args.mixup,
        cutmix_alpha=args.cutmix,
        ema=args.ema,
        seed=args.seed,
    )


def _trained(part: Any) -> str:
    if part.lora_rank:
        return f"head, LoRA of rank {part.lora_rank} on the attention's projections"
    if part.last_blocks:
        return f"head, last norm, last {part.last_blocks} blocks"
    return "everything"


def _features(args, backbone, module, params, source, prepare):
    """Return what the head sees of all images, their labels and how many are missing.

    The weights are new, so the features are not kept in the cache.
    """
    import pathlib
    import tempfile

    import numpy as np

    from dinov2_jax.embed import extraction
    from dinov2_jax.eval import feature_cache

    with tempfile.TemporaryDirectory(dir=args.out) as folder:
        tuned = dataclasses.replace(
            backbone,
            model=dataclasses.replace(backbone.model, module=module, params=params),
            digest=extraction.digest(params),
            cache=pathlib.Path(folder),
        )
        found = feature_cache.extract(
            tuned, source, kind="cls+patch_mean", prepare=prepare
        )
        return np.array(found.rows), found.labels, len(found.skipped)


def _save(out, module, tuned, prepare, classes):
    """Write model and head; return the path of the model and a note, or None."""
    from dinov2_jax import errors
    from dinov2_jax.eval.finetuning import export
    from dinov2_jax.weights import huggingface, reading

    weights = reading.Weights(module, {"backbone": tuned["backbone"]}, prepare)
    export.save_head(out / "head.pth", tuned["head"], classes)
    try:
        huggingface.config(module.config)
    except errors.UserError as error:
        path = out / "backbone.safetensors"
        export.save_backbone(path, weights)
        return path, f"saved only for this project: {error}"
    path = out / "huggingface"
    export.save_huggingface(path, weights, tuned["head"], classes)
    return path, None

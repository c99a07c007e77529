"""Semantic segmentation with a linear head on frozen patch features.

Mirrors the released configs of the reference, whose training code is not public: batch
norm and a 1x1 convolution, trained for 40,000 steps, sliding windows, mean IoU. "+ms"
takes four blocks and averages five scales, each also mirrored.
"""

import argparse
from typing import Any

from dinov2_jax import cli
from dinov2_jax.eval.tasks import dense_flags

REFERENCE = {
    "steps": 40_000,
    "training batch": 16,
    "lr": 1e-3,
    "weight decay": 1e-4,
    "loss divided by": "all",
}
# By protocol: short side and window, stride, ratios of training, ratios of views.
_PROTOCOLS = {
    "linear": (512, 341, (0.5, 2.0), (1.0,)),
    # The stride of the windows is not in any released file.
    "ms": (640, 320, (1.0, 3.0), (1.0, 1.32, 1.73, 2.28, 3.0)),
}
_PICTURES = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the task.

    Args:
      parser: The task's parser.
    """
    dense_flags.add_data(
        parser,
        "ADEChallengeData2016, VOCdevkit/VOC2012, Cityscapes, or a folder with "
        "train/images, train/masks, val/images and val/masks",
        formats=("ade20k", "voc2012", "cityscapes", "pairs"),
    )
    add = parser.add_argument
    add("--train-split", default="train", help="default: train")
    add("--val-split", default="val", help="default: val")
    dense_flags.add_head(parser, "ade20k_linear")
    add("--ms", action="store_true", help="four blocks, five scales and mirroring")
    add("--num-classes", type=cli.positive, help="default: as --data says")
    add(
        "--reduce-zero-label",
        action=argparse.BooleanOptionalAction,
        help="ignore label 0 and shift the others down by one; default: for ADE20K",
    )
    add("--short", type=cli.positive, help="short side of images, px (512; 640 of +ms)")
    add("--window", type=cli.positive, help="windows and training crops, px (--short)")
    add("--stride", type=cli.positive, help="of the windows, px (341; 320 of +ms)")
    add(
        "--views",
        type=cli.positive_number,
        nargs="+",
        help="scales of the views to average",
    )
    add(
        "--flip", action=argparse.BooleanOptionalAction, help="mirror views (with --ms)"
    )
    dense_flags.add_training(parser, steps=40_000, batch_size=16, lr=1e-3)
    add(
        "--ce-denominator",
        choices=("all", "valid"),
        default="all",
        help="divide the loss by all pixels, as the reference, or by labelled ones",
    )
    add("--weight-decay", type=cli.number, default=1e-4, help="default: 1e-4")


def run(args: argparse.Namespace, backbone: Any) -> Any:
    """Train a head if none is given, evaluate it and return a `report.Result`.

    Args:
      args: The parsed flags.
      backbone: The model, a `features.Backbone`.

    Raises:
      UserError: The data or the head do not fit.
    """
    from dinov2_jax import errors
    from dinov2_jax.eval.heads import head_files
    from dinov2_jax.eval.segmentation import mean_iou, segmentation_data
    from dinov2_jax.eval.segmentation import segmentation_inference as dense

    model = dense_flags.model_of(backbone)
    head = None
    if args.head:
        head = head_files.load_head(args.head, width=model.module.config.embed_dim)
    ms = args.ms or (head is not None and head.spec.layers > 1)
    short, stride, ratios, views = _PROTOCOLS["ms" if ms else "linear"]
    short = args.short or short
    window = args.window or short
    settings = dense.Inference(
        short=short,
        long=None,
        window=window,
        stride=args.stride or (stride if window in (512, 640) else window * 2 // 3),
        ratios=tuple(args.views or views),
        flip=ms if args.flip is None else args.flip,
        batch_size=backbone.batch_size or 8,
    )
    if settings.stride > settings.window:
        raise errors.UserError(
            f"--stride={settings.stride} is larger than the windows of "
            f"{settings.window} px, so pixels between them would have no class: use "
            f"--stride={settings.window} or less"
        )
    opened = _open(args, args.val_split, segmentation_data)
    val = opened.pairs.spaced(args.max_images)
    out = dense_flags.outputs(args.out)
    losses = []
    trained: dict[str, Any] = {}
    with dense_flags.precision(backbone):
        if head:
            num_classes = _checked_head(head, opened.num_classes or args.num_classes)
        else:
            head, losses, trained = _train(
                args, backbone, model, opened, short, window, ratios
            )
            num_classes = head.spec.num_classes
            head_files.save_head(out / "head.pth", head)
        segmenter = dense.Segmenter(model, head, settings)
        key = dense_flags.fingerprint(
            backbone.identity,
            dense_flags.digest(head.params),
            val.fingerprint,
            vars(settings),
            num_classes,
        )
        rows = _evaluated(segmenter, val, num_classes, out / "images.jsonl", key)
        pictures = _pictures(segmenter, val, num_classes)
    total = mean_iou.no_areas(num_classes)
    for row in rows:
        total += row
    scores = mean_iou.scores(total)
    names = (
        head.class_names or opened.class_names or tuple(map(str, range(num_classes)))
    )
    tables = [_table(names, scores)]
    if losses:
        tables.append(dense_flags.losses_table(losses))
    return _result(
        args,
        backbone,
        settings,
        opened,
        val,
        head,
        scores,
        tables,
        pictures,
        trained,
        ms,
    )


def _open(args, split, segmentation_data):
    return segmentation_data.open_data(
        args.data,
        split=split,
        data_format=args.format,
        reduce_zero_label=args.reduce_zero_label,
    )


def _checked_head(head, num_classes):
    from dinov2_jax import errors

    if head.spec.kind != "segmentation":
        raise errors.UserError(
            f"the head {head.name} is for {head.spec.kind}: pass one for segmentation"
        )
    if num_classes and num_classes != head.spec.num_classes:
        raise errors.UserError(
            f"the head {head.name} has {head.spec.num_classes} classes, the data has "
            f"{num_classes}: use a head for this data set, or train one"
        )
    return head.spec.num_classes


def _train(args, backbone, model, val, short, window, ratios):
    import dataclasses

    from dinov2_jax.eval.segmentation import segmentation_augment, segmentation_data
    from dinov2_jax.eval.segmentation import segmentation_training as dense

    opened = _open(args, args.train_split, segmentation_data)
    num_classes = segmentation_data.class_count(opened, val, given=args.num_classes)
    augmentation = segmentation_augment.Augmentation(
        crop=window, short=short, long=None, ratios=ratios
    )
    warmup = args.warmup_steps
    warmup = _warmup_steps(args.steps) if warmup is None else warmup
    settings = {
        "num_classes": num_classes,
        "layers": 4 if args.ms else 1,
        "steps": args.steps,
        "batch_size": args.train_batch_size,
        "lr": args.lr,
        "warmup_steps": warmup,
        "weight_decay": args.weight_decay,
        "denominator": args.ce_denominator,
        "seed": args.seed,
    }
    key = dense_flags.fingerprint(
        backbone.identity,
        opened.pairs.fingerprint,
        dataclasses.asdict(augmentation),
        settings,
    )
    head, losses = dense.train(
        model,
        opened.pairs,
        augmentation=augmentation,
        workers=backbone.workers,
        save=args.out / "training.npz",
        fingerprint=key,
        save_every=args.save_every,
        **settings,
    )
    head = dataclasses.replace(head, class_names=opened.class_names)
    about = settings | {
        "data": opened.pairs,
        "train": f"{len(opened.pairs)} images of {args.data}",
    }
    return head, losses, about


def _warmup_steps(steps: int) -> int:
    """Return the same share of the steps as the reference's 1,500 of 40,000."""
    return steps * 1500 // 40_000


def _evaluated(segmenter, val, num_classes, path, key):
    import numpy as np

    from dinov2_jax.eval import partial_rows
    from dinov2_jax.eval.segmentation import mean_iou
    from dinov2_jax.eval.segmentation import segmentation_inference as dense

    def rows(start):
        for areas in dense.evaluate(
            segmenter, val.part(slice(start, None)), num_classes=num_classes
        ):
            parts = (areas.intersect, areas.predicted, areas.labelled)
            yield [part.tolist() for part in parts]

    found = partial_rows.collect(path, key, rows, len(val))
    return [mean_iou.Areas(*(np.array(part, np.int64) for part in r)) for r in found]


def _pictures(segmenter, val, num_classes):
    from dinov2_jax.eval import report
    from dinov2_jax.eval.dense import dense_pictures

    pictures = []
    for index in range(min(_PICTURES, len(val))):
        image, labels = val.sample(index)
        shown = [
            dense_pictures.colored_labels(x, num_classes)
            for x in (segmenter(image), labels)
        ]
        caption = f"{val.images[index].name}: image, prediction, labels"
        pictures.append(report.Picture(caption, dense_pictures.row([image, *shown])))
    return pictures


def _table(names, scores):
    from dinov2_jax.eval import report

    rows = [
        (name, float(iou), float(accuracy))
        for name, iou, accuracy in zip(names, scores["IoU"], scores["Acc"])
    ]
    return report.Table("By class", ("class", "IoU", "accuracy"), rows)


def _result(
    args, backbone, settings, opened, val, head, scores, tables, pictures, trained, ms
):
    from dinov2_jax.eval import protocol_card, report

    short, stride, ratios, views = _PROTOCOLS["ms" if ms else "linear"]
    used = {
        "short side": settings.short,
        "window": settings.window,
        "stride": settings.stride,
        "views": settings.ratios,
        "mirrored": settings.flip,
        "test images": len(val) if len(val) < len(opened.pairs) else "all",
        "data": opened.data_format,
    }
    published = ("ade20k", "voc2012")  # nothing is public of Cityscapes' settings
    reference = {
        "data": used["data"] if used["data"] in published else " or ".join(published),
        "short side": short,
        "window": short,
        "stride": stride,
        "views": views,
        "mirrored": ms,
        "test images": "all",
    }
    fields = {
        "head": head.name,
        "blocks": head.spec.layers,
        "test": f"{len(val)} images of {args.data}",
        "transform": "bilinear resize of pixels, zeros around it to whole patches",
        "selected on": dense_flags.NOT_SELECTED[bool(args.head)],
    }
    if trained:
        fields["train"] = trained["train"]
        fields["resize ratios in training"] = ratios
        used |= {
            "steps": args.steps,
            "training batch": args.train_batch_size,
            "lr": args.lr,
            "weight decay": args.weight_decay,
            "loss divided by": args.ce_denominator,
            "warm-up steps": trained["warmup_steps"],
        }
        reference |= REFERENCE | {"warm-up steps": _warmup_steps(args.steps)}
        fields |= {"seed": args.seed}
    card = protocol_card.make_card(
        "segmentation", backbone, used, reference=reference, fields=fields
    )
    numbers = {
        f"segmentation/{name}": float(scores[name]) for name in ("mIoU", "mAcc", "aAcc")
    }
    notes = []
    if ms:
        notes.append(
            "the stride of +ms windows is not in any released file: 320 px here"
        )
    notes += dense_flags.notes(trained.get("data"), val, opened.pairs)
    return report.Result(card, numbers, notes, tables, pictures)

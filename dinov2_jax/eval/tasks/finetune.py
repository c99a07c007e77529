"""Supervised fine-tuning for classification.

The paper (section 7.1, table 5) uses the recipe of Touvron et al. 2022 with its numbers
untouched and states none of them; the reference has no code. So the protocol is `ours`,
with values that are usual for ViTs.
"""

import argparse
import dataclasses
from typing import Any

from dinov2_jax.eval.tasks import finetune_flags

add_arguments = finetune_flags.add
_C_OF_PIXELS = (1e-2, 1e-1, 1.0, 10.0, 100.0)


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
    from dinov2_jax.eval import pixel_backbone
    from dinov2_jax.eval.classification import labelled, train_crops
    from dinov2_jax.eval.finetuning import adaptation, finetuner, training

    if isinstance(backbone.model.module, pixel_backbone.PixelBackbone):
        return _run_on_pixels(args, backbone)
    prepare = backbone.prepare(args.resize, args.size)
    finetune_flags.check(args, backbone.model.module.config.depth)
    recipe = finetune_flags.make_recipe(args)
    train_source, val_source = labelled.open_train_and_val(args)
    labelled.need_two_classes(train_source, args.train_path)
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
        **backbone.identity,
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
    found = _features(args, backbone, module, tuned["backbone"], val_source, prepare)
    scores = found.rows @ np.asarray(tuned["head"]["kernel"])
    scores += np.asarray(tuned["head"]["bias"])
    model_path, note = _save(args.out, module, tuned, prepare, classes)
    fields = {
        "trained": _trained(part),
        "optimizer": "AdamW, betas 0.9 and 0.999, cosine",
        "evaluated": "average of the weights" if recipe.ema else "last weights",
        "selected on": "nothing: the last step is evaluated",
        "train": f"{len(train_source)} images of {args.train_path}",
        "saved": f"{model_path} and {args.out / 'head.pth'}",
    }
    if args.baselines:
        fields["pixels"] = "have no weights to tune: logistic regression on them"
    return _result(
        args,
        backbone,
        prepare,
        val_source,
        found,
        scores,
        settings=settings,
        fields=fields,
        notes=[note] if note else [],
        course=course,
    )


def _run_on_pixels(args: argparse.Namespace, backbone: Any) -> Any:
    """Fit logistic regression, as a linear head is all that can be trained."""
    import numpy as np

    from dinov2_jax.eval import feature_cache
    from dinov2_jax.eval.classification import labelled, logistic_regression

    prepare = backbone.prepare(args.resize, args.size)
    train_source, val_source = labelled.open_train_and_val(args)
    train, val = (
        feature_cache.extract(backbone, source, kind="cls", prepare=prepare)
        for source in (train_source, val_source)
    )
    solution, c = logistic_regression.fit_with_best_c(
        np.asarray(train.rows), train.labels, _C_OF_PIXELS
    )
    scores = np.full((len(val), len(train_source.label_names)), -np.inf)
    scores[:, solution.classes] = solution.scores(val.rows)
    return _result(
        args,
        backbone,
        prepare,
        val_source,
        val,
        scores,
        settings={"size": args.size},
        fields={"trained": "head, by logistic regression", "C": c},
    )


def _result(
    args,
    backbone,
    prepare,
    source,
    found,
    scores,
    *,
    settings,
    fields,
    notes=(),
    course=(),
):
    """Measure scores of test images and return a `report.Result` with mistakes."""
    from dinov2_jax.eval import protocol_card, report
    from dinov2_jax.eval.classification import mistakes, test_sets

    numbers = {
        f"finetune/{name}": value
        for name, value in test_sets.accuracies(scores, found.labels, None).items()
    }
    card = protocol_card.make_card(
        "finetune",
        backbone,
        settings,
        reference={"size": None},  # it has no code for this
        prepare=prepare,
        fields=fields
        | {
            "test": f"{len(found.labels)} images of {args.val_path}",
            "images left out": len(found.skipped),
        },
    )
    tables = [report.Table("Course", ("step", "mean loss"), course)] if course else []
    drawn = mistakes.sheet(source, found.indices, scores, found.labels)
    pictures = [report.Picture(mistakes.CAPTION, drawn)] if drawn else []
    return report.Result(card, numbers, notes, tables, pictures)


def _trained(part: Any) -> str:
    if part.lora_rank:
        return f"head, LoRA of rank {part.lora_rank} on the attention's projections"
    if part.last_blocks:
        return f"head, last norm, last {part.last_blocks} blocks"
    return "everything"


def _features(args, backbone, module, params, source, prepare):
    """Return what the head sees of all images, a `feature_cache.Features`.

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
        return dataclasses.replace(found, rows=np.array(found.rows))


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

"""The same task with features that have learned nothing: what a number is worth."""

import argparse
import dataclasses
from collections.abc import Callable

import jax

from dinov2_jax import errors
from dinov2_jax.embed import extraction
from dinov2_jax.eval import features, pixel_backbone, random_init, report

_SEED = 0  # of the random ViT


def random_vit(backbone: features.Backbone) -> features.Backbone:
    """Return the same ViT with the weights of `random_init.fair_random_params`."""
    module = backbone.model.module
    draw = jax.jit(lambda key: random_init.fair_random_params(module, key))
    params = draw(jax.random.key(_SEED))
    return dataclasses.replace(
        backbone,
        model=dataclasses.replace(backbone.model, params=params),
        digest=extraction.digest(params),
    )


def pixels(backbone: features.Backbone) -> features.Backbone:
    """Return pixels as features, with patches of the same size."""
    module = pixel_backbone.PixelBackbone.like(backbone.model.module.config)
    model = dataclasses.replace(
        backbone.model, module=module, params=pixel_backbone.PARAMS
    )
    return dataclasses.replace(backbone, model=model, digest="pixels")


BASELINES: dict[str, Callable[[features.Backbone], features.Backbone]] = {
    "random_init": random_vit,
    "pixels": pixels,
}


def check(args: argparse.Namespace) -> None:
    """Raise UserError if a trained head is given, which fits only one backbone.

    Args:
      args: The parsed flags.
    """
    if args.baselines and getattr(args, "head", None):
        raise errors.UserError(
            f"--head={args.head} was trained for other features than those of "
            "--baselines: leave one of the two out"
        )


def add(
    result: report.Result,
    run: Callable[[argparse.Namespace, features.Backbone], report.Result],
    args: argparse.Namespace,
    backbone: features.Backbone,
) -> report.Result:
    """Run a task with each baseline and add its numbers to a result.

    Args:
      result: What the task found.
      run: The task's `run`.
      args: Its flags; each baseline writes into a folder of its name in `args.out`.
      backbone: The model.

    Returns:
      The result with numbers `NAME_random_init` and `NAME_pixels`, a table of all, and
      the pictures of the baselines.
    """
    numbers, columns, pictures = dict(result.numbers), [], list(result.pictures)
    for name, make in BASELINES.items():
        print(f"baseline {name}", flush=True)
        own = argparse.Namespace(**vars(args) | {"out": args.out / name})
        found = run(own, make(backbone))
        numbers |= {f"{key}_{name}": value for key, value in found.numbers.items()}
        columns.append(found.numbers)
        pictures += [
            dataclasses.replace(picture, caption=f"{name}: {picture.caption}")
            for picture in found.pictures
        ]
    rows = [
        (key, value, *(column[key] for column in columns))
        for key, value in result.numbers.items()
    ]
    table = report.Table(
        "Beside features that have learned nothing",
        ("number", "model", *BASELINES),
        rows,
    )
    about = (
        f"random_init: the same ViT with random weights, seed {_SEED}; pixels: those "
        "of a patch, and for a class token the image at the size of a patch"
    )
    card = dataclasses.replace(
        result.card, fields=result.card.fields | {"baselines": about}
    )
    return dataclasses.replace(
        result,
        card=card,
        numbers=numbers,
        tables=[table, *result.tables],
        pictures=pictures,
    )

"""Flags and settings that the tasks with a result for every pixel share."""

import argparse
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from dinov2_jax import cli
from dinov2_jax.eval.tasks import data_flags


def add_data(
    parser: argparse.ArgumentParser,
    about: str,
    *,
    formats: Sequence[str] = (),
    most: int | None = None,
) -> None:
    """Add --baselines, --data, --max-images and, if there are several, --format.

    Args:
      parser: The task's parser.
      about: What --data may be.
      formats: Formats of --data.
      most: Default of --max-images; None for all.
    """
    data_flags.add_baselines(parser)
    add = parser.add_argument
    add("--data", required=True, type=data_flags.path, metavar="DIR", help=about)
    if formats:
        add(
            "--format",
            choices=formats,
            help="format of --data; default: detected from its files",
        )
    add(
        "--max-images",
        type=cli.positive,
        default=most,
        help=f"images to evaluate; default: {most or 'all'}",
    )


def add_head(parser: argparse.ArgumentParser, example: str) -> None:
    """Add --head.

    Args:
      parser: The task's parser.
      example: End of the name of a released head.
    """
    parser.add_argument(
        "--head",
        type=data_flags.path,
        metavar="HEAD",
        help=f"a released head such as dinov2_vits14_{example}, or a file; default: "
        "train one on --data",
    )


def add_training(
    parser: argparse.ArgumentParser, *, steps: int, batch_size: int, lr: float
) -> None:
    """Add the flags of the training of a head.

    Args:
      parser: The task's parser.
      steps: Default number of steps.
      batch_size: Default number of images of a step.
      lr: Default learning rate.
    """
    add = parser.add_argument_group("training of the head").add_argument
    add("--steps", type=cli.positive, default=steps, help="default: %(default)s")
    add(
        "--train-batch-size",
        type=cli.positive,
        default=batch_size,
        help="images per step, over all devices (default: %(default)s)",
    )
    add("--lr", type=cli.positive_number, default=lr, help="default: %(default)s")
    add(
        "--warmup-steps",
        type=int,
        help="steps of warm-up; default: the reference's share of --steps",
    )
    add(
        "--seed",
        type=cli.seed,
        default=0,
        help="seed of weights, order, augmentation",
    )
    add("--save-every", type=cli.positive, default=500, help="in steps (default: 500)")


def model_of(backbone: Any) -> Any:
    """Return the `pretrained.Model` of a backbone, in the dtype of its matmuls."""
    import jax.numpy as jnp

    model = backbone.model
    module = model.module.clone(dtype=jnp.dtype(backbone.dtype))
    return dataclasses.replace(model, module=module)


def precision(backbone: Any) -> Any:
    """Return the context in which matrix products have a backbone's precision."""
    import jax

    exact = backbone.dtype == "float32"
    return jax.default_matmul_precision("highest" if exact else "default")


# What is said of a head's choice: of one trained here, and of one that was given.
NOT_SELECTED = ("nothing: the last step is evaluated", "unknown: the head was given")


def fingerprint(*parts: Any) -> str:
    """Return a hash of values that JSON knows."""
    text = json.dumps(parts, default=str, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest(params: Mapping[str, Any]) -> str:
    """Return a hash of the parameters of a head."""
    import numpy as np

    found = hashlib.sha256()
    for name in sorted(params):
        found.update(name.encode())
        found.update(np.asarray(params[name]).tobytes())
    return found.hexdigest()[:16]


def outputs(folder: pathlib.Path) -> pathlib.Path:
    """Make the folder of the outputs and return it.

    Raises:
      UserError: It cannot be made.
    """
    from dinov2_jax import errors

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.UserError(
            f"cannot make {folder} ({error.strerror or error}): choose another --out"
        ) from error
    return folder


def notes(trained_on: Any, tested_on: Any, everything: Any) -> list[str]:
    """Return what readers of the numbers have to know of the images.

    Args:
      trained_on: Images that the head was trained on, `pairs.Pairs`; None if it was not
        trained here.
      tested_on: Images that were evaluated.
      everything: Images that could have been evaluated.
    """
    found = []
    if len(tested_on) < len(everything):
        found.append(
            f"only {len(tested_on)} of {len(everything)} images were evaluated"
        )
    both = set(tested_on.images) & set(trained_on.images if trained_on else ())
    if both:
        found.append(
            f"the head was trained on {len(both)} of the {len(tested_on)} test images: "
            "put them into a folder for each split"
        )
    return found


def losses_table(losses: Sequence[float], rows: int = 20) -> Any:
    """Return a table of the mean loss over equal parts of a training.

    Args:
      losses: The loss of every step.
      rows: Largest number of rows.
    """
    import numpy as np

    from dinov2_jax.eval import report

    parts = np.array_split(np.arange(len(losses)), min(rows, len(losses)))
    shown = [
        (f"{p[0]} to {p[-1]}", float(np.mean([losses[i] for i in p]))) for p in parts
    ]
    return report.Table("Training loss", ("steps", "mean loss"), shown)

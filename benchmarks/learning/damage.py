"""Damage to a model's patch features: noise on the weights of its last block."""

import logging
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.learning import results
from dinov2_jax import errors, trainer
from dinov2_jax.eval import evaluator
from dinov2_jax.weights import native, reading

LEVELS = tuple(2.0 ** (i / 2) for i in range(2, 15))  # in deviations of the weights
KEPT = 0.5  # most of the matching above chance that is left


def write(folder: pathlib.Path, workdir: pathlib.Path, config: Any) -> pathlib.Path:
    """Export a damaged run, heads included, unless that is done already.

    The noise is raised, by the square root of two at a time, until at most half of the
    matching accuracy above chance is left.

    Args:
      folder: The export.
      workdir: The run.
      config: Its config; its seed is that of the noise.

    Returns:
      The export's folder.

    Raises:
      UserError: No noise costs so much.
    """
    with results.hold(folder.with_suffix(".lock")):
        if (folder / native.DESCRIPTION).exists():
            return folder
        weights = reading.read(workdir, heads=True, num_heads=config.model.num_heads)
        params = jax.tree.map(np.asarray, weights.params)
        matching = _make_judge(config)
        whole = matching(params["backbone"])
        for noise in LEVELS:
            backbone = add_noise(params["backbone"], config.seed, noise)
            left = matching(backbone) / whole
            logging.info("noise %.3g leaves %.0f %% of the matching", noise, 100 * left)
            if left <= KEPT:
                native.write(
                    folder,
                    weights.module,
                    params | {"backbone": backbone},
                    weights.preprocessing,
                    "teacher",
                )
                return folder
    raise errors.UserError(
        f"noise of {LEVELS[-1]:g} deviations leaves {left:.0%} of the matching of "
        f"{workdir}: train it longer"
    )


def add_noise(backbone: Any, seed: int, noise: float) -> Any:
    """Return a backbone with noise on all matrices of its last block.

    Args:
      backbone: Its parameters, blocks stacked.
      seed: Seed of the noise.
      noise: Deviation of the noise, in deviations of the matrix that it is added to.
    """
    rng = np.random.default_rng(seed)

    def spoil(path: Any, leaf: np.ndarray) -> np.ndarray:
        if path[-1].key != "kernel":
            return leaf
        leaf = np.array(leaf)
        draw = rng.standard_normal(leaf[-1].shape, np.float32)
        leaf[-1] += np.float32(noise) * leaf[-1].std() * draw
        return leaf

    blocks = jax.tree_util.tree_map_with_path(spoil, backbone["blocks"])
    return backbone | {"blocks": blocks}


def _make_judge(config: Any) -> Callable[[Any], float]:
    """Return a function from a backbone to its matching above that of chance."""
    config = config.copy_and_resolve_references()
    config.evaluation.tasks = ("matching",)
    built = trainer.Trainer(config)
    judge = evaluator.make_evaluator(config, built.meta_arch, built.mesh)

    def matching(backbone: Any) -> float:
        found = judge.evaluate(backbone, config.seed)
        return found["matching/accuracy"] - found["matching/chance"]

    return matching

"""python -m benchmarks.learning_gram FOLDER: can Gram anchoring repair patch features?

A quickstart model is pretrained on the embedded photographs; noise on the FFN of its
last block then spoils its patches. From there it is trained on, once as before and once
with the undamaged model as the Gram teacher. How much of the lost matching accuracy
comes back is the result, one line of JSON a seed.
"""

import argparse
import json
import pathlib
from typing import Any

import jax
import numpy as np

from configs import quickstart
from dinov2_jax import cli, errors, train, trainer
from dinov2_jax.data import loader
from dinov2_jax.data.sources import registry
from dinov2_jax.eval import evaluator
from dinov2_jax.weights import reading

_MATCHING = "matching/accuracy"
_LEAST_LOSS = 0.05  # of the matching accuracy, below which shares of it are noise


def run_study(
    folder: pathlib.Path,
    *,
    seed: int = 0,
    pretrain_steps: int = 600,
    steps: int = 150,
    noise: float = 2.0,
) -> dict[str, dict[str, float]]:
    """Pretrain, damage, train on with and without an anchor, and measure all.

    Args:
      folder: Where the pretrained run is kept, and resumed if it is there.
      seed: Seed of the runs and of the damage.
      pretrain_steps: Steps of the pretraining.
      steps: Steps after the damage.
      noise: Deviation of the noise, in deviations of the weights that it is added to.

    Returns:
      Metrics of "pretrained", "damaged", "plain" and "anchored" models, and under
      "recovered" the share of the lost matching that the last two regain.

    Raises:
      UserError: The noise costs too little matching to measure what is regained.
    """
    config = _make_config(seed, pretrain_steps)
    workdir = folder / f"pretrained-{seed}"
    train.train(config, workdir)
    heads = config.model.num_heads
    params = reading.read(workdir, heads=True, num_heads=heads).params
    params = jax.tree.map(np.asarray, params)
    damaged = params | {"backbone": _damage(params["backbone"], seed, noise)}
    built = trainer.Trainer(config)
    judge = evaluator.make_evaluator(config, built.meta_arch, built.mesh)
    results = {
        name: judge.evaluate(tree["backbone"], seed)
        for name, tree in {"pretrained": params, "damaged": damaged}.items()
    }
    worst = results["damaged"][_MATCHING]
    lost = results["pretrained"][_MATCHING] - worst
    if lost < _LEAST_LOSS:
        raise errors.UserError(
            f"noise = {noise} costs {lost:.3f} of the matching accuracy, less than "
            f"{_LEAST_LOSS}: raise --noise"
        )
    recovered = {}
    for name, gram in {
        "plain": {},
        "anchored": {"loss_weight": 2.0, "source": str(workdir)},
    }.items():
        anchor = params["backbone"] if gram else None
        backbone = _train_on(_make_config(seed, steps, **gram), damaged, anchor)
        results[name] = judge.evaluate(backbone, seed)
        recovered[name] = (results[name][_MATCHING] - worst) / lost
    return results | {"recovered": recovered}


def _make_config(seed: int, steps: int, **gram: Any) -> Any:
    """Return the quickstart's config at a length, judged on `val`."""
    c = quickstart.get_config()
    c.seed = seed
    c.train.steps = steps
    c.optim.warmup_steps = min(c.optim.warmup_steps, steps)
    c.evaluation.update(every=0, tasks=("knn", "matching"), photos_split="val")
    c.gram.update(refreshes=0, **gram)
    return c


def _damage(backbone: Any, seed: int, noise: float) -> Any:
    """Return the backbone with noise on the last layer of its last block."""
    rng = np.random.default_rng(seed)
    blocks = jax.tree.map(np.array, backbone["blocks"])
    kernel = blocks["mlp"]["fc2"]["kernel"]
    kernel[-1] += (
        noise * kernel[-1].std() * rng.standard_normal(kernel[-1].shape, np.float32)
    )
    return backbone | {"blocks": blocks}


def _train_on(config: Any, params: Any, gram: Any) -> Any:
    """Return the EMA's backbone after the config's steps from given weights."""
    built = trainer.Trainer(config)
    state, step_fn = built.first_state(params, gram), built.compile()
    source = registry.make_source(config)
    steps = config.train.steps
    with loader.make_loader(config, source, start_step=0, num_steps=steps) as batches:
        for number in range(steps):
            batch = next(batches)
            batch.pop("bad_images")
            with jax.set_mesh(built.mesh):
                state, _ = step_fn(state, built.place(batch), built.scalars(number))
    return state.teacher_params["backbone"]


def main() -> None:
    """Run the study for each seed and print its results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=pathlib.Path, help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--pretrain_steps", type=int, default=600)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--noise", type=float, default=2.0)
    flags = parser.parse_args()
    cli.exit_on_signals()
    for seed in flags.seeds:
        found = run_study(
            flags.folder,
            seed=seed,
            pretrain_steps=flags.pretrain_steps,
            steps=flags.steps,
            noise=flags.noise,
        )
        print(json.dumps({"seed": seed} | found), flush=True)


if __name__ == "__main__":
    main()

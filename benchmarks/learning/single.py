"""One part of one arm of a study at one seed, as a process of its own.

`python -m benchmarks.learning` starts it for each part: trainings end their process's
use of jax, and answer signals in their own way.
"""

import argparse
import datetime
import logging
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks import environment
from benchmarks.learning import catalogue, results, study
from dinov2_jax import cli, several_students, train, trainer
from dinov2_jax.checkpoint import orbax_logging
from dinov2_jax.data.decode import pillow_setup
from dinov2_jax.distillation import frozen_teacher
from dinov2_jax.eval import evaluator
from dinov2_jax.runtime import event_log, timing
from dinov2_jax.weights import reading

SPLITS = ("val", "test")


def _prepare(arm: study.Arm, flags: argparse.Namespace) -> None:
    """Make the files that a training needs."""
    prepare = arm.runs[flags.run].prepare
    assert prepare is not None
    prepare()


def _train(arm: study.Arm, flags: argparse.Namespace) -> None:
    """Run or resume a training, after another process that may be at it."""
    run = arm.runs[flags.run]
    with results.hold(run.workdir.with_suffix(".lock")):
        train.train(run.config, run.workdir)


def _measure(arm: study.Arm, flags: argparse.Namespace) -> None:
    """Measure the model and add the row, or one without metrics if a run blew up."""
    row = {"arm": flags.arm, "seed": flags.seed, "steps": flags.steps}
    if all(run.is_finished() for run in arm.runs):
        row |= {"runs": [_cost(run) for run in arm.runs], **measure(arm)}
        if arm.describe:
            row["training_images"] = arm.describe()
    else:
        row |= {"failed": "the loss blew up"}
    row |= environment.describe(("jax",))
    path = flags.results / f"{flags.study}.json"
    results.add(path, row, flags.folder / f"{flags.study}.lock")


def _cost(run: study.Run) -> dict[str, Any]:
    """Return the length of a run, its useful FLOPs per image and its seconds."""
    c = run.config
    teacher = frozen_teacher.read(c)
    built = several_students.make_trainer(frozen_teacher.resolve(c, teacher), teacher)
    seconds, shares = timing.goodput(
        event_log.read(run.workdir), datetime.datetime.now(datetime.UTC)
    )
    stepping = (timing.STEP, timing.DATA_WAIT, timing.LOST)
    return {
        "name": run.workdir.parent.name,
        "steps": c.train.steps,
        "images": c.train.steps * c.train.batch_size,
        "flops_per_image": built.flops_per_image,
        "seconds": round(seconds * sum(shares.get(part, 0.0) for part in stepping), 1),
    }


def measure(arm: study.Arm) -> dict[str, dict[str, float]]:
    """Return the metrics of an arm's model by split.

    The photographs' splits differ in their tiles for k-NN; matching has the same two
    photographs in both, which are in no split.
    """
    config = (arm.judge or arm.runs[-1].config).copy_and_resolve_references()
    config.distill.source = ""  # only the backbone is measured
    workdir = arm.weights() if arm.weights else arm.runs[-1].workdir
    weights = reading.read(workdir, num_heads=config.model.num_heads)
    built, found = trainer.Trainer(config), {}
    for split in SPLITS:
        if config.evaluation.val_path:
            folder = pathlib.Path(config.evaluation.val_path).parent
            config.evaluation.val_path = str(folder / split)
        config.evaluation.photos_split = split
        judge = evaluator.make_evaluator(config, built.meta_arch, built.mesh)
        found[split] = judge.evaluate(weights.params["backbone"], config.seed)
    return found


PARTS: Mapping[str, Callable[[study.Arm, argparse.Namespace], None]] = {
    "prepare": _prepare,
    "train": _train,
    "measure": _measure,
}


def main() -> int:
    """Do one part of an arm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("study", choices=catalogue.STUDIES)
    parser.add_argument("arm")
    for name in ("seed", "steps"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("folder", "results"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
    parser.add_argument("--run", type=int, default=0, help="number of the training")
    flags = parser.parse_args()
    cli.log_to_stderr(logging.INFO)
    pillow_setup.configure()
    orbax_logging.hush_threads()
    setting = study.Setting(flags.folder, flags.seed, flags.steps)
    arm = catalogue.STUDIES[flags.study].arms[flags.arm](setting)
    return cli.exit_code(
        lambda: PARTS[flags.part](arm, flags), crash_on_file_errors=True
    )


if __name__ == "__main__":
    cli.keep_freed_memory()
    # As the training program has it.
    sys.setswitchinterval(0.0005)
    cli.start(main, log_level=logging.INFO)

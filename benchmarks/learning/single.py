"""One arm of a study at one seed, trained and measured: the child process.

`python -m benchmarks.learning` starts it, so that each arm has a process of its own.
"""

import argparse
import datetime
import logging
import pathlib
import sys
from typing import Any

from benchmarks import environment
from benchmarks.learning import catalogue, results, study
from dinov2_jax import cli, errors, several_students, train, trainer
from dinov2_jax.checkpoint import orbax_logging
from dinov2_jax.data.decode import pillow_setup
from dinov2_jax.distillation import frozen_teacher
from dinov2_jax.eval import evaluator
from dinov2_jax.runtime import event_log, timing
from dinov2_jax.weights import reading

SPLITS = ("val", "test")


def run(arm: study.Arm) -> dict[str, Any]:
    """Train an arm, or what is left of it, and measure its model.

    Returns:
      "runs": length and cost of each training; "val" and "test": the metrics; or, if
      the loss blew up too often, "failed": the message.
    """
    costs = []
    for each in arm.runs:
        # Another arm may be at it, in another process.
        with results.hold(each.workdir.with_suffix(".lock")):
            each.prepare()
            try:
                train.train(each.config, each.workdir)
            except errors.UserError as error:
                if error.exit_code != errors.NON_FINITE:
                    raise
                return {"runs": costs, "failed": str(error)}
        costs.append(_cost(each))
    return {"runs": costs, **measure(arm)}


def _cost(each: study.Run) -> dict[str, Any]:
    """Return the length of a run, its useful FLOPs per image and its seconds."""
    c = each.config
    teacher = frozen_teacher.read(c)
    built = several_students.make_trainer(frozen_teacher.resolve(c, teacher), teacher)
    seconds, shares = timing.goodput(
        event_log.read(each.workdir), datetime.datetime.now(datetime.UTC)
    )
    stepping = (timing.STEP, timing.DATA_WAIT, timing.LOST)
    return {
        "name": each.workdir.parent.name,
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


def main() -> int:
    """Run one arm and add its row to the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", choices=catalogue.STUDIES)
    parser.add_argument("arm")
    for name in ("seed", "steps"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("folder", "results"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
    flags = parser.parse_args()
    cli.log_to_stderr(logging.INFO)
    pillow_setup.configure()
    orbax_logging.hush_threads()
    setting = study.Setting(flags.folder.absolute(), flags.seed, flags.steps)
    chosen = catalogue.STUDIES[flags.study].arms[flags.arm]
    code = environment.commit()  # before the training, whatever is committed meanwhile

    def train_and_add() -> None:
        row = {"arm": flags.arm, "seed": flags.seed, "steps": flags.steps}
        row |= run(chosen(setting)) | environment.describe(("jax",)) | {"commit": code}
        path = flags.results / f"{flags.study}.json"
        results.add(path, row, setting.folder / f"{flags.study}.lock")

    return cli.exit_code(train_and_add, crash_on_file_errors=True)


if __name__ == "__main__":
    cli.keep_freed_memory()
    # As the training program has it.
    sys.setswitchinterval(0.0005)
    cli.start(main, log_level=logging.INFO)

"""The evaluations of a run: when they are due, and what they log, keep and draw."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from dinov2_jax import errors, sharding, trainer
from dinov2_jax.checkpoint import best_weights
from dinov2_jax.data.sources import base
from dinov2_jax.eval import evaluator, in_loop
from dinov2_jax.run_report import page as run_report
from dinov2_jax.run_report import series
from dinov2_jax.runtime import logger, out_of_memory, timing, watchdog

Evaluators = Mapping[str, evaluator.Evaluator]  # by the name of the student


def make_evaluators(
    config: Any, of_run: trainer.Trainer, source: base.Source
) -> Evaluators:
    """Return what `config.evaluation` describes; {} if nothing is measured.

    Args:
      config: The config of the run.
      of_run: Its trainer.
      source: The training images.

    Raises:
      UserError: As `evaluator.make_evaluator`.
    """
    found = {
        name: evaluator.make_evaluator(config, own.meta_arch, own.mesh, source)
        for name, (own, _) in of_run.students(of_run.state).items()
    }
    return {name: one for name, one in found.items() if one is not None}


def make_best(
    config: Any, workdir: pathlib.Path, evaluators: Evaluators, *, resumed: bool
) -> best_weights.BestWeights | None:
    """Return the keeper of the best weights that `checkpoint.keep_best` asks for.

    Args:
      config: The config of the run.
      workdir: The run's folder.
      evaluators: Those of `make_evaluators`.
      resumed: Whether the run goes on after step 0.

    Raises:
      UserError: As `BestWeights`.
    """
    keep_best = config.checkpoint.keep_best
    if not (keep_best and evaluators):
        return None
    judge = evaluators[""]
    tasks = judge.tasks if keep_best == "all" else [keep_best]
    return best_weights.BestWeights(
        workdir,
        [in_loop.FIRST[task] for task in tasks],
        judges=judge.identities(),
        resumed=resumed,
    )


class RunEvaluations:
    """Measures the teachers of a run.

    Args:
      config: The config of the run.
      workdir: The run's folder.
      of_run: Its trainer.
      evaluators: Those of `make_evaluators`.
      best: That of `make_best`.
      log: The run's log.
      account: What the run's time is spent on.
      hang_watchdog: The watchdog, which an evaluation asks for more time.
    """

    def __init__(
        self,
        config: Any,
        workdir: pathlib.Path,
        of_run: trainer.Trainer,
        *,
        evaluators: Evaluators,
        best: best_weights.BestWeights | None,
        log: logger.RunLog,
        account: timing.TimeAccount,
        hang_watchdog: watchdog.Watchdog,
    ):
        self._config, self._workdir, self._trainer = config, workdir, of_run
        self._evaluators, self._best, self._log = evaluators, best, log
        self._account, self._watchdog = account, hang_watchdog

    def due(self, step: int) -> bool:
        """Return whether an evaluation follows a step."""
        every, last = self._config.evaluation.every, self._config.train.steps
        regular = every and step % every == 0
        return bool(self._evaluators) and bool(step == last or regular)

    def owed(self, step: int) -> bool:
        """Return whether a run that starts after a step begins with an evaluation.

        After step 0 that is the baseline for weights from elsewhere; later, one that
        the run was stopped just before. Every process must ask.
        """
        if not self._evaluators:
            return False
        if not step:
            return bool(self._config.init.source or self._best)
        if not self.due(step):
            return False
        found = series.read(self._workdir)  # without rows that a kill discarded
        wanted = [
            f"{name}/{in_loop.FIRST[task]}" if name else in_loop.FIRST[task]
            for name, one in self._evaluators.items()
            for task in one.tasks
        ]
        measured = all(name in found and step in found[name].steps for name in wanted)
        return sharding.of_first_process(not measured)

    def measure(self, step: int, state: Any) -> None:
        """Measure the teachers; keep the weights if they are best, and log the numbers.

        In this order, so that what a kill interrupts is owed.

        Args:
          step: Number of finished steps.
          state: The state after them.

        Raises:
          UserError: The images cannot be read, or the best weights not be saved, before
            the first step, after the last or in one of several processes. Else the run
            goes on: a disk may come back.
        """
        with (
            self._account.during("evaluate"),
            self._watchdog.during(f"the evaluation after step {step}", watchdog.LONG),
        ):
            try:
                numbers = self._numbers(state)
            except errors.UserError as error:
                if self._must_not_fail(step):
                    raise
                self._log.message(f"step {step}: not evaluated: {error}")
                return
        kept = self._best and self._keep_best(self._best, step, state, numbers[""])
        for name, own in numbers.items():
            self._log.evaluated(step, own, student=name)
        if kept and step:
            self._log.message(f"step {step}: the best so far, kept in best/")
        self.write_report()

    def _must_not_fail(self, step: int) -> bool:
        # There is no later try, or others would wait.
        return step in (0, self._config.train.steps) or jax.process_count() > 1

    def _numbers(self, state: Any) -> dict[str, dict[str, float]]:
        """Return the numbers of every student."""
        less = max(self._config.evaluation.batch_size // 2, 1)
        with out_of_memory.explained(
            "in the evaluation", lambda: f"add --config.evaluation.batch_size={less}"
        ):
            return {
                name: self._evaluators[name].evaluate(
                    own.teacher_params["backbone"], self._config.seed
                )
                for name, (_, own) in self._trainer.students(state).items()
            }

    def _keep_best(
        self,
        best: best_weights.BestWeights,
        step: int,
        state: Any,
        numbers: dict[str, float],
    ) -> bool:
        """Offer the weights; return whether they are kept."""
        with self._account.during("save"):
            try:
                kept = best.offer(step, numbers, state.teacher_params)
            except (errors.UserError, OSError) as error:
                if self._must_not_fail(step):
                    raise errors.UserError(
                        str(error), exit_code=errors.TRY_AGAIN
                    ) from error
                why = f"step {step}: the best weights were not saved: {error}"
                self._log.save_failed(step, why)
                return False
        if kept:
            self._log.events.add("best", step=step)
        return kept

    def draw(self, state: Any) -> None:
        """Draw what the patch features of the last step distinguish, as pca.png."""
        for name, (_, own) in self._trainer.students(state).items():
            path = self._workdir / name / "pca.png"
            path.parent.mkdir(exist_ok=True)
            backbone = own.teacher_params["backbone"]
            try:
                with out_of_memory.explained(
                    f"in the picture {path}",
                    lambda: "lower --config.evaluation.picture_size",
                ):
                    self._evaluators[name].picture(backbone, self._config.seed, path)
            except errors.UserError as error:  # the run is still saved
                self._log.message(str(error))
                continue
            picture = f"{name}/pca" if name else "pca"
            self._log.pictured(self._config.train.steps, picture, path)

    def write_report(self) -> None:
        """Write WORKDIR/report.html, which never fails the run."""
        if jax.process_index() == 0:
            failure = run_report.write(self._workdir)
            if failure:
                self._log.message(failure)

    def promise(self) -> str:
        """Return what the run promises of its best weights; "" if it keeps none."""
        return self._best.promise() if self._best else ""

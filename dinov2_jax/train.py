"""The training loop: build, restore, step, log, evaluate, save."""

import contextlib
import logging
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax import errors, files, several_students, sharding
from dinov2_jax.checkpoint import best_weights, cadence, checkpointer, disk_space
from dinov2_jax.config import checking, doubts, resuming
from dinov2_jax.data import batch_builder, loader, small_images, workers
from dinov2_jax.data.decode import value_use
from dinov2_jax.data.sources import base, messages, registry
from dinov2_jax.distillation import frozen_teacher, students
from dinov2_jax.eval import run_evaluations
from dinov2_jax.runtime import (
    bad_images,
    distributed,
    logger,
    out_of_memory,
    progress,
    rollback,
    same_inputs,
    timing,
    watchdog,
)
from dinov2_jax.runtime import profiler as profiler_lib
from dinov2_jax.runtime import workdir as workdir_lib
from dinov2_jax.trackers import backends
from dinov2_jax.weights import initial, source_run, tree_digest


def train(
    config: Any,
    workdir: str | pathlib.Path,
    cluster: distributed.Cluster | None = None,
    profile: tuple[int, int] | None = None,
) -> None:
    """Run or resume the training that a config describes.

    Args:
      config: A locked `ConfigDict`, see `configs/default.py`.
      workdir: The run's folder; a checkpoint in it is resumed.
      cluster: The other processes, where jax does not detect them.
      profile: First and last step to trace.

    Raises:
      UserError: Anything the user can fix, raised before compilation if known by then.
    """
    workers.check_main_guard()
    account = timing.TimeAccount("start")
    workdir = files.local_path(workdir, name="workdir")
    checking.check(config)
    students.configs(config)  # raises what is wrong with one of them
    backends.check_installed(config.log.trackers)
    source = registry.make_source(config)
    distributed.initialize(cluster, heartbeat_timeout=config.mesh.heartbeat_timeout)
    num_processes = jax.process_count()
    checking.check_cluster(config, num_processes, jax.device_count())
    batch_builder.make_batch_builder(config, source, process_count=num_processes)
    checking.check_devices(config, jax.device_count())
    same_inputs.check_images(source)
    workdir_lib.make_workdir(workdir)
    lock = workdir_lib.lock(workdir) if jax.process_index() == 0 else None
    teacher = frozen_teacher.read(config)
    if teacher is not None:
        same_inputs.check_weights("distill.source", teacher.digest)
    config = frozen_teacher.resolve(config, teacher)
    if checkpointer.has_checkpoint(workdir):  # without one, the run starts over
        if teacher is not None:  # first: its heads set fields of the config
            workdir_lib.check_teacher(workdir, teacher.identity(config))
        resuming.check_resume(config, workdir)
        moved = resuming.moved(config, workdir)
        workdir_lib.check_images(source, workdir, moved)

    with contextlib.ExitStack() as stack:
        if lock:
            stack.callback(lock.close)
        process = jax.process_index()
        hang_watchdog = watchdog.Watchdog(
            config.train.hang_timeout, workdir, process=process
        )
        stack.callback(hang_watchdog.close)
        with out_of_memory.explained(
            "for weights, teacher and optimizer",
            lambda: "use more devices or a smaller model",
        ):
            run = Run(config, workdir, source, account, hang_watchdog, teacher)
        profiler = profiler_lib.Profiler(workdir, steps=profile, process=process)
        error = None
        try:
            run.loop(profiler)
        except BaseException as raised:
            error = raised
            raise
        finally:
            run.close(error)


class Run:
    """One process's part of a run, from its start or its newest checkpoint."""

    def __init__(
        self,
        config: Any,
        workdir: pathlib.Path,
        source: base.Source,
        account: timing.TimeAccount,
        hang_watchdog: watchdog.Watchdog,
        teacher: frozen_teacher.FrozenTeacher | None = None,
    ):
        self.config, self.workdir, self.source = config, workdir, source
        self.account, self.watchdog = account, hang_watchdog
        self.trainer = several_students.make_trainer(config, teacher)
        self.frozen = self.trainer.place_teacher()
        evaluators = run_evaluations.make_evaluators(config, self.trainer, source)
        self.guard = rollback.make_loss_guard(config)
        self.rollbacks = rollback.Rollbacks(workdir)
        changed_fields = resuming.differing(config, workdir)
        moved_paths = resuming.moved(config, workdir)
        self.checkpoints = checkpointer.Checkpointer(
            workdir,
            keep_last=config.checkpoint.keep_last,
            keep_every=config.checkpoint.keep_every,
        )
        lines = self._restore()
        if not self.start_step and jax.process_index() == 0:
            kept = best_weights.forget(workdir)
            lines += [kept] if kept else []
            bad_images.forget(workdir)
        sharding.of_first_process(True)  # the others wait until it has
        best = run_evaluations.make_best(
            config, workdir, evaluators, resumed=self.start_step > 0
        )
        if self.start_step < config.train.steps:
            space_warning = disk_space.check(
                self.checkpoints.path,
                needed=disk_space.bytes_of(self.trainer.state),
                keep_last=config.checkpoint.keep_last,
            )
            lines += [space_warning] if space_warning else []
        is_first_process = jax.process_index() == 0
        new_run = not self.start_step and bool(changed_fields or moved_paths)
        if new_run:
            self.rollbacks.forget(write=is_first_process)
        if is_first_process:
            if teacher is not None:
                workdir_lib.write_teacher(workdir, teacher.identity(config))
            workdir_lib.write_config(config, workdir)
        self.log = logger.make_run_log(
            config,
            workdir,
            self.start_step,
            account,
            self.trainer.flops_per_image,
            new_run=new_run,
        )
        self.evaluations = run_evaluations.RunEvaluations(
            config,
            workdir,
            self.trainer,
            evaluators=evaluators,
            best=best,
            log=self.log,
            account=account,
            hang_watchdog=hang_watchdog,
        )
        self.watchdog.report = lambda doing, path: self.log.events.add(
            "hang", doing=doing, path=path
        )
        self.bad_images = bad_images.BadImages(
            workdir, source, config.data.max_bad_share
        )
        self.log.message(self._banner())
        changed = workdir_lib.update_data_record(
            source, workdir, resumed=self.start_step > 0, write=is_first_process
        )
        if self.start_step and moved_paths:
            lines.append(f"{'; '.join(moved_paths)}: same images at a new location")
        lines += [f"warning: {line}" for line in source.warnings()]
        lines += [changed] if changed else []
        lines += doubts.find(config)
        if teacher is not None:
            lines.append(teacher.description)
            lines += teacher.warnings(self.trainer.largest_student)
        if is_first_process:
            lines += value_use.check(source, config.data.value_range)
            if not self.start_step:
                lines += source_run.compare(config)
                lines += small_images.check(source, config.crops.global_crops_size)
        for line in lines:
            self.log.message(line)

    def _banner(self) -> str:
        device = self.trainer.mesh.devices.flat[0]
        return progress.banner(
            device=device.device_kind,
            mesh=dict(self.trainer.mesh.shape),
            images=self.source.describe(),
            pass_length=self.source.pass_length,
            batch_size=self.config.train.batch_size,
            group_size=self.config.train.group_size,
            steps=self.config.train.steps,
            base_lr=self.config.optim.base_lr,
            arch=self.config.model.arch,
            num_params=self.trainer.num_params,
            dtype=jnp.dtype(self.trainer.dtype).name,
        )

    def _restore(self) -> list[str]:
        """Set the state and its step from the newest good checkpoint, or initialise.

        Returns:
          Messages about it for the log.
        """
        with self.watchdog.during("reading the checkpoint", watchdog.LONG):
            lines = self.checkpoints.set_aside_damaged()
            self.start_step = self.checkpoints.latest_step() or 0
            if self.start_step:
                with self.account.during("restore"):
                    self.state = self.checkpoints.restore(self.trainer.state)
                return [*lines, f"resumed from step {self.start_step}"]
        # Random weights, or those that `config.init` names: perhaps a download.
        with self.watchdog.during("reading the first weights", watchdog.LONG):
            weights = initial.read(self.config, self.trainer.meta_arch)
            gram = initial.read_gram(self.config, self.trainer.meta_arch)
        for field, read in (("init.source", weights), ("gram.source", gram)):
            if read and jax.process_count() > 1:
                same_inputs.check_weights(field, tree_digest.digest(read.params))
        self.state = self.trainer.first_state(
            weights and weights.params, gram and gram.params["backbone"]
        )
        return [*lines, *(read.description for read in (weights, gram) if read)]

    def loop(self, profiler: profiler_lib.Profiler) -> None:
        """Run all remaining steps, rolling back if the loss blows up."""
        if self.start_step >= self.config.train.steps:
            self._catch_up()
            return
        self.log.start()
        untraced = profiler.untraced(self.start_step + 1, self.config.train.steps)
        if untraced:
            self.log.message(f"warning: {untraced}")
        step_fn, self.stepped = None, False
        with jax.set_mesh(self.trainer.mesh), self._memory_errors():
            self.cadence = cadence.Cadence(
                self.config.checkpoint.minutes, self.config.log.every
            )
            while True:
                # The workers load data while the step is compiled.
                with self._batches() as batches:
                    step_fn = step_fn or self._compile()
                    try:
                        self._steps(step_fn, batches, profiler)
                        break
                    except rollback.BlownUp as caught:
                        blown_up = caught
                self._roll_back(blown_up)
        with self.watchdog.during("the last save", times=1):
            self.checkpoints.close()
        self._announce_outputs()

    def _announce_outputs(self) -> None:
        self.log.message(progress.list_outputs(self.workdir))
        if promise := self.evaluations.promise():
            self.log.message(promise)

    def _batches(self) -> loader.Loader:
        return loader.make_loader(
            self.config,
            self.source,
            start_step=self.start_step,
            num_steps=self.config.train.steps - self.start_step,
            process_index=sharding.process_rank(self.trainer.mesh),
            process_count=jax.process_count(),
            skips=self.rollbacks.skips(),
        )

    def _steps(self, step_fn, batches, profiler) -> None:
        """Run steps up to the last; read metrics after dispatching the next step."""
        total = self.config.train.steps
        if self.evaluations.owed(self.start_step):
            self.evaluations.measure(self.start_step, self.state)
        self.account.begin(timing.STEP)
        self.log.rates.restart()
        self.log.compilations.expect()
        pending = None
        for step in range(self.start_step, total):
            self.watchdog.begin(f"step {step + 1}")
            traced = profiler.before_step(step + 1)
            if traced:
                self.log.profiled(step, traced)
            with self.account.during(timing.DATA_WAIT):
                batch = next(batches)
            self.bad_images.add(batch.pop("bad_images"))
            self.state, step_metrics = step_fn(
                self.state,
                self.trainer.place(batch),
                self.trainer.scalars(step),
                *self.frozen,
            )
            if pending is not None:
                self._finish(*pending)
            pending = (step + 1, step_metrics)
            preempted = distributed.preempted(step + 1) and step + 1 < total
            save_due = self.cadence.due(step + 1)
            if preempted or save_due or self._due(step + 1):
                self._finish(*pending)
                pending = None
                if preempted:
                    self._save_and_exit(step + 1)
                self._evaluate_and_save(step + 1, save_due)
                self.log.rates.restart()
                self.log.compilations.expect()
        traced = profiler.close()
        if traced:
            self.log.profiled(total, traced)

    def _finish(self, step, step_metrics) -> None:
        """Read, log and check the metrics of a step."""
        values = {k: np.asarray(v).item() for k, v in step_metrics.items()}
        self.stepped = True
        self.log.step(step, values, self.trainer.schedules(step - 1))
        self.guard.check(step, values)

    def _roll_back(self, blown_up: rollback.BlownUp) -> None:
        """Roll back to a checkpoint.

        Raises:
          UserError: The run has been rolled back too often.
        """
        self.checkpoints.finish()
        saved = self.checkpoints.steps()
        lr = self.trainer.schedules(blown_up.step - 1)["lr"]
        if len(self.rollbacks) >= self.config.train.max_rollbacks:
            good = self.checkpoints.path / str(saved[-1]) if saved else "none yet"
            count = messages.counted(len(self.rollbacks), "rollback")
            raise errors.UserError(
                f"stopped at step {blown_up.step}: the loss blew up ({blown_up.why}; "
                f"lr {lr:.3g}) after {count}; last good checkpoint: {good}. Try, "
                "in another --workdir, a lower --config.optim.base_lr, a longer "
                "--config.optim.warmup_steps, --config.optim.adamw_beta2=0.99, or a "
                "lower --config.model.drop_path_rate",
                exit_code=errors.NON_FINITE,
            )
        to = self.rollbacks.target(saved)
        with self.account.during("roll back"):
            self.checkpoints.set_aside_after(to)
            self.state = None  # free its memory first
            lines = self._restore()
            self.rollbacks.add(
                rollback.Rollback(failed=blown_up.step, to=self.start_step),
                write=jax.process_index() == 0,
            )
        self.guard.in_a_row = 0
        self.log.rolled_back(blown_up.step, self.start_step, blown_up.why)
        for line in lines:
            self.log.message(line)

    def _memory_errors(self) -> contextlib.AbstractContextManager:
        return out_of_memory.explained(
            "in the training step",
            lambda: out_of_memory.of_step(self.config, self.trainer.mesh.size),
            # Where earlier steps had enough, a new process may have it again.
            lambda: errors.TRY_AGAIN if self.stepped else errors.BAD_INPUT,
        )

    def _compile(self) -> Any:
        start = time.monotonic()
        with (
            self.account.during("compile"),
            self.watchdog.during("the compilation of the step", watchdog.LONG),
        ):
            compiled = self.trainer.compile()
        seconds = time.monotonic() - start
        logging.info("compiled the step in %.1f s", seconds)
        self.log.events.add("compiled", seconds=round(seconds, 1))
        return compiled

    def _due(self, step: int) -> bool:
        return (
            step == self.config.train.steps
            or step % self.config.checkpoint.every == 0
            or self.checkpoints.failed
            or self.evaluations.due(step)
        )

    def _evaluate_and_save(self, step: int, save_due: bool) -> None:
        last = step == self.config.train.steps
        if self.evaluations.due(step) and not last:
            self.evaluations.measure(step, self.state)
        every = self.config.checkpoint.every
        due = save_due or step % every == 0 or self.checkpoints.failed
        # Do not save weights with a bad loss: a rollback would return to them.
        if last or (due and not self.guard.in_a_row):
            next_save = min(step - step % every + every, self.config.train.steps)
            if last:
                several_students.remove_exports(self.config, self.workdir)
            self._save(step, None if last else next_save)
        if last:
            self._end(
                export=bool(self.config.distill.students),
                evaluate=self.evaluations.due(step),
            )

    def _end(self, *, export: bool, evaluate: bool) -> None:
        """Export and evaluate after the last save: a failure here loses no training.

        The picture comes first: it is owed as long as no numbers are logged.
        """
        if export:
            several_students.export(self.config, self.trainer, self.state, self.workdir)
        if evaluate:
            self.evaluations.draw(self.state)
            self.evaluations.measure(self.config.train.steps, self.state)

    def _catch_up(self) -> None:
        """Do what a run left that was stopped after its last save."""
        step, steps = self.start_step, self.config.train.steps
        evaluate = step == steps and self.evaluations.owed(step)
        export = step == steps and sharding.of_first_process(
            not several_students.exported(self.config, self.workdir)
        )
        if not (export or evaluate):
            logging.info(
                "nothing to do: step %d of %d is done; raise --config.train.steps to "
                "continue, or choose another --workdir",
                step,
                steps,
            )
            return
        self.log.start()
        with jax.set_mesh(self.trainer.mesh):
            self._end(export=export, evaluate=evaluate)
        self._announce_outputs()

    def _save(self, step: int, next_save: int | None) -> None:
        with self.account.during("save"):
            self.log.sync()  # metrics up to a checkpoint must be on disk before it
            failure = self.checkpoints.save(step, self.state, next_save=next_save)
        self.cadence.saved()
        if failure:
            self.log.save_failed(step, failure)
        else:
            self.log.events.add("save", step=step)

    def _save_and_exit(self, step: int) -> None:
        saved = "the loss is unstable, so nothing new was saved"
        if not self.guard.in_a_row:
            self._save(step, next_save=None)
            saved = f"saved step {step}"
        raise errors.UserError(
            f"stopped on request: {saved}; run the same command to resume",
            exit_code=errors.REQUEUE,
        )

    def close(self, error: BaseException | None) -> None:
        """Close everything that writes, after finishing a save in progress."""
        try:
            self.checkpoints.close()
        finally:
            self.watchdog.close()
            self.log.end(error)
            self.evaluations.write_report()
        if self.bad_images.count:
            logging.info("%s", self.bad_images.summary())

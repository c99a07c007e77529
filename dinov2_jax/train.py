"""The loop: build, restore, step, log, evaluate, save."""

import logging
import os
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax import (
    bad_images,
    checkpoint,
    config_check,
    console,
    data_record,
    distributed,
    errors,
    init_weights,
    metrics,
    monitor,
    optimizer,
    schedules,
    sharding,
    ssl_meta_arch,
    train_state,
    train_step,
)
from dinov2_jax import workdir as workdir_lib
from dinov2_jax.data import batch_builder, batch_spec, loader, sources
from dinov2_jax.eval import evaluator


def train(
    config: Any,
    workdir: str | pathlib.Path,
    cluster: distributed.Cluster | None = None,
) -> None:
    """Runs, or resumes, the training that a config describes.

    Args:
      config: A locked `ConfigDict`, see `configs/default.py`.
      workdir: Where the run keeps everything; a checkpoint there is resumed.
      cluster: The other processes, where jax does not find them by itself.

    Raises:
      UserError: Anything that the user can put right, before compilation where it is
        known by then.
    """
    workdir = pathlib.Path(workdir)
    config_check.check(config)
    source = sources.make_source(config)
    distributed.initialize(cluster, heartbeat_timeout=config.mesh.heartbeat_timeout)
    num_processes = jax.process_count()
    config_check.check_cluster(config, num_processes, jax.device_count())
    batch_builder.make_batch_builder(config, source, process_count=num_processes)
    config_check.check_devices(config, jax.device_count())
    workdir_lib.make_workdir(workdir)
    if checkpoint.has_checkpoint(workdir):  # without one, the run begins anew
        config_check.check_resume(config, workdir)

    run = Run(config, workdir, source)
    try:
        run.loop(sharding.process_rank(run.mesh), num_processes)
    finally:
        run.close()


class Run:
    """One process's part of a run, from its start or its newest checkpoint."""

    def __init__(self, config: Any, workdir: pathlib.Path, source: sources.Source):
        self.config, self.workdir, self.source = config, workdir, source
        self.mesh = sharding.make_mesh(config.mesh.replica, config.mesh.fsdp)
        dtype = compute_dtype(config)
        self.meta_arch = ssl_meta_arch.make_ssl_meta_arch(config, dtype)
        self.evaluator = evaluator.make_evaluator(config, self.meta_arch, self.mesh)
        shapes = jax.eval_shape(self.meta_arch.init, jax.random.key(0))
        self.tx = optimizer.make_optimizer(config, shapes)
        self.schedules = schedules.make_schedules(config)
        abstract = train_state.abstract_state(self.meta_arch, self.tx, self.mesh)
        self.checkpoints = checkpoint.Checkpointer(
            workdir,
            keep_last=config.checkpoint.keep_last,
            keep_every=config.checkpoint.keep_every,
        )
        set_aside = self.checkpoints.set_aside_damaged()
        self.start_step = self.checkpoints.latest_step() or 0
        self.origin = ""  # of the weights, in words; "" from scratch
        if self.start_step:
            self.state = self.checkpoints.restore(abstract)
            self.origin = f"resumed from step {self.start_step}"
        else:
            self.state = self._first_state()
        self.step_fn = train_step.make_train_step(
            self.meta_arch, self.tx, abstract, self.mesh, seed=config.seed
        )
        leads = jax.process_index() == 0
        if leads:
            workdir_lib.write_config(config, workdir)
        self.writer = metrics.MetricsWriter(
            workdir,
            tensorboard=config.log.tensorboard,
            resume_step=self.start_step,
            enabled=leads,
        )
        self.progress = console.Progress(
            config.train.steps, self.start_step, enabled=leads
        )
        self.monitor = monitor.UniformLossMonitor(
            config.dino.head_n_prototypes,
            loss_weight=config.dino.loss_weight,
            patience_steps=max(2 * config.optim.warmup_steps, 1000),
        )
        self.data_wait = monitor.DataWaitMonitor(
            workers=config.data.workers,
            cores=os.cpu_count() or 1,
            augmentation=config.data.augmentation,
        )
        self.bad_images = bad_images.BadImages(
            workdir, source, config.data.max_bad_share
        )
        num_params = sum(x.size for x in jax.tree.leaves(shapes))
        self.progress.message(
            console.banner(config, self.mesh, source, num_params, dtype)
        )
        for line in (*set_aside, self.origin):
            if line:
                self.progress.message(line)
        changed = data_record.update(
            source, workdir, resumed=self.start_step > 0, write=leads
        )
        if changed:
            self.progress.message(changed)

    def _first_state(self) -> train_state.TrainState:
        """Step 0: fresh weights, or those that `config.init` names."""
        weights = init_weights.read(self.config, self.meta_arch)
        if weights:
            self.origin = weights.description
        return train_state.make_state(
            self.config.seed,
            self.meta_arch,
            self.tx,
            self.mesh,
            weights and weights.params,
        )

    def loop(self, process: int, num_processes: int) -> None:
        """All remaining steps; reads the metrics of a step after the next one began."""
        config, total = self.config, self.config.train.steps
        if self.start_step >= total:
            logging.info(
                "nothing to do: step %d of %d is done; raise --config.train.steps to "
                "go on, or choose another --workdir",
                self.start_step,
                total,
            )
            return
        batches = loader.make_loader(
            config,
            self.source,
            start_step=self.start_step,
            num_steps=total - self.start_step,
            process_index=process,
            process_count=num_processes,
        )
        with batches, jax.set_mesh(self.mesh):
            step_fn = self._compile()
            if self.evaluator and self.origin and not self.start_step:
                self._evaluate(0)  # what adaptation must not lose
            clock = metrics.Clock(config.train.batch_size)
            pending = None
            for step in range(self.start_step, total):
                with clock.waiting_for_data():
                    batch = next(batches)
                self.bad_images.add(batch.pop("bad_images"))
                scalars = self.schedules(step)
                self.state, step_metrics = step_fn(
                    self.state, self._place(batch), _float32(scalars)
                )
                if pending is not None:
                    self._finish(*pending, clock)
                pending = (step + 1, step_metrics, scalars)
                preempted = distributed.preempted(step + 1) and step + 1 < total
                if preempted or self._due(step + 1):
                    self._finish(*pending, clock)
                    pending = None
                    if preempted:
                        self._save_and_leave(step + 1)
                    self._evaluate_and_save(step + 1)
                    clock.restart()
        self.checkpoints.close()
        self.progress.message(console.where_to_look(self.workdir))

    def _compile(self) -> Any:
        """Compiles the step ahead of its first use, once."""
        batch_sharding = sharding.batch_sharding(self.mesh)
        batch = {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding)
            for name, (shape, dtype) in batch_spec.batch_spec(self.config).items()
        }
        start = time.monotonic()
        lowered = self.step_fn.lower(self.state, batch, _float32(self.schedules(0)))
        compiled = lowered.compile()
        logging.info("compiled the step in %.1f s", time.monotonic() - start)
        return compiled

    def _place(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """This process's rows -> global arrays sharded over the mesh."""
        batch_sharding = sharding.batch_sharding(self.mesh)
        return {
            name: jax.make_array_from_process_local_data(batch_sharding, rows)
            for name, rows in batch.items()
        }

    def _due(self, step: int) -> bool:
        return step == self.config.train.steps or any(
            every and step % every == 0
            for every in (self.config.checkpoint.every, self._evaluate_every())
        )

    def _evaluate_every(self) -> int:
        return self.config.evaluation.every if self.evaluator else 0

    def _finish(self, step, step_metrics, scalars, clock) -> None:
        """Reads, checks and logs the metrics of a step."""
        values = {k: np.asarray(v).item() for k, v in step_metrics.items()}
        clock.step_done()
        self.skipped_in_a_row = int(values["skipped_in_a_row"])
        if self.skipped_in_a_row:
            self._report_skip(step, values, scalars)
        if step % self.config.log.every and step != self.config.train.steps:
            return
        row = values | scalars | clock.rates()
        self.writer.write(step, row)
        self.progress.update(
            step,
            loss=row["loss/total"],
            images_per_second=row["images_per_second"],
            data_wait=row["data_wait"],
        )
        for warning in (
            self.monitor.message(step, row),
            self.data_wait.message(step, row["data_wait"]),
        ):
            if warning:
                self.progress.message(warning)

    def _report_skip(self, step, values, scalars) -> None:
        """Names the non-finite terms of a skipped step; stops after too many."""
        terms = [
            f"{name} = {value}" for name, value in values.items() if value - value != 0
        ]
        in_a_row = self.skipped_in_a_row
        self.progress.message(
            f"step {step}: skipped, not finite: {', '.join(terms)}; weights untouched "
            f"({in_a_row} in a row, {int(values['skipped'])} in all)"
        )
        if in_a_row < self.config.train.max_nonfinite_steps:
            return
        last = self.checkpoints.latest_step()
        good = self.checkpoints.path / str(last) if last else "none yet"
        raise errors.UserError(
            f"stopped at step {step}: {in_a_row} steps in a row were not finite "
            f"({', '.join(terms)}; lr {scalars['lr']:.3g}); last good checkpoint: "
            f"{good}. Try, in another --workdir, a lower --config.optim.base_lr, a "
            "longer --config.optim.warmup_steps, --config.optim.adamw_beta2=0.99, or a "
            "lower --config.model.drop_path_rate",
            exit_code=errors.NON_FINITE,
        )

    def _evaluate_and_save(self, step: int) -> None:
        last = step == self.config.train.steps
        every = self._evaluate_every()
        if self.evaluator and (last or (every and step % every == 0)):
            backbone = self._evaluate(step)
            if last:
                self.evaluator.picture(
                    backbone, self.config.seed, self.workdir / "pca.png"
                )
        due = step % self.config.checkpoint.every == 0
        # Weights that give no finite loss are not the ones to go back to.
        if last or (due and not self.skipped_in_a_row):
            self.writer.sync()  # no checkpoint without the rows before it
            self.checkpoints.save(step, self.state)

    def _save_and_leave(self, step: int) -> None:
        saved = "it is skipping steps, so the last checkpoint stands"
        if not self.skipped_in_a_row:
            self.writer.sync()
            self.checkpoints.save(step, self.state)
            self.checkpoints.close()  # raises if it failed
            saved = f"saved step {step}"
        raise errors.UserError(
            f"asked to end: {saved}; the same command goes on",
            exit_code=errors.REQUEUE,
        )

    def _evaluate(self, step: int) -> Any:
        """Measures, writes and says the k-NN of the teacher's backbone; returns it."""
        backbone = self.state.teacher_params["backbone"]
        accuracies = self.evaluator.evaluate(backbone, self.config.seed)
        self.writer.write(step, accuracies)
        self.progress.message(console.describe_knn(step, accuracies))
        return backbone

    def close(self) -> None:
        """Ends what writes; a save under way is finished."""
        self.checkpoints.close()
        self.writer.close()
        self.progress.close()
        if self.bad_images.count:
            logging.info("%s", self.bad_images.summary())


def compute_dtype(config: Any) -> Any:
    """Of the matmuls: what `model.dtype` says, or by platform where it is "auto"."""
    if config.model.dtype == "auto":
        return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return jnp.dtype(config.model.dtype)


def _float32(scalars: dict[str, float]) -> dict[str, np.float32]:
    return {name: np.float32(value) for name, value in scalars.items()}

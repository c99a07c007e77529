"""The loop: build, restore, step, log, evaluate, save."""

import json
import logging
import pathlib
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax import (
    checkpoint,
    config_check,
    errors,
    metrics,
    monitor,
    optimizer,
    schedules,
    sharding,
    ssl_meta_arch,
    train_state,
    train_step,
)
from dinov2_jax.data import loader, sources
from dinov2_jax.eval import evaluator


def train(config: Any, workdir: str | pathlib.Path) -> None:
    """Runs, or resumes, the training that a config describes.

    Args:
      config: A locked `ConfigDict`, see `configs/default.py`.
      workdir: Where the run keeps everything; a checkpoint there is resumed.

    Raises:
      UserError: Anything that the user can put right, before compilation where it is
        known by then.
    """
    workdir = pathlib.Path(workdir)
    config_check.check(config)
    source = sources.make_source(config.data)
    num_processes, process = jax.process_count(), jax.process_index()
    loader.make_batch_builder(config, source, process_count=num_processes)
    config_check.check_devices(config, jax.device_count())
    make_workdir(workdir)
    if checkpoint.has_checkpoint(workdir):  # without one, the run begins anew
        config_check.check_resume(config, workdir)

    run = Run(config, workdir, source)
    try:
        run.loop(process, num_processes)
    finally:
        run.close()


def make_workdir(workdir: pathlib.Path) -> None:
    """Creates the run's folder.

    Raises:
      UserError: It cannot be written to.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise errors.UserError(
            f"cannot write to the folder {workdir} ({error.strerror}): choose another "
            "--workdir"
        ) from error


class Run:
    """One process's part of a run, from its start or its newest checkpoint."""

    def __init__(self, config: Any, workdir: pathlib.Path, source: sources.Source):
        self.config, self.workdir, self.source = config, workdir, source
        self.mesh = sharding.make_mesh(config.mesh.replica)
        self.meta_arch = ssl_meta_arch.make_ssl_meta_arch(config, compute_dtype(config))
        self.evaluator = evaluator.make_evaluator(
            config, self.meta_arch.backbone, self.mesh
        )
        shapes = jax.eval_shape(self.meta_arch.init, jax.random.key(0))
        self.tx = optimizer.make_optimizer(config, shapes)
        self.schedules = schedules.make_schedules(config)
        abstract = train_state.abstract_state(self.meta_arch, self.tx, self.mesh)
        self.checkpoints = checkpoint.Checkpointer(
            workdir,
            keep_last=config.checkpoint.keep_last,
            keep_every=config.checkpoint.keep_every,
        )
        self.start_step = self.checkpoints.latest_step() or 0
        if self.start_step:
            self.state = self.checkpoints.restore(abstract)
        else:
            self.state = train_state.make_state(
                config.seed, self.meta_arch, self.tx, self.mesh
            )
        self.step_fn = train_step.make_train_step(
            self.meta_arch, self.tx, abstract, self.mesh, seed=config.seed
        )
        if jax.process_index() == 0:
            write_config(config, workdir)
        self.writer = metrics.MetricsWriter(
            workdir, tensorboard=config.log.tensorboard, resume_step=self.start_step
        )
        self.progress = metrics.Progress(config.train.steps, self.start_step)
        self.monitor = monitor.UniformLossMonitor(
            config.dino.head_n_prototypes,
            loss_weight=config.dino.loss_weight,
            patience_steps=max(2 * config.optim.warmup_steps, 1000),
        )
        self.bad_images = BadImages(workdir, source, config.data.max_bad_share)
        num_params = sum(x.size for x in jax.tree.leaves(shapes))
        logging.info("%s", banner(config, self.mesh, source, num_params))
        if self.start_step:
            logging.info("resumed from step %d", self.start_step)

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
            clock = Clock(config.train.batch_size)
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
                if self._due(step + 1):
                    self._finish(*pending, clock)
                    pending = None
                    self._evaluate_and_save(step + 1)
                    clock.restart()
        self.checkpoints.close()
        self.progress.message(where_to_look(self.workdir))

    def _compile(self) -> Any:
        """Compiles the step ahead of its first use, once."""
        batch_sharding = sharding.batch_sharding(self.mesh)
        batch = {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding)
            for name, (shape, dtype) in loader.batch_spec(self.config).items()
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
        warning = self.monitor.message(step, row)
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
            backbone = self.state.teacher_params["backbone"]
            accuracies = self.evaluator.evaluate(backbone, self.config.seed)
            self.writer.write(step, accuracies)
            self.progress.message(describe_knn(step, accuracies))
            if last:
                path = self.workdir / "pca.png"
                self.evaluator.picture(backbone, self.config.seed, path)
                self.progress.message(f"wrote {path}")
        due = step % self.config.checkpoint.every == 0
        # Weights that give no finite loss are not the ones to go back to.
        if last or (due and not self.skipped_in_a_row):
            self.writer.sync()  # no checkpoint without the rows before it
            self.checkpoints.save(step, self.state)

    def close(self) -> None:
        """Ends what writes; a save under way is finished."""
        self.checkpoints.close()
        self.writer.close()
        self.progress.close()
        if self.bad_images.count:
            logging.info("%s", self.bad_images.summary())


def write_config(config: Any, workdir: pathlib.Path) -> None:
    """Writes WORKDIR/config.json, whole or not at all."""
    fields = json.loads(config.to_json_best_effort())
    temporary = workdir / "config.json.tmp"
    temporary.write_text(json.dumps(fields, indent=2) + "\n")
    temporary.replace(workdir / "config.json")


class Clock:
    """Rates since the last logged step; evaluation and saving do not count."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self.restart()

    def restart(self) -> None:
        """Begins a new interval now."""
        self._start, self._waited, self._steps = time.monotonic(), 0.0, 0

    def waiting_for_data(self) -> "Clock":
        """Context manager around the wait for a batch."""
        return self

    def __enter__(self) -> None:
        self._entered = time.monotonic()

    def __exit__(self, *_) -> None:
        self._waited += time.monotonic() - self._entered

    def step_done(self) -> None:
        """Counts a step."""
        self._steps += 1

    def rates(self) -> dict[str, float]:
        """`images_per_second` and `data_wait` (share of time) of the interval."""
        seconds = time.monotonic() - self._start
        rates = {
            "images_per_second": self._steps * self._batch_size / seconds,
            "data_wait": self._waited / seconds,
        }
        self.restart()
        return rates


class BadImages:
    """Unreadable images: each named once in WORKDIR/bad_images.txt, and counted."""

    def __init__(self, workdir: pathlib.Path, source: Any, max_share: float):
        self._path = workdir / "bad_images.txt"
        self._total, self._max_share = len(source), max_share
        self._seen: set[str] = set()
        if self._path.exists():
            lines = self._path.read_text().splitlines()
            self._seen = {line.split("\t")[0] for line in lines}

    @property
    def count(self) -> int:
        """Distinct unreadable images met so far."""
        return len(self._seen)

    def add(self, bad: np.ndarray) -> None:
        """Logs the new ones among a batch's `bad_images`.

        Raises:
          UserError: More than the allowed share of the source is unreadable.
        """
        for entry in bad:
            name = str(entry["name"])
            name = name.encode("unicode_escape", "surrogateescape").decode()
            if name in self._seen:
                continue
            self._seen.add(name)
            with open(self._path, "a") as log:
                log.write(f"{name}\t{entry['reason']}\n")
            if self.count == 1:
                logging.warning("unreadable image %s: %s", name, entry["reason"])
        if self.count > self._max_share * self._total:
            raise errors.UserError(
                f"{self.summary()}, more than data.max_bad_share = {self._max_share}: "
                "repair or remove them, or raise --config.data.max_bad_share"
            )

    def summary(self) -> str:
        """One line with the count and where they are named."""
        return (
            f"{self.count} of {self._total} images are unreadable and were replaced; "
            f"they are named in {self._path}"
        )


def compute_dtype(config: Any) -> Any:
    """Of the matmuls: what `model.dtype` says, or by platform where it is "auto"."""
    if config.model.dtype == "auto":
        return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return jnp.dtype(config.model.dtype)


def banner(config: Any, mesh: Any, source: sources.Source, num_params: int) -> str:
    """What is about to run, in words."""
    batch, steps = config.train.batch_size, config.train.steps
    device = mesh.devices.flat[0]
    lr = schedules.scaled_lr(config.optim.base_lr, batch)
    shape = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    return "\n".join(
        [
            f"devices     {mesh.size} {device.device_kind}, mesh {shape}",
            f"images      {len(source):,} from {config.data.source} {config.data.path}",
            f"batch       {batch} in {batch // config.train.group_size} groups of "
            f"{config.train.group_size}",
            f"steps       {steps:,} = {steps * batch / len(source):.1f} passes",
            f"lr          {lr:.3g} = {config.optim.base_lr:.3g} x sqrt({batch} / 1024)",
            f"parameters  {num_params / 1e6:.1f} M ({config.model.arch}, heads "
            f"included), matmuls in {jnp.dtype(compute_dtype(config)).name}",
        ]
    )


def where_to_look(workdir: pathlib.Path) -> str:
    """What a finished run leaves, and where."""
    files = {
        "metrics.jsonl": "the losses and accuracies, a line a step",
        "tensorboard": "the same for tensorboard --logdir",
        "checkpoints": "the weights",
        "pca.png": "what the patches have learned to tell apart",
    }
    found = [(workdir / name, about) for name, about in files.items()]
    found = [f"  {path}: {about}" for path, about in found if path.exists()]
    return "\n".join(["done; look at", *found])


def describe_knn(step: int, accuracies: dict[str, float]) -> str:
    """The k-NN accuracies as one line."""
    names = {
        "knn/top1": "trained",
        "knn/top1_random_init": "random init",
        "knn/top1_pixels": "pixels",
        "knn/top1_pixels_mean_removed": "pixels less mean",
        "knn/top1_color_histogram": "colour histogram",
    }
    shown = ", ".join(f"{name} {accuracies[k]:.1%}" for k, name in names.items())
    return f"step {step}: k-NN top-1: {shown}"


def _float32(scalars: dict[str, float]) -> dict[str, np.float32]:
    return {name: np.float32(value) for name, value in scalars.items()}

"""Several students of one frozen teacher, trained in one program.

Every device runs the teacher on its images once, then each student on the same batch in
turn, so work is balanced whatever the students' sizes (DINOv3, section 5.2, gives each
student devices of its own). A student's clipping, skipping, schedules and random keys
are those of its lone run.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from dinov2_jax import train_step, trainer
from dinov2_jax.data import preprocessing
from dinov2_jax.distillation import frozen_teacher, students
from dinov2_jax.weights import native


def train_step_of_all(
    states: dict[str, Any],
    batch: dict[str, jax.Array],
    scalars: dict[str, dict[str, jax.Array]],
    frozen: Any,
    *,
    trainers: Mapping[str, trainer.Trainer],
    seed: int,
    num_micro_batches: int,
) -> tuple[dict[str, Any], dict[str, jax.Array]]:
    """Compute one training step of every student, without side effects.

    Args:
      states: The state of each student, {name: TrainState}.
      batch: The batch, see `data/batch_builder.py`.
      scalars: The schedules' values of each student.
      frozen: Parameters of the teacher.
      trainers: What each student's config describes.
      seed: Seed of the run.
      num_micro_batches: Number of parts in which the batch is computed.

    Returns:
      The new states, and metrics: those of each student with its name as prefix, and
      `loss/total`, `skipped_in_a_row` and `skipped`, which are the sum, the maximum and
      the sum of the students'.
    """
    first, *_ = states
    key = jax.random.fold_in(jax.random.key(seed), states[first].step)
    targets, centers, batch = train_step.compute_targets(
        trainers[first].meta_arch,
        frozen,
        states[first].centers,
        batch,
        scalars[first]["teacher_temp"],
        key,
        num_micro_batches,
        states[first].step,
    )
    kept = _if_finite(centers, states[first].centers)
    new_states, metrics, found = {}, {}, []
    for name, state in states.items():
        new_state, own = train_step.update_student(
            state,
            targets,
            centers,
            batch,
            scalars[name],
            key,
            meta_arch=trainers[name].meta_arch,
            tx=trainers[name].tx,
            num_micro_batches=num_micro_batches,
        )
        # The teacher's statistics do not depend on which student is skipped.
        new_state = dataclasses.replace(new_state, centers=kept)
        # One student after the other, so that their memory does not add up.
        new_states[name], own, targets, batch = jax.lax.optimization_barrier(
            (new_state, own, targets, batch)
        )
        metrics |= {f"{name}/{metric}": value for metric, value in own.items()}
        found.append(own)
    metrics["loss/total"] = sum(own["loss/total"] for own in found)
    metrics["skipped"] = sum(own["skipped"] for own in found)
    in_a_row = [own["skipped_in_a_row"] for own in found]
    metrics["skipped_in_a_row"] = functools.reduce(jax.numpy.maximum, in_a_row)
    return new_states, metrics


def _if_finite(new: Any, old: Any) -> Any:
    """Return new statistics, or the old ones if a batch that all skip spoilt them."""
    finite = [jax.numpy.all(jax.numpy.isfinite(x)) for x in jax.tree.leaves(new)]
    good = functools.reduce(jax.numpy.logical_and, finite, True)
    return jax.tree.map(lambda x, y: jax.numpy.where(good, x, y), new, old)


class SeveralStudents(trainer.Trainer):
    """A `Trainer` whose state is {name: TrainState}.

    Args:
      config: A locked `ConfigDict`.
      students: The config of each student.
      mesh: The mesh to train on; None: all devices.
      dtype: The dtype of the matmuls; None: what `config.model.dtype` says.
      teacher: The frozen teacher.
    """

    def __init__(
        self,
        config: Any,
        students: Mapping[str, Any],
        *,
        mesh: Mesh | None = None,
        dtype: Any = None,
        teacher: frozen_teacher.FrozenTeacher,
    ):
        trainers = {
            name: trainer.Trainer(own, mesh=mesh, dtype=dtype, teacher=teacher)
            for name, own in students.items()
        }
        first = next(iter(trainers.values()))
        self._config, self._teacher = config, teacher
        self.meta_arch, self.tx = first.meta_arch, first.tx
        self._trainers, self._own = trainers, dict(students)
        self.mesh, self.dtype = first.mesh, first.dtype
        self.params = {name: own.params for name, own in trainers.items()}
        self.state = {name: own.state for name, own in trainers.items()}

    def schedules(self, step: int) -> dict[str, float]:
        """Return the values of the first student's schedules, and `NAME/lr` of each."""
        found = {name: own.schedules(step) for name, own in self._trainers.items()}
        first = next(iter(found.values()))
        return first | {f"{name}/lr": own["lr"] for name, own in found.items()}

    @property
    def largest_student(self) -> int:
        """The number of the parameters of the largest student, heads included."""
        return max(own.num_params for own in self._trainers.values())

    def _configs(self) -> list[Any]:
        return list(self._own.values())

    def students(self, state: Any) -> dict[str, tuple[trainer.Trainer, Any]]:
        """Return trainer and state of each student, by name."""
        return {name: (own, state[name]) for name, own in self._trainers.items()}

    def first_state(
        self, params: dict[str, Any] | None = None, gram: Any = None
    ) -> dict[str, Any]:
        """Return the states at step 0."""
        del params, gram  # which are for one student without a frozen teacher
        return {name: own.first_state() for name, own in self._trainers.items()}

    def scalars(self, step: int) -> dict[str, Any]:
        """Return the schedules of each student at a step."""
        return {name: own.scalars(step) for name, own in self._trainers.items()}

    def make_step(self) -> jax.stages.Wrapped:
        """Return the jitted step, to be called or lowered with `mesh` set."""

        def step(*args):
            return train_step_of_all(
                *args,
                trainers=self._trainers,
                seed=self._config.seed,
                num_micro_batches=self._config.train.micro_batches,
            )

        frozen = self._teacher.abstract(self.mesh, self.dtype)
        return train_step.jit(step, self.state, self.mesh, frozen=frozen)


def make_trainer(
    config: Any, teacher: frozen_teacher.FrozenTeacher | None, **settings: Any
) -> trainer.Trainer:
    """Return the trainer of a config, of one student or of several.

    Args:
      config: A checked config, from `frozen_teacher.resolve`.
      teacher: The frozen teacher; None if it is the student's EMA.
      **settings: Mesh and dtype, as `Trainer` takes them.
    """
    if teacher is None or not config.distill.students:
        return trainer.Trainer(config, teacher=teacher, **settings)
    own = students.configs(config)
    return SeveralStudents(config, own, teacher=teacher, **settings)


def remove_exports(config: Any, workdir: pathlib.Path) -> None:
    """Take what makes them exports from those of an earlier last step."""
    if jax.process_index() == 0:
        for name, _ in config.distill.students:
            (workdir / name / native.DESCRIPTION).unlink(missing_ok=True)


def exported(config: Any, workdir: pathlib.Path) -> bool:
    """Return whether `export` has written all students of the last step."""
    return all(
        (workdir / name / native.DESCRIPTION).is_file()
        for name, _ in config.distill.students
    )


def export(
    config: Any, several: trainer.Trainer, state: Any, workdir: pathlib.Path
) -> None:
    """Export the EMA of each student to WORKDIR/NAME, a folder that `load` takes.

    Args:
      config: The run's config.
      several: The students' trainer.
      state: Their state.
      workdir: The run's folder.
    """
    for name, (own, of_student) in several.students(state).items():
        backbone = own.meta_arch.student.backbone
        native.write(
            workdir / name,
            backbone.clone(dtype=jax.numpy.float32),
            of_student.teacher_params,
            preprocessing.make_preprocessing(config, backbone.config.patch_size),
            "teacher",
        )

"""What a study consists of: arms, each a chain of trainings, to be compared by seed."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from dinov2_jax.checkpoint import checksums


@dataclasses.dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
      workdir: Its folder; runs of several arms are one if they share it.
      config: Its config.
      prepare: Function that makes other files that the arm needs, unless they are
        there; None: it needs none. The runs before are finished when it is called.
    """

    workdir: pathlib.Path
    config: Any
    prepare: Callable[[], Any] | None = None

    def is_finished(self) -> bool:
        """Return whether the checkpoint of the last step is there."""
        last = self.workdir / "checkpoints" / str(self.config.train.steps)
        return checksums.is_sealed(last)


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to get a model, at one seed.

    Attributes:
      runs: The trainings, in their order.
      weights: Function that returns where the model is read from; None: the workdir of
        the last run.
      judge: Config whose `evaluation` and `data` the model is measured by; None: that
        of the last run.
      describe: Function that returns shares that describe the training images, by
        name, for a table of their own; None: there are none.
    """

    runs: tuple[Run, ...]
    weights: Callable[[], pathlib.Path] | None = None
    judge: Any = None
    describe: Callable[[], dict[str, float]] | None = None


@dataclasses.dataclass(frozen=True)
class Setting:
    """One repetition of a study.

    Attributes:
      folder: Folder of all studies' runs.
      seed: Seed of every run.
      steps: Length that the study's lengths are shares of, in steps of 64 images.
    """

    folder: pathlib.Path
    seed: int
    steps: int

    def workdir(self, name: str, steps: int | None = None) -> pathlib.Path:
        """Return the folder of a run.

        Args:
          name: Name of the run, the same for all seeds.
          steps: Steps that it depends on; None: those of the setting.
        """
        return self.folder / f"{name}-{steps or self.steps}" / f"seed{self.seed}"


@dataclasses.dataclass(frozen=True)
class Study:
    """A question that trainings answer.

    Attributes:
      question: The question, in a sentence.
      arms: Name -> function that returns the arm for a setting.
      steps: `Setting.steps` unless the command line says otherwise.
      seeds: Number of seeds, from 0, unless the command line says otherwise.
      pairs: (arm, arm that it is compared with), for paired differences.
      shares: {what: (arm, low, high)}: how far an arm's matching has come from that of
        arm `low` to that of arm `high`.
    """

    question: str
    arms: Mapping[str, Callable[[Setting], Arm]]
    steps: int = 600
    seeds: int = 5
    pairs: tuple[tuple[str, str], ...] = ()
    shares: Mapping[str, tuple[str, str, str]] = dataclasses.field(default_factory=dict)

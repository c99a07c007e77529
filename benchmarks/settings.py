"""What the command line says, for all parts."""

import dataclasses
import importlib.util
import pathlib
import time


@dataclasses.dataclass(frozen=True)
class Settings:
    """Of one run of the program.

    Attributes:
      device: `platform` and `kind` of the device that is measured.
      plan: "cpu" or "gpu", what is measured; the device's own unless it is a test.
      results: Folder of the JSON files.
      rounds: How often every contestant is started.
      samples: Of each start.
      deadline: On the clock of `time.monotonic`; None for no limit.
      reference: A clone of the reference, or "".
      tiny: Sizes for a test of the program, which measure nothing.
      only: Workloads of `step`; empty for all.
      overrides: Fields of the configs, "model.remat=selective".
    """

    device: dict[str, str]
    plan: str
    results: pathlib.Path
    rounds: int
    samples: int
    deadline: float | None
    reference: str
    tiny: bool
    only: tuple[str, ...]
    overrides: tuple[str, ...]

    @property
    def torch_device(self) -> str | None:
        """PyTorch's name of the device; None without PyTorch, or where it has none."""
        if importlib.util.find_spec("torch") is None:
            return None
        return {"cpu": "cpu", "gpu": "cuda"}.get(self.device["platform"])

    def seconds_left(self) -> float | None:
        """Until the deadline, at least 0; None without one."""
        if self.deadline is None:
            return None
        return max(self.deadline - time.monotonic(), 0.0)

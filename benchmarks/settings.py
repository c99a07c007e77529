"""Settings from the command line, for all parts."""

import dataclasses
import importlib.util
import pathlib
import time


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of one run of the benchmarks.

    Attributes:
      device: `platform` and `kind` of the device that is measured.
      plan: Set of workloads, "cpu" or "gpu"; that of the device except in tests.
      results: Folder of the JSON files.
      rounds: Number of times that each contestant is started.
      samples: Number of samples per start.
      deadline: End of the run by `time.monotonic`; None for no limit.
      reference: Folder of a clone of the reference, or "".
      tiny: Whether to use sizes that only test the program.
      only: Workloads to run; empty for all.
      overrides: Overridden config fields, such as "model.remat=selective".
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
        """PyTorch's name for the device; None if PyTorch is missing or has no name."""
        if importlib.util.find_spec("torch") is None:
            return None
        return {"cpu": "cpu", "gpu": "cuda"}.get(self.device["platform"])

    def seconds_left(self) -> float | None:
        """Return the seconds until the deadline, at least 0; None if there is none."""
        if self.deadline is None:
            return None
        return max(self.deadline - time.monotonic(), 0.0)

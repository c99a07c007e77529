"""A config as one flat dictionary, and the names of its fields."""

import difflib
from collections.abc import Iterable
from typing import Any

# Names that fields had before: old runs resume, and old flags are told the new name.
RENAMED = {
    "init.from": ("init.source",),
    "train.sinkhorn_queue": ("dino.sinkhorn_queue", "ibot.sinkhorn_queue"),
}


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten a ConfigDict or nested dict to {"optim.base_lr": 0.004, ...}."""
    flat = {}
    for name, value in config.items():
        if hasattr(value, "items"):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def unknown_field(name: str, known: Iterable[str]) -> str:
    """Return the message for a field that no config has.

    Args:
      name: The field, such as "optim.base_lrr".
      known: The fields that there are.
    """
    if name in RENAMED:
        now = " and ".join(f"--config.{new}" for new in RENAMED[name])
        return f"config field {name} is called {now} now"
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean --config.{close[0]}?" if close else ""
    return f"unknown config field {name}{hint}"

"""The run whose weights another run continues, and how their configs compare."""

import pathlib
from typing import Any

from dinov2_jax import schedules
from dinov2_jax.config import flattening, resuming

_HIGHEST_LR = 0.3  # of the source run's, for a stage at a higher resolution


def compare(config: Any) -> list[str]:
    """Describe a run that continues another, heads included, at a higher resolution.

    Args:
      config: The configuration of the run that starts.

    Returns:
      A line with the lengths of both runs' schedules, and a warning if the learning
      rate is higher than is usual. Empty for other runs, and if `init.source` is not
      the folder of a run or a checkpoint in it.
    """
    path = _config_of(config.init.source)
    if config.init.heads != "loaded" or path is None:
        return []
    before, now = resuming.read_saved(path), flattening.flatten(config)
    size = "crops.global_crops_size"
    if not now[size] > before.get(size, 0):
        return []
    lengths = schedules.compress(now, steps_before=1, steps=1)
    parts = [
        f"{name} {before[name]} -> {now[name]}"
        for name in ("train.steps", *lengths)
        if before.get(name)
    ]
    lines = [f"schedules before and now: {', '.join(parts)}"]
    rates = [
        schedules.scaled_lr(flat["optim.base_lr"], flat["train.batch_size"])
        for flat in (before, now)
    ]
    if rates[1] > _HIGHEST_LR * rates[0]:
        fix = now["optim.base_lr"] * 0.1 * rates[0] / rates[1]
        lines.append(
            f"warning: the learning rate is {rates[1]:.3g}, {rates[1] / rates[0]:.2g} "
            f"of that of {path.parent} ({rates[0]:.3g}): a stage at a higher "
            f"resolution usually has a tenth, --config.optim.base_lr={fix:.3g}"
        )
    return lines


def _config_of(source: str) -> pathlib.Path | None:
    """Return the config.json of a workdir or of a checkpoint in it, None if none."""
    folder = pathlib.Path(source).expanduser()
    if folder.name.isdecimal() and folder.parent.name == "checkpoints":
        folder = folder.parent.parent
    path = folder / "config.json"
    return path if source and path.is_file() else None

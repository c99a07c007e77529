"""Settings that are valid but probably mistakes."""

from typing import Any


def find(config: Any) -> list[str]:
    """Return a warning about each setting that keeps a part of a run from learning."""
    found = [
        f"{head}.head_n_prototypes = 1: every prediction is certain, so its loss is 0 "
        f"and teaches nothing; raise --config.{head}.head_n_prototypes"
        for head in ("dino", "ibot")
        if config[head].head_n_prototypes == 1
        and config[head].loss_weight
        and config.train.objective == "prototypes"
    ]
    frozen, steps = config.optim.freeze_last_layer_steps, config.train.steps
    own_prototypes = (
        config.train.objective == "prototypes" and not config.distill.source
    )
    if own_prototypes and frozen >= steps:
        found.append(
            f"optim.freeze_last_layer_steps = {frozen} is not below train.steps = "
            f"{steps}, so the prototypes never learn: lower "
            "--config.optim.freeze_last_layer_steps"
        )
    return found

"""What a config permits, though it is hardly meant."""

from typing import Any


def find(config: Any) -> list[str]:
    """Return what in a config makes a loss meaningless, though it trains."""
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

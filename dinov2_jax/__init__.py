"""DINOv2 in JAX: pretraining, evaluation and verified export.

`dinov2_jax.load(source)` returns a trained model; see `pretrained`.
"""

from typing import Any

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name != "load":
        raise AttributeError(f"module 'dinov2_jax' has no attribute {name!r}")
    from dinov2_jax import pretrained  # imports jax; programs check flags first

    return pretrained.load

"""DINOv2 in JAX: pretraining, evaluation and verified export.

`dinov2_jax.load(source)` returns a trained model; see `pretrained`.
`dinov2_jax.load_head(source)` returns a head for it; see `eval.heads.head_files`.
"""

from typing import Any

__all__ = ["load", "load_head"]


def __getattr__(name: str) -> Any:
    # Imported late: these import jax, and programs check their flags first.
    if name == "load":
        from dinov2_jax import pretrained

        return pretrained.load
    if name == "load_head":
        from dinov2_jax.eval.heads import head_files

        return head_files.load_head
    raise AttributeError(f"module 'dinov2_jax' has no attribute {name!r}")

"""Random weights that behave like trained ones, under the names of released files."""

import json
import math
import pathlib

import numpy as np

FOLDER = pathlib.Path(__file__).parent / "reference" / "state_dicts"
HUB_NAMES = [
    f"vit{size}14{registers}" for size in "sblg" for registers in ("", "_reg4")
]


def shapes(file: str) -> dict[str, tuple[int, ...]]:
    """Key -> shape of a recorded file, in its order."""
    recorded = json.loads((FOLDER / f"{file}.json").read_text())
    return {key: tuple(shape) for key, shape in recorded.items()}


def small_shapes(name: str, *, depth: int = 2, side: int = 4) -> dict[str, tuple]:
    """A released hub file's keys at 128 wide, `depth` blocks, a side x side grid."""
    full = shapes(f"dinov2_{name}")
    width = full["cls_token"][-1]
    hidden = {4096 * 2: 2 * 344, 4096: 344}  # of a SwiGLU 128 wide
    small = {}
    for key, shape in full.items():
        if key.startswith("blocks.") and int(key.split(".")[1]) >= depth:
            continue
        if ".mlp.w" in key:
            small[key] = tuple(hidden.get(n, 128) for n in shape)
        else:
            small[key] = tuple(
                n * 128 // width if n >= width and n % width == 0 else n for n in shape
            )
    small["pos_embed"] = (1, 1 + side * side, 128)
    return small


def tensors(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """float32 weights for which every tensor matters to the features.

    LayerScales are around 0.5 and norms around 1; with 1e-5 or weights of one size a
    wrong block would hardly change the output.
    """
    rng = np.random.default_rng(seed)
    drawn = {}
    for key, shape in shapes.items():
        x = rng.standard_normal(shape, np.float32)
        if "norm" in key and key.endswith("weight"):
            x = 1 + 0.2 * x
        elif key.endswith(("gamma", "lambda1")):
            x = 0.5 + 0.2 * x
        elif key.endswith("weight"):
            x = x / math.sqrt(math.prod(shape[1:]))
        elif key.endswith("bias"):
            x = 0.1 * x
        else:
            x = 0.5 * x
        drawn[key] = x.astype(np.float32)
    return drawn


def head_tensors(seed: int = 7, *, width: int = 128, prototypes: int = 32) -> dict:
    """A DINO head of three layers, under the reference's names."""
    return tensors(
        {
            "mlp.0.weight": (64, width),
            "mlp.0.bias": (64,),
            "mlp.2.weight": (64, 64),
            "mlp.2.bias": (64,),
            "mlp.4.weight": (16, 64),
            "mlp.4.bias": (16,),
            "last_layer.weight_g": (prototypes, 1),
            "last_layer.weight_v": (prototypes, 16),
        },
        seed,
    )

"""Runs what was written with its target's own packages, on real photographs."""

import importlib.metadata
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from PIL import Image

from dinov2_jax import errors
from dinov2_jax.convert import onnx_graph, stablehlo, torch_twin
from dinov2_jax.data import photos
from dinov2_jax.models import vision_transformer
from dinov2_jax.weights import reading

TOLERANCE = 1e-4  # relative; above it a conversion is refused


def photographs(height: int, width: int, weights: reading.Weights) -> np.ndarray:
    """Two real photographs as the model takes them, float32 [2, height, width, C]."""
    resized = [
        np.asarray(
            Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
        )
        for pixels in photos.load_unseen()
    ]
    images = weights.preprocessing.normalize(np.stack(resized))
    # Other channels than three take turns among red, green and blue.
    return images[..., np.arange(weights.module.in_chans) % 3]


def expected_features(
    weights: reading.Weights, images: np.ndarray
) -> dict[str, np.ndarray]:
    """The features of this project, by name."""
    apply = jax.jit(lambda params, x: weights.module.apply({"params": params}, x))
    out = apply(weights.params["backbone"], images)
    return {
        name: np.asarray(getattr(out, name)) for name in ("cls", "registers", "patches")
    }


def same_tensors(path: pathlib.Path, weights: reading.Weights, heads: bool) -> bool:
    """Whether a file or folder gives back every tensor bit for bit."""
    heads_number = weights.module.num_heads
    try:
        found = reading.read(
            path, which=weights.which, heads=heads, num_heads=heads_number
        )
    except errors.UserError:  # a file of one model does not say whose it is
        found = reading.read(path, heads=heads, num_heads=heads_number)
    same = jax.tree.map(np.array_equal, found.params, dict(weights.params))
    return all(jax.tree.leaves(same))


def relative_errors(
    found: dict[str, np.ndarray], expected: dict[str, np.ndarray]
) -> dict[str, float]:
    """|found - expected| / |expected| (L2) of the worst image, by output."""
    worst = {}
    for name, array in expected.items():
        if not array.size:
            continue
        difference = np.abs(found[name].astype(np.float64) - array)
        axes = tuple(range(1, array.ndim))
        scale = np.sqrt(np.sum(array.astype(np.float64) ** 2, axis=axes))
        error = np.sqrt(np.sum(difference**2, axis=axes)) / np.maximum(scale, 1e-30)
        worst[name] = float(np.max(error))  # a NaN stays one
    return worst


def _run_torch_hub(path, weights, images, which, heads) -> dict[str, np.ndarray]:
    import torch

    tree = torch.load(path, map_location="cpu", weights_only=True)
    if "model" in tree:
        tensors, prefix = tree["model"], f"{which}.backbone."
    elif heads:
        tensors, prefix = tree[which or "teacher"], "backbone."
    else:
        tensors, prefix = tree, ""
    return _run_twin(tensors, prefix, weights, images)


def _run_safetensors(path, weights, images, which, heads) -> dict[str, np.ndarray]:
    import safetensors.torch

    tensors = safetensors.torch.load_file(path)
    prefix = ""
    if heads:
        both = any(name.startswith(f"{which}.") for name in tensors)
        prefix = f"{which}.backbone." if both else "backbone."
    return _run_twin(tensors, prefix, weights, images)


def _run_twin(tensors, prefix, weights, images) -> dict[str, np.ndarray]:
    backbone = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    return torch_twin.features(backbone, images, weights.module.num_heads)


def _run_huggingface(path, weights, images, which, heads) -> dict[str, np.ndarray]:
    del which, heads
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model, info = transformers.AutoModel.from_pretrained(
        path, output_loading_info=True, local_files_only=True, dtype=torch.float32
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[problem]:
            raise ValueError(f"transformers reports {problem}: {info[problem]}")
    with torch.inference_mode():
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        tokens = model.eval()(pixels).last_hidden_state.numpy()
    return _split(tokens, weights.module, images)


def _run_timm(path, weights, images, which, heads) -> dict[str, np.ndarray]:
    del which, heads
    import timm
    import torch

    m = weights.module
    arch = {size: name for name, size in vision_transformer.ARCHS.items()}.get(
        (m.embed_dim, m.depth, m.num_heads), "vit_of_another_size"
    )
    registers = f"_reg{m.num_register_tokens}" if m.num_register_tokens else ""
    name = f"{arch.removesuffix('2')}_patch{m.patch_size}{registers}_dinov2"
    if not timm.is_model(name):
        raise LookupError(f"timm has no {name}")
    model = timm.create_model(
        name,
        img_size=m.image_size,
        in_chans=m.in_chans,
        num_classes=0,
    )
    if path.suffix == ".safetensors":
        import safetensors.torch

        tensors = safetensors.torch.load_file(path)
    else:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(tensors, strict=True)
    with torch.inference_mode():
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        tokens = model.eval().forward_features(pixels).numpy()
    return _split(tokens, m, images)


def _split(tokens, module, images) -> dict[str, np.ndarray]:
    """[B, 1 + R + h*w, D] -> features by name."""
    first = 1 + module.num_register_tokens
    rows, columns = (n // module.patch_size for n in images.shape[1:3])
    return {
        "cls": tokens[:, 0],
        "registers": tokens[:, 1:first],
        "patches": tokens[:, first:].reshape(len(tokens), rows, columns, -1),
    }


def _run_onnx(path, weights, images, which, heads) -> dict[str, np.ndarray]:
    del weights, which, heads
    return onnx_graph.run(path, images)


def _run_stablehlo(path, weights, images, which, heads) -> dict[str, np.ndarray]:
    del weights, which, heads
    return stablehlo.run(path, images)


def _run_orbax(path, weights, images, which, heads) -> dict[str, np.ndarray]:
    del weights, heads
    return expected_features(reading.read(path, which=which), images)


# Who runs a target, and the packages that this takes.
_RUNNERS: dict[str, tuple[Callable[..., dict[str, np.ndarray]], tuple[str, ...]]] = {
    "torch-hub": (_run_torch_hub, ("torch",)),
    "safetensors": (_run_safetensors, ("torch", "safetensors")),
    "huggingface": (_run_huggingface, ("torch", "transformers")),
    "timm": (_run_timm, ("torch", "timm")),
    "onnx": (_run_onnx, ("onnxruntime",)),
    "stablehlo": (_run_stablehlo, ("jax",)),
    "orbax": (_run_orbax, ("orbax-checkpoint",)),
}


def run(
    target: str,
    path: pathlib.Path,
    weights: reading.Weights,
    *,
    size: tuple[int, int],
    which: str | None,
    heads: bool,
) -> dict[str, Any]:
    """Compares the features of what was written with this project's.

    Args:
      target: Its name.
      path: What was written.
      weights: What it was written from.
      size: (height, width) of the images, px.
      which: Whose weights are compared; None where nobody knows.
      heads: Whether it holds projection heads.

    Returns:
      {"packages": versions, "images", "relative_error": by output}, or {"skipped":
      reason} where a package is not installed.
    """
    runner, packages = _RUNNERS[target]
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
            importlib.import_module(package.partition("-")[0])
        except Exception as error:  # a broken installation raises anything
            reason = " ".join(str(error).split())[:200]
            return {"skipped": f"{package} cannot be imported here ({reason})"}
    images = photographs(*size, weights)
    expected = expected_features(weights, images)
    try:
        found = runner(path, weights, images, which, heads)
    except LookupError as error:
        return {"skipped": str(error.args[0])}
    except Exception as error:  # of the target's packages
        reason = " ".join(str(error).split())[:300]
        raise errors.UserError(
            f"{', '.join(packages)} cannot run what was written for {target} "
            f"({reason}); nothing was kept"
        ) from error
    return {
        "packages": versions,
        "images": list(images.shape),
        "relative_error": relative_errors(found, expected),
    }

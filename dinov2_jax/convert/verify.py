"""Check of exports with their target's own packages, on real photographs."""

import dataclasses
import importlib.metadata
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from PIL import Image

from dinov2_jax import errors
from dinov2_jax.convert import onnx_graph, stablehlo, torch_twin
from dinov2_jax.data.sources import photos
from dinov2_jax.models import model_config, vision_transformer
from dinov2_jax.weights import reading

TOLERANCE = 1e-4  # relative; above it a conversion is refused

# Images float32 [B, H, W, C] -> features by name.
Run = Callable[[np.ndarray], dict[str, np.ndarray]]


class _MissingModel(Exception):
    """Error for a model that the target's packages do not have."""


def photographs(height: int, width: int, weights: reading.Weights) -> np.ndarray:
    """Return two real photographs as model input, float32 [2, height, width, C]."""
    resized = [
        np.asarray(
            Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
        )
        for pixels in photos.load_unseen()
    ]
    # Models of other than three channels get red, green and blue in turn.
    chans = weights.module.config.in_chans
    pixels = np.stack(resized)[..., np.arange(chans) % 3]
    prepare = dataclasses.replace(
        weights.preprocessing,
        mean=np.resize(weights.preprocessing.mean, chans),
        std=np.resize(weights.preprocessing.std, chans),
    )
    return prepare.normalize(pixels)


def expected_features(
    weights: reading.Weights, images: np.ndarray
) -> dict[str, np.ndarray]:
    """Return this project's features, by name."""
    apply = jax.jit(lambda params, x: weights.module.apply({"params": params}, x))
    # Otherwise TPUs and GPUs multiply float32 in lower precision than the target.
    with jax.default_matmul_precision("highest"):
        out = apply(weights.params["backbone"], images)
    return {
        name: np.asarray(getattr(out, name)) for name in ("cls", "registers", "patches")
    }


def same_tensors(path: pathlib.Path, weights: reading.Weights, heads: bool) -> bool:
    """Return whether a file or folder holds every tensor bit for bit."""
    heads_number = weights.module.config.num_heads
    try:
        found = reading.read(
            path, which=weights.which, heads=heads, num_heads=heads_number
        )
    except errors.UserError:  # a file of one model does not say whose it is
        found = reading.read(path, heads=heads, num_heads=heads_number)
    same = jax.tree.map(np.array_equal, found.params, dict(weights.params))
    return all(jax.tree.leaves(same))


def relative_errors(
    actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]
) -> dict[str, float]:
    """Return |found - expected| / |expected| (L2) of the worst image, by output."""
    worst = {}
    for name, array in expected.items():
        if not array.size:
            continue
        difference = np.abs(actual[name].astype(np.float64) - array)
        axes = tuple(range(1, array.ndim))
        scale = np.sqrt(np.sum(array.astype(np.float64) ** 2, axis=axes))
        error = np.sqrt(np.sum(difference**2, axis=axes)) / np.maximum(scale, 1e-30)
        worst[name] = float(np.max(error))  # keeps a NaN
    return worst


def _load_torch_hub(path, weights, which, heads) -> Run:
    import torch

    tree = torch.load(path, map_location="cpu", weights_only=True)
    tensors = tree.get("model", tree.get(which, tree))
    return _twin(tensors, weights, which, heads)


def _load_safetensors(path, weights, which, heads) -> Run:
    import safetensors.torch

    return _twin(safetensors.torch.load_file(path), weights, which, heads)


def _twin(tensors, weights, which, heads) -> Run:
    prefix = "backbone." if heads else ""
    if any(name.startswith(f"{which}.") for name in tensors):
        prefix = f"{which}.{prefix}"
    backbone = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    return lambda images: torch_twin.features(
        backbone, images, weights.module.config.num_heads
    )


def _load_huggingface(path, weights, which, heads) -> Run:
    del which, heads
    import torch
    import transformers
    import transformers.utils.logging

    transformers.utils.logging.disable_progress_bar()
    model, info = transformers.AutoModel.from_pretrained(
        path, output_loading_info=True, local_files_only=True, dtype=torch.float32
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[problem]:
            raise ValueError(f"transformers reports {problem}: {info[problem]}")
    model.eval()

    def run_model(images):
        with torch.inference_mode():
            pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
            tokens = model(pixels).last_hidden_state.numpy()
        return _split(tokens, weights.module, images)

    return run_model


def _load_timm(path, weights, which, heads) -> Run:
    del which, heads
    import timm
    import torch

    m = weights.module.config
    arch = {size: name for name, size in model_config.ARCHS.items()}.get(
        (m.embed_dim, m.depth, m.num_heads), "vit_unknown"
    )
    registers = f"_reg{m.num_register_tokens}" if m.num_register_tokens else ""
    name = f"{arch.removesuffix('2')}_patch{m.patch_size}{registers}_dinov2"
    if not timm.is_model(name):
        raise _MissingModel(f"timm has no {name}")
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
    model.eval()

    def run_model(images):
        with torch.inference_mode():
            pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
            tokens = model.forward_features(pixels).numpy()
        return _split(tokens, weights.module, images)

    return run_model


def _split(tokens, module, images) -> dict[str, np.ndarray]:
    """Split tokens [B, 1 + R + h*w, D] into features by name."""
    first = 1 + module.config.num_register_tokens
    rows, columns = (n // module.config.patch_size for n in images.shape[1:3])
    return {
        "cls": tokens[:, 0],
        "registers": tokens[:, 1:first],
        "patches": tokens[:, first:].reshape(len(tokens), rows, columns, -1),
    }


def _load_onnx(path, weights, which, heads) -> Run:
    del weights, which, heads
    return lambda images: onnx_graph.run(path, images)


def _load_stablehlo(path, weights, which, heads) -> Run:
    del weights, which, heads
    return lambda images: stablehlo.run(path, images)


def _load_orbax(path, weights, which, heads) -> Run:
    del weights, heads
    found = reading.read(path, which=which)
    return lambda images: expected_features(found, images)


@dataclasses.dataclass(frozen=True)
class _Runner:
    """How a target is loaded, with which packages, and whether at any image size."""

    load: Callable[..., Run]
    packages: tuple[str, ...]
    any_size: bool = True


_RUNNERS = {
    "torch-hub": _Runner(_load_torch_hub, ("torch",)),
    "safetensors": _Runner(_load_safetensors, ("torch", "safetensors")),
    "huggingface": _Runner(_load_huggingface, ("torch", "transformers")),
    "timm": _Runner(_load_timm, ("torch", "timm"), any_size=False),
    "onnx": _Runner(_load_onnx, ("onnxruntime",), any_size=False),
    "stablehlo": _Runner(_load_stablehlo, ("jax",), any_size=False),
    "orbax": _Runner(_load_orbax, ("orbax-checkpoint",)),
}


def other_size(module: vision_transformer.VisionTransformer) -> tuple[int, int]:
    """Return an oblong size in px, one side below the model's own and one above."""
    side, patch = module.config.grid_size, module.config.patch_size
    return max(side // 2, 1) * patch, (side + 1) * patch


def run(
    target: str,
    path: pathlib.Path,
    weights: reading.Weights,
    *,
    size: tuple[int, int],
    which: str | None,
    heads: bool,
) -> dict[str, Any]:
    """Compare the features of an export with this project's.

    Args:
      target: Name of the target.
      path: Path of the export.
      weights: Weights that were exported.
      size: (height, width) of the images, px.
      which: Whose weights to compare, "teacher" or "student"; None if unknown.
      heads: Whether the export holds projection heads.

    Returns:
      {"packages": versions, "images": shape, "relative_error": by output} and, if the
      target runs other sizes, "other_size": {"images", "relative_error"} at an oblong
      one; or {"skipped": reason} if a package is not installed or lacks the model.

    Raises:
      UserError: The target's packages cannot run the export.
    """
    runner = _RUNNERS[target]
    versions = {}
    for package in runner.packages:
        try:
            versions[package] = importlib.metadata.version(package)
            importlib.import_module(package.partition("-")[0])
        except Exception as error:  # a broken package can raise anything
            reason = " ".join(str(error).split())[:200]
            return {"skipped": f"{package} cannot be imported here ({reason})"}
    try:
        run_model = runner.load(path, weights, which, heads)
        checked = {"packages": versions}
        checked |= _compare(run_model, photographs(*size, weights), weights)
        if runner.any_size:
            images = photographs(*other_size(weights.module), weights)
            checked["other_size"] = _compare(run_model, images, weights)
    except _MissingModel as error:
        return {"skipped": str(error)}
    except Exception as error:  # from the target's packages
        reason = " ".join(str(error).split())[:300]
        raise errors.UserError(
            f"{', '.join(runner.packages)} cannot run the {target} export ({reason}); "
            "nothing was kept"
        ) from error
    return checked


def _compare(run_model: Run, images, weights) -> dict[str, Any]:
    actual, expected = run_model(images), expected_features(weights, images)
    return {
        "images": list(images.shape),
        "relative_error": relative_errors(actual, expected),
    }

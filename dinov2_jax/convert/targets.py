"""Writers of a backbone's weights in the format of each target."""

import functools
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from dinov2_jax import errors
from dinov2_jax.convert import onnx_graph, stablehlo
from dinov2_jax.models import model_config, vision_transformer
from dinov2_jax.weights import (
    architecture,
    checkpoint_tree,
    huggingface,
    lazy_tensor,
    naming,
    native,
    reading,
    safetensors_file,
    state_dict,
    torch_writer,
)

Owners = Mapping[str | None, reading.Weights]
Writer = Callable[[pathlib.Path, Owners, tuple[int, int], bool], None]


def backbone_tensors(weights: reading.Weights) -> dict[str, lazy_tensor.LazyTensor]:
    """Return a backbone by the reference's names, in the order of its `state_dict`."""
    tensors = _tensors(weights.params["backbone"], weights.module.config.patch_size)
    return {
        name: tensors[name]
        for name in architecture.backbone_shapes(weights.module.config)
    }


def _tensors(params, patch_size) -> dict[str, lazy_tensor.LazyTensor]:
    arrays = state_dict.state_dict_from_params(params, patch_size=patch_size)
    return {
        name: lazy_tensor.LazyTensor(
            array.shape, array.dtype, lambda array=array: state_dict.contiguous(array)
        )
        for name, array in arrays.items()
    }


def _checkpoint_tensors(weights: reading.Weights) -> dict[str, lazy_tensor.LazyTensor]:
    """Return backbone and heads by the names of the reference's checkpoints."""
    heads = sorted(weights.params.keys() - {"backbone"})
    unknown = [head for head in heads if head not in checkpoint_tree.SUBMODULES]
    if unknown:
        raise errors.UserError(
            f"no file of the reference holds the heads {' and '.join(unknown)}: use "
            "--to orbax, or leave out --heads (heads=False) and --which both"
        )
    named = {f"backbone.{k}": v for k, v in backbone_tensors(weights).items()}
    for head in heads:
        for name, tensor in _tensors(weights.params[head], None).items():
            named[f"{head}.{name}"] = tensor
    return named


def _flat(owners: Owners) -> dict[str, lazy_tensor.LazyTensor]:
    """Return all owners' backbones and heads, as student.backbone.cls_token, ...

    Weights of an unknown owner have no such prefix.
    """
    return {
        f"{owner}.{name}" if owner else name: tensor
        for owner, weights in owners.items()
        for name, tensor in _checkpoint_tensors(weights).items()
    }


def _single(owners: Owners) -> reading.Weights:
    (weights,) = owners.values()
    return weights


def _write_torch_hub(path, owners, size, heads) -> None:
    """Write a plain `state_dict`; with heads, what the reference saves in training."""
    del size
    if len(owners) > 1:
        tree = {"model": _flat(owners)}
    elif heads:
        ((owner, weights),) = owners.items()
        tree = _checkpoint_tensors(weights)
        if owner:
            tree = {owner: tree}
    else:
        tree = backbone_tensors(_single(owners))
    torch_writer.write(path, tree)


def _write_safetensors(path, owners, size, heads) -> None:
    del size
    tensors = _flat(owners) if heads else backbone_tensors(_single(owners))
    safetensors_file.write(path, tensors)


def _write_huggingface(path, owners, size, heads) -> None:
    del size, heads
    weights = _single(owners)
    config = huggingface.config(weights.module.config)
    path.mkdir()
    _write_json(path / "config.json", config)
    _write_json(
        path / "preprocessor_config.json",
        huggingface.preprocessor_config(weights.preprocessing),
    )
    safetensors_file.write(
        path / "model.safetensors",
        naming.from_hub(backbone_tensors(weights), naming.HUGGINGFACE),
    )


def _write_timm(path, owners, size, heads) -> None:
    del size, heads
    tensors = naming.from_hub(backbone_tensors(_single(owners)), naming.TIMM)
    if path.suffix == ".safetensors":
        safetensors_file.write(path, tensors)
    else:
        torch_writer.write(path, tensors)


def _write_program(format, path, owners, size, heads) -> None:
    """Write the backbone as a program for one image size, `format.write`."""
    del heads
    weights = _single(owners)
    format.write(
        path,
        weights.module,
        weights.params["backbone"],
        image_size=size,
        prepare=weights.preprocessing,
    )


def _write_orbax(path, owners, size, heads) -> None:
    del size, heads
    ((which, weights),) = owners.items()
    native.write(path, weights.module, weights.params, weights.preprocessing, which)


def _write_json(path: pathlib.Path, fields: Mapping[str, object]) -> None:
    path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")


def _in_transformers(registers: bool) -> dict[str, Any]:
    return {"interpolate_offset": 0.0, "interpolate_antialias": registers}


def _in_timm(registers: bool) -> dict[str, Any]:
    del registers
    return {"interpolate_offset": 0.0, "interpolate_antialias": True}


# Functions (path, weights by owner, (height, width), heads) -> None.
WRITERS: dict[str, Writer] = {
    "torch-hub": _write_torch_hub,
    "huggingface": _write_huggingface,
    "timm": _write_timm,
    "safetensors": _write_safetensors,
    "onnx": functools.partial(_write_program, onnx_graph),
    "stablehlo": functools.partial(_write_program, stablehlo),
    "orbax": _write_orbax,
}
# Functions from whether there are registers to how a target's readers interpolate
# position embeddings; the readers of other targets do so as the model does.
_INTERPOLATION: dict[str, Callable[[bool], dict[str, Any]]] = {
    "torch-hub": model_config.assumed_interpolation,
    "huggingface": _in_transformers,
    "timm": _in_timm,
    "safetensors": model_config.assumed_interpolation,
}


def lost_interpolation(
    name: str, module: vision_transformer.VisionTransformer
) -> str | None:
    """Say how a target's readers interpolate unlike a module; return None if alike."""
    readers = _INTERPOLATION.get(name)
    if readers is None:
        return None
    theirs = readers(bool(module.config.num_register_tokens))
    ours = {field: getattr(module.config, field) for field in theirs}
    if ours == theirs:
        return None
    descriptions = [
        f"offset {pair['interpolate_offset']}, "
        f"{'' if pair['interpolate_antialias'] else 'not '}antialiased"
        for pair in (theirs, ours)
    ]
    return (
        f"readers of --to {name} interpolate position embeddings differently "
        f"({descriptions[0]}) than this model ({descriptions[1]})"
    )

"""Writers of a backbone's weights in the format of each target."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from dinov2_jax import errors
from dinov2_jax.convert import onnx_graph, stablehlo
from dinov2_jax.models import vision_transformer
from dinov2_jax.weights import (
    architecture,
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


@dataclasses.dataclass(frozen=True)
class Target:
    """A format to export to.

    Attributes:
      write: Function (path, weights by owner, (height, width), heads) -> None.
      suffixes: Suffixes of the files it writes; empty for a folder.
      takes_heads: Whether it can hold projection heads.
      bakes_size: Whether an export is for one image size only.
      interpolation: Function from whether there are registers to how its readers
        interpolate position embeddings; None if they do so as the model does.
    """

    write: Callable[[pathlib.Path, Owners, tuple[int, int], bool], None]
    suffixes: tuple[str, ...]
    takes_heads: bool = False
    bakes_size: bool = False
    interpolation: Callable[[bool], dict[str, Any]] | None = None


def backbone_tensors(weights: reading.Weights) -> dict[str, lazy_tensor.LazyTensor]:
    """Return a backbone by the reference's names, in the order of its `state_dict`."""
    tensors = _tensors(weights.params["backbone"], weights.module.patch_size)
    return {
        name: tensors[name] for name in architecture.backbone_shapes(weights.module)
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
    named = {f"backbone.{k}": v for k, v in backbone_tensors(weights).items()}
    for head in sorted(weights.params.keys() - {"backbone"}):
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
    config = huggingface.config(weights.module)
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


def _write_onnx(path, owners, size, heads) -> None:
    del heads
    weights = _single(owners)
    onnx_graph.write(
        path,
        weights.module,
        weights.params["backbone"],
        image_size=size,
        prepare=weights.preprocessing,
    )


def _write_stablehlo(path, owners, size, heads) -> None:
    del heads
    weights = _single(owners)
    stablehlo.write(
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


_in_hub = architecture.assumed_interpolation
TARGETS = {
    "torch-hub": Target(
        _write_torch_hub, (".pth", ".pt"), takes_heads=True, interpolation=_in_hub
    ),
    "huggingface": Target(_write_huggingface, (), interpolation=_in_transformers),
    "timm": Target(
        _write_timm, (".safetensors", ".pth", ".pt"), interpolation=_in_timm
    ),
    "safetensors": Target(
        _write_safetensors, (".safetensors",), takes_heads=True, interpolation=_in_hub
    ),
    "onnx": Target(_write_onnx, (".onnx",), bakes_size=True),
    "stablehlo": Target(_write_stablehlo, (), bakes_size=True),
    "orbax": Target(_write_orbax, (), takes_heads=True),
}


def lost_interpolation(
    name: str, module: vision_transformer.VisionTransformer
) -> str | None:
    """Say how a target's readers interpolate unlike a module; return None if alike."""
    readers = TARGETS[name].interpolation
    if readers is None:
        return None
    theirs = readers(bool(module.num_register_tokens))
    ours = {field: getattr(module, field) for field in theirs}
    if ours == theirs:
        return None
    words = [
        f"offset {pair['interpolate_offset']}, "
        f"{'' if pair['interpolate_antialias'] else 'not '}antialiased"
        for pair in (theirs, ours)
    ]
    return (
        f"readers of --to {name} interpolate position embeddings otherwise ({words[0]})"
        f" than this model ({words[1]})"
    )


def check(name: str, path: pathlib.Path, *, heads: bool, both: bool) -> Target:
    """Return the named target, if it can hold what is asked for at this path.

    Raises:
      UserError: The suffix is wrong, or the target cannot hold heads or both models.
    """
    if name not in TARGETS:
        raise errors.UserError(f"to={name!r}: use one of {', '.join(TARGETS)}")
    target = TARGETS[name]
    if target.suffixes and path.suffix not in target.suffixes:
        raise errors.UserError(
            f"{path} should end in {' or '.join(target.suffixes)} for --to {name}"
        )
    if not target.suffixes and path.suffix in (".pth", ".pt", ".safetensors", ".onnx"):
        raise errors.UserError(
            f"--to {name} writes a folder, and {path} reads like a file: leave out "
            f"{path.suffix}"
        )
    if heads and not target.takes_heads:
        places = ", ".join(k for k, t in TARGETS.items() if t.takes_heads)
        raise errors.UserError(
            f"--to {name} has no place for projection heads: leave out --heads "
            f"(heads=False) or use one of {places}"
        )
    if both and name == "orbax":
        raise errors.UserError(
            "--to orbax holds one of teacher and student: convert twice, or use "
            "torch-hub or safetensors for --which both"
        )
    return target

"""Folders of transformers and timm: what their JSON files say, and where tensors are.

Mirrors `Dinov2Config` and `Dinov2WithRegistersConfig` of transformers.
"""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

from dinov2_jax import errors
from dinov2_jax.data import preprocessing
from dinov2_jax.models import vision_transformer
from dinov2_jax.weights import safetensors_file, torch_file

_FILES = ("model.safetensors", "pytorch_model.bin")
_MODEL_TYPES = ("dinov2", "dinov2_with_registers")


@dataclasses.dataclass(frozen=True)
class Folder:
    """What a folder holds.

    Attributes:
      tensors: By the folder's own names, still on disk.
      settings: What `architecture.infer_backbone` cannot see in tensors.
      claims: Fields of the module as config.json states them, to be checked.
      preprocessing: What images must go through.
    """

    tensors: Mapping[str, Any]
    settings: dict[str, Any]
    claims: dict[str, Any]
    preprocessing: preprocessing.Preprocessing


def read(folder: pathlib.Path) -> Folder:
    """Reads a folder's JSON files; tensors stay on disk.

    Raises:
      UserError: No weights there, or a model that is not DINOv2.
    """
    tensors = _tensors(folder)
    config = _json(folder / "config.json")
    if "architecture" in config:  # timm
        return _timm(tensors, config, folder)
    if config.get("model_type") not in _MODEL_TYPES:
        raise errors.UserError(
            f"{folder}/config.json is of model_type {config.get('model_type')!r}: "
            f"expected {' or '.join(_MODEL_TYPES)}"
        )
    fixed = {"hidden_act": "gelu", "layer_norm_eps": 1e-6}
    for field, value in fixed.items():
        if config.get(field, value) != value:
            raise errors.UserError(
                f"{folder}/config.json has {field} = {config[field]!r}: DINOv2 has "
                f"{value!r}, and this project nothing else"
            )
    required = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    required += ("patch_size", "image_size")
    lacking = [name for name in required if not isinstance(config.get(name), int)]
    if lacking:
        raise errors.UserError(
            f"{folder}/config.json has no whole number for {', '.join(lacking)}: fetch "
            "the whole folder again"
        )
    claims = {
        "embed_dim": config["hidden_size"],
        "depth": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "patch_size": config["patch_size"],
        "image_size": config["image_size"],
        "in_chans": config.get("num_channels", 3),
        "ffn_layer": "swiglufused" if config.get("use_swiglu_ffn") else "mlp",
        "ffn_ratio": config.get("mlp_ratio", 4),
        "qkv_bias": config.get("qkv_bias", True),
        "proj_bias": True,
        "ffn_bias": True,
        "layerscale": 1e-5,
        "num_register_tokens": 0,
    }
    if config["model_type"] == "dinov2_with_registers":
        claims["num_register_tokens"] = config.get("num_register_tokens", 4)
    settings = {"num_heads": claims["num_heads"]}
    return Folder(tensors, settings, claims, _preprocessing(folder))


def _timm(tensors, config, folder) -> Folder:
    if "dinov2" not in str(config["architecture"]):
        raise errors.UserError(
            f"{folder}/config.json is of {config['architecture']!r}: expected one of "
            "timm's DINOv2 models"
        )
    try:
        given = config.get("pretrained_cfg") or {}
        size = int(given.get("input_size", (3, 518, 518))[-1])
        prepare = preprocessing.Preprocessing(
            resize_size=size,
            crop_size=size,
            mean=tuple(given.get("mean", preprocessing.Preprocessing.mean)),
            std=tuple(given.get("std", preprocessing.Preprocessing.std)),
        )
    except (AttributeError, TypeError, ValueError, IndexError) as error:
        raise errors.UserError(
            f"cannot read pretrained_cfg in {folder}/config.json ({error}): fetch the "
            "whole folder again"
        ) from error
    return Folder(tensors, {}, {}, prepare)


def _preprocessing(folder: pathlib.Path) -> preprocessing.Preprocessing:
    """What preprocessor_config.json says; the reference's transform without one."""
    default = preprocessing.Preprocessing()
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return default
    fields = _json(path)
    for step in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
        if not fields.get(step, True):
            logging.warning("%s turns %s off; Model.preprocess does it", path, step)
    try:
        crop_size = _size(fields.get("crop_size", default.crop_size))
        return preprocessing.Preprocessing(
            resize_size=max(_size(fields.get("size", default.resize_size)), crop_size),
            crop_size=crop_size,
            mean=tuple(float(x) for x in fields.get("image_mean", default.mean)),
            std=tuple(float(x) for x in fields.get("image_std", default.std)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise errors.UserError(
            f"cannot read the sizes, mean or deviation in {path} ({error}): fetch the "
            "whole folder again, or remove the file for the reference's own"
        ) from error


def _size(field: Any) -> int:
    """224, {"shortest_edge": 224} or {"height": 224, "width": 224}."""
    if isinstance(field, dict):
        field = field["shortest_edge"] if "shortest_edge" in field else field["height"]
    return int(field)


def _tensors(folder: pathlib.Path) -> dict[str, Any]:
    for name in _FILES:
        read_file = safetensors_file.read if "safe" in name else torch_file.read
        if (folder / name).is_file():
            return read_file(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            tensors = {}
            for part in sorted({str(v) for v in _weight_map(index).values()}):
                if pathlib.PurePath(part).name != part:
                    raise errors.UserError(
                        f"{index} points outside its folder: {part!r}; refused"
                    )
                held = read_file(folder / part)
                if not isinstance(held, dict) or held.keys() & tensors.keys():
                    raise errors.UserError(
                        f"{folder / part} repeats tensors of another part, or holds "
                        "none: fetch the whole folder again"
                    )
                tensors |= held
            return tensors
    raise errors.UserError(
        f"{folder} holds no weights: looked for {', '.join(_FILES)} and their index, "
        "for checkpoints/ of a run and for model.json of an orbax export"
    )


def _weight_map(index: pathlib.Path) -> dict[str, Any]:
    found = _json(index).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise errors.UserError(f"{index} has no weight_map: fetch the folder again")
    return found


def _json(path: pathlib.Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text())
        if not isinstance(fields, dict):
            raise ValueError("not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise errors.UserError(
            f"cannot read {path} ({error}): fetch the whole folder again"
        ) from error
    return fields


def config(module: vision_transformer.VisionTransformer) -> dict[str, Any]:
    """The config.json that transformers reads, for a module.

    Raises:
      UserError: transformers has no such model.
    """
    m = module
    lacking = {
        "without biases in its projections": not (m.proj_bias and m.ffn_bias),
        "without LayerScale": not m.layerscale,
        f"of FFN ratio {m.ffn_ratio}, only whole numbers": m.ffn_ratio % 1 != 0,
    }
    for what, lacks in lacking.items():
        if lacks:
            raise errors.UserError(
                f"transformers has no DINOv2 {what}: convert to torch-hub or "
                "safetensors"
            )
    kind = "Dinov2WithRegisters" if m.num_register_tokens else "Dinov2"
    fields = {
        "architectures": [f"{kind}Model"],
        "attention_probs_dropout_prob": 0.0,
        "drop_path_rate": 0.0,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": m.embed_dim,
        "image_size": m.image_size,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-6,
        "layerscale_value": 1.0,
        "mlp_ratio": int(m.ffn_ratio),
        "model_type": _MODEL_TYPES[bool(m.num_register_tokens)],
        "num_attention_heads": m.num_heads,
        "num_channels": m.in_chans,
        "num_hidden_layers": m.depth,
        "patch_size": m.patch_size,
        "qkv_bias": m.qkv_bias,
        "torch_dtype": "float32",
        "use_swiglu_ffn": m.ffn_layer == "swiglufused",
    }
    if m.num_register_tokens:
        fields["num_register_tokens"] = m.num_register_tokens
    return fields


def preprocessor_config(prepare: preprocessing.Preprocessing) -> dict[str, Any]:
    """The preprocessor_config.json that transformers reads."""
    return {
        "crop_size": {"height": prepare.crop_size, "width": prepare.crop_size},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(prepare.mean),
        "image_processor_type": "BitImageProcessor",
        "image_std": list(prepare.std),
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": prepare.resize_size},
    }

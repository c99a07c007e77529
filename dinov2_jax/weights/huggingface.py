"""Weight folders of transformers and timm: their JSON files and tensors.

Mirrors `Dinov2Config` and `Dinov2WithRegistersConfig` of transformers.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from dinov2_jax import errors
from dinov2_jax.data import preprocessing
from dinov2_jax.models import model_config
from dinov2_jax.weights import json_fields, report, tensor_file

# Errors that reading a field of an unexpected type raises.
_FIELD_ERRORS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
_FILES = ("model.safetensors", "pytorch_model.bin")
_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")  # of files that may hold weights
_MODEL_TYPES = ("dinov2", "dinov2_with_registers")
_CLASSIFIER = "classifier."  # tensors of its linear head
_NAMES = {  # option of the model -> field of config.json
    "embed_dim": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "patch_size": "patch_size",
    "image_size": "image_size",
    "in_chans": "num_channels",
    "ffn_ratio": "mlp_ratio",
    "qkv_bias": "qkv_bias",
}
_RESCALE_FACTORS = (1 / 255, 0.003921569, 0.00392157)  # as files round it
_BICUBIC = (3, "bicubic")  # its number in Pillow
_DEFAULTS = {"num_channels": 3, "mlp_ratio": 4, "qkv_bias": True}


@dataclasses.dataclass(frozen=True)
class Folder:
    """The content of a folder.

    Attributes:
      tensors: Tensors by the folder's own names, still on disk.
      settings: Settings that `architecture.infer_backbone` cannot infer from tensors.
      claims: Options of the model as config.json states them, to be checked.
      preprocessing: Preprocessing that the model expects; None if not stated.
      preprocessing_file: File with that preprocessing.
    """

    tensors: Mapping[str, Any]
    settings: dict[str, Any]
    claims: dict[str, Any]
    preprocessing: preprocessing.Preprocessing | None
    preprocessing_file: pathlib.Path


def read(folder: pathlib.Path) -> Folder:
    """Read a folder's JSON files; tensors stay on disk.

    Raises:
      UserError: The folder has no weights, or its model is not DINOv2.
    """
    tensors = _tensors(folder)
    config = json_fields.load(folder / "config.json")
    if "architecture" in config:  # timm
        return _timm(tensors, config, folder)
    if config.get("model_type") not in _MODEL_TYPES:
        raise errors.UserError(
            f"{folder}/config.json has model_type {config.get('model_type')!r}: "
            f"expected {' or '.join(_MODEL_TYPES)}"
        )
    fixed = {"hidden_act": "gelu", "layer_norm_eps": 1e-6}
    for field, value in fixed.items():
        if config.get(field, value) != value:
            raise errors.UserError(
                f"{folder}/config.json has {field} = {config[field]!r}: only "
                f"{value!r}, as in DINOv2, is supported"
            )
    claims = json_fields.model(
        _DEFAULTS | config, folder / "config.json", list(_NAMES), _NAMES
    )
    claims |= {
        "ffn_layer": "swiglufused" if _is_swiglu(config, folder) else "mlp",
        "proj_bias": True,
        "ffn_bias": True,
        "layerscale": 1e-5,
        "num_register_tokens": 0,
    }
    if config["model_type"] == "dinov2_with_registers":
        claims |= json_fields.model(
            {"num_register_tokens": 4} | config,
            folder / "config.json",
            ["num_register_tokens"],
        )
    settings = {"num_heads": claims["num_heads"]} | _report(folder)
    if _has_classifier(config):
        logging.info("%s: the classifier is left out", folder)
        tensors = {k: v for k, v in tensors.items() if not k.startswith(_CLASSIFIER)}
    return Folder(tensors, settings, claims, *_preprocessing(folder))


def _has_classifier(config: Mapping[str, Any]) -> bool:
    names = config.get("architectures")
    names = names if isinstance(names, list) else []
    return any(str(name).endswith("ForImageClassification") for name in names)


def _is_swiglu(config: Mapping[str, Any], folder: pathlib.Path) -> bool:
    fields = {"use_swiglu_ffn": False} | config
    return json_fields.require(fields, "use_swiglu_ffn", bool, folder / "config.json")


def _report(folder: pathlib.Path) -> dict[str, Any]:
    """Return the settings that the report of `convert` adds to config.json."""
    path = report.path_of(folder)
    return report.settings(
        report.read(folder / "model.safetensors", path),
        path,
        ("interpolate_offset", "interpolate_antialias"),
    )


def _timm(tensors, config, folder) -> Folder:
    if "dinov2" not in str(config["architecture"]):
        raise errors.UserError(
            f"{folder}/config.json is for {config['architecture']!r}: expected one of "
            "timm's DINOv2 models"
        )
    try:
        given = config.get("pretrained_cfg") or {}
        size = int(given.get("input_size", (3, 518, 518))[-1])
        prepare = preprocessing.Preprocessing(
            resize_size=max(int(size / given.get("crop_pct", 1.0)), size),
            crop_size=size,
            mean=tuple(given.get("mean", preprocessing.Preprocessing.mean)),
            std=tuple(given.get("std", preprocessing.Preprocessing.std)),
        )
    except _FIELD_ERRORS as error:
        raise errors.UserError(
            f"cannot read pretrained_cfg in {folder}/config.json ({error}): download "
            "the whole folder again"
        ) from error
    _warn_unless(given, "interpolation", ("bicubic",), folder / "config.json")
    return Folder(tensors, {}, {}, prepare, folder / "config.json")


def _warn_unless(
    fields: Mapping[str, Any], name: str, known: Sequence[Any], path: pathlib.Path
) -> None:
    """Warn of a step that `Preprocessing` does otherwise than a file says."""
    value = fields.get(name, known[0])
    if value not in known:
        logging.warning(
            "%s has %s = %r; Model.preprocess has %r, which gives other features",
            *(path, name, value, known[0]),
        )


def _preprocessing(
    folder: pathlib.Path,
) -> tuple[preprocessing.Preprocessing | None, pathlib.Path]:
    """Return the preprocessing in preprocessor_config.json, and that file's path."""
    default = preprocessing.Preprocessing()
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return None, path
    fields = json_fields.load(path)
    for step in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
        if not fields.get(step, True):
            logging.warning("%s turns %s off; Model.preprocess does it", path, step)
    _warn_unless(fields, "rescale_factor", _RESCALE_FACTORS, path)
    _warn_unless(fields, "resample", _BICUBIC, path)
    try:
        crop_size = _size(fields.get("crop_size", default.crop_size))
        prepare = preprocessing.Preprocessing(
            resize_size=max(_size(fields.get("size", default.resize_size)), crop_size),
            crop_size=crop_size,
            mean=tuple(fields.get("image_mean", default.mean)),
            std=tuple(fields.get("image_std", default.std)),
        )
    except _FIELD_ERRORS as error:
        raise errors.UserError(
            f"cannot read the sizes, mean or deviation in {path} ({error}): download "
            "the whole folder again or remove the file to use the reference's defaults"
        ) from error
    return prepare, path


def _size(field: Any) -> int:
    """Return 224 of 224, {"shortest_edge": 224} or {"height": 224, "width": 224}."""
    if isinstance(field, dict):
        field = field["shortest_edge"] if "shortest_edge" in field else field["height"]
    return int(field)


def _tensors(folder: pathlib.Path) -> dict[str, Any]:
    for name in _FILES:
        if (folder / name).is_file():
            return tensor_file.read(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            tensors = {}
            for part in sorted({str(v) for v in _weight_map(index).values()}):
                if pathlib.PurePath(part).name != part:
                    raise errors.UserError(
                        f"{index} points outside its folder: {part!r}; refused"
                    )
                part_tensors = tensor_file.read(folder / part)
                if (
                    not isinstance(part_tensors, dict)
                    or part_tensors.keys() & tensors.keys()
                ):
                    raise errors.UserError(
                        f"{folder / part} repeats tensors of another part or has none: "
                        "download the whole folder again"
                    )
                tensors |= part_tensors
            return tensors
    files = sorted(p for p in folder.iterdir() if p.suffix in _SUFFIXES)
    hint = f"; pass the file itself: {', '.join(map(str, files[:3]))}" if files else ""
    raise errors.UserError(
        f"{folder} contains no weights: looked for {', '.join(_FILES)} and their "
        f"index, for checkpoints/ of a run and for model.json of an orbax export{hint}"
    )


def _weight_map(index: pathlib.Path) -> dict[str, Any]:
    found = json_fields.load(index).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise errors.UserError(f"{index} has no weight_map: download the folder again")
    return found


def config(m: model_config.ModelConfig) -> dict[str, Any]:
    """Return the config.json of a module for transformers.

    Raises:
      UserError: transformers has no such model.
    """
    unsupported = {
        "without biases in its projections": not (m.proj_bias and m.ffn_bias),
        "without LayerScale": not m.layerscale,
        f"with FFN ratio {m.ffn_ratio} (only whole numbers)": m.ffn_ratio % 1 != 0,
    }
    for what, is_unsupported in unsupported.items():
        if is_unsupported:
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


def classifier_config(
    m: model_config.ModelConfig, class_names: Sequence[str]
) -> dict[str, Any]:
    """Return the config.json of a module with a linear classifier.

    Args:
      m: The architecture.
      class_names: Names of the classes, in the order of the scores.

    Raises:
      UserError: transformers has no such model.
    """
    fields = config(m)
    (name,) = fields["architectures"]
    return fields | {
        "architectures": [name.removesuffix("Model") + "ForImageClassification"],
        "id2label": {str(i): name for i, name in enumerate(class_names)},
        "label2id": {name: i for i, name in enumerate(class_names)},
    }


def classifier_tensors(
    m: model_config.ModelConfig,
    backbone: Mapping[str, Any],
    weight: Any,
    bias: Any,
) -> dict[str, Any]:
    """Return the tensors of a module with a linear classifier.

    Args:
      m: The architecture.
      backbone: Tensors of the backbone by the names of transformers.
      weight: The classifier's weight, for [class token; mean patch token], [K, 2 * D].
      bias: Its bias, [K].
    """
    prefix = _MODEL_TYPES[bool(m.num_register_tokens)]
    named = {f"{prefix}.{name}": tensor for name, tensor in backbone.items()}
    return named | {f"{_CLASSIFIER}weight": weight, f"{_CLASSIFIER}bias": bias}


def preprocessor_config(prepare: preprocessing.Preprocessing) -> dict[str, Any]:
    """Return the preprocessor_config.json for transformers."""
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

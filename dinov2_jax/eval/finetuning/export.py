"""Files of a fine-tuned classifier, for transformers and for `predict`."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from dinov2_jax import errors, files
from dinov2_jax.convert import targets
from dinov2_jax.eval.heads import head_files, head_names
from dinov2_jax.weights import (
    huggingface,
    lazy_tensor,
    naming,
    reading,
    safetensors_file,
)


def save_head(path: pathlib.Path, head: Any, class_names: Sequence[str]) -> None:
    """Write the linear head as a file of heads, for `predict`.

    Args:
      path: Path of the `.pth`.
      head: {"kernel" [2 * D, K], "bias" [K]}.
      class_names: Names of the classes.

    Raises:
      UserError: The file cannot be written.
    """
    width, num_classes = head["kernel"].shape
    spec = head_names.Spec("classification", width // 2, 1, num_classes=num_classes)
    params = {"weight": head["kernel"].T, "bias": head["bias"]}
    head_files.save_head(path, head_files.Head(spec, params, tuple(class_names)))


def save_backbone(path: pathlib.Path, weights: reading.Weights) -> None:
    """Write only the backbone, by the reference's names, to a `.safetensors`.

    Args:
      path: Path of the file.
      weights: The backbone.

    Raises:
      UserError: The file cannot be written.
    """
    safetensors_file.write(path, targets.backbone_tensors(weights))


def save_huggingface(
    folder: pathlib.Path,
    weights: reading.Weights,
    head: Any,
    class_names: Sequence[str],
) -> None:
    """Write a folder for transformers' `AutoModelForImageClassification`.

    Args:
      folder: The folder; what an earlier export wrote there is replaced.
      weights: The backbone.
      head: {"kernel" [2 * D, K], "bias" [K]}.
      class_names: Names of the classes.

    Raises:
      UserError: transformers has no such model, or a file cannot be written.
    """
    config = weights.module.config
    prepare = huggingface.preprocessor_config(weights.preprocessing)
    texts = {
        "config.json": huggingface.classifier_config(config, class_names),
        "preprocessor_config.json": prepare,
    }
    backbone = naming.from_hub(targets.backbone_tensors(weights), naming.HUGGINGFACE)
    kernel, bias = (np.asarray(head[name], np.float32) for name in ("kernel", "bias"))
    tensors = huggingface.classifier_tensors(
        config, backbone, _tensor(kernel.T), _tensor(bias)
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, fields in texts.items():
            text = json.dumps(fields, indent=2, sort_keys=True) + "\n"
            files.write_text(folder / name, text)
    except OSError as error:
        raise errors.UserError(
            f"cannot write {folder} ({error.strerror or error}): choose another --out"
        ) from error
    safetensors_file.write(folder / "model.safetensors", tensors)


def _tensor(array: np.ndarray) -> lazy_tensor.LazyTensor:
    return lazy_tensor.LazyTensor(array.shape, array.dtype, lambda: array)

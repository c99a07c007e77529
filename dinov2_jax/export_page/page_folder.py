"""The folder of a static page that runs a backbone in the browser.

It holds the page's own files, the backbone as ONNX, onnxruntime-web, photographs to
start with, `page.json`, which tells the page about them, and `conversion.json`, the
report of the export.
"""

import importlib.resources
import json
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from dinov2_jax import errors
from dinov2_jax.convert import destination as destination_lib
from dinov2_jax.convert import export, onnx_graph
from dinov2_jax.export_page import runtime_files
from dinov2_jax.visualize import examples
from dinov2_jax.weights import reading, report

_MODEL = "model.onnx"
_DEFAULT_SIZE = 336  # px: 24 x 24 patches of 14 px
_LICENSE = "LICENSE.txt"  # of the runtime


def choose_size(wanted: int | None, patch_size: int) -> int:
    """Return the side of the page's images, px.

    Args:
      wanted: Side that the user asked for; None takes the whole patches nearest to 336.
      patch_size: Side of a patch, px.

    Raises:
      UserError: The side is not a multiple of the patch size.
    """
    nearest = max(round((wanted or _DEFAULT_SIZE) / patch_size), 1) * patch_size
    if wanted is not None and wanted != nearest:
        raise errors.UserError(
            f"--size={wanted} is not a multiple of the patch size {patch_size}: use "
            f"--size={nearest}"
        )
    return nearest


def check_model(weights: reading.Weights, source: str) -> None:
    """Check that a browser can run a model on photographs.

    Args:
      weights: The model.
      source: What the user named as the model.

    Raises:
      UserError: It takes other images than RGB, or is too large.
    """
    channels = weights.module.config.in_chans
    if channels != 3:
        raise errors.UserError(
            f"{source} takes images of {channels} channels: a page shows RGB models"
        )
    total = sum(np.size(leaf) for leaf in _leaves(weights.params["backbone"])) * 4
    if total > onnx_graph.MAX_INLINE:
        raise errors.UserError(
            f"the weights of {source} are {total / 1e9:.1f} GB, and browsers hold at "
            "most 2 GB: choose a smaller model, such as dinov2_vits14"
        )


def write(
    weights: reading.Weights,
    destination: destination_lib.Destination,
    *,
    name: str,
    size: int,
    runtime: Mapping[str, bytes],
) -> dict[str, Any]:
    """Write the folder, whole or not at all.

    Args:
      weights: The model; checked by `check_model`.
      destination: Folder to write, checked.
      name: Name of the model on the page.
      size: Side of the images, px; see `choose_size`.
      runtime: Content of the files of onnxruntime-web by name.

    Returns:
      The report of the export to ONNX.

    Raises:
      UserError: The export gives other features, or a file cannot be written.
    """
    path = destination.path
    name = name.encode(errors="backslashreplace").decode()  # it need not be UTF-8
    with tempfile.TemporaryDirectory(
        dir=path.parent, prefix=f".{path.name}."
    ) as temporary:
        folder = pathlib.Path(temporary) / path.name
        folder.mkdir()
        done = export.export(
            {weights.which: weights},
            destination_lib.Destination(folder / _MODEL, is_file=True, target="onnx"),
            source=name,  # the path on this machine is nobody's business
            size=(size, size),
        )
        report.path_of(folder / _MODEL).replace(report.path_of(folder))
        _write_page(folder)
        _write_runtime(folder / "runtime", runtime)
        prepare = weights.preprocessing
        description = {
            "model": name,
            "model_bytes": (folder / _MODEL).stat().st_size,
            "patch_size": weights.module.config.patch_size,
            "size": size,
            "mean": np.broadcast_to(prepare.mean, 3).tolist(),
            "std": np.broadcast_to(prepare.std, 3).tolist(),
            "photographs": _write_photographs(folder / "photographs"),
            "runtime": f"{runtime_files.NAME} {runtime_files.VERSION}",
        }
        text = json.dumps(description, indent=1, ensure_ascii=False) + "\n"
        (folder / "page.json").write_text(text, encoding="utf-8")
        destination.replace_from(pathlib.Path(temporary))
    return done


def total_bytes(folder: pathlib.Path) -> int:
    """Return the size of all files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _write_page(folder: pathlib.Path) -> None:
    for file in importlib.resources.files(__package__).joinpath("web").iterdir():
        if file.name != _LICENSE:
            (folder / file.name).write_bytes(file.read_bytes())


def _write_runtime(folder: pathlib.Path, runtime: Mapping[str, bytes]) -> None:
    folder.mkdir()
    for name, content in runtime.items():
        (folder / name).write_bytes(content)
    text = importlib.resources.files(__package__).joinpath("web", _LICENSE).read_bytes()
    (folder / _LICENSE).write_bytes(text)


def _write_photographs(folder: pathlib.Path) -> list[dict[str, str]]:
    """Write the photographs as PNG, so that all browsers decode the same pixels."""
    folder.mkdir()
    described = []
    for example in examples.load():
        path = folder / f"{example.name}.png"
        Image.fromarray(example.pixels).save(path, optimize=True)
        file = f"{folder.name}/{path.name}"
        described.append({"name": example.name, "file": file, "credit": example.credit})
    return described


def _leaves(tree: Any) -> list[Any]:
    if isinstance(tree, Mapping):
        return [leaf for branch in tree.values() for leaf in _leaves(branch)]
    return [tree]

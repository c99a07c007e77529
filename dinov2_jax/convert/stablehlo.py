"""Export of the ViT as a StableHLO program with weights, which needs only jax.

Mirrors `models/vision_transformer.py` at one image size and any batch size, on CPU,
CUDA and TPU. The weights are an argument, not constants, because a program is limited
to 2 GB. They keep the reference's names and layouts, so that the file is also its
`state_dict`. Converting them to our layout costs nothing: with the loop over blocks
unrolled, XLA removes the stacking and folds the transpositions into the products
(ViT-g: 41 MB of scratch memory, against 6.5 GB with a loop).
"""

import importlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from dinov2_jax import errors
from dinov2_jax.data import preprocessing
from dinov2_jax.models import vision_transformer
from dinov2_jax.weights import lazy_tensor, safetensors_file, state_dict

PLATFORMS = ("cpu", "cuda", "tpu")
PROGRAM, WEIGHTS = "model.stablehlo", "weights.safetensors"
EXAMPLE, README = "example.py", "README.md"

_EXAMPLE = f'''\
"""Features of images by the exported DINOv2 ViT.

Setup: pip install jax flatbuffers safetensors
Usage: python example.py images.npy features.npz
"""

import pathlib
import sys

import jax
import numpy as np
from jax import export
from safetensors.numpy import load_file

here = pathlib.Path(__file__).parent
program = export.deserialize(bytearray((here / "{PROGRAM}").read_bytes()))
weights = jax.device_put(load_file(here / "{WEIGHTS}"))
model = jax.jit(program.call)

images = np.load(sys.argv[1])  # [B, H, W, C] float32, normalised: see README.md
features = model(weights, images)
np.savez(sys.argv[2], **features)
'''

_README = """\
# DINOv2 ViT as StableHLO

`{program}` is a function of `{weights}` and images, for {platforms}.
[jax](https://docs.jax.dev/en/latest/export/export.html) runs it, without the package
that wrote it:

    pip install jax flatbuffers safetensors
    python example.py images.npy features.npz

- Images: float32 [b, {height}, {width}, {chans}], any b.{pixels}
- Result: a dict of float32 arrays. After the last LayerNorm: `cls` [b, {dim}],
  `registers` [b, {registers}, {dim}], `patches` [b, {rows}, {columns}, {dim}]; a patch
  is {patch} px wide. Before it, all tokens: `prenorm` [b, {tokens}, {dim}].
- Weights: the names and layouts of the reference's `state_dict`. Others of the same
  shapes may be passed instead.
- The program computes in {dtype} on every platform{precision}.
- The program was written by jax {version}, which older releases may not read. Newer
  ones promise to read it for six months; after that set
  `JAX_EXPORT_DESERIALIZE_EXPIRED_VERSIONS=1`, or export anew. The weights do not age.
"""


def write(
    directory: str | os.PathLike,
    module: vision_transformer.VisionTransformer,
    params: Mapping[str, Any],
    *,
    image_size: tuple[int, int],
    prepare: preprocessing.Preprocessing | None = None,
) -> None:
    """Write program, weights, example and README; equal weights give equal bytes.

    Args:
      directory: Folder that is new, empty or was written by this function.
      module: The backbone; the program computes in its `dtype`.
      params: Parameters of the backbone.
      image_size: (height, width) of the program's images, px.
      prepare: Preprocessing whose mean and deviation the README names; by default
        ImageNet's.

    Raises:
      UserError: `flatbuffers` is missing, the size does not fit, or the directory holds
        other files or cannot be written.
    """
    try:
        importlib.import_module("flatbuffers")  # jax needs it only to export
    except ImportError as error:
        raise errors.UserError(
            "writing StableHLO needs the flatbuffers package: pip install flatbuffers"
        ) from error
    directory = pathlib.Path(directory).resolve()
    p = module.config.patch_size
    if min(image_size) < p or any(n % p for n in image_size):
        raise errors.UserError(
            f"image_size {tuple(image_size)} is not a multiple of the patch size {p}: "
            f"use {tuple(max(n // p, 1) * p for n in image_size)}"
        )
    if directory.exists() and not directory.is_dir():
        raise errors.UserError(f"{directory} is a file: choose a new directory")
    if directory.exists() and not (directory / PROGRAM).exists():
        if any(directory.iterdir()):
            raise errors.UserError(
                f"{directory} contains other files: choose a new directory"
            )
    tensors = state_dict.state_dict_from_params(params, patch_size=p)
    program = _export(module, params, tensors, image_size)
    folder = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
    try:
        folder.mkdir(parents=True)
        safetensors_file.write(
            folder / WEIGHTS, {k: _lazy(tensors[k]) for k in sorted(tensors)}
        )
        (folder / PROGRAM).write_bytes(program)
        (folder / EXAMPLE).write_text(_EXAMPLE)
        (folder / README).write_text(
            _describe(module, image_size, prepare or preprocessing.Preprocessing())
        )
        # A crash between these lines leaves no program rather than mismatched parts.
        directory.mkdir(exist_ok=True)
        (directory / PROGRAM).unlink(missing_ok=True)
        for name in (WEIGHTS, EXAMPLE, README, PROGRAM):
            (folder / name).replace(directory / name)
    except OSError as error:
        raise errors.UserError(
            f"cannot write {directory} ({error.strerror})"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(directory: str | os.PathLike, images: np.ndarray) -> dict[str, np.ndarray]:
    """Compute features with the directory's own example, in a separate CPU process.

    Args:
      directory: Folder that `write` wrote; its example is executed.
      images: float32 [B, H, W, C], normalised; H and W are the program's.

    Returns:
      `cls` [B, D], `registers` [B, R, D] if there are any, `patches` [B, h, w, D].

    Raises:
      RuntimeError: The example failed; the message has its error output.
    """
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = (os.path.join(folder, n) for n in ("in.npy", "out.npz"))
        np.save(inputs, np.asarray(images, np.float32))
        # This process may hold the accelerator's memory.
        done = subprocess.run(
            [sys.executable, os.path.join(directory, EXAMPLE), inputs, outputs],
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{directory}/{EXAMPLE} failed: {done.stderr[-2000:]}")
        with np.load(outputs) as features:
            names = ("cls", "registers", "patches")
            return {name: features[name] for name in names if features[name].size}


def _lazy(array: np.ndarray) -> lazy_tensor.LazyTensor:
    return lazy_tensor.LazyTensor(
        array.shape,
        np.dtype(np.float32),
        lambda: np.ascontiguousarray(array, np.float32),
    )


def _export(module, params, tensors, image_size) -> bytes:
    """Return the serialized program."""
    # Drop what only training needs; the file's docstring says why it is unrolled.
    module = module.clone(
        scan_unroll=module.config.depth, remat="none", attention="xla"
    )
    to_params = _converter(
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), params)
    )

    def dinov2(weights, images):
        features = module.apply({"params": to_params(weights)}, images)
        names = ("cls", "registers", "patches", "prenorm")
        return {name: getattr(features, name).astype(jnp.float32) for name in names}

    weights = {
        name: jax.ShapeDtypeStruct(array.shape, jnp.float32)
        for name, array in tensors.items()
    }
    (batch,) = jax.export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct(
        (batch, *image_size, module.config.in_chans), jnp.float32
    )
    # Keep the caller's file paths and stack out of the bytes.
    frames = jax.config.jax_traceback_in_locations_limit
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        with jax.default_matmul_precision(
            "highest" if _is_exact(module) else "default"
        ):
            exported = jax.export.export(jax.jit(dinov2), platforms=PLATFORMS)(
                weights, images
            )
    finally:
        jax.config.update("jax_traceback_in_locations_limit", frames)
    return bytes(exported.serialize())


def _is_exact(module) -> bool:
    """Return whether products must be float32, which accelerators otherwise reduce."""
    return module.dtype == jnp.float32


def _converter(shapes: Mapping[str, Any]) -> Callable[[Mapping[str, jax.Array]], Any]:
    """Return a `state_dict.params_from_state_dict` that works on tracers.

    Args:
      shapes: Tree of the parameters' shapes.

    Returns:
      Function from a flat dict by the reference's names to the tree.
    """

    def layout(kind, x):
        if kind != "kernel":
            return x
        if x.ndim == 4:  # [D, C, p, p] -> [p*p*C, D]
            return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])
        return x.T

    def to_params(weights):
        def leaf(path, shape):
            *names, kind = (key.key for key in path)
            torch_kind = {"kernel": "weight", "scale": "weight"}.get(kind, kind)
            if names[:1] != ["blocks"]:
                return layout(kind, weights[".".join([*names, torch_kind])])
            rest = ".".join([*names[1:], torch_kind])
            blocks = [weights[f"blocks.{i}.{rest}"] for i in range(shape.shape[0])]
            return jnp.stack([layout(kind, x) for x in blocks])

        return jax.tree_util.tree_map_with_path(leaf, shapes)

    return to_params


def _describe(module, image_size, prepare) -> str:
    height, width = image_size
    config = module.config
    rows, columns = height // config.patch_size, width // config.patch_size
    registers = config.num_register_tokens
    pixels = ""
    if prepare.fits_channels(config.in_chans):
        values = "RGB" if config.in_chans == 3 else "Values"
        mean, std = list(prepare.mean), list(prepare.std)
        pixels = f" {values} in 0..1 minus {mean}, divided by\n  {std}."
    return _README.format(
        program=PROGRAM,
        weights=WEIGHTS,
        platforms=", ".join(PLATFORMS),
        height=height,
        width=width,
        chans=config.in_chans,
        pixels=pixels,
        dim=config.embed_dim,
        registers=registers,
        rows=rows,
        columns=columns,
        tokens=1 + registers + rows * columns,
        patch=config.patch_size,
        dtype=jnp.dtype(module.dtype).name,
        precision=", with products as exact" if _is_exact(module) else "",
        version=jax.__version__,
    )

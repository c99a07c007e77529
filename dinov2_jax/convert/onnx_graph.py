"""Export of the ViT as an ONNX graph, built node by node, without tracing.

Mirrors `models/vision_transformer.py` at one image size and any batch size, in float32.
Opset 17 is the first with LayerNormalization; onnxruntime reads it since 1.12. The GELU
is written in the form that onnxruntime fuses. Needs `onnx`; `run` needs `onnxruntime`.
Neither is a requirement of the package.
"""

import importlib
import json
import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from dinov2_jax import errors
from dinov2_jax.convert import onnx_builder
from dinov2_jax.data import preprocessing
from dinov2_jax.models import vision_transformer
from dinov2_jax.weights import state_dict

OPSET = 17
IR_VERSION = 8  # of onnx 1.12, the release of opset 17
MAX_INLINE = 2_000_000_000  # bytes of weights; protobuf's limit is 2 GiB


def write(
    path: str | os.PathLike,
    module: vision_transformer.VisionTransformer,
    params: Mapping[str, Any],
    *,
    image_size: tuple[int, int],
    prepare: preprocessing.Preprocessing | None = None,
) -> None:
    """Write the model atomically; the same weights give the same bytes.

    Input `images` float32 [batch, C, H, W], normalised. Outputs `cls` [batch, D],
    `registers` [batch, R, D] if there are any and `patches` [batch, h, w, D], all after
    the last LayerNorm. If the weights exceed `MAX_INLINE`, they go to `<path>.data`.

    Args:
      path: Path of the `.onnx` file; its folder is created.
      module: The backbone; its `dtype` does not matter.
      params: Parameters of the backbone.
      image_size: (height, width) of the images, px; fixes the position embeddings.
      prepare: Preprocessing whose mean and deviation go into the metadata; by default
        ImageNet's.

    Raises:
      UserError: `onnx` is missing, the size does not fit or the file cannot be written.
    """
    onnx = onnx_builder.import_onnx()
    path = pathlib.Path(path).resolve()
    config = module.config
    p = config.patch_size
    if min(image_size) < p or any(n % p for n in image_size):
        raise errors.UserError(
            f"image_size {tuple(image_size)} is not a multiple of the patch size {p}: "
            f"use {tuple(max(n // p, 1) * p for n in image_size)}"
        )
    prepare = prepare or preprocessing.Preprocessing()
    graph = onnx_builder.Builder(onnx)
    _build(graph, module, params, image_size)
    model = onnx.helper.make_model(
        graph.finish("dinov2"),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="dinov2_jax",
        doc_string=_describe(config, image_size, prepare),
    )
    onnx.helper.set_model_props(model, _metadata(config, image_size, prepare))
    data = path.with_name(f"{path.name}.data")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".onnx") as folder:
            folder = pathlib.Path(folder)
            external = graph.weight_bytes() > MAX_INLINE
            if external:
                with open(folder / data.name, "wb") as file:
                    graph.store_weights(model.graph, data.name, file)
            else:
                graph.store_weights(model.graph)
            serialized = model.SerializeToString(deterministic=True)
            (folder / path.name).write_bytes(serialized)
            del model, serialized
            onnx.checker.check_model(str(folder / path.name))
            # A crash between these lines leaves no model rather than mismatched files.
            path.unlink(missing_ok=True)
            if external:
                (folder / data.name).replace(data)
            else:
                data.unlink(missing_ok=True)
            (folder / path.name).replace(path)
    except OSError as error:
        raise errors.UserError(f"cannot write {path} ({error.strerror})") from error


def run(path: str | os.PathLike, images: np.ndarray) -> dict[str, np.ndarray]:
    """Compute features with onnxruntime on the CPU.

    Args:
      path: Path of the `.onnx` file.
      images: float32 [B, H, W, C], normalised; H and W are the model's.

    Returns:
      `cls` [B, D], `registers` [B, R, D] if there are any, `patches` [B, h, w, D].

    Raises:
      ImportError: onnxruntime is not installed.
    """
    onnxruntime = importlib.import_module("onnxruntime")
    session = onnxruntime.InferenceSession(
        os.fspath(path), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    images = np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32)
    return dict(zip(names, session.run(names, {"images": images})))


def _build(graph: onnx_builder.Builder, module, params, image_size) -> None:
    """Add the whole network, from `images` to the outputs."""
    config = module.config
    weights = state_dict.state_dict_from_params(params, patch_size=config.patch_size)
    height, width = (n // config.patch_size for n in image_size)
    num_patches, dim = height * width, config.embed_dim
    images = graph.add_input("images", ("batch", config.in_chans, *image_size))
    # [1, 1 + N, D] at this size; class token and registers become one prefix.
    pos = np.float32(
        module.apply({"params": params}, *image_size, method="position_embeddings")
    )
    prefix = [np.float32(weights["cls_token"]) + pos[:, :1]]
    if config.num_register_tokens:
        prefix.append(np.float32(weights["register_tokens"]))
    x = graph.op(
        "Conv",
        "patch_embed.proj",
        images,
        graph.weight("patch_embed.proj.weight", weights["patch_embed.proj.weight"]),
        graph.weight("patch_embed.proj.bias", weights["patch_embed.proj.bias"]),
        kernel_shape=[config.patch_size] * 2,
        strides=[config.patch_size] * 2,
    )  # [B, D, h, w]
    x = graph.reshape("patch_embed.flat", x, [0, dim, num_patches])
    x = graph.op("Transpose", "patch_embed", x, perm=[0, 2, 1])  # [B, N, D]
    x = graph.op("Add", "patch_tokens", x, graph.weight("pos_embed", pos[:, 1:]))
    batch = graph.op("Shape", "batch_size", images, start=0, end=1)
    shape = graph.op("Concat", "prefix_shape", batch, graph.constant([1, 1]), axis=0)
    prefix = graph.weight("prefix_tokens", np.concatenate(prefix, axis=1))
    prefix = graph.op("Expand", "prefix", prefix, shape)  # [B, 1 + R, D]
    x = graph.op("Concat", "tokens", prefix, x, axis=1)  # [B, 1 + R + N, D]
    for i in range(config.depth):
        x = _block(graph, f"blocks.{i}", x, config, weights)
    x = _layer_norm(graph, "norm", x, weights)
    first = 1 + config.num_register_tokens  # index of the first patch
    cls = graph.reshape("cls_flat", graph.slice("cls_token", x, 0, 1), [0, dim])
    graph.add_output(cls, "cls", ("batch", dim))
    if first > 1:
        registers = graph.slice("register_tokens", x, 1, first)
        graph.add_output(registers, "registers", ("batch", first - 1, dim))
    patches = graph.slice("patch_rows", x, first, first + num_patches)
    patches = graph.reshape("patch_grid", patches, [0, height, width, dim])
    graph.add_output(patches, "patches", ("batch", height, width, dim))


def _block(graph: onnx_builder.Builder, name: str, x: str, config, weights) -> str:
    """Add `layers.Block`, [B, T, D] -> [B, T, D]."""
    ffn = _swiglu if config.ffn_layer == "swiglufused" else _mlp
    for norm, scale, part, branch in (
        ("norm1", "ls1", "attn", _attention),
        ("norm2", "ls2", "mlp", ffn),
    ):
        y = _layer_norm(graph, f"{name}.{norm}", x, weights)
        y = branch(graph, f"{name}.{part}", y, config, weights)
        if config.layerscale:
            gamma = f"{name}.{scale}.gamma"
            gamma = graph.weight(gamma, weights[gamma])
            y = graph.op("Mul", f"{name}.{scale}", y, gamma)
        x = graph.op("Add", f"{name}.{part}.residual", x, y)
    return x


def _layer_norm(graph: onnx_builder.Builder, name: str, x: str, weights) -> str:
    scale, bias = (
        graph.weight(f"{name}.{kind}", weights[f"{name}.{kind}"])
        for kind in ("weight", "bias")
    )
    return graph.op("LayerNormalization", name, x, scale, bias, axis=-1, epsilon=1e-6)


def _linear(
    graph: onnx_builder.Builder, name: str, x: str, weights, use_bias: bool
) -> str:
    """Add x @ weight.T + bias; the kernel is stored as `<name>.weight.T` [in, out]."""
    kernel = graph.weight(f"{name}.weight.T", weights[f"{name}.weight"].T)
    if not use_bias:
        return graph.op("MatMul", name, x, kernel)
    x = graph.op("MatMul", f"{name}.product", x, kernel)
    return graph.op(
        "Add", name, x, graph.weight(f"{name}.bias", weights[f"{name}.bias"])
    )


def _attention(graph: onnx_builder.Builder, name: str, x: str, config, weights) -> str:
    """Add attention as in `kernels.attention`: q is scaled before the product."""
    dim, heads = config.embed_dim, config.num_heads
    qkv = _linear(graph, f"{name}.qkv", x, weights, config.qkv_bias)
    q, k, v = (
        graph.op(
            "Transpose",
            f"{name}.{letter}",
            graph.reshape(f"{name}.{letter}.heads", y, [0, 0, heads, dim // heads]),
            perm=perm,
        )
        for letter, y, perm in zip(
            "qkv",
            graph.op("Split", f"{name}.split", qkv, outputs=3, axis=-1),
            # [B, H, T, C], and k as [B, H, C, T]
            ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]),
        )
    )
    scale = graph.constant(float((dim // heads) ** -0.5))
    q = graph.op("Mul", f"{name}.q.scaled", q, scale)
    x = graph.op("MatMul", f"{name}.scores", q, k)
    x = graph.op("Softmax", f"{name}.softmax", x, axis=-1)
    x = graph.op("MatMul", f"{name}.mixed", x, v)
    x = graph.op("Transpose", f"{name}.mixed.rows", x, perm=[0, 2, 1, 3])
    x = graph.reshape(f"{name}.out", x, [0, 0, dim])
    return _linear(graph, f"{name}.proj", x, weights, config.proj_bias)


def _mlp(graph: onnx_builder.Builder, name: str, x: str, config, weights) -> str:
    """Add `layers.Mlp`; x / sqrt(2), erf, + 1, * x, * 0.5 is GELU."""
    x = _linear(graph, f"{name}.fc1", x, weights, config.ffn_bias)
    y = graph.op("Div", f"{name}.gelu.div", x, graph.constant(float(2**0.5)))
    y = graph.op("Erf", f"{name}.gelu.erf", y)
    y = graph.op("Add", f"{name}.gelu.add", y, graph.constant(1.0))
    y = graph.op("Mul", f"{name}.gelu.mul", x, y)
    y = graph.op("Mul", f"{name}.gelu", y, graph.constant(0.5))
    return _linear(graph, f"{name}.fc2", y, weights, config.ffn_bias)


def _swiglu(graph: onnx_builder.Builder, name: str, x: str, config, weights) -> str:
    """Add `layers.SwiGLU`."""
    x = _linear(graph, f"{name}.w12", x, weights, config.ffn_bias)
    gate, value = graph.op("Split", f"{name}.split", x, outputs=2, axis=-1)
    x = graph.op("Sigmoid", f"{name}.sigmoid", gate)
    x = graph.op("Mul", f"{name}.silu", gate, x)
    x = graph.op("Mul", f"{name}.gated", x, value)
    return _linear(graph, f"{name}.w3", x, weights, config.ffn_bias)


def _describe(config, image_size, prepare) -> str:
    height, width = image_size
    pixels = ""
    if prepare.fits_channels(config.in_chans):
        values = "RGB" if config.in_chans == 3 else "values"
        pixels = f", {values} in 0..1 minus image_mean, divided by image_std"
    registers = "registers [batch, R, D], " if config.num_register_tokens else ""
    return (
        f"DINOv2 ViT with patches of {config.patch_size} px. Input images: float32 "
        f"[batch, {config.in_chans}, {height}, {width}] (NCHW){pixels}. Outputs, after "
        f"the last LayerNorm: cls [batch, D], {registers}patches [batch, h, w, D]. "
        "Weights have the names of the reference's state_dict; .T marks a transposed "
        "one, and prefix_tokens are cls_token with its position, then registers."
    )


def _metadata(config, image_size, prepare) -> dict[str, str]:
    known = {
        "image_size": list(image_size),  # height, width
        "patch_size": config.patch_size,
        "num_register_tokens": config.num_register_tokens,
    }
    if prepare.fits_channels(config.in_chans):
        known["image_mean"] = list(prepare.mean)
        known["image_std"] = list(prepare.std)
    return {name: json.dumps(value) for name, value in known.items()}

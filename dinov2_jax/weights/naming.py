"""Conversion between the tensor names of DINOv2 backbones in three libraries.

`hub` names are the reference's own. `huggingface` names are those of transformers 4 and
of every file on the Hugging Face Hub; transformers 5 renames its modules and reads both
sets. timm packs some tensors differently. Tensors that are only renamed are not read.
"""

import re
from collections.abc import Mapping

import numpy as np

from dinov2_jax import errors
from dinov2_jax.weights import lazy_tensor

HUB, HUGGINGFACE, TIMM = "hub", "huggingface", "timm"

_HF_TOP = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.register_tokens": "register_tokens",
    "embeddings.mask_token": "mask_token",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
# Names inside a block, without .weight and .bias. Of several names for one hub name the
# first is written: transformers 5 reads the names of 4, but not the other way round.
_HF_BLOCK = {
    "norm1": "norm1",
    "attention.output.dense": "attn.proj",
    "attention.o_proj": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.weights_in": "mlp.w12",
    "mlp.weights_out": "mlp.w3",
    "mlp.down_proj": "mlp.w3",
    "layer_scale2.lambda1": "ls2.gamma",
}
# Parts of a tensor that hub files hold concatenated on the first axis: (name, index).
_HF_PARTS = {
    "attention.attention.query": ("attn.qkv", 0),
    "attention.attention.key": ("attn.qkv", 1),
    "attention.attention.value": ("attn.qkv", 2),
    "attention.q_proj": ("attn.qkv", 0),
    "attention.k_proj": ("attn.qkv", 1),
    "attention.v_proj": ("attn.qkv", 2),
    "mlp.gate_proj": ("mlp.w12", 0),
    "mlp.up_proj": ("mlp.w12", 1),
}
_NUM_PARTS = {"attn.qkv": 3, "mlp.w12": 2}
_HF_PREFIXES = ("dinov2_with_registers.", "dinov2.")

Tensors = Mapping[str, lazy_tensor.LazyTensor]


def detect(names: Mapping[str, object]) -> str:
    """Return the naming scheme of a backbone's tensors: HUB, HUGGINGFACE or TIMM."""
    if any("embeddings.patch_embeddings." in name for name in names):
        return HUGGINGFACE
    # timm has no mask token.
    if "reg_token" in names or ("cls_token" in names and "mask_token" not in names):
        return TIMM
    return HUB


def to_hub(tensors: Tensors) -> dict[str, lazy_tensor.LazyTensor]:
    """Convert tensors of any scheme to the reference's names; keep unknown names.

    timm's files have no mask token, so it is filled with zeros. In its register models
    the class token includes its position embedding, so that row is filled with zeros.
    """
    naming = detect(tensors)
    if naming == HUGGINGFACE:
        return _from_huggingface(tensors)
    if naming == TIMM:
        return _from_timm(tensors)
    return dict(tensors)


def from_hub(tensors: Tensors, naming: str) -> dict[str, lazy_tensor.LazyTensor]:
    """Convert tensors from the reference's names to the scheme `naming`.

    Conversion to timm is one-way: the mask token is dropped and, with registers, the
    class token and its position embedding are added together.
    """
    if naming == HUGGINGFACE:
        return _to_huggingface(tensors)
    if naming == TIMM:
        return _to_timm(tensors)
    return dict(tensors)


def _from_huggingface(tensors: Tensors) -> dict[str, lazy_tensor.LazyTensor]:
    hub: dict[str, lazy_tensor.LazyTensor] = {}
    parts: dict[str, dict[int, list[tuple[str, lazy_tensor.LazyTensor]]]] = {}
    for full_name, tensor in tensors.items():
        name = full_name
        for prefix in _HF_PREFIXES:
            name = name.removeprefix(prefix)
        block = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+?)(\.weight|\.bias)?", name)
        if name in _HF_TOP:
            key = _HF_TOP[name]
        elif block and block[2] in _HF_BLOCK:
            key = f"blocks.{block[1]}.{_HF_BLOCK[block[2]]}{block[3] or ''}"
        elif block and block[2] in _HF_PARTS:
            target, index = _HF_PARTS[block[2]]
            key = f"blocks.{block[1]}.{target}{block[3] or ''}"
            parts.setdefault(key, {}).setdefault(index, []).append((full_name, tensor))
            continue
        else:
            key = full_name
        if key in hub:
            raise errors.UserError(f"two tensors map to {key}, one of them {full_name}")
        hub[key] = tensor
    for key, found in parts.items():
        num_parts = _NUM_PARTS[key.split(".", 2)[2].rpartition(".")[0]]
        named = [pair for index in sorted(found) for pair in found[index]]
        same_shape = len({tensor.shape for _, tensor in named}) == 1
        if len(named) == len(found) == num_parts and same_shape:
            hub[key] = _concatenated([tensor for _, tensor in named])
        else:  # `architecture.check` reports them
            hub.update(named)
    return hub


def _to_huggingface(tensors: Tensors) -> dict[str, lazy_tensor.LazyTensor]:
    top = {hub: name for name, hub in _HF_TOP.items()}
    inside: dict[str, str] = {}
    for name, hub in _HF_BLOCK.items():
        inside.setdefault(hub, name)
    renamed = {}
    for key, tensor in tensors.items():
        block = re.fullmatch(r"blocks\.(\d+)\.(.+?)(\.weight|\.bias)?", key)
        if not block:
            renamed[top[key]] = tensor
            continue
        prefix, suffix = f"encoder.layer.{block[1]}.", block[3] or ""
        if block[2] == "attn.qkv":
            for index, part in enumerate(("query", "key", "value")):
                name = f"{prefix}attention.attention.{part}{suffix}"
                renamed[name] = _part(tensor, index, 3)
        else:
            renamed[f"{prefix}{inside[block[2]]}{suffix}"] = tensor
    return renamed


_TIMM_SWIGLU = {"mlp.fc1": "mlp.w12", "mlp.fc2": "mlp.w3"}


def _from_timm(tensors: Tensors) -> dict[str, lazy_tensor.LazyTensor]:
    hub = dict(tensors)
    first, last = (tensors.get(f"blocks.0.mlp.fc{i}.weight") for i in (1, 2))
    # SwiGLU: the packed projection's output is twice the second one's input.
    if first and last and first.shape[0] == 2 * last.shape[-1]:
        hub = {}
        for key, tensor in tensors.items():
            for timm, reference in _TIMM_SWIGLU.items():
                key = key.replace(f".{timm}.", f".{reference}.")
            hub[key] = tensor
    if "reg_token" in hub:
        hub["register_tokens"] = hub.pop("reg_token")
        if "pos_embed" in hub:
            pos = hub["pos_embed"]
            _, count, width = pos.shape
            hub["pos_embed"] = lazy_tensor.LazyTensor(
                (1, count + 1, width),
                pos.dtype,
                lambda: np.pad(pos.read(), ((0, 0), (1, 0), (0, 0))),
            )
    if "cls_token" in hub and "mask_token" not in hub:
        shape, dtype = (1, hub["cls_token"].shape[-1]), hub["cls_token"].dtype
        hub["mask_token"] = lazy_tensor.LazyTensor(
            shape, dtype, lambda: np.zeros(shape, dtype)
        )
    return hub


def _to_timm(tensors: Tensors) -> dict[str, lazy_tensor.LazyTensor]:
    renamed = {}
    for key, tensor in tensors.items():
        for timm, reference in _TIMM_SWIGLU.items():
            key = key.replace(f".{reference}.", f".{timm}.")
        renamed[key] = tensor
    del renamed["mask_token"]
    if "register_tokens" in renamed:
        renamed["reg_token"] = renamed.pop("register_tokens")
        cls, pos = tensors["cls_token"], tensors["pos_embed"]
        renamed["cls_token"] = lazy_tensor.LazyTensor(
            cls.shape, cls.dtype, lambda: cls.read() + pos.read()[:, :1]
        )
        _, count, width = pos.shape
        renamed["pos_embed"] = lazy_tensor.LazyTensor(
            (1, count - 1, width), pos.dtype, lambda: pos.read()[:, 1:]
        )
    return renamed


def _concatenated(parts: list[lazy_tensor.LazyTensor]) -> lazy_tensor.LazyTensor:
    rows = sum(part.shape[0] for part in parts)
    return lazy_tensor.LazyTensor(
        (rows, *parts[0].shape[1:]),
        parts[0].dtype,
        lambda: np.concatenate([part.read() for part in parts]),
    )


def _part(
    tensor: lazy_tensor.LazyTensor, index: int, count: int
) -> lazy_tensor.LazyTensor:
    rows = tensor.shape[0] // count
    return lazy_tensor.LazyTensor(
        (rows, *tensor.shape[1:]),
        tensor.dtype,
        lambda: tensor.read()[index * rows : (index + 1) * rows],
    )

"""Files of tiny backbones to convert, and what came out of a conversion."""

import dataclasses
import hashlib
import json

import random_weights
import vits
from peers import torch

from dinov2_jax.convert import __main__ as convert
from dinov2_jax.weights import native, reading

TARGETS = {
    "torch-hub": "a.pth",
    "safetensors": "a.safetensors",
    "huggingface": "hf",
    "timm": "timm.safetensors",
    "onnx": "a.onnx",
    "stablehlo": "stablehlo",
    "orbax": "own",
}
KINDS = ["vits14", "vits14_reg4", "vitg14_reg4"]


def make_sources(folder):
    """Hub files of tiny backbones, and a training checkpoint."""
    for name in KINDS:
        save(folder / f"{name}.pth", backbone(name))
    both = branch("student", 1) | branch("teacher", 2)
    save(folder / "training.pth", {"model": both})
    return folder


def backbone(name="vits14_reg4", seed=0):
    return random_weights.tensors(random_weights.small_shapes(name), seed)


def branch(owner, seed):
    head = random_weights.head_tensors(seed)
    tensors = {f"backbone.{k}": v for k, v in backbone(seed=seed).items()}
    tensors |= {f"dino_head.{k}": v for k, v in head.items()}
    return {f"{owner}.{key}": tensor for key, tensor in tensors.items()}


def save(path, tree):
    def as_torch(tree):
        if isinstance(tree, dict):
            return {key: as_torch(value) for key, value in tree.items()}
        return torch.from_numpy(tree)

    torch.save(as_torch(tree), path)


def run(*flags):
    """In this process; the heads' number is that of a 128-wide model."""
    return convert.main([*map(str, flags), "--num-heads=2"])


def digests(path):
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*"))
    return {
        str(p.relative_to(path.parent)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in files
        if p.is_file() and p.name != "conversion.json"
    }


def report(path):
    beside = path.with_name(f"{path.name}.json")
    return json.loads(
        (beside if path.is_file() else path / "conversion.json").read_text()
    )


def own_export(path, *, name="vits14_reg4", channels=3, settings=(), prepare=()):
    """An export of this project, in which everything may be set."""
    shapes = random_weights.small_shapes(name)
    kernel = "patch_embed.proj.weight"
    shapes[kernel] = (shapes[kernel][0], channels, *shapes[kernel][2:])
    save(path.with_suffix(".pth"), random_weights.tensors(shapes))
    found = reading.read(path.with_suffix(".pth"), num_heads=2)
    module = vits.changed(found.module, **dict(settings))
    prepare = dataclasses.replace(found.preprocessing, **dict(prepare))
    native.write(path, module, found.params, prepare, "teacher")
    return path

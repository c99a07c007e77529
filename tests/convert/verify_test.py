"""What the check of an export asks of its target's packages."""

import collections
import importlib.metadata
import sys
import types

import conversions
import jax
import numpy as np
from peers import torch

from dinov2_jax.convert import torch_twin, verify
from dinov2_jax.weights import reading

Features = collections.namedtuple("Features", ["cls", "registers", "patches"])


class TimmModel:
    """A model as timm makes it, which computes with the tensors of the hub."""

    def __init__(self, tensors):
        self._tensors = tensors

    def load_state_dict(self, tensors, strict):
        assert tensors and strict

    def eval(self):
        pass

    def forward_features(self, pixels):
        images = pixels.numpy().transpose(0, 2, 3, 1)
        out = torch_twin.features(self._tensors, images, num_heads=2)
        patches = out["patches"].reshape(len(images), -1, out["cls"].shape[-1])
        tokens = [out["cls"][:, None], out["registers"], patches]
        return torch.from_numpy(np.concatenate(tokens, axis=1))


def test_an_export_for_timm_is_checked_with_timm(tmp_path, monkeypatch):
    tensors = {k: torch.from_numpy(v) for k, v in conversions.backbone().items()}
    conversions.save(tmp_path / "a.pth", conversions.backbone())
    path = tmp_path / "timm.safetensors"
    assert conversions.run(tmp_path / "a.pth", path, "--to=timm", "--no-verify") == 0
    timm = types.ModuleType("timm")
    vars(timm).update(
        is_model=lambda name: name == "vit_unknown_patch14_reg4_dinov2",
        create_model=lambda name, **options: TimmModel(tensors),
    )
    monkeypatch.setitem(sys.modules, "timm", timm)
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda n: "1" if n == "timm" else version(n)
    )
    weights = reading.read(tmp_path / "a.pth", num_heads=2)
    side = weights.module.config.image_size
    checked = verify.run(
        "timm", path, weights, size=(side, side), which=None, heads=False
    )
    assert checked["packages"]["timm"] == "1"
    assert max(checked["relative_error"].values()) < 1e-5
    assert checked["relative_error"].keys() == {"cls", "registers", "patches"}


def test_features_are_computed_in_full_float32():
    """GPUs and TPUs would reduce it to TF32 or bfloat16, and exports be refused."""
    precisions = []

    class Module:
        def apply(self, variables, images):
            precisions.append(jax.config.jax_default_matmul_precision)
            return Features(images, images, images)

    weights = types.SimpleNamespace(module=Module(), params={"backbone": {}})
    verify.expected_features(weights, np.zeros(1))
    assert precisions == ["highest"]

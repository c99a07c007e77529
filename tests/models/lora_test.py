"""LoRA: where it starts, what it can reach, and which matrices it changes."""

import jax
import numpy as np
import pytest
import vits

from dinov2_jax.models import lora

KERNELS = {
    "mlp": {"attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2"},
    "swiglufused": {"attn/qkv", "attn/proj", "mlp/w12", "mlp/w3"},
}


def backbone(ffn_layer="mlp"):
    """Random parameters of two blocks, 8 wide."""
    module = vits.make(embed_dim=8, depth=2, num_heads=2, ffn_layer=ffn_layer)
    image = np.zeros((1, 28, 28, 3), np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), shapes)


@pytest.mark.parametrize("ffn_layer", KERNELS)
@pytest.mark.parametrize("ffn", [False, True])
def test_changes_only_its_matrices_and_starts_without_a_change(ffn_layer, ffn):
    before = backbone(ffn_layer)
    adapters = lora.LoRA(rank=2, ffn=ffn)
    pairs = adapters.init(jax.random.key(0), before)
    start = adapters.merge(before, pairs)
    jax.tree.map(np.testing.assert_array_equal, start, before)
    after = adapters.merge(before, jax.tree.map(lambda x: x + 1, pairs))
    changed = set()
    for (path, old), new in zip(
        jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True
    ):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if (np.asarray(old) != new).any():
            changed.add(name)
            assert (np.asarray(old) != new).any(axis=(1, 2)).all()  # in every block
    wanted = {n for n in KERNELS[ffn_layer] if ffn or n.startswith("attn/")}
    assert changed == {f"blocks/{name}/kernel" for name in wanted}


def test_full_rank_reaches_any_change():
    """Its factors are those of NumPy's singular values."""
    before = backbone()
    target = np.random.default_rng(1).standard_normal((2, 8, 24))
    adapters = lora.LoRA(rank=8, alpha=4.0)
    pairs = adapters.init(jax.random.key(0), before)
    u, s, v = np.linalg.svd(target, full_matrices=False)
    qkv = pairs["blocks"]["attn"]["qkv"]
    assert (qkv["a"].shape, qkv["b"].shape) == ((2, 8, 8), (2, 8, 24))
    qkv |= {"a": np.float32(u * s[:, None]), "b": np.float32(v * 8 / 4.0)}
    after = adapters.merge(before, pairs)["blocks"]["attn"]["qkv"]["kernel"]
    change = np.float64(after) - before["blocks"]["attn"]["qkv"]["kernel"]
    np.testing.assert_allclose(change, target, atol=1e-5)

"""What is trained: the parts of the tree, merged again, and their learning rates."""

import jax
import numpy as np
import pytest
import small

from dinov2_jax import optimizer
from dinov2_jax.eval.finetuning import adaptation

PARTS = {
    "everything": adaptation.Adaptation(),
    "last": adaptation.Adaptation(last_blocks=1),
    "lora": adaptation.Adaptation(lora_rank=2),
}


@pytest.fixture(scope="module")
def backbone():
    return small.backbone()[1]


def changed(before, after):
    """Names of the arrays that differ, with the blocks in which they do."""
    assert jax.tree.structure(before) == jax.tree.structure(after)
    names = set()
    for (path, old), new in zip(
        jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after)
    ):
        assert old.shape == new.shape
        name = "/".join(key.key for key in path)
        if name.startswith("blocks/"):
            names |= {f"{i}/{name}" for i in range(2) if (old[i] != new[i]).any()}
        elif (np.asarray(old) != new).any():
            names.add(name)
    return names


@pytest.mark.parametrize("part", PARTS)
def test_training_begins_with_the_backbone(backbone, part):
    part = PARTS[part]
    trained = part.init(jax.random.key(0), backbone)
    assert not changed(backbone, part.merge(part.kept(backbone), trained))


@pytest.mark.parametrize("part", PARTS)
def test_what_is_trained_reaches_the_backbone(backbone, part):
    name, part = part, PARTS[part]
    trained = part.init(jax.random.key(0), backbone)
    after = part.merge(part.kept(backbone), jax.tree.map(lambda x: x + 1, trained))
    names = changed(backbone, after)
    everything = changed(backbone, jax.tree.map(lambda x: x + 1, backbone))
    expected = {
        "everything": everything - {"mask_token"},
        "last": {n for n in everything if n.startswith(("1/", "norm/"))},
        "lora": {n for n in everything if "attn/" in n and n.endswith("kernel")},
    }[name]
    assert names == expected and expected
    assert optimizer_size(trained) < optimizer_size(backbone)


def optimizer_size(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def test_lora_changes_weights_by_its_rank(backbone):
    part = adaptation.Adaptation(lora_rank=3, lora_alpha=6.0)
    trained = part.init(jax.random.key(0), backbone)
    trained = jax.tree.map(lambda x: x + 1.5, trained)
    after = part.merge(backbone, trained)
    for name in ("qkv", "proj"):
        old, new = (
            np.asarray(tree["blocks"]["attn"][name]["kernel"], np.float64)
            for tree in (backbone, after)
        )
        pair = trained["blocks"]["attn"][name]
        for i in range(2):
            expected = np.zeros(old[i].shape)
            for r in range(3):
                expected += 2.0 * np.outer(pair["a"][i][:, r], pair["b"][i][r])
            np.testing.assert_allclose(new[i] - old[i], expected, atol=1e-4)


def test_last_blocks_have_the_rates_that_they_have_among_all(backbone):
    groups = [
        optimizer.param_groups(
            {"backbone": PARTS[name].init(jax.random.key(0), backbone), "head": {}},
            layerwise_decay=0.5,
            patch_embed_lr_mult=1.0,
        )["backbone"]["blocks"]["mlp"]["fc1"]["kernel"].lr_multiplier
        for name in ("everything", "last")
    ]
    np.testing.assert_array_equal(groups[0], [0.25, 0.5])
    np.testing.assert_array_equal(groups[1], [0.5])

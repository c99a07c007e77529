"""What is trained: the merged tree, and what a step changes of it."""

import jax
import numpy as np
import pytest
import small

from dinov2_jax.eval.finetuning import adaptation


def step(part, **settings):
    """The backbone before, and {"backbone", "head"} after a step."""
    module, params = small.backbone()
    tuner = small.tuner(module, part, **settings)
    kept = part.kept(params)
    state, _ = jax.jit(tuner.step)(
        tuner.init(params), kept, *small.batch(0), tuner.scalars(0)
    )
    return params, tuner.merge(kept, state.params)


def changed(before, after):
    """Names of the arrays that differ."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after))
    names = [
        "/".join(key.key for key in path)
        for (path, old), new in pairs
        if not np.array_equal(old, new)
    ]
    assert jax.tree.structure(before) == jax.tree.structure(after)
    return set(names)


def test_everything_is_trained_but_the_mask_token():
    before, after = step(adaptation.Adaptation(), weight_decay=0.1)
    kept = set(changed(before, jax.tree.map(lambda x: x + 1, before)))
    kept -= changed(before, after["backbone"])
    assert kept == {"mask_token"}


def test_last_blocks_are_trained_as_with_all_others():
    part = adaptation.Adaptation(last_blocks=1)
    before, after = step(part, layerwise_decay=0.5)
    names = changed(before, after["backbone"])
    assert all(name.startswith(("blocks/", "norm/")) for name in names)
    _, everything = step(adaptation.Adaptation(), layerwise_decay=0.5)
    for old, new, whole in zip(
        *(jax.tree.leaves(t["blocks"]) for t in (before, after["backbone"])),
        jax.tree.leaves(everything["backbone"]["blocks"]),
    ):
        np.testing.assert_array_equal(new[0], old[0])
        np.testing.assert_allclose(new[1], whole[1], atol=1e-7)
        assert not np.array_equal(whole[0], old[0])


def test_lora_changes_attention_alone():
    before, after = step(adaptation.Adaptation(lora_rank=2), weight_decay=0.1)
    names = changed(before, after["backbone"])
    assert names == {"blocks/attn/qkv/kernel", "blocks/attn/proj/kernel"}
    for name in ("qkv", "proj"):
        old, new = (
            np.asarray(tree["blocks"]["attn"][name]["kernel"])
            for tree in (before, after["backbone"])
        )
        assert np.linalg.matrix_rank(new[1] - old[1], tol=1e-5) <= 2


def test_lora_begins_as_the_backbone():
    _, params = small.backbone()
    part = adaptation.Adaptation(lora_rank=3)
    merged = part.merge(params, part.init(jax.random.key(0), params))
    assert not changed(params, merged)


@pytest.mark.parametrize("part", [dict(last_blocks=2), dict(lora_rank=1), {}])
def test_the_state_holds_no_more_than_is_trained(part):
    _, params = small.backbone()
    part = adaptation.Adaptation(**part)
    trained = part.init(jax.random.key(0), params)
    sizes = [sum(x.size for x in jax.tree.leaves(t)) for t in (trained, params)]
    assert sizes[0] < sizes[1]

"""The sum of losses: its terms, its groups, and who sees what.

The formulas are tested in `losses/`, the whole against the reference in
`reference/replay_test.py`.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dinov2_jax import ssl_meta_arch
from dinov2_jax.augment import policies
from dinov2_jax.losses import dino, teacher_targets
from dinov2_jax.models import network

TEMP = 0.05


@functools.partial(jax.jit, static_argnames="meta_arch")
def evaluate(meta_arch, params, teacher, centers, batch):
    """(total, terms, target probabilities, new centres)."""
    targets, new_centers = meta_arch.teacher.targets(teacher, centers, batch, TEMP)
    total, terms = meta_arch.loss(params, targets, batch, jax.random.key(0))
    return total, terms, {k: t.probabilities() for k, t in targets.items()}, new_centers


def make(**sections):
    c = tiny.config(**sections)
    return c, ssl_meta_arch.make_ssl_meta_arch(c, jnp.float32)


@functools.cache
def shapes_of(meta_arch):
    return jax.eval_shape(meta_arch.student.init, jax.random.key(0))


def weights(meta_arch, seed=0):
    """Random parameters under which images differ in features and logits."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        x = rng.standard_normal(leaf.shape).astype(np.float32)
        if path[-1].key in ("kernel", "weight_v"):
            return 2 * x / np.float32(leaf.shape[-2]) ** 0.5
        ones = path[-1].key in ("scale", "gamma", "weight_g")
        return x * 0 + 1 if ones else 0.1 * x

    return jax.tree_util.tree_map_with_path(draw, shapes_of(meta_arch))


def run(c, meta_arch, batch, params=None, teacher=None):
    params = weights(meta_arch) if params is None else params
    teacher = weights(meta_arch, seed=1) if teacher is None else teacher
    return evaluate(meta_arch, params, teacher, meta_arch.teacher.init_centers(), batch)


@pytest.fixture(scope="module")
def usual():
    c, meta_arch = make()
    batch = tiny.batch(c)
    return c, meta_arch, batch, run(c, meta_arch, batch)


def close(a, b, rtol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol), a, b)


def test_terms_add_up(usual):
    total, terms, targets, _ = usual[3]
    assert set(terms) == {"dino_local", "dino_global", "koleo", "ibot"}
    assert float(total) == pytest.approx(sum(map(float, terms.values())), rel=1e-6)
    assert all(abs(float(t)) > 1e-3 for t in terms.values())
    assert targets["dino"].shape == (2, 4, 2, 64)
    assert targets["ibot"].shape == (2, 32, 1, 64)


@pytest.mark.parametrize(
    "off, gone",
    [
        ({"dino": {"loss_weight": 0.0}}, {"dino_local", "dino_global"}),
        pytest.param(
            {"dino": {"koleo_loss_weight": 0.0}}, {"koleo"}, marks=pytest.mark.slow
        ),
        ({"ibot": {"loss_weight": 0.0}}, {"ibot"}),
    ],
)
def test_disabling_a_term_keeps_the_others(usual, off, gone):
    _, _, batch, (_, terms, _, _) = usual
    total, others, targets, _ = run(*make(**off), batch)
    assert set(others) == set(terms) - gone
    close(others, {k: v for k, v in terms.items() if k not in gone})
    assert float(total) == pytest.approx(sum(map(float, others.values())), rel=1e-6)
    if "koleo" not in gone:
        assert set(targets) == {"dino", "ibot"} - {g.split("_")[0] for g in gone}


def test_weights_multiply_their_terms(usual):
    _, _, batch, (_, terms, _, _) = usual
    c, meta_arch = make(
        dino={"loss_weight": 0.5, "koleo_loss_weight": 0.3}, ibot={"loss_weight": 2.0}
    )
    _, others, _, _ = run(c, meta_arch, batch)
    factors = {"dino_local": 0.5, "dino_global": 0.5, "koleo": 3.0, "ibot": 2.0}
    close(others, {k: factors[k] * terms[k] for k in terms})


def test_without_local_crops(usual):
    _, _, batch, (_, terms, _, _) = usual
    c, meta_arch = make(crops={"local_crops_number": 0})
    _, others, _, _ = run(
        c,
        meta_arch,
        tiny.batch(c) | {k: v for k, v in batch.items() if k != "local_crops"},
    )
    assert float(others.get("dino_local", 0.0)) == 0
    close(others["koleo"], terms["koleo"])
    close(others["ibot"], terms["ibot"])
    # The shares 2 / (4 + 2) with two local crops, 2 / (1 + 2) without.
    close(others["dino_global"], terms["dino_global"] * (4 + 2) / (1 + 2))


def test_without_masks(usual):
    _, _, batch, (_, terms, _, _) = usual
    c, meta_arch = make(ibot={"mask_sample_probability": 0.0})
    unmasked = tiny.batch(c)
    assert unmasked["masked_indices"].shape == (2, 0) and not unmasked["masks"].any()
    _, others, _, _ = run(
        c, meta_arch, unmasked | {k: batch[k] for k in ("global_crops", "local_crops")}
    )
    assert float(others.get("ibot", 0.0)) == 0
    close(others["dino_local"], terms["dino_local"])  # local crops have no masks
    assert abs(float(others["dino_global"] / terms["dino_global"]) - 1) > 1e-4


def test_a_shared_head_is_two_equal_heads(usual):
    _, shared, batch, (_, terms, _, _) = usual
    assert set(weights(shared)) == {"backbone", "dino_head"}
    c, meta_arch = make(ibot={"separate_head": True})
    params, teacher = weights(shared), weights(shared, seed=1)
    doubled = [tree | {"ibot_head": tree["dino_head"]} for tree in (params, teacher)]
    _, others, _, _ = run(c, meta_arch, batch, *doubled)
    close(others, terms)
    # Another iBOT head moves the iBOT term alone.
    doubled[0]["ibot_head"] = weights(shared, seed=2)["dino_head"]
    _, moved, _, _ = run(c, meta_arch, batch, *doubled)
    assert abs(float(moved["ibot"] / terms["ibot"]) - 1) > 1e-3
    for name in ("dino_local", "dino_global", "koleo"):
        close(moved[name], terms[name])


def test_separate_heads_have_their_own_sizes():
    _, meta_arch = make(
        ibot={"separate_head": True, "head_n_prototypes": 48, "head_bottleneck_dim": 8},
        train={"centering": "centering"},
    )
    shapes = jax.tree.map(jnp.shape, weights(meta_arch))
    assert shapes["ibot_head"]["last_layer"]["weight_v"] == (48, 8)
    assert shapes["dino_head"]["last_layer"]["weight_v"] == (64, 16)
    centers = meta_arch.teacher.init_centers()
    assert {k: v.shape for k, v in centers.items()} == {"dino": (64,), "ibot": (48,)}
    assert not any(np.any(c) for c in centers.values())


def test_the_queue_holds_rows_of_the_terms_in_use():
    _, meta_arch = make(
        ibot={"separate_head": True, "head_bottleneck_dim": 8, "sinkhorn_queue": 2},
        dino={"sinkhorn_queue": 3},
    )
    masked = tiny.batch(tiny.config())["masked_indices"].shape[1]
    centers = meta_arch.teacher.init_centers()
    shapes = {k: v.shape for k, v in centers.items() if not k.endswith("valid")}
    bound = shapes["ibot_queue"][1] // 2
    assert shapes == {
        "dino_queue": (2, 3 * 4, 2, 16),
        "ibot_queue": (2, 2 * bound, 1, 8),
    }
    assert 0 < bound <= masked  # that of the config, not of these batches
    queue = {"sinkhorn_queue": 3}
    of_classes = {"dino_queue", "dino_queue_valid"}
    _, meta_arch = make(dino=queue, ibot=queue | {"loss_weight": 0.0})
    assert set(meta_arch.teacher.init_centers()) == of_classes
    _, meta_arch = make(dino=queue)
    assert set(meta_arch.teacher.init_centers()) == of_classes


def test_uint8_crops_are_normalised(usual):
    c, meta_arch, batch, _ = usual
    rng = np.random.default_rng(7)
    pixels, floats = dict(batch), dict(batch)
    for name in ("global_crops", "local_crops"):
        image = rng.integers(0, 256, batch[name].shape, np.uint8)
        pixels[name] = image
        mean, std = policies.IMAGENET_MEAN, policies.IMAGENET_STD
        floats[name] = ((image / 255.0 - mean) / std).astype(np.float32)
    assert tuple(policies.IMAGENET_MEAN) == (0.485, 0.456, 0.406)
    assert tuple(policies.IMAGENET_STD) == (0.229, 0.224, 0.225)
    close(run(c, meta_arch, pixels)[:2], run(c, meta_arch, floats)[:2], rtol=2e-5)


def halves(batch):
    return [jax.tree.map(lambda x, g=g: x[g : g + 1], batch) for g in range(2)]


def test_groups_are_averaged():
    """With fixed centres, two groups are the mean of two runs of one group."""
    c, meta_arch = make(train={"centering": "centering"})
    batch = tiny.batch(c)
    total, terms, targets, centers = run(c, meta_arch, batch)
    alone = [run(c, meta_arch, half) for half in halves(batch)]
    close(terms, jax.tree.map(lambda *x: sum(x) / 2, *(a[1] for a in alone)))
    # ... the centres too, the unweighted mean of the groups' (centres begin at 0).
    for name in ("dino", "ibot"):
        mean = (alone[0][3][name] + alone[1][3][name]) / 2
        np.testing.assert_allclose(centers[name], mean, rtol=1e-4, atol=1e-7)
        assert np.any(centers[name] != 0)


def test_sinkhorn_knopp_spans_the_groups_but_koleo_does_not(usual):
    c, meta_arch, batch, (_, terms, targets, centers) = usual
    assert centers == {}
    alone = [run(c, meta_arch, half) for half in halves(batch)]
    close(terms["koleo"], (alone[0][1]["koleo"] + alone[1][1]["koleo"]) / 2)
    for name in ("dino", "ibot"):
        apart = jnp.concatenate([a[2][name] for a in alone])
        assert np.abs(targets[name] - apart).max() > 1e-3


def test_koleo_uses_each_view_separately(usual):
    """Exchanging the images of one view leaves the term; mixing the views does not."""
    c, meta_arch, batch, (_, terms, _, _) = usual

    def koleo_of(order):
        changed = dict(batch)
        for name in ("global_crops", "masks"):
            changed[name] = batch[name][:, order]
        return float(run(c, meta_arch, changed)[1]["koleo"])

    before = float(terms["koleo"])
    assert koleo_of([2, 3, 1, 0, 4, 5, 6, 7]) == pytest.approx(before, rel=1e-5)
    assert koleo_of([4, 5, 6, 7, 0, 1, 2, 3]) == pytest.approx(before, rel=1e-5)
    assert abs(koleo_of([4, 1, 6, 3, 0, 5, 2, 7]) - before) > 1e-4 * abs(before)


def test_teacher_sees_only_unmasked_global_crops(usual):
    c, meta_arch, batch, (_, terms, targets, _) = usual
    changed = dict(batch)
    changed["masks"] = ~batch["masks"]
    changed["local_crops"] = -batch["local_crops"]
    _, others, same, _ = run(c, meta_arch, changed)
    assert np.array_equal(targets["dino"], same["dino"])
    assert np.array_equal(targets["ibot"], same["ibot"])
    # The student sees both.
    for name in ("dino_local", "dino_global", "koleo", "ibot"):
        assert float(others[name]) != float(terms[name]), name


@pytest.mark.parametrize(
    "centering",
    ["sinkhorn_knopp", pytest.param("centering", marks=pytest.mark.slow)],
)
def test_equals_the_definitions(centering):
    """The terms, their gradients and the centres, from whole arrays of logits."""
    c, arch = make(train={"centering": centering})
    batch, params, teacher = tiny.batch(c), weights(arch), weights(arch, seed=1)
    centers = jax.tree.map(
        lambda x: x + jnp.linspace(-1, 1, 64), arch.teacher.init_centers()
    )
    valid = batch["masked_weights"] > 0

    def logits(params, crops, masks, key=None):
        """Of class tokens, and of masked patches."""
        crops = [network.normalize(x) for x in crops]
        features = arch.student.backbone.apply(
            {"params": params["backbone"]}, crops, masks, key, method="forward_crops"
        )
        patches = features[0].patches.reshape(
            2, -1, arch.student.backbone.config.embed_dim
        )
        masked = jnp.take_along_axis(patches, batch["masked_indices"][..., None], 1)
        head = {"params": params["dino_head"]}
        apply = functools.partial(arch.student.dino_head.apply, head)
        return [apply(f.cls) for f in features], apply(masked)

    @jax.jit
    def defined_targets(teacher):
        (cls,), masked = logits(teacher, [batch["global_crops"]], [None])
        if centering == "sinkhorn_knopp":
            return (
                teacher_targets.sinkhorn_knopp(cls, TEMP),
                teacher_targets.sinkhorn_knopp(masked, TEMP, valid=valid),
                {},
            )
        return (
            teacher_targets.centered_softmax(cls, centers["dino"], TEMP),
            teacher_targets.centered_softmax(masked, centers["ibot"], TEMP),
            {
                "dino": teacher_targets.update_center(centers["dino"], cls),
                "ibot": teacher_targets.update_center(centers["ibot"], masked, valid),
            },
        )

    cls_targets, masked_targets, new_centers = defined_targets(teacher)

    @functools.partial(jax.value_and_grad, has_aux=True)
    def definition(params):
        crops = [batch["global_crops"], batch["local_crops"]]
        cls, masked = logits(params, crops, [batch["masks"], None], jax.random.key(0))
        terms = dict(
            zip(("dino_global", "dino_local"), dino.dino_loss(*cls, cls_targets))
        )
        terms["ibot"] = dino.ibot_loss(
            masked, masked_targets, batch["masked_weights"], batch["masks"].shape[1]
        )
        return sum(terms.values()), terms

    arch = dataclasses.replace(arch, koleo_loss_weight=0.0)

    @jax.jit
    def evaluated(params, teacher):
        targets, new_centers = arch.teacher.targets(teacher, centers, batch, TEMP)
        loss = jax.value_and_grad(arch.loss, has_aux=True)
        return loss(params, targets, batch, jax.random.key(0)), new_centers

    ours, ours_centers = evaluated(params, teacher)
    expected = jax.jit(definition)(params)
    close(ours[0], expected[0])
    close(ours_centers, new_centers, rtol=1e-4)
    for a, b in zip(jax.tree.leaves(ours[1]), jax.tree.leaves(expected[1])):
        np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max() + 1e-9)


def test_padding_of_the_masked_patches_does_not_matter(usual):
    c, meta_arch, batch, (total, terms, targets, _) = usual
    padding = batch["masked_weights"] == 0
    assert 0 < padding.sum() < padding.size
    poisoned = dict(batch)
    poisoned["masked_indices"] = np.where(padding, 17, batch["masked_indices"])
    other, other_terms, other_targets, _ = run(c, meta_arch, poisoned)
    assert float(other) == float(total)
    used = ~padding
    assert np.array_equal(other_targets["ibot"][used], targets["ibot"][used])

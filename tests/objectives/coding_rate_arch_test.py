"""SimDINO's student, teacher and losses together; the formulas are in `losses/`."""

import functools
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from peers import torch

from dinov2_jax import sharding, trainer
from dinov2_jax.models import network
from dinov2_jax.objectives import coding_rate_arch

HERE = pathlib.Path(__file__).parent
CHANNELS, IMAGES, CROPS, PATCHES = 16, 4, 4, 16


def config(**sections):
    sections = {"dino": {"koleo_loss_weight": 0.0}, **sections}
    c = tiny.config(**sections)
    c.train.objective = "coding_rate"
    c.coding_rate.update(eps=0.1, weight=0.7)
    c.dino.loss_weight, c.ibot.loss_weight = 0.9, 1.3
    return c


@functools.partial(jax.jit, static_argnames="arch")
def evaluate(arch, params, teacher, batch):
    """((total, terms), gradients), targets."""
    targets, centers = arch.teacher.targets(teacher, {}, batch, 0.05)
    assert centers == {}
    loss = jax.value_and_grad(arch.loss, has_aux=True)
    return loss(params, targets, batch, jax.random.key(0)), targets


def weights(arch, seed):
    """Random parameters under which images differ in features."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        x = rng.standard_normal(leaf.shape).astype(np.float32)
        if path[-1].key == "kernel":
            return 2 * x / np.float32(leaf.shape[-2]) ** 0.5
        return x * 0 + 1 if path[-1].key in ("scale", "gamma") else 0.1 * x

    shapes = jax.eval_shape(arch.student.init, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="module")
def usual():
    c = config()
    arch = coding_rate_arch.make_coding_rate_arch(c, jnp.float32)
    params, teacher = (weights(arch, seed) for seed in (0, 1))
    batch = tiny.batch(c)
    return arch, params, teacher, batch, evaluate(arch, params, teacher, batch)


def test_heads_have_no_prototypes(usual):
    arch, params, _, _, (((total, terms), _), targets) = usual
    assert set(params) == {"backbone", "dino_head"}
    assert set(params["dino_head"]) == {"mlp"}
    assert arch.teacher.init_centers() == {}
    assert set(terms) == {"dino_local", "dino_global", "coding_rate", "ibot"}
    assert float(total) == pytest.approx(sum(map(float, terms.values())), rel=1e-6)
    assert terms["coding_rate"] < -0.1 and terms["dino_local"] > 0.01
    lengths = np.linalg.norm(targets["dino"], axis=-1)
    np.testing.assert_allclose(lengths, np.ones((2, IMAGES, 2)), rtol=1e-5)
    assert targets["ibot"].shape == (2, 32, CHANNELS)


def with_torch(student, masked, teacher, targets, patch_weights):
    """Terms of features [G, views, b, C] and masked patches [G, M, C], in float64."""
    terms = dict.fromkeys(("dino_local", "dino_global", "coding_rate", "ibot"), 0.0)
    groups, pairs = len(student), 2 + 2 * (CROPS - 2)
    for g in range(groups):
        for s in range(CROPS):
            for t in range(2):
                if s == t:
                    continue
                distance = ((student[g, s] - teacher[g, t]) ** 2).sum(-1).mean() / 2
                name = "dino_global" if s < 2 else "dino_local"
                terms[name] += 0.9 * distance / (groups * pairs)
        for view in student[g, :2]:
            covariance = view.T @ view / IMAGES
            matrix = torch.eye(CHANNELS) + CHANNELS / 0.1**2 * covariance
            gamma = (CHANNELS + IMAGES) / (CHANNELS * IMAGES)
            rate = torch.logdet(matrix) / 2
            terms["coding_rate"] -= 0.9 * 0.7 * gamma * rate / (2 * groups)
        for patch, target, weight in zip(masked[g], targets[g], patch_weights[g]):
            distance = ((patch - target) ** 2).sum() / 2
            terms["ibot"] += 1.3 * weight * distance / (groups * 2 * IMAGES)
    return terms


def test_equals_torch(usual):
    """The terms, and gradients of all parameters, from features of whole crops."""
    arch, params, teacher, batch, (((_, terms), grads), _) = usual

    @jax.jit
    def features(params, masks):
        apply = arch.student.backbone.apply
        found = apply(
            {"params": params["backbone"]},
            [network.normalize(batch[f"{k}_crops"]) for k in ("global", "local")],
            [masks, None],
            None,
            method="forward_crops",
        )
        patches = found[0].patches.reshape(2, 2 * IMAGES * PATCHES, -1)
        index = batch["masked_indices"][..., None]
        head = functools.partial(
            arch.student.dino_head.apply, {"params": params["dino_head"]}
        )
        views = [head(f.cls).reshape(2, -1, IMAGES, CHANNELS) for f in found]
        return (
            jnp.concatenate(views, axis=1),
            head(jnp.take_along_axis(patches, index, axis=1)),
        )

    (student, masked), pull = jax.vjp(lambda p: features(p, batch["masks"]), params)
    no_masks = np.zeros_like(batch["masks"])
    unmasked, _ = jax.vjp(lambda p: features(p, no_masks), teacher)  # compiled already
    double = functools.partial(torch.tensor, dtype=torch.float64)
    inputs = [double(np.asarray(x)) for x in (student, masked)]
    fixed = [double(np.asarray(x)) for x in unmasked]
    torch.set_default_dtype(torch.float64)
    try:
        for x in inputs:
            x.requires_grad_()
        patch_weights = double(batch["masked_weights"])
        expected = with_torch(*inputs, fixed[0][:, :2], fixed[1], patch_weights)
        sum(expected.values()).backward()
    finally:
        torch.set_default_dtype(torch.float32)
    for name, term in expected.items():
        assert float(terms[name]) == pytest.approx(term.item(), rel=1e-5), name
    cotangents = tuple(jnp.asarray(x.grad.numpy(), jnp.float32) for x in inputs)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(pull(cotangents)[0])):
        np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max() + 1e-9)


def test_groups_are_averaged(usual):
    """Each group's terms and gradients are its own, as if it were computed apart."""
    arch, params, teacher, batch, (((_, terms), grads), _) = usual
    twice = [{k: v[[g, g]] for k, v in batch.items()} for g in range(2)]
    of_one = [evaluate(arch, params, teacher, group)[0] for group in twice]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *of_one)
    for name, term in mean[0][1].items():
        assert float(term) == pytest.approx(float(terms[name]), rel=1e-5), name
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(mean[1])):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max() + 1e-9)


def test_who_sees_what(usual):
    arch, params, teacher, batch, (((_, terms), _), targets) = usual
    padding = batch["masked_weights"] == 0
    changed = dict(batch, masks=~batch["masks"], local_crops=-batch["local_crops"])
    changed["masked_indices"] = np.where(padding, 17, batch["masked_indices"])
    ((_, others), _), same = evaluate(arch, params, teacher, changed)
    assert np.array_equal(targets["dino"], same["dino"])
    assert np.array_equal(targets["ibot"][~padding], same["ibot"][~padding])
    for name in terms:
        assert float(others[name]) != float(terms[name]), name
    # Padding alone changes nothing.
    changed = dict(batch, masked_indices=changed["masked_indices"])
    ((_, others), _), _ = evaluate(arch, params, teacher, changed)
    assert float(others["ibot"]) == float(terms["ibot"])


@pytest.mark.slow
def test_without_masks_local_crops_and_ibot():
    c = config(crops={"local_crops_number": 0}, ibot={"mask_sample_probability": 0.0})
    arch = coding_rate_arch.make_coding_rate_arch(c, jnp.float32)
    params = weights(arch, seed=0)
    ((total, terms), _), _ = evaluate(arch, params, params, tiny.batch(c))
    assert np.isfinite(total) and float(terms["dino_local"]) == 0
    assert set(terms) == {"dino_local", "dino_global", "coding_rate"}
    c = config()
    c.ibot.loss_weight = 0.0
    arch = coding_rate_arch.make_coding_rate_arch(c, jnp.float32)
    ((_, terms), _), targets = evaluate(arch, params, params, tiny.batch(c))
    assert "ibot" not in terms and set(targets) == {"dino"}


def eight_devices():
    """Run in a process that has them: three steps equal those of one device."""
    c = config(model={"drop_path_rate": 0.3}, train={"batch_size": 32})
    c.ibot.separate_head = True
    losses = []
    for devices in (1, 8):
        mesh = sharding.make_mesh(devices=jax.devices()[:devices])
        built = trainer.Trainer(c, mesh=mesh, dtype=jnp.float32)
        state, step = built.first_state(), built.make_step()
        with jax.set_mesh(mesh):
            for number in range(3):
                batch = built.place(tiny.batch(c, seed=number))
                state, metrics = step(state, batch, built.scalars(number))
                losses.append({k: float(v) for k, v in metrics.items()})
    for one, eight in zip(losses[:3], losses[3:]):
        assert one.keys() == eight.keys() and one["skipped"] == 0
        for name, value in one.items():
            rel = 1e-5 if name.startswith("loss/") else 1e-4
            assert eight[name] == pytest.approx(value, rel=rel, abs=1e-6), name
    assert losses[0]["loss/total"] > losses[2]["loss/total"]


@pytest.mark.slow
def test_one_device_equals_eight():
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]),
    }
    command = "import coding_rate_arch_test as t; t.eight_devices()"
    subprocess.run([sys.executable, "-c", command], env=environment, check=True)

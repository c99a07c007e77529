"""What a student learns from a frozen teacher: losses, gradients and their peers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.extend import core
from peers import torch

from dinov2_jax import ssl_meta_arch
from dinov2_jax.data import batch_spec
from dinov2_jax.losses import dino
from dinov2_jax.losses.tiled import targets as targets_lib
from dinov2_jax.models import network, stochastic_depth
from dinov2_jax.objectives import feature_regression, patch_choice, teacher_view

KEY = jax.random.key(3)


def config(**distill):
    c = tiny.config(distill={"source": "teacher", **distill})
    c.ibot.mask_sample_probability = 0.0
    c.model.depth = 1
    return c


@functools.partial(jax.jit, static_argnames="meta_arch")
def value_and_grad(meta_arch, params, teacher, batch, temp):
    """(total, terms), gradients and targets."""
    batch = meta_arch.prepare(batch, KEY)
    targets, _ = meta_arch.teacher.targets(
        teacher, meta_arch.teacher.init_centers(), batch, temp
    )
    found = jax.value_and_grad(meta_arch.loss, has_aux=True)(
        params, targets, batch, KEY
    )
    return *found, targets


def norm(tree):
    return float(np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(tree))))


@pytest.fixture(scope="module")
def same():
    """A student with its own network as the teacher, and each one's parameters."""
    c = config(views="same")
    c.crops.local_crops_number = 0
    c.dino.koleo_loss_weight = 0.0
    c.train.centering = "centering"
    student = network.make_network(c, jnp.float32)
    meta_arch = ssl_meta_arch.make_ssl_meta_arch(c, jnp.float32, student)
    params = [student.init(jax.random.key(seed)) for seed in (0, 1)]
    return c, meta_arch, params, tiny.batch(c)


def test_a_student_that_equals_its_teacher_has_nothing_to_learn(same):
    _, meta_arch, (params, other), batch = same
    temp = dino.STUDENT_TEMP
    (loss, _), grads, targets = value_and_grad(meta_arch, params, params, batch, temp)
    _, at_random, _ = value_and_grad(meta_arch, other, params, batch, temp)
    assert norm(grads) < 1e-5 * norm(at_random)
    # A cross-entropy with itself is the entropy.
    entropies = []
    for term, rows in (("dino", 3), ("ibot", 1)):  # the reference's normaliser is 3
        p = np.float64(targets[term].probabilities())
        entropy = -np.sum(p * np.log(p), axis=-1)  # [G, I, T]
        entropies.append(np.mean(np.sum(entropy, axis=-1)) / rows)
    assert float(loss) == pytest.approx(sum(entropies), rel=1e-5)
    # At another temperature the teacher is sharper than its student.
    _, grads, _ = value_and_grad(meta_arch, params, params, batch, 0.07)
    assert norm(grads) > 1e-3 * norm(at_random)


def test_no_array_holds_the_logits_of_all_prototypes():
    c = config()
    c.train.update(batch_size=128, group_size=128)
    prototypes = 2**18
    for head in (c.dino, c.ibot):
        head.head_n_prototypes = prototypes
    student = network.make_network(c, jnp.float32)
    meta_arch = ssl_meta_arch.make_ssl_meta_arch(c, jnp.float32, student)
    params = jax.eval_shape(student.init, KEY)
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype)
        for name, (shape, dtype) in batch_spec.batch_spec(c).items()
    }
    traced = jax.make_jaxpr(value_and_grad, static_argnums=0, return_shape=True)
    step, (_, _, targets) = traced(meta_arch, params, params, batch, 0.07)
    largest = max(x.aval.size for eqn in equations(step.jaxpr) for x in eqn.outvars)
    rows = [targets[term].lse.size for term in ("dino", "ibot")]
    assert rows == [256, 4096]  # global crops, all of their patches
    assert largest < min(rows) * prototypes
    probabilities = jax.make_jaxpr(targets_lib.Targets.probabilities)(targets["dino"])
    assert max(x.aval.size for x in probabilities.jaxpr.outvars) == 256 * prototypes


def equations(jaxpr):
    """All operations of a program, those of its inner programs included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in core.jaxprs_in_params(equation.params):
            yield from equations(inner)


@pytest.mark.slow
def test_prototypes_equal_the_reference_in_torch():
    """All patches, no mask: losses and the gradients of the student's prototypes."""
    c = config()
    c.dino.koleo_loss_weight = 0.0
    wider = tiny.config(model={"embed_dim": 48, "depth": 1, "num_heads": 3})
    wider.dino.head_bottleneck_dim = 24
    frozen = network.make_network(wider, jnp.float32)
    meta_arch = ssl_meta_arch.make_ssl_meta_arch(c, jnp.float32, frozen)
    params = meta_arch.student.init(jax.random.key(0))
    teacher = frozen.init(jax.random.key(1))
    batch, temp = tiny.batch(c), 0.07
    (loss, terms), grads, _ = value_and_grad(meta_arch, params, teacher, batch, temp)

    # Bottleneck features of both, by crop and by patch, from the modules themselves.
    def features(net, params, crops):
        out = net.backbone.apply(
            {"params": params["backbone"]},
            [net.normalize(x) for x in crops],
            [None] * len(crops),
            method="forward_crops",
        )
        patches = out[0].patches.reshape(-1, out[0].patches.shape[-1])
        head = functools.partial(
            net.dino_head.apply, {"params": params["dino_head"]}, method="bottleneck"
        )
        to_torch = lambda x: torch.from_numpy(np.array(head(x)))  # noqa: E731
        return [to_torch(x.cls) for x in out], to_torch(patches)

    crops = [batch["global_crops"], batch["local_crops"]]
    (t_cls,), t_patches = features(frozen, teacher, crops[:1])
    (s_global, s_local), s_patches = features(meta_arch.student, params, crops)
    last = {
        name: {k: torch.from_numpy(np.array(v)) for k, v in p.items()}
        for name, p in (
            ("student", params["dino_head"]["last_layer"]),
            ("teacher", teacher["dino_head"]["last_layer"]),
        )
    }
    v = last["student"]["weight_v"].requires_grad_()
    weight = last["student"]["weight_g"] * v / v.norm(dim=1, keepdim=True)
    frozen_v, frozen_g = (last["teacher"][f"weight_{k}"] for k in "vg")
    frozen_weight = frozen_g * frozen_v / frozen_v.norm(dim=1, keepdim=True)

    def sinkhorn(logits):
        q = torch.exp(logits / temp).T
        q /= q.sum()
        for _ in range(3):
            q /= q.sum(dim=1, keepdim=True) * q.shape[0]
            q /= q.sum(dim=0, keepdim=True) * q.shape[1]
        return (q * q.shape[1]).T

    def cross_entropy(student, target):
        log_p = torch.log_softmax(student @ weight.T / dino.STUDENT_TEMP, dim=-1)
        return -(target * log_p).sum(-1).mean()

    rows = t_cls.reshape(-1, t_cls.shape[-1]) @ frozen_weight.T
    q = sinkhorn(rows).reshape(2, 2, -1, rows.shape[-1])  # group, view, image
    s = s_global.reshape(2, 2, -1, s_global.shape[-1])
    expected = {
        "dino_global": sum(cross_entropy(s[:, i], q[:, 1 - i]) for i in (0, 1)) / 6,
        "dino_local": sum(
            cross_entropy(one, q[:, view])
            for one in s_local.reshape(2, 2, -1, s.shape[-1]).unbind(1)
            for view in (0, 1)
        )
        / 6,
        "ibot": cross_entropy(s_patches, sinkhorn(t_patches @ frozen_weight.T)),
    }
    total = sum(expected.values())
    total.backward()
    for name, value in expected.items():
        assert float(terms[name]) == pytest.approx(value.item(), rel=1e-5)
    assert float(loss) == pytest.approx(total.item(), rel=1e-5)
    found = np.array(grads["dino_head"]["last_layer"]["weight_v"])
    error = np.abs(found - v.grad.numpy()).max()
    assert error < 1e-4 * np.abs(found).max()


def test_features_equal_two_mean_squared_errors_in_torch():
    c = config(objective="features")
    c.crops.local_crops_number = 0
    c.distill.features.standardize = "none"
    c.distill.features.patch_weight = 0.5
    wider = tiny.config(model={"embed_dim": 48, "depth": 1, "num_heads": 3})
    frozen = network.make_network(wider, jnp.float32)
    meta_arch = feature_regression.make_feature_regression(c, jnp.float32, frozen, None)
    params = meta_arch.student.init(jax.random.key(0))
    teacher, batch = frozen.init(jax.random.key(1)), tiny.batch(c)
    (_, terms), grads, _ = value_and_grad(meta_arch, params, teacher, batch, 0.07)

    def tokens(net, params):
        (out,) = net.backbone.apply(
            {"params": params["backbone"]},
            [net.normalize(batch["global_crops"])],
            [None],
            method="forward_crops",
        )
        return {
            "cls": torch.from_numpy(np.array(out.cls)),
            "patch": torch.from_numpy(np.array(out.patches)),
        }

    student, target = tokens(meta_arch.student, params), tokens(frozen, teacher)
    for term, factor in (("cls", 1.0), ("patch", 0.5)):
        head = params[f"{term}_head"]
        kernel = torch.from_numpy(np.array(head["out"]["kernel"])).requires_grad_()
        x = torch.nn.functional.layer_norm(student[term], (32,), eps=1e-6)
        loss = factor * torch.nn.functional.mse_loss(x @ kernel, target[term])
        loss.backward()
        assert float(terms[f"features_{term}"]) == pytest.approx(loss.item(), rel=1e-5)
        found = np.array(grads[f"{term}_head"]["out"]["kernel"])
        np.testing.assert_allclose(
            found, kernel.grad, rtol=1e-4, atol=1e-4 * np.abs(found).max()
        )


@pytest.mark.parametrize("trainable", ["all", "last", "lora"])
def test_a_part_of_the_backbone_learns_features(trainable):
    """That which also learns in pretraining, where its gradients are compared."""
    c = config(objective="features")
    c.optim.update(trainable=trainable, last_blocks=1)
    frozen = network.make_network(c, jnp.float32)
    arch = feature_regression.make_feature_regression(c, jnp.float32, frozen, None)
    for field in dataclasses.fields(network.Network):
        if not field.name.endswith("_head"):
            expected = getattr(frozen, field.name)
            assert getattr(arch.student, field.name) == expected, field.name
    params = jax.eval_shape(arch.student.init, KEY)
    assert ("lora" in params) == (trainable == "lora")


def test_scales_are_measured_on_the_first_images_and_then_kept():
    rng = np.random.default_rng(0)
    batches = [
        {
            "cls": jnp.asarray(rng.normal(3, 2, (2, 4, 5)), jnp.float32),
            "patch": jnp.asarray(
                rng.normal(-1, (1, 2, 3, 4, 5), (2, 12, 5)), "float32"
            ),
            "valid": jnp.arange(12) < jnp.array([[9], [4]]),
        }
        for _ in range(3)
    ]
    for batch in batches:  # slots without a patch
        batch["patch"] = jnp.where(batch["valid"][..., None], batch["patch"], 50.0)
    c = config()
    frozen = network.make_network(c, jnp.float32)
    for kind in ("global", "channel"):
        teacher = feature_regression.FeatureTeacher(frozen, kind, calibration_images=8)
        statistics = jax.tree.map(
            lambda x: jnp.zeros((5,)) if x.ndim else x, teacher.init_centers()
        )
        for batch in batches:
            targets, statistics = teacher.assign(None, statistics, batch, None)
        assert float(statistics["images"]) == 8  # two batches of four
        for term in ("cls", "patch"):
            rows = np.concatenate(
                [
                    b[term][b["valid"]] if term == "patch" else b[term].reshape(-1, 5)
                    for b in batches[:2]
                ]
            )
            scale = rows.std(axis=0)
            if kind == "global":
                scale = np.sqrt(np.mean(scale**2))
            expected = (np.asarray(batches[2][term]) - rows.mean(axis=0)) / scale
            np.testing.assert_allclose(targets[term], expected, rtol=1e-4, atol=1e-5)


def test_a_share_of_the_patches():
    batch = {"masks": jnp.zeros((4, 6, 10), bool)}
    choice = patch_choice.PatchChoice("all", 0.25)
    whole = choice(batch, KEY)
    assert whole["masks"] is None
    indices = np.asarray(whole["masked_indices"]).reshape(4, 6, 3)  # 2.5 rounded up
    np.testing.assert_allclose(whole["masked_weights"], 1 / 3)
    crops, patches = np.divmod(indices, 10)
    assert (crops == np.arange(6)[:, None]).all()
    assert (np.diff(patches, axis=-1) > 0).all()  # no patch twice
    assert len({tuple(row) for row in patches.reshape(-1, 3)}) > 12
    # A micro-batch has the patches of its groups; another step has others.
    part = stochastic_depth.MicroBatch(jnp.array([1, 3]), 4)
    found = choice({"masks": batch["masks"][:2]}, KEY, part)["masked_indices"]
    np.testing.assert_array_equal(found, whole["masked_indices"][np.array([1, 3])])
    other = choice(batch, jax.random.key(4))["masked_indices"]
    assert (other != whole["masked_indices"]).any()
    every = patch_choice.PatchChoice()(batch, KEY)["masked_indices"]
    np.testing.assert_array_equal(every, np.tile(np.arange(60), (4, 1)))


@pytest.mark.parametrize("size, seen, patch", [(64, 56, 14), (56, 64, 16)])
def test_a_patch_of_the_student_is_the_same_place_for_the_teacher(size, seen, patch):
    grid = seen // patch
    side = size // grid
    crops = np.zeros((1, grid**2, size, size, 1), np.float32)
    for i in range(grid**2):
        y, x = divmod(i, grid)
        crops[0, i, y * side : (y + 1) * side, x * side : (x + 1) * side] = 1
    resized = np.asarray(teacher_view.resize(jnp.asarray(crops), seen))
    means = resized.reshape(grid**2, grid, patch, grid, patch).mean((2, 4))
    np.testing.assert_array_equal(
        means.reshape(grid**2, -1).argmax(axis=1), np.arange(grid**2)
    )


def test_tokens_on_the_same_grid_are_not_changed():
    maps = jax.random.normal(KEY, (1, 2, 4, 4, 3))
    np.testing.assert_array_equal(teacher_view.resize_tokens(maps, 4), maps)
    # On another they are torch's bilinear interpolation.
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(np.array(maps[0])).permute(0, 3, 1, 2),
        (6, 6),
        mode="bilinear",
        align_corners=False,
    ).permute(0, 2, 3, 1)
    found = teacher_view.resize_tokens(maps, 6)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)

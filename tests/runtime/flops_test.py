"""The FLOP model against a published table and against the operations of the step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from configs import vitg, vitl, vitl16_short, vits
from dinov2_jax import ssl_meta_arch
from dinov2_jax.augment import crop_sizes
from dinov2_jax.data import batch_spec
from dinov2_jax.objectives import coding_rate_arch
from dinov2_jax.runtime import flops


def count_products(jaxpr):
    """FLOPs of all matrix products of a jaxpr, loops multiplied out."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            depth = np.prod([eqn.invars[0].aval.shape[i] for i in contracted])
            total += 2 * eqn.outvars[0].aval.size * int(depth)
            continue
        inner = [count_products(sub) for sub in core.jaxprs_in_params(eqn.params)]
        inner += [
            count_products(branch.jaxpr) for branch in eqn.params.get("branches", ())
        ]
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        assert eqn.primitive.name not in ("while", "pallas_call") or not sum(inner)
        if eqn.primitive.name == "cond":
            inner = [max(inner)]
        total += times * sum(inner)
    return total


def products_of(function, *args):
    """FLOPs of the matrix products of a function of abstract arguments."""
    return count_products(jax.make_jaxpr(function)(*args).jaxpr)


def small(drop_path_rate=0.4, **model):
    """ViT-S/14 with one group of 4 images; `model` overrides its fields."""
    config = vits.get_config()
    config.train.update(batch_size=4, group_size=4, centering="sinkhorn_knopp")
    config.model.update(drop_path_rate=drop_path_rate, dtype="float32", **model)
    return config


def abstract_batch(config):
    return {
        name: jax.ShapeDtypeStruct(shape, dtype)
        for name, (shape, dtype) in batch_spec.batch_spec(config).items()
    }


# Name: the config, group size, rate and head, then teacher, student forward and step
# TFLOP, heads % and attention % as an earlier, independent program counted them.
TABLE = {
    "L/16 short": (vitl16_short, {}, (0.249, 0.301, 1.151, 1.1, 2.2)),
    "L/14": (vitl, {}, (0.331, 0.347, 1.370, 2.1, 2.9)),
    "g/14": (vitg, {}, (1.204, 1.248, 4.948, 0.6, 2.0)),
    # The long recipe's heads and drop rate on the small models, 64 images.
    "B/14": (vitl, {"arch": "vit_base"}, (0.099, 0.104, 0.410, 6.9, 3.6)),
    "S/14": (vitl, {"arch": "vit_small"}, (0.031, 0.032, 0.127, 21.7, 5.8)),
}


# TFLOP with crops of 518 and 98 px, as the same program counted them.
HIGH = {"S/14": 0.685, "B/14": 1.95, "L/14": 6.22, "g/14": 21.2}


def mean_per_image(config):
    return crop_sizes.make_crop_sizes(config).mean(
        lambda size: flops.step_flops(flops.make_workload(config, size)).per_image
    )


@pytest.mark.parametrize("name", HIGH)
def test_mean_over_several_resolutions(name):
    module, model, _ = TABLE[name]
    config = module.get_config()
    if model:
        config.model.update(ffn_layer="mlp", **model)
        config.train.group_size = 64
    low = mean_per_image(config) / 1e12
    config.crops.update(global_crops_size=518, sizes=((224, 98, 0.7), (518, 98, 0.3)))
    high = flops.step_flops(flops.make_workload(config)).per_image
    assert high / 1e12 == pytest.approx(HIGH[name], rel=0.01)
    mean = mean_per_image(config) / 1e12
    assert mean == pytest.approx(0.7 * low + 0.3 * HIGH[name], rel=0.01)


@pytest.mark.parametrize("name", TABLE)
def test_equals_the_table(name):
    module, model, row = TABLE[name]
    config = module.get_config()
    if model:
        config.model.update(ffn_layer="mlp", **model)
        config.train.group_size = 64
    teacher, student, step, heads, attention = row
    got = flops.step_flops(flops.make_workload(config))
    # Half a unit of the table's last digit, or 1 %.
    assert got.teacher / 1e12 == pytest.approx(teacher, abs=5e-4, rel=0.01)
    assert got.student_forward / 1e12 == pytest.approx(student, abs=5e-4, rel=0.01)
    assert got.per_image / 1e12 == pytest.approx(step, abs=5e-4, rel=1e-3)
    assert 100 * got.heads / got.per_image == pytest.approx(heads, abs=0.06)
    assert 100 * got.attention_core / got.per_image == pytest.approx(
        attention, abs=0.06
    )


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"ffn_layer": "swiglufused", "num_register_tokens": 4},
        {"drop_path_uniform": False},
    ],
    ids=str,
)
def test_backbones_multiply_so_much(model):
    config = small(**model)
    config.dino.loss_weight = config.ibot.loss_weight = 0.0  # no heads
    arch = ssl_meta_arch.make_ssl_meta_arch(config, jnp.float32)
    params = jax.eval_shape(arch.student.init, jax.random.key(0))["backbone"]
    batch = abstract_batch(config)

    def run(params, crops, masks, key):
        return arch.student.backbone.apply(
            {"params": params},
            [c.astype(jnp.float32) for c in crops],
            masks,
            key,
            method="forward_crops",
        )

    crops = [batch["global_crops"], batch["local_crops"]]
    key = jax.eval_shape(lambda: jax.random.key(0))
    expected = flops.step_flops(flops.make_workload(config))
    student = products_of(run, params, crops, [batch["masks"], None], key) / 4
    teacher = products_of(run, params, crops[:1], [None], None) / 4
    # The resampling of position embeddings, once a step, is what comes on top.
    assert student == pytest.approx(expected.student_forward, rel=2e-4)
    assert teacher == pytest.approx(expected.teacher, rel=1e-9)


@pytest.mark.parametrize(
    "separate_head, prototypes, most", [(False, 65536, 1.3), (True, 4096, 1.04)]
)
def test_the_loss_multiplies_so_much(separate_head, prototypes, most):
    config = small()
    config.ibot.separate_head = separate_head
    config.dino.head_n_prototypes = prototypes
    config.ibot.head_n_prototypes = 2 * prototypes
    arch = ssl_meta_arch.make_ssl_meta_arch(config, jnp.float32)
    params = jax.eval_shape(arch.student.init, jax.random.key(0))
    batch = abstract_batch(config)
    key = jax.eval_shape(lambda: jax.random.key(0))
    expected = flops.step_flops(flops.make_workload(config))

    def teacher(params, batch):
        return arch.teacher.targets(params, {}, batch, 0.07)

    def student(params, batch, key):
        targets, _ = arch.teacher.targets(params, {}, batch, 0.07)
        return arch.loss(params, jax.lax.stop_gradient(targets), batch, key)[0]

    # On top come Sinkhorn's sums, cross-entropies, KoLeo and what is computed a second
    # time: logits of the prototypes (much where these are many), scores of attention.
    # Left out may be the last of 12 FFNs, two thirds of a block, of unused tokens.
    least = 1 - 2 / 3 / 12
    count = products_of(teacher, params, batch) / 4
    assert least <= count / expected.teacher < most
    both = products_of(student, params, batch, key) / 4
    assert least <= both / (expected.teacher + expected.student_forward) < most
    step = products_of(jax.value_and_grad(student), params, batch, key) / 4
    assert least <= step / expected.per_image < most


def test_simdino_has_no_prototypes():
    config = small()
    config.train.objective = "coding_rate"
    arch = coding_rate_arch.make_coding_rate_arch(config, jnp.float32)
    params = jax.eval_shape(arch.student.init, jax.random.key(0))
    batch = abstract_batch(config)
    expected = flops.step_flops(flops.make_workload(config))
    count = products_of(
        lambda *args: arch.teacher.targets(args[0], {}, args[1], 0.07), params, batch
    )
    assert 1 - 2 / 3 / 12 <= count / 4 / expected.teacher < 1.001
    # What is left out is the prototypes' products, forward and backward.
    with_them = flops.step_flops(flops.make_workload(small()))
    rows = [2 + 3 * (2 + 8)] + [4 * flops.make_workload(config).masked / 4]
    difference = 2 * 256 * 65536 * sum(rows)
    found = with_them.per_image - expected.per_image
    assert found == pytest.approx(difference, rel=1e-9)
    assert found == pytest.approx(with_them.heads - expected.heads, rel=1e-9)


def test_parts_of_the_whole():
    config = small()
    got = flops.step_flops(flops.make_workload(config))
    assert got.heads < got.per_image and got.attention_core < got.per_image
    config.model.drop_path_rate = 0.0
    assert flops.step_flops(flops.make_workload(config)).per_image > 1.3 * got.per_image
    config.model.update(remat="full")  # computes more, but nothing more that is useful
    assert flops.step_flops(flops.make_workload(config)).per_image == pytest.approx(
        flops.step_flops(flops.make_workload(small(drop_path_rate=0.0))).per_image
    )
    config.crops.local_crops_number = 0
    got = flops.step_flops(flops.make_workload(config))
    assert got.student_forward == pytest.approx(got.teacher)


def test_a_gram_teacher_is_a_second_teacher_without_heads():
    config = small()
    config.dino.loss_weight = config.ibot.loss_weight = 0.0  # no heads
    alone = flops.step_flops(flops.make_workload(config))
    config.gram.loss_weight = 2.0
    both = flops.step_flops(flops.make_workload(config))
    assert both.teacher == pytest.approx(2 * alone.teacher)
    added = both.per_image - alone.per_image
    assert added == pytest.approx(alone.teacher)
    config.gram.scale = 2.0  # four times the patches, and attention on top
    larger = flops.step_flops(flops.make_workload(config))
    assert 5 < larger.teacher / alone.teacher - 1 < 5.5


@pytest.mark.parametrize(
    "kind, peak",
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA GB200", 2500e12),
        ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", None),
        ("NVIDIA H20", None),
        ("TPU v3", None),
        ("TPU v4", 275e12),
        ("TPU v4 lite", None),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("TPU7x", 1153.5e12),
        ("cpu", None),
    ],
)
def test_peaks_by_device_kind(kind, peak):
    assert flops.peak_flops(kind) == peak


def test_the_rate_at_the_peak_gives_the_published_mfu():
    # 325 images/s of ViT-L/14 on one H200 are 45 %: 1.370 TFLOP an image.
    config = vitl.get_config()
    per_image = flops.step_flops(flops.make_workload(config)).per_image
    one = flops.peak_rate(per_image, "NVIDIA H200", 1)
    assert 325 / one == pytest.approx(325 * 1.370e12 / 989e12, rel=1e-3)
    assert 325 / one == pytest.approx(0.45, abs=1e-3)
    # The same step in the same time on eight devices with eight times the images.
    config.train.batch_size *= 8
    per_image = flops.step_flops(flops.make_workload(config)).per_image
    assert 8 * 325 / flops.peak_rate(per_image, "NVIDIA H200", 8) == 325 / one


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA RTX A6000", "TPU v9"])
def test_no_rate_at_an_unknown_peak(kind):
    assert flops.peak_rate(1.4e12, kind, 8) is None

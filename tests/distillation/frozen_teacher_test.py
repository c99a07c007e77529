"""Teachers from files: what fits the student, and what is refused in words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dinov2_jax import errors, sharding, trainer
from dinov2_jax.config import checking
from dinov2_jax.data import preprocessing
from dinov2_jax.distillation import frozen_teacher
from dinov2_jax.models import network
from dinov2_jax.weights import native, reading


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Exports of a teacher with heads, and of its backbone alone."""
    folder = tmp_path_factory.mktemp("teachers")
    c = tiny.config(model={"embed_dim": 48, "depth": 1, "num_heads": 3})
    c.dino.update(head_n_prototypes=96, head_bottleneck_dim=24)
    c.crops.global_crops_size = 24
    made = network.make_network(c, jnp.float32)
    params = made.init(jax.random.key(0))
    prepare = preprocessing.for_patches(c.model.patch_size)
    backbone = {"backbone": params["backbone"]}
    without = {k: v for k, v in params["dino_head"].items() if k != "last_layer"}
    for name, weights in (
        ("heads", params),
        ("backbone", backbone),
        ("features", backbone | {"cls_head": params["dino_head"]}),
        ("simdino", backbone | {"dino_head": without}),
    ):
        native.write(folder / name, made.backbone, weights, prepare, "teacher")
    return folder


def config(source, **distill):
    c = tiny.config(distill={"source": str(source), **distill})
    c.ibot.mask_sample_probability = 0.0
    if distill.get("objective") == "features":
        c.crops.local_crops_number = 0
    checking.check(c)
    return c


def test_the_students_prototypes_are_the_teachers(files):
    c = config(files / "heads")
    teacher = frozen_teacher.read(c)
    resolved = frozen_teacher.resolve(c, teacher)
    assert (c.dino.head_n_prototypes, resolved.dino.head_n_prototypes) == (64, 96)
    assert not resolved.ibot.separate_head
    made = trainer.Trainer(
        resolved, mesh=sharding.make_mesh(devices=jax.devices()[:1]), teacher=teacher
    )
    of_teacher = made.meta_arch.teacher.network
    assert of_teacher.num_prototypes() == made.meta_arch.student.num_prototypes()
    assert of_teacher.dino_head.bottleneck_dim == 24
    # Positions of 6 x 6 patches, resampled once to the 4 x 4 of the student's crops.
    assert teacher.params["backbone"]["pos_embed"].shape == (1, 17, 48)
    assert made.meta_arch.teacher.view is None
    (frozen,) = made.place_teacher()
    jax.tree.map(np.testing.assert_array_equal, frozen, teacher.params)
    # In bfloat16 only what the matmuls cast anyway.
    placed = teacher.place(made.mesh, jnp.bfloat16)
    kinds = {
        (path[-1].key == "kernel", str(leaf.dtype))
        for path, leaf in jax.tree_util.tree_leaves_with_path(placed)
    }
    assert kinds == {(True, "bfloat16"), (False, "float32")}
    assert f"digest {teacher.digest}" in teacher.description
    assert "24" not in teacher.description.split("crops of")[1].split("px")[0]


def test_at_several_sizes_positions_stay_those_of_the_file(files):
    """Each size resamples them once, as `load` does; not those of the largest size."""
    c = config(files / "heads")
    c.crops.sizes = ((16, 8, 0.5), (12, 8, 0.5))
    checking.check(c)
    teacher = frozen_teacher.read(c)
    weights = reading.read(files / "heads")
    np.testing.assert_array_equal(
        teacher.params["backbone"]["pos_embed"], weights.params["backbone"]["pos_embed"]
    )
    assert teacher.view(c) is None and "crops of 16 px" in teacher.description
    made = teacher.make_network(c, jnp.float32)
    crops = np.random.default_rng(0).integers(0, 256, (1, 2, 12, 12, 3), np.uint8)
    (found,), _ = made.tokens(
        teacher.params, [crops], [None], jnp.zeros((1, 1), jnp.int32)
    )
    expected = weights.module.apply(
        {"params": weights.params["backbone"]}, made.normalize(crops)[0]
    )
    np.testing.assert_allclose(found[0], expected.cls, rtol=1e-4, atol=1e-5)


def test_the_digest_is_of_the_weights(files):
    one = frozen_teacher.read(config(files / "backbone", objective="features"))
    other = frozen_teacher.read(config(files / "heads"))
    again = frozen_teacher.read(config(files / "backbone", objective="features"))
    assert one.digest == again.digest != other.digest


@pytest.mark.parametrize(
    "name, distill, changes, message",
    [
        ("backbone", {}, {}, "no projection heads.*distill.objective=features"),
        ("features", {}, {}, "features has no heads with prototypes: distil its feat"),
        ("simdino", {}, {}, "simdino has no heads with prototypes: distil its feat"),
        ("nowhere", {}, {}, "there is no file or folder"),
        ("heads", {}, {"model.in_chans": 1}, "takes 3 channels, but model.in_chans"),
        (
            "heads",
            {},
            {"data.mean": (0.5, 0.5, 0.5)},
            "not the source's.*those of the teach",
        ),
        ("heads", {"teacher_size": 22}, {}, "teacher_size = 22.*use 20"),
        ("heads", {}, {"init.source": "SOURCE"}, "start as its own teacher"),
    ],
)
def test_teachers_that_are_refused(files, name, distill, changes, message):
    c = config(files / name, **distill)
    for field, value in changes.items():
        section, _, field = field.partition(".")
        c[section][field] = c.distill.source if value == "SOURCE" else value
    with pytest.raises(errors.UserError, match=message):
        frozen_teacher.read(c)


def test_a_config_is_a_teacher_for_planning_alone(tmp_path):
    c = config("configs/vitg.py", objective="features")
    with pytest.raises(errors.UserError, match="config without weights"):
        frozen_teacher.read(c)
    c.crops.global_crops_size = 16
    teacher = frozen_teacher.describe(c)
    assert teacher.model.embed_dim == 1536
    assert set(teacher.params) == {"backbone"}
    with pytest.raises(errors.UserError, match="simdino.py has no heads with protot"):
        frozen_teacher.describe(config("configs/simdino.py"))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"ibot.mask_sample_probability": 0.5}, "has no use for masks"),
        ({"distill.patches": "masked"}, "nothing is masked"),
        ({"distill.objective": "features"}, "crops.local_crops_number=0"),
        ({"distill.patch_share": 0.0}, "must be above 0"),
        ({"distill.source": "", "distill.students": (("a", ""),)}, "no effect without"),
        (
            {"init.source": "x", "distill.students": (("a", "model.depth=1"),)},
            "init.source starts one student",
        ),
    ],
)
def test_configs_that_are_refused(changes, message):
    c = config("teacher")
    for field, value in changes.items():
        section, _, field = field.partition(".")
        c[section][field] = value
    with pytest.raises(errors.UserError, match=message):
        checking.check(c)

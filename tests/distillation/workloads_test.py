"""FLOPs of distillation against the table of the design, in TFLOP per image."""

import jax
import pytest

from configs import distill
from dinov2_jax import several_students, sharding
from dinov2_jax.config import config_file
from dinov2_jax.distillation import frozen_teacher, students, workloads

SIZES = {"s": "vit_small", "b": "vit_base", "l": "vit_large"}
# Teacher g/14 and K = 131,072, 2 crops of 224 px and 8 of 98 px: all patches | masked.
TABLE = {"s": (1.489, 1.351), "b": (1.850, 1.710), "l": (3.073, 2.932)}
TOGETHER = (3.932, 3.585)


def described(names, masked=False, **settings):
    """The resolved config of a distillation, and its teacher."""
    c = distill.get_config()
    c.distill.source = "configs/vitg.py"
    entries = tuple((name, f"model.arch={SIZES[name]}") for name in names)
    c.distill.students = entries
    if masked:
        c.distill.patches = "masked"
        c.ibot.mask_sample_probability = 0.5
    config_file.apply(c, [f"--config.{k}={v}" for k, v in settings.items()])
    teacher = frozen_teacher.describe(c)
    return frozen_teacher.resolve(c, teacher), teacher


def count(names, masked=False, **settings):
    """TFLOP per image at the largest size."""
    c, teacher = described(names, masked, **settings)
    own = students.configs(c)
    return workloads.flops_per_image(teacher, own.values()) / 1e12


@pytest.mark.parametrize("masked", [False, True])
def test_the_table(masked):
    for name, values in TABLE.items():
        assert count(name, masked) == pytest.approx(values[masked], rel=0.02)
    assert count("sbl", masked) == pytest.approx(TOGETHER[masked], rel=0.02)


def test_mean_over_several_resolutions():
    low = count("s")
    high = count("s", **{"crops.global_crops_size": 518})
    settings = {"crops.sizes": "((224,98,0.7),(518,98,0.3))"}
    c, teacher = described("s", **{"crops.global_crops_size": 518}, **settings)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    made = several_students.make_trainer(c, teacher, mesh=mesh)
    assert made.flops_of_size() / 1e12 == pytest.approx(high)
    mean = 0.7 * low + 0.3 * high
    assert made.flops_per_image / 1e12 == pytest.approx(mean)


def test_one_teacher_pass_serves_all():
    apart = sum(count(name) for name in "sbl")
    assert apart / count("sbl") == pytest.approx(1.63, rel=0.02)

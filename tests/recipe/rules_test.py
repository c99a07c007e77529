import pytest

from dinov2_jax.models import stochastic_depth
from dinov2_jax.recipe import rules


@pytest.mark.parametrize(
    "batch, images_seen, momentum",
    [
        # 10 % of 14.784 M images are more than 256,000.
        (192, 77_000 * 192, 0.99925),
        (2048, 256_000_000, 0.992),  # the reference's short recipe itself
        (256, 5_000 * 256, 0.998),  # 10 % of 1.28 M: 128,000 images
        (64, 38_400, 1 - 64 / 3840),  # the quickstart's length
        (64, 500, 0.0),  # the horizon, 50 images, is less than a batch
    ],
)
def test_ema_momentum(batch, images_seen, momentum):
    assert rules.ema_momentum(batch, images_seen) == pytest.approx(momentum, abs=1e-12)


def test_an_average_spans_the_same_images_for_every_batch():
    """A weight's half-life in images, from the definition of an EMA."""
    lives = []
    for batch in (8, 64, 512):
        momentum = rules.ema_momentum(batch, 100_000_000)
        weight, images = 1.0, 0
        while weight > 0.5:
            weight *= momentum
            images += batch
        lives.append(images)
    assert lives == pytest.approx([256_000 * 0.6931] * 3, rel=0.005)


@pytest.mark.parametrize(
    "images, prototypes",
    [
        (1, 1024),
        (8192, 1024),
        (20_000, 2048),
        (50_000, 8192),
        (100_000, 16_384),
        (500_000, 65_536),
        (10_000_000, 65_536),
    ],
)
def test_num_prototypes(images, prototypes):
    assert rules.num_prototypes(images) == prototypes


def test_sinkhorn_needs_rows():
    # 8 times the 2 x 256 class tokens are 4096.
    assert rules.balancing(4096, 256) == ("sinkhorn_knopp", 0)
    assert rules.balancing(4097, 256) == ("sinkhorn_knopp", 1)
    assert rules.balancing(9 * 4096, 256) == ("sinkhorn_knopp", 8)
    assert rules.balancing(9 * 4096 + 1, 256) == ("centering", 0)
    assert rules.balancing(65_536, 4096) == ("sinkhorn_knopp", 0)


def test_values_by_the_number_of_images():
    assert rules.teacher_temperatures(49_999) == (0.02, 0.04)
    assert rules.teacher_temperatures(50_000) == (0.04, 0.07)
    assert rules.last_weight_decay(99_999, trained=False) == 0.04
    assert rules.last_weight_decay(100_000, trained=False) == 0.2
    assert rules.last_weight_decay(100_000, trained=True) == 0.04


def test_groups_divide_the_batch():
    assert [rules.group_size(n) for n in (1, 16, 37, 48, 192, 1024)] == [
        *(1, 16, 1, 24, 32, 32)
    ]


@pytest.mark.parametrize("arch, rate", [("vit_small", 0.1), ("vit_large", 0.3)])
def test_no_group_drops_many_more_crops_than_asked(arch, rate):
    """What the model really drops of the global crops, against the rate."""
    for group in range(1, 33):
        asked = rules.drop_path(arch, group, trained=False)
        assert asked in (0.0, rate)
        kept = stochastic_depth.num_kept(2 * group, asked) if asked else 2 * group
        assert 1 - kept / (2 * group) < 2 * rate, group
    assert rules.drop_path(arch, 32, trained=False) == rate
    assert rules.drop_path(arch, 1, trained=False) == 0.0
    assert rules.drop_path(arch, 32, trained=True) == 0.0

import hlo_snippets
import pytest

from dinov2_jax.aot import cycles, hlo


def count(text):
    return cycles.count(hlo.parse(text), peak_flops=1e9, hbm_bandwidth=1e6)


def test_loops_multiply_and_fusions_count_once():
    result = count(hlo_snippets.LOOP)
    # Not the 999,999 inside the fused computation, which the fusion's figure is of.
    assert result.total == 12 * 1000 + 70
    assert result.by_scope == {"block/attn/qkv": 12_000, "(no name)": 70}
    assert (result.kernels, result.kernel_seconds) == (0, 0.0)


def test_kernels_are_bounded_by_their_cost_estimate():
    result = count(hlo_snippets.FUSED)
    assert result.total == 0
    assert (result.kernels, result.without_cost) == (2, 1)
    assert result.kernel_seconds == pytest.approx(4e6 / 1e9)  # more than 1000 / 1e6


def test_data_movement_is_timed_by_its_bytes():
    result = count(hlo_snippets.ROWS)
    taken, added = 2 * (3 * 50 * 64) * 2, 3 * (3 * 50 * 64) * 2
    flat = 2 * (10 * 50 * 64) * 2
    assert result.moving_seconds == pytest.approx((taken + added + flat) / 1e6)
    # One that carries a figure counts by it, one that is said to be unknown by bytes.
    assert (result.total, result.without_cost) == (500, 0)

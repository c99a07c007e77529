"""Stand-ins for xFormers against slow definitions."""

import pytest

torch = pytest.importorskip("torch")

from benchmarks import reference_stubs  # noqa: E402

LENGTHS = [5, 5, 5, 2, 2, 3]


def test_attention_keeps_sequences_apart():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, sum(LENGTHS), 2, 8)
    mask = reference_stubs.BlockDiagonalMask.from_seqlens(LENGTHS)
    got = reference_stubs.memory_efficient_attention(q, k, v, attn_bias=mask)
    owner = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    scores = torch.einsum("bqhc,bkhc->bhqk", q, k) * 8**-0.5
    scores[..., owner[:, None] != owner] = -torch.inf
    expected = torch.einsum("bhqk,bkhc->bqhc", scores.softmax(-1), v)
    torch.testing.assert_close(got, expected)


def test_attention_without_mask():
    q, k, v = torch.randn(3, 4, 7, 2, 8)
    scores = torch.einsum("bqhc,bkhc->bhqk", q, k) * 8**-0.5
    expected = torch.einsum("bhqk,bkhc->bqhc", scores.softmax(-1), v)
    got = reference_stubs.memory_efficient_attention(q, k, v)
    torch.testing.assert_close(got, expected)


def test_mask_splits_joined_sequences():
    parts = [torch.randn(3, 5, 4), torch.randn(2, 2, 4)]
    mask, joined = reference_stubs.BlockDiagonalMask.from_tensor_list(parts)
    assert joined.shape == (1, 19, 4)
    for got, expected in zip(mask.split(joined), parts, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_gathering_and_adding_by_index():
    x, source, scaling = torch.randn(6, 3, 4), torch.randn(2, 3, 4), torch.randn(4)
    index = torch.tensor([4, 1])
    flat = reference_stubs.index_select_cat(
        [x.flatten(1), x.flatten(1)], [index, index]
    )
    assert flat.tolist() == [*x[4].flatten(), *x[1].flatten()] * 2
    expected = x.clone()
    for row, i in enumerate(index):
        expected[i] += 1.5 * scaling * source[row]
    got = reference_stubs.scaled_index_add(x, index, source, scaling=scaling, alpha=1.5)
    torch.testing.assert_close(got, expected)
    assert got is x  # as xFormers', in place

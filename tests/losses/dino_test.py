"""DINO and iBOT against loops over pairs of crops, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov2_jax.losses import dino

GROUPS, BATCH, PROTOTYPES = 2, 3, 11


def logits(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((*shape, PROTOTYPES)).astype(np.float32)


def probabilities(*shape, seed=1):
    x = np.exp(3 * logits(*shape, seed=seed))
    return x / x.sum(-1, keepdims=True)


def cross_entropy(target, student):
    student = np.asarray(student, np.float64) / 0.1
    top = student.max()
    log_p = student - top - np.log(np.sum(np.exp(student - top)))
    return -np.sum(np.asarray(target, np.float64) * log_p)


def slow_dino(student_global, student_local, teacher, num_local):
    """Every pair of a student's and a teacher's crop of the same image, but itself."""
    pairs_local, pairs_global = max(2 * num_local, 1), 2
    total = pairs_local + pairs_global
    global_loss = local_loss = 0.0
    groups, batch = teacher.shape[0], teacher.shape[1] // 2
    for g in range(groups):
        for image in range(batch):
            for view in range(2):
                target = teacher[g, view * batch + image]
                other = student_global[g, (1 - view) * batch + image]
                global_loss += cross_entropy(target, other) / (2 * groups * batch)
                for crop in range(num_local):
                    student = student_local[g, crop * batch + image]
                    local_loss += cross_entropy(target, student) / (groups * batch)
    return global_loss * pairs_global / total, local_loss / total


@pytest.mark.parametrize("num_local", [0, 1, 4])
def test_dino(num_local):
    student_global = logits(GROUPS, 2 * BATCH)
    student_local = logits(GROUPS, num_local * BATCH, seed=2)
    teacher = probabilities(GROUPS, 2 * BATCH)
    ours = dino.dino_loss(student_global, student_local, teacher)
    expected = slow_dino(student_global, student_local, teacher, num_local)
    np.testing.assert_allclose(ours, expected, rtol=1e-6)
    assert (ours[1] == 0) == (num_local == 0)


def test_dino_compares_different_views_only():
    student = jnp.asarray(logits(GROUPS, 2 * BATCH))
    none = jnp.zeros((GROUPS, 0, PROTOTYPES))
    teacher = probabilities(GROUPS, 2 * BATCH)
    teacher[:, :BATCH] = 0.0  # only the second view teaches
    grads = jax.grad(lambda s: dino.dino_loss(s, none, teacher)[0])(student)
    assert np.any(grads[:, :BATCH] != 0)
    assert not np.any(grads[:, BATCH:])


def test_losses_of_uniform_predictions_at_full_size():
    """ln K in the shares that the reference's logs show (K = 131072, 8 local crops)."""
    prototypes = 131_072
    zeros = jnp.zeros((1, 8, prototypes))
    uniform = jnp.full((1, 2, prototypes), 1 / prototypes)
    global_loss, local_loss = dino.dino_loss(zeros[:, :2], zeros, uniform)
    assert float(local_loss) == pytest.approx(10.474, abs=1e-3)
    assert float(global_loss) == pytest.approx(1.309, abs=1e-3)
    # One of the two crops is masked, in four patches; the reference logs the half.
    masked = jnp.full((1, 4, prototypes), 1 / prototypes)
    loss = dino.ibot_loss(zeros[:, :4], masked, jnp.full((1, 4), 0.25), 2)
    assert float(loss) / 2 == pytest.approx(2.946, abs=1e-3)


def padded(counts, slots, seed=3):
    """Logits, targets and weights of masked patches; `counts` masked in each crop."""
    student = logits(len(counts), slots, seed=seed)
    teacher = probabilities(len(counts), slots, seed=seed + 1)
    weights = np.zeros((len(counts), slots), np.float32)
    for g, crops in enumerate(counts):
        in_order = np.concatenate([np.full(n, 1 / n) for n in crops if n])
        weights[g, : len(in_order)] = in_order
    return student, teacher, weights


COUNTS = [[2, 0, 5, 0], [1, 3, 0, 0]]  # masked patches in each of the four crops


def test_ibot():
    student, teacher, weights = padded(COUNTS, slots=9)
    expected = 0.0
    for g, crops in enumerate(COUNTS):
        patch = 0
        for masked in crops:
            for _ in range(masked):
                ce = cross_entropy(teacher[g, patch], student[g, patch])
                expected += ce / masked / (2 * 4)  # mean over all crops, masked or not
                patch += 1
    ours = dino.ibot_loss(student, teacher, weights, 4)
    assert float(ours) == pytest.approx(expected, rel=1e-6)


def test_ibot_padding_does_not_matter():
    student, teacher, weights = padded(COUNTS, slots=9)
    before = dino.ibot_loss(student, teacher, weights, 4)
    student[weights == 0] = 1e4
    teacher[weights == 0] = 0.0
    assert float(dino.ibot_loss(student, teacher, weights, 4)) == float(before)
    grads = jax.grad(dino.ibot_loss)(jnp.asarray(student), teacher, weights, 4)
    assert not np.any(grads[weights == 0]) and np.all(grads[weights > 0] != 0)


def test_low_precision_logits_are_taken_to_float32():
    student = jnp.asarray(logits(GROUPS, 2 * BATCH)).astype(jnp.bfloat16)
    none = jnp.zeros((GROUPS, 0, PROTOTYPES), jnp.bfloat16)
    teacher = probabilities(GROUPS, 2 * BATCH)
    low, _ = dino.dino_loss(student, none, teacher)
    full, _ = dino.dino_loss(student.astype(jnp.float32), none, teacher)
    assert low.dtype == jnp.float32 and float(low) == float(full)

"""SimDINO: distances of paired features, and the coding rate that keeps them apart.

Mirrors SimDINO and SimDINOv2 (arXiv 2502.10385). Where DINO compares distributions over
prototypes, SimDINO compares the features themselves. Nothing of that alone prevents all
features from becoming equal; their coding rate, which is maximised, does. Shapes:
G groups, I items a group (images or masked patches), T teacher and S student rows an
item, N samples, C channels of the features. All in float32.
"""

import jax
import jax.numpy as jnp


def half_squared_distance(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Compute half the squared distance; 1 - cosine for features of unit length.

    Args:
      student: The student's features, [..., C].
      teacher: The teacher's features, [..., C]; leading axes are broadcast.
    """
    difference = student.astype(jnp.float32) - teacher.astype(jnp.float32)
    return 0.5 * jnp.sum(difference * difference, axis=-1)


def paired_distance(
    student: jax.Array, teacher: jax.Array, pairs: tuple[tuple[int, ...], ...]
) -> jax.Array:
    """Sum half squared distances over the items and the pairs of each student row.

    Args:
      student: The student's features, [G, I, S, C].
      teacher: The teacher's features of the same items, [G, I, T, C].
      pairs: Teacher rows that each of the S student rows is paired with.

    Returns:
      The sums by student row, [S].
    """
    distances = half_squared_distance(student[..., None, :], teacher[..., None, :, :])
    by_row = jnp.sum(distances, axis=(0, 1))  # [S, T]
    return jnp.stack([sum(by_row[s, t] for t in row) for s, row in enumerate(pairs)])


def coding_rate(features: jax.Array, *, eps: float) -> jax.Array:
    """Compute R = 1/2 logdet(I + C / (N eps^2) Z^T Z) for each set of features Z.

    It is 0 if all features are 0, smallest for unit-length features if they are equal,
    and largest if all directions are used alike.

    Args:
      features: Features of unit length, [..., N, C]; the N of one set are not centred.
      eps: Distance up to which features count as equal, above 0.

    Returns:
      One rate a set, [...].
    """
    z = features.astype(jnp.float32)
    num_samples, dim = z.shape[-2:]
    # Both products have the same eigenvalues besides zeros; the smaller one is taken.
    product = "...nc,...nd->...cd" if num_samples > dim else "...nc,...mc->...nm"
    gram = jnp.einsum(product, z, z, precision="highest")
    identity = jnp.eye(gram.shape[-1], dtype=jnp.float32)
    root = jnp.linalg.cholesky(identity + dim / (num_samples * eps**2) * gram)
    return jnp.sum(jnp.log(jnp.diagonal(root, axis1=-2, axis2=-1)), axis=-1)


def balance(num_samples: int, dim: int) -> float:
    """Return gamma = (C + N) / (C N), which scales the rate as a mean distance."""
    return (dim + num_samples) / (dim * num_samples)

"""A queue of bottlenecks, so that Sinkhorn-Knopp of a small batch sees more rows.

Balancing few rows over many prototypes gives noise: every prototype gets the same share
of them. The teacher's features of the last q batches join the rows that are balanced,
but not the loss, as in SwAV (arXiv 2006.09882, section 3.1). They are features, not
logits: they meet today's prototypes. A group's queue holds rows of that group alone, so
devices that divide the groups divide the queue.

Shapes: G groups, I items a group (images or masked patches), T teacher rows an item,
C channels of the bottleneck, K prototypes, q batches, which may differ by loss term.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from dinov2_jax.losses.tiled import targets as targets_lib

Entries = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Queue:
    """What `init` needs to know of a queue; no queue by default.

    Attributes:
      shapes: (term, number of batches q, shape [G, I, T, C] of the features of one) of
        each loss term that has a queue.
      dtype: Dtype of the features.
    """

    shapes: tuple[tuple[str, int, tuple[int, ...]], ...] = ()
    dtype: Any = jnp.float32

    def init(self) -> Entries:
        """Return the entries of an empty queue, none without a queue.

        Two for each term: `TERM_queue`, features [G, q*I, T, C] with the newest batch
        first, and `TERM_queue_valid`, bool [G, q*I], False for places not yet filled.
        """
        entries = {}
        for term, batches, (groups, items, *rows) in self.shapes:
            places = groups, batches * items
            entries[f"{term}_queue"] = jnp.zeros((*places, *rows), self.dtype)
            entries[f"{term}_queue_valid"] = jnp.zeros(places, bool)
        return entries


def sinkhorn_knopp(
    features: jax.Array,
    prototypes: jax.Array,
    temp: jax.Array | float,
    *,
    valid: jax.Array | None,
    entries: Entries,
    term: str,
) -> tuple[targets_lib.Targets, Entries]:
    """Compute balanced targets of a batch, together with the rows of a queue.

    Args:
      features: The teacher's features, [G, I, T, C].
      prototypes: The teacher's prototypes, [K, C].
      temp: Teacher temperature.
      valid: Bool [G, I]; False items are ignored, and are not put into the queue. None
        if all are valid.
      entries: Entries of the queue among others; without the term's,
        `targets.sinkhorn_knopp` of this batch alone.
      term: Name of the loss term.

    Returns:
      Targets of the batch's rows, and the term's entries for the next step.
    """
    queue, queue_valid = f"{term}_queue", f"{term}_queue_valid"
    if queue not in entries:
        return targets_lib.sinkhorn_knopp(features, prototypes, temp, valid=valid), {}
    items, places = features.shape[1], entries[queue].shape[1]
    if valid is None:
        valid = jnp.ones(features.shape[:2], bool)
    rows = jnp.concatenate([features, entries[queue]], axis=1)
    rows_valid = jnp.concatenate([valid, entries[queue_valid]], axis=1)
    balanced = targets_lib.sinkhorn_knopp(rows, prototypes, temp, valid=rows_valid)
    targets = dataclasses.replace(
        balanced, features=features, lse=balanced.lse[:, :items]
    )
    return targets, {queue: rows[:, :places], queue_valid: rows_valid[:, :places]}

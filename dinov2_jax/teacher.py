"""The teacher: its network and the targets it computes for the student.

In self-distillation it has the student's network, and its parameters are the EMA of the
student's. A frozen teacher may have another architecture, and its parameters never
change; only the numbers of prototypes must agree. Mirrors `get_teacher_output` of the
reference's `train/ssl_meta_arch.py`. Shapes: G groups, b images a group, M masked-patch
slots, K prototypes.
"""

import dataclasses

import jax
import jax.numpy as jnp

from dinov2_jax.losses.tiled import queue as queue_lib
from dinov2_jax.losses.tiled import targets as targets_lib
from dinov2_jax.models import network

Batch = dict[str, jax.Array]
Centers = dict[str, jax.Array]
Targets = dict[str, targets_lib.Targets]


@dataclasses.dataclass(frozen=True)
class Teacher:
    """Pure functions of parameters and a batch.

    Attributes:
      network: The backbone and heads.
      centering: Kind of targets, "sinkhorn_knopp" or "centering".
      terms: Loss terms that need targets, from "dino" and "ibot".
      queue: Rows of the last batches that Sinkhorn-Knopp balances too.
    """

    network: network.Network
    centering: str
    terms: tuple[str, ...] = ("dino", "ibot")
    queue: queue_lib.Queue = queue_lib.Queue()

    def init_centers(self) -> Centers:
        """Return initial centres, [K] zeros, or for Sinkhorn the empty queue if any."""
        if self.centering == "sinkhorn_knopp":
            return self.queue.init()
        return {k: jnp.zeros((n,)) for k, n in self.network.num_prototypes().items()}

    def targets(
        self,
        params: network.Params,
        centers: Centers,
        batch: Batch,
        temp: jax.Array | float,
    ) -> tuple[Targets, Centers]:
        """Compute the targets from the unmasked global crops.

        Args:
          params: The teacher's parameters.
          centers: The centres of the EMA centring, or the queue of Sinkhorn-Knopp.
          batch: The batch, see `data/batch_builder.py`.
          temp: The teacher's temperature.

        Returns:
          Targets of the terms in use, {"dino": for rows [G, b, 2], "ibot": for rows
          [G, M, 1]}, and the centres for the next step.
        """
        (cls,), masked = self.network.tokens(
            params, [batch["global_crops"]], [None], batch["masked_indices"]
        )
        rows, valid = {}, {"dino": None, "ibot": batch["masked_weights"] > 0}
        if "dino" in self.terms:
            rows["dino"] = network.by_image(cls, 2)
        if "ibot" in self.terms and batch["masked_indices"].shape[1]:
            rows["ibot"] = masked[:, :, None]
        heads = self.network.heads(params)
        targets, new_centers = {}, dict(centers)
        for term, x in rows.items():
            x, weights = heads[term](x)
            if self.centering == "sinkhorn_knopp":
                targets[term], queue = queue_lib.sinkhorn_knopp(
                    x, weights, temp, valid=valid[term], entries=centers, term=term
                )
                new_centers |= queue
            else:
                targets[term] = targets_lib.centered(x, weights, temp, centers[term])
                new_centers[term] = targets_lib.update_center(
                    centers[term], targets[term], valid[term]
                )
        return targets, new_centers

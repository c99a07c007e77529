"""The teacher: its network and the targets it computes for the student.

In self-distillation it has the student's network, and its parameters are the EMA of the
student's. A frozen teacher may have another architecture, and its parameters never
change; only the numbers of prototypes must agree. Mirrors `get_teacher_output` of the
reference's `train/ssl_meta_arch.py`. Shapes: G groups, b images a group, M masked-patch
slots, K prototypes, C channels of the bottleneck, D width.
"""

import dataclasses

import jax
import jax.numpy as jnp

from dinov2_jax.losses.tiled import queue as queue_lib
from dinov2_jax.losses.tiled import targets as targets_lib
from dinov2_jax.models import network
from dinov2_jax.objectives import teacher_view

Batch = dict[str, jax.Array]
Centers = dict[str, jax.Array]
Targets = dict[str, targets_lib.Targets]
Outputs = dict[str, tuple[jax.Array, jax.Array | None]]


@dataclasses.dataclass(frozen=True)
class Teacher:
    """Pure functions of parameters and a batch.

    Attributes:
      network: The backbone and heads.
      centering: Kind of targets, "sinkhorn_knopp" or "centering".
      terms: Loss terms that need targets, from "dino" and "ibot".
      view: What it sees of the global crops; None: what the student sees.
      queue: Rows of the last batches that Sinkhorn-Knopp balances too.
    """

    network: network.Network
    centering: str
    terms: tuple[str, ...] = ("dino", "ibot")
    view: teacher_view.TeacherView | None = None
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
        return self.assign(params, centers, self.outputs(params, batch), temp)

    def outputs(self, params: network.Params, batch: Batch) -> Outputs:
        """Compute what the targets are made of; groups do not affect each other.

        Args:
          params: The teacher's parameters.
          batch: The batch, or whole groups of it.

        Returns:
          For each term in use, features of the bottleneck, "dino" [G, b, 2, C] and
          "ibot" [G, M, 1, C], and which of them count, bool [G, M] or None for all.
        """
        cls, patches = teacher_view.tokens(self.network, params, batch, self.view)
        heads, outputs = self.network.heads(params), {}
        if "dino" in self.terms:
            x, _ = heads["dino"](network.by_image(cls, 2))
            outputs["dino"] = x, None
        if "ibot" in self.terms and batch["masked_indices"].shape[1]:
            x, _ = heads["ibot"](patches[:, :, None])
            outputs["ibot"] = x, batch["masked_weights"] > 0
        return outputs

    def assign(
        self,
        params: network.Params,
        centers: Centers,
        outputs: Outputs,
        temp: jax.Array | float,
    ) -> tuple[Targets, Centers]:
        """Compute the targets from the outputs of all groups.

        Args:
          params: The teacher's parameters.
          centers: The centres of the EMA centring.
          outputs: What `outputs` returned, for the whole batch.
          temp: The teacher's temperature.

        Returns:
          Targets and centres, as `targets` does.
        """
        prototypes = self.network.prototypes(params)
        targets, new_centers = {}, dict(centers)
        for term, (x, valid) in outputs.items():
            weights = prototypes[term]
            if self.centering == "sinkhorn_knopp":
                targets[term], queue = queue_lib.sinkhorn_knopp(
                    x, weights, temp, valid=valid, entries=centers, term=term
                )
                new_centers |= queue
            else:
                targets[term] = targets_lib.centered(x, weights, temp, centers[term])
                new_centers[term] = targets_lib.update_center(
                    centers[term], targets[term], valid
                )
        return targets, new_centers

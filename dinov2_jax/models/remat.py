"""Rematerialisation policies: what a block keeps for its backward pass.

The rest is recomputed. Norms and activation functions are always recomputed, by their
own backward passes.
"""

import jax


def _computed_from_tokens(primitive, *inputs, **params) -> bool:
    """Keep everything computed from tokens [G, T, D]; a policy of `jax.checkpoint`.

    The weights in the dtype of the matmuls are not kept, so no device holds all of them
    (in the reference each does, by FSDP's SHARD_GRAD_OP).
    """
    del primitive, params
    return any(len(x.shape) > 2 for x in inputs)


POLICIES = {
    "none": _computed_from_tokens,
    # Only what the backward passes of norms, activations and attention read.
    "selective": jax.checkpoint_policies.save_only_these_names(
        "norm", "qkv", "attention", "ffn_hidden"
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
}

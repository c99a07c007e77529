"""What of a block is kept for its backward pass, which computes the rest again.

All policies repeat norms and activation functions, as their own backward passes say.
"""

import jax


def _computed_from_tokens(primitive, *inputs, **params) -> bool:
    """A policy of `jax.checkpoint`: everything that has the axes of tokens [G, T, D].

    The weights as the matmuls take them are not kept: no device holds all of them (in
    the reference each does, by FSDP's SHARD_GRAD_OP).
    """
    del primitive, params
    return any(len(x.shape) > 2 for x in inputs)


POLICIES = {
    "none": _computed_from_tokens,
    # What those backward passes and attention's read, and nothing between.
    "selective": jax.checkpoint_policies.save_only_these_names(
        "norm", "qkv", "attention", "ffn_hidden"
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
}

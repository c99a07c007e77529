"""Faults of the ViT, the heads and the kernels."""

from tests.mutants.fault import Fault

_VIT = "dinov2_jax/models/vision_transformer.py"
_VIT_TEST = "models/vision_transformer_test.py::"

FAULTS = (
    Fault(
        "registers-before-the-class-token",
        _VIT,
        "prefix = jnp.concatenate(prefix)",
        "prefix = jnp.concatenate(prefix[::-1])",
        (f"{_VIT_TEST}test_order_of_tokens_before_the_blocks",),
    ),
    Fault(
        "positions-off-by-one",
        _VIT,
        "x + pos[1:]",
        "x + pos[:-1]",
        (f"{_VIT_TEST}test_order_of_tokens_before_the_blocks",),
    ),
    Fault(
        "mask-not-applied",
        _VIT,
        "self.mask_token.astype(x.dtype), x)",
        "x, x)",
        (f"{_VIT_TEST}test_masked_patches_hide_their_pixels",),
    ),
    Fault(
        "drop-path-scale-of-the-last-block",
        "dinov2_jax/models/stochastic_depth.py",
        "return is_kept * (batch / kept.shape[1])",
        "return is_kept * 1.0",
        (f"{_VIT_TEST}test_chosen_tokens_are_those_of_the_whole_pass",),
    ),
    Fault(
        "drop-path-scale",
        "dinov2_jax/kernels/crops.py",
        "residual, x.shape[1] / kept.shape[1])",
        "residual, 1.0)",
        ("models/stochastic_depth_test.py::test_equals_a_loop",),
    ),
    Fault(
        "drop-path-scale-of-the-gradient",
        "dinov2_jax/kernels/crops.py",
        "scale = grad.shape[1] / kept.shape[1]",
        "scale = 1.0",
        (
            "kernels/crops_test.py::"
            "test_gradients_are_those_of_automatic_differentiation",
        ),
    ),
    Fault(
        "pixels-of-a-patch-in-another-order",
        "dinov2_jax/models/patch_embed.py",
        "        x = jnp.moveaxis(x, -4, -3)  # [..., h, w, p, p, C]\n",
        "",
        ("weights/state_dict_test.py::test_patch_embedding_is_torch_convolution",),
    ),
    Fault(
        "interpolation-without-its-offset",
        "dinov2_jax/models/pos_embed.py",
        "step = n_in / (n_out + offset)",
        "step = n_in / n_out",
        ("models/pos_embed_test.py::test_equals_torch",),
    ),
    Fault(
        "interpolation-without-antialias",
        "dinov2_jax/models/pos_embed.py",
        "widen = max(step, 1.0)",
        "widen = 1.0",
        ("models/pos_embed_test.py::test_equals_torch",),
    ),
    Fault(
        "approximate-gelu",
        "dinov2_jax/models/layers.py",
        "0.5 * x * (1.0 + jax.lax.erf(x * 0.5**0.5))",
        "jax.nn.gelu(x)",
        ("models/layers_test.py",),
    ),
    Fault(
        "swiglu-gates-the-wrong-half",
        "dinov2_jax/models/layers.py",
        "nn.silu(gate) * value",
        "gate * nn.silu(value)",
        ("models/layers_test.py::test_swiglu",),
    ),
    Fault(
        "folded-swiglu-gates-the-wrong-half",
        "dinov2_jax/models/folded_block.py",
        "jax.nn.silu(gate) * value",
        "gate * jax.nn.silu(value)",
        ("models/folded_block_test.py",),
    ),
    Fault(
        "layer-scale-starts-at-one",
        "dinov2_jax/models/layers.py",
        "init = nn.initializers.constant(self.init_value)",
        "init = nn.initializers.ones",
        ("models/layers_test.py::test_layer_scale_starts_at_its_value",),
    ),
    Fault(
        "layer-scale-not-on-the-bias",
        "dinov2_jax/models/folded_block.py",
        '"bias": gamma}',
        '"bias": jnp.ones_like(gamma)}',
        ("models/folded_block_test.py",),
    ),
    Fault(
        "prototypes-without-the-norms-gradient",
        "dinov2_jax/models/dino_head.py",
        "(grad - v * (d_g * inverse))",
        "grad",
        ("models/dino_head_test.py::test_logits_and_gradients_equal_torch",),
    ),
    Fault(
        "layer-norm-epsilon",
        "dinov2_jax/kernels/layer_norm.py",
        "EPSILON = 1e-6",
        "EPSILON = 1e-5",
        ("models/layers_test.py::test_layer_norm_has_the_reference_epsilon",),
    ),
    Fault(
        "attention-scale",
        "dinov2_jax/kernels/attention_by_image.py",
        "return _matmul(q * q.shape[-1] ** -0.5, k.swapaxes(-1, -2))",
        "return _matmul(q * q.shape[-1] ** -1.0, k.swapaxes(-1, -2))",
        ("kernels/attention_test.py::test_equals_a_float64_loop",),
    ),
    Fault(
        "keys-and-values-exchanged",
        "dinov2_jax/kernels/attention.py",
        "q, k = qkv[..., 0, :, :], qkv[..., 1, :, :]",
        "q, k = qkv[..., 0, :, :], qkv[..., 2, :, :]",
        ("kernels/attention_test.py::test_equals_a_float64_loop",),
    ),
    Fault(
        "tpu-attention-sees-beyond-odd-crops",
        "dinov2_jax/kernels/attention_tpu_ops.py",
        "jnp.where(keys < length, products, -jnp.inf)",
        "jnp.where(keys <= length, products, -jnp.inf)",
        ("kernels/attention_tpu_test.py::test_float32_equals_float64[37-2-3]",),
    ),
    Fault(
        "gpu-attention-sees-beyond-odd-crops",
        "dinov2_jax/kernels/attention_gpu.py",
        "scores = jnp.where(plan.last_keys(), scores, -jnp.inf)",
        "scores = jnp.where(plan.last_keys(), scores, scores)",
        (
            "kernels/attention_gpu_test.py::"
            "test_keys_past_the_crop_weigh_nothing_where_scores_are_low",
        ),
    ),
    Fault(
        "tpu-crops-one-short-in-a-block",
        "dinov2_jax/kernels/crops_tpu.py",
        "jnp.minimum(self.kept - block * self.crops, self.crops)",
        "jnp.minimum(self.kept - block * self.crops, self.crops - 1)",
        ("kernels/crops_test.py::test_kernels_equal_loops",),
    ),
)

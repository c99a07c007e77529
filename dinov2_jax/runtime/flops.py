"""Useful FLOPs of a training step and peak FLOP/s of devices: the two sides of MFU.

Only matrix products count (2 FLOPs per multiply-add): projections, attention's scores
and values, the patch embedding and the heads. Norms, softmax, losses, Sinkhorn, KoLeo,
the resampling of position embeddings and the optimizer do not. The backward pass counts
twice the forward pass, but once for the patch embedding: images need no gradient.

Work that a step could avoid is not useful and does not count: samples that stochastic
depth drops, and anything computed a second time (rematerialisation, a fused loss or an
attention kernel that recomputes its scores). So MFU falls when such work is added. The
last block counts in full, as in every published figure, although the losses see only
some of its tokens: a step that skips the others still gets credit for them.

Letters: b images per group, L local crops per image, T tokens of a crop, D width,
K prototypes, M masked-patch slots per group.
"""

import dataclasses
from typing import Any

import numpy as np

from dinov2_jax.data import masking
from dinov2_jax.models import model_config, stochastic_depth

# Dense bfloat16 peak of one JAX device, FLOP/s, from the makers' data sheets. tpu7x: a
# device is one of the chip's two cores (2307e12 per chip).
PEAK_FLOPS = {
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "GB200": 2500e12,
    "v4": 275e12,
    "v5e": 197e12,
    "v5p": 459e12,
    "v6e": 918e12,
    "tpu7x": 1153.5e12,
}
# Part of `jax.Device.device_kind` -> a name above; the first match counts. None: boards
# of the same name with lower clocks, and parts of a GPU, for which MFU would mean
# nothing.
_KINDS = (
    (" MIG ", None),
    ("H100 PCIe", None),
    ("H100 NVL", None),
    ("H200 NVL", None),
    ("H100", "H100"),
    ("H200", "H200"),
    ("A100", "A100"),
    ("GB200", "GB200"),
    ("B200", "B200"),
    ("TPU v4 lite", None),
    ("TPU v4", "v4"),
    ("TPU v5 lite", "v5e"),
    ("TPU v5e", "v5e"),
    ("TPU v5", "v5p"),
    ("TPU v6", "v6e"),
    ("TPU7x", "tpu7x"),
)


@dataclasses.dataclass(frozen=True)
class StepFlops:
    """FLOPs per image of one training step.

    Attributes:
      teacher: The teacher's forward pass over two global crops and its heads.
      student_forward: The student's forward pass over all crops, only the samples that
        stochastic depth keeps, and its heads.
      heads: The part of `per_image` in the heads: the teacher's forward pass and the
        student's forward and backward passes.
      attention_core: The part of `per_image` in attention's two products: forward and,
        for the student, backward.
      per_image: The sum of `teacher`, `student_forward` and the backward pass.
    """

    teacher: float
    student_forward: float
    heads: float
    attention_core: float
    per_image: float


def step_flops(config: Any) -> StepFlops:
    """Count the useful FLOPs of the training step that a config describes.

    Args:
      config: A run's config. The group size matters, the number of groups does not:
        stochastic depth keeps max(int(count * (1 - rate)), 1) of a group's crops of
        one kind, and M is the static bound of `masking.max_masked`, empty slots
        included.

    Returns:
      Useful FLOPs per image.
    """
    b, crops = config.train.group_size, config.crops
    kinds = [(2 * b, crops.global_crops_size)]  # crops per group, pixels
    if crops.local_crops_number:
        kinds.append((crops.local_crops_number * b, crops.local_crops_size))
    rates = drop_rates(config)
    embed = [count * _patch_embed(config, size) for count, size in kinds]
    cores, blocks = [], []  # student, forward, per group
    for count, size in kinds:
        kept = sum(
            stochastic_depth.num_kept(count, rate) if rate else count for rate in rates
        )
        linear, core = _block(config, size)
        cores.append(kept * core)
        blocks.append(kept * (linear + core))
    linear, core = _block(config, crops.global_crops_size)
    teacher_core = 2 * b * len(rates) * core
    teacher_backbone = embed[0] + 2 * b * len(rates) * (linear + core)
    teacher_heads = _heads(config, 2 * b)
    student_heads = _heads(config, sum(count for count, _ in kinds))

    teacher = teacher_backbone + teacher_heads
    student_forward = sum(embed) + sum(blocks) + student_heads
    return StepFlops(
        teacher=teacher / b,
        student_forward=student_forward / b,
        heads=(teacher_heads + 3 * student_heads) / b,
        attention_core=(teacher_core + 3 * sum(cores)) / b,
        per_image=(teacher + 3 * student_forward - sum(embed)) / b,
    )


def peak_flops(device_kind: str) -> float | None:
    """Return the dense bfloat16 FLOP/s of a device by its `device_kind`, or None.

    A CPU has no entry: nobody measures against the peak of its cores.
    """
    for text, name in _KINDS:
        if text in device_kind:
            return PEAK_FLOPS[name] if name else None
    return None


def peak_rate(config: Any, device_kind: str, num_devices: int) -> float | None:
    """Return the images/s at which every device would run at its peak.

    A run's images/s divided by this is its MFU.

    Args:
      config: The run's config.
      device_kind: `jax.Device.device_kind` of the devices.
      num_devices: Number of devices that share a batch.

    Returns:
      Images/s; None if the peak of the device is unknown.
    """
    peak = peak_flops(device_kind)
    return peak and num_devices * peak / step_flops(config).per_image


def drop_rates(config: Any) -> list[float]:
    """Return the drop-path rate of every block."""
    depth, rate = _arch(config)[1], config.model.drop_path_rate
    if config.model.drop_path_uniform:
        return [rate] * depth
    return np.linspace(0, rate, depth).tolist()


def _arch(config: Any) -> tuple[int, int]:
    """Return the width and the number of blocks."""
    model = config.model
    if model.arch == "custom":
        return model.embed_dim, model.depth
    return model_config.ARCHS[model.arch][:2]


def _patch_embed(config: Any, size: int) -> float:
    """Return the forward FLOPs of one crop's patch embedding."""
    model = config.model
    patches = (size // model.patch_size) ** 2
    return 2 * patches * model.patch_size**2 * model.in_chans * _arch(config)[0]


def _block(config: Any, size: int) -> tuple[float, float]:
    """Return one block's forward FLOPs on one crop: (linear layers, attention)."""
    model, (dim, _) = config.model, _arch(config)
    tokens = (size // model.patch_size) ** 2 + 1 + model.num_register_tokens
    hidden = int(dim * model.ffn_ratio)
    ffn = 2 * dim * hidden
    if model.ffn_layer == "swiglufused":  # three matrices
        ffn = 3 * dim * model_config.gated_width(hidden)
    return 2 * tokens * (4 * dim * dim + ffn), 4 * tokens * tokens * dim


def _heads(config: Any, cls_tokens: int) -> float:
    """Return the heads' forward FLOPs on a group's class tokens and M patches."""
    b, dino, ibot = config.train.group_size, config.dino, config.ibot
    masked = masking.max_masked(
        num_crops=2 * b,
        num_patches=(config.crops.global_crops_size // config.model.patch_size) ** 2,
        probability=ibot.mask_sample_probability,
        ratio_min_max=tuple(ibot.mask_ratio_min_max),
    )
    dim = _arch(config)[0]
    flops = 0.0
    if dino.loss_weight:
        flops += cls_tokens * _head(dino, dim)
    if ibot.loss_weight:
        flops += masked * _head(ibot if ibot.separate_head else dino, dim)
    return flops


def _head(head: Any, dim: int) -> float:
    """Return the forward FLOPs of `config.dino` or `config.ibot` on one token."""
    inner = [head.head_hidden_dim] * (head.head_nlayers - 1)
    widths = [dim, *inner, head.head_bottleneck_dim, head.head_n_prototypes]
    return 2 * sum(a * b for a, b in zip(widths, widths[1:]))

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

from dinov2_jax.augment import crop_sizes
from dinov2_jax.data import batch_spec, masking
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
      teacher: The teacher's forward pass over two global crops and its heads, and the
        Gram teacher's if there is one.
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


@dataclasses.dataclass(frozen=True)
class Workload:
    """What a training step computes for each group.

    Attributes:
      group_size: Images per group, b.
      crops: (number per image, side in pixels) of the global crops, then of the local
        ones if there are any.
      patch_size: Side of a patch in pixels.
      in_chans: Channels of the images.
      dim: Width of the backbone, D.
      num_registers: Register tokens of a crop.
      ffn_weights: Weights of a block's FFN, without biases.
      drop_rates: Drop-path rate of each block.
      masked: Slots for masked patches, M: the static bound of `masking.max_masked`,
        empty slots included.
      dino_widths: Widths of the DINO head from its input to the prototypes, or to the
        bottleneck if there are none; () if its loss is off.
      ibot_widths: The same of the head that serves the iBOT loss.
      gram_size: Side in pixels of the two crops of the Gram teacher; 0 if there is
        none. The similarities of patches are not counted: they are a thousandth.
    """

    group_size: int
    crops: tuple[tuple[int, int], ...]
    patch_size: int
    in_chans: int
    dim: int
    num_registers: int
    ffn_weights: int
    drop_rates: tuple[float, ...]
    masked: int
    dino_widths: tuple[int, ...]
    ibot_widths: tuple[int, ...]
    gram_size: int = 0

    def patches(self, size: int) -> int:
        """Return the number of patches of a crop whose side is `size` pixels."""
        return (size // self.patch_size) ** 2


def make_workload(config: Any, size: crop_sizes.Size | None = None) -> Workload:
    """Return the workload of the training step that a config describes.

    Args:
      config: The configuration of a run.
      size: The sizes of the crops; None for the largest of the run.
    """
    size = size or crop_sizes.make_crop_sizes(config).largest
    crops, b = config.crops, config.train.group_size
    model = model_config.make_model_config(config)
    rate = config.model.drop_path_rate
    rates = [rate] * model.depth
    if not config.model.drop_path_uniform:
        rates = np.linspace(0, rate, model.depth).tolist()
    kinds = [(2, size.global_size)]
    if crops.local_crops_number:
        kinds.append((crops.local_crops_number, size.local_size))
    dino, ibot = config.dino, config.ibot
    prototypes = config.train.objective == "prototypes"

    def widths(head):
        inner = [head.head_hidden_dim] * (head.head_nlayers - 1)
        last = [head.head_n_prototypes] if prototypes else []
        return model.embed_dim, *inner, head.head_bottleneck_dim, *last

    return Workload(
        group_size=b,
        crops=tuple(kinds),
        patch_size=model.patch_size,
        in_chans=model.in_chans,
        dim=model.embed_dim,
        num_registers=model.num_register_tokens,
        ffn_weights=ffn_weights(model),
        drop_rates=tuple(rates),
        masked=masking.max_masked(
            num_crops=2 * b,
            num_patches=(size.global_size // model.patch_size) ** 2,
            probability=ibot.mask_sample_probability,
            ratio_min_max=tuple(ibot.mask_ratio_min_max),
        ),
        dino_widths=widths(dino) if dino.loss_weight else (),
        ibot_widths=(
            widths(ibot if ibot.separate_head else dino) if ibot.loss_weight else ()
        ),
        gram_size=batch_spec.gram_crops_size(config, size),
    )


def ffn_weights(model: model_config.ModelConfig) -> int:
    """Return the number of weights of a block's FFN, without biases."""
    if model.ffn_layer == "swiglufused":  # three matrices
        return 3 * model.embed_dim * model.gated_dim
    return 2 * model.embed_dim * model.hidden_dim


def step_flops(work: Workload) -> StepFlops:
    """Count the useful FLOPs of a training step.

    Args:
      work: What the step computes. The group size matters, the number of groups does
        not: stochastic depth keeps max(int(count * (1 - rate)), 1) of a group's crops
        of one kind. A Gram teacher counts in every step, also before `gram.start`, and
        every block counts as trained, whatever `optim.trainable` leaves out.

    Returns:
      Useful FLOPs per image.
    """
    b, depth = work.group_size, len(work.drop_rates)
    kinds = [(count * b, size) for count, size in work.crops]  # crops per group
    embed = [count * _patch_embed(work, size) for count, size in kinds]
    cores, blocks = [], []  # student, forward, per group
    for count, size in kinds:
        kept = sum(
            stochastic_depth.num_kept(count, rate) if rate else count
            for rate in work.drop_rates
        )
        linear, core = _block(work, size)
        cores.append(kept * core)
        blocks.append(kept * (linear + core))
    teacher_count, teacher_size = kinds[0]
    teacher_core = teacher_backbone = 0.0
    for size in (teacher_size, *filter(None, [work.gram_size])):
        linear, core = _block(work, size)
        teacher_core += teacher_count * depth * core
        teacher_backbone += teacher_count * (
            _patch_embed(work, size) + depth * (linear + core)
        )
    teacher_heads = _heads(work, teacher_count)
    student_heads = _heads(work, sum(count for count, _ in kinds))

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

    CPUs have no entry, because MFU is not used for them.
    """
    for text, name in _KINDS:
        if text in device_kind:
            return PEAK_FLOPS[name] if name else None
    return None


def peak_rate(per_image: float, device_kind: str, num_devices: int) -> float | None:
    """Return the images/s at which every device would run at its peak.

    A run's images/s divided by this is its MFU.

    Args:
      per_image: Useful FLOPs per image, `StepFlops.per_image`.
      device_kind: `jax.Device.device_kind` of the devices.
      num_devices: Number of devices that share a batch.

    Returns:
      Images/s; None if the peak of the device is unknown.
    """
    peak = peak_flops(device_kind)
    return peak and num_devices * peak / per_image


def _patch_embed(work: Workload, size: int) -> float:
    """Return the forward FLOPs of one crop's patch embedding."""
    return 2 * work.patches(size) * work.patch_size**2 * work.in_chans * work.dim


def _block(work: Workload, size: int) -> tuple[float, float]:
    """Return one block's forward FLOPs on one crop: (linear layers, attention)."""
    tokens = work.patches(size) + 1 + work.num_registers
    linear = 2 * tokens * (4 * work.dim**2 + work.ffn_weights)
    return linear, 4 * tokens * tokens * work.dim


def _heads(work: Workload, cls_tokens: int) -> float:
    """Return the heads' forward FLOPs on a group's class tokens and M patches."""
    return cls_tokens * _head(work.dino_widths) + work.masked * _head(work.ibot_widths)


def _head(widths: tuple[int, ...]) -> float:
    """Return the forward FLOPs of a head of these widths on one token."""
    return 2.0 * sum(a * b for a, b in zip(widths, widths[1:]))

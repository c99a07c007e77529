"""Estimates by arithmetic: the memory that a step needs, and its images per second.

The memory was fitted to compiled steps of ViT-S, B and L/14 with `model.remat` =
"selective" and an attention kernel; `tests/recipe/plan_test.py` compares the two.
`aot` has the compiler's own numbers.
"""

from typing import Any

from dinov2_jax import errors
from dinov2_jax.models import model_config, stochastic_depth
from dinov2_jax.runtime import flops

# Share of the device's memory that a step may need by the estimate. The rest is for the
# estimate's error and for what the device's driver keeps.
USABLE = 0.9
# Per parameter: student, teacher and two moments in float32, and a bfloat16 copy.
_PARAMETER_BYTES = 4 * 4 + 2
_GRADIENT_BYTES = 4  # per parameter, of a sum over `train.micro_batches`
_WORKSPACE = 0.35e9  # bytes of everything whose size does not depend on the batch
_BYTES = 2  # of an activation, bfloat16


def peak_flops(device: str) -> float:
    """Return the dense bfloat16 FLOP/s of one device.

    Args:
      device: A name of `flops.PEAK_FLOPS` in upper or lower case, or TFLOP/s.

    Raises:
      UserError: It is neither.
    """
    names = {name.lower(): peak for name, peak in flops.PEAK_FLOPS.items()}
    if device.lower() in names:
        return names[device.lower()]
    try:
        peak = float(device)
    except ValueError:
        peak = 0.0
    if not 0.1 <= peak <= 100_000:
        raise errors.UserError(
            f"--device={device}: give one of {', '.join(flops.PEAK_FLOPS)}, or the "
            "dense bfloat16 peak of yours in TFLOP/s, such as 165"
        )
    return peak * 1e12


def images_per_second(config: Any, peak: float, mfu: float) -> float:
    """Return the images per second that a device trains on.

    Args:
      config: The config of the run.
      peak: FLOP/s of the device.
      mfu: Share of the peak that a step reaches.
    """
    return mfu * peak / flops.step_flops(flops.make_workload(config)).per_image


def num_weights(config: Any) -> int:
    """Return the entries of the student's matrices, heads included.

    Biases and the vectors of norms are left out: less than 1 % of all parameters.
    """
    work = flops.make_workload(config)
    tokens = work.patches(config.crops.global_crops_size) + 1 + work.num_registers
    blocks = len(work.drop_rates) * (4 * work.dim**2 + work.ffn_weights)
    embeddings = work.dim * (work.patch_size**2 * work.in_chans + tokens)
    heads = {work.dino_widths, work.ibot_widths}
    if config.ibot.separate_head:
        heads = [work.dino_widths, work.ibot_widths]
    return blocks + embeddings + sum(_weights(widths) for widths in heads)


def _weights(widths: tuple[int, ...]) -> int:
    return sum(a * b for a, b in zip(widths, widths[1:]))


def needed_bytes(config: Any) -> float:
    """Return the memory that a training step needs on one device.

    Args:
      config: The config of the run, with `model.remat` = "selective".
    """
    parts = config.train.micro_batches
    kept = config.train.batch_size / parts * _kept_bytes(config)
    of_weight = _PARAMETER_BYTES + (_GRADIENT_BYTES if parts > 1 else 0)
    return of_weight * num_weights(config) + _WORKSPACE + kept


def _kept_bytes(config: Any) -> float:
    """Return the bytes of an image that the forward pass keeps for the backward pass.

    Each block keeps its input for all crops, and for those that stochastic depth keeps
    two norms, queries, keys and values, attention's result and the FFN's hidden layer.
    """
    work = flops.make_workload(config)
    model = model_config.make_model_config(config)
    hidden = model.hidden_dim
    if model.ffn_layer == "swiglufused":  # the gate too
        hidden = 2 * model.gated_dim
    values = 0.0
    for count, size in work.crops:
        tokens = work.patches(size) + 1 + work.num_registers
        for rate in work.drop_rates:
            crops = count * work.group_size
            kept = stochastic_depth.num_kept(crops, rate) / crops if rate else 1.0
            values += count * tokens * (work.dim + kept * (6 * work.dim + hidden))
    return _BYTES * values

"""Replays of recordings of depth heads, their losses and metrics."""

from collections.abc import Iterator
from typing import Any

import evaluation_checks as checks
import evaluation_layouts as layouts
import jax
import jax.numpy as jnp
import numpy as np
from evaluation_checks import close, same

from dinov2_jax.eval.dense import dense_resize
from dinov2_jax.eval.depth import (
    depth_data,
    depth_head,
    depth_losses,
    depth_metrics,
    dpt_head,
)


def taps_of(arrays: checks.Arrays) -> list[tuple[jax.Array, jax.Array]]:
    return [
        (
            layouts.channels_last(arrays[f"in/patch_{i}"]),
            jnp.asarray(arrays[f"in/cls_{i}"]),
        )
        for i in layouts.numbered(arrays, r"in/patch_(\d+)")
    ]


def depth_linear(arrays: checks.Arrays, cfg: Any) -> Iterator[checks.Check]:
    """Linear depth heads: forward pass, losses and their gradients."""
    forward = {"atol": 1e-5, "rtol": 1e-4}
    params, taps = layouts.under(arrays, "w/"), taps_of(arrays)
    depth_range = (cfg["lo"], cfg["hi"])
    features = depth_head.joined(taps)
    fine = arrays["feat_concat"].shape[2:]
    yield close(
        "feat_concat",
        layouts.channels_first(dense_resize.bilinear(features, fine)),
        arrays["feat_concat"],
        **forward,
    )
    logits = depth_head.logits(params, features)
    yield close("logits_sum", logits.sum(axis=-1), arrays["logits_sum"], **forward)
    yield close("logits_ch0", logits[..., 0], arrays["logits_ch0"], **forward)
    pred = depth_head.depth(params, taps, depth_range=depth_range)
    yield close("pred", layouts.channels_first(pred), arrays["pred"], **forward)
    if "bins" in arrays:
        bins = np.linspace(*depth_range, depth_head.NUM_BINS)
        yield close("bins", bins, arrays["bins"], **forward)
    size = arrays["gt"].shape[2:]
    final = depth_head.at_size(pred, size, depth_range=depth_range)
    yield close("final", layouts.channels_first(final), arrays["final"], **forward)
    upsampled = dense_resize.bilinear(pred, size)
    yield close(
        "up_pred", layouts.channels_first(upsampled), arrays["up_pred"], **forward
    )
    truth = jnp.asarray(arrays["gt"][:, 0])
    weights = cfg["loss_weights"]

    def loss(p, warm_up):
        depth = depth_head.depth(p, taps, depth_range=depth_range)
        depth = dense_resize.bilinear(depth, size)
        value = depth_losses.scale_invariant_loss(depth[..., 0], truth, warm_up=warm_up)
        value, as_run = weights["sig"] * value, as_run_gradient_loss(depth, truth)
        return value + as_run, (value, as_run)

    loss_and_grads = jax.jit(jax.value_and_grad(loss, has_aux=True))
    for suffix, warm_up in (("", False), ("_warmup", True)):
        (total, (value, as_run)), grads = loss_and_grads(params, warm_up)
        for key, mine in {
            f"loss_depth{suffix}": value,
            f"loss_total{suffix}": total,
            "loss_grad_as_run": as_run,
        }.items():
            yield layouts.relative(key, mine, arrays[key], 1e-5)
        for name in ("weight", "bias"):
            key = f"grad{suffix}_{name}"
            mine = grads[f"conv_depth.{name}"]
            yield close(key, mine, arrays[key], atol=1e-5, rtol=1e-3)


@jax.jit
def as_run_gradient_loss(pred: jax.Array, truth: jax.Array) -> jax.Array:
    """The gradient loss as the reference calls it: along the batch and the channels.

    Args:
      pred: [B, H, W, 1].
      truth: [B, H, W].
    """
    value = depth_losses.gradient_loss(pred, truth[..., None], axes=(0, 3))
    return depth_losses.GRADIENT_WEIGHT * value


def depth_dpt(arrays: checks.Arrays, cfg: Any) -> Iterator[checks.Check]:
    """The DPT head, map by map."""
    tolerance = {"atol": 1e-4, "rtol": 1e-4}
    params, taps = layouts.under(arrays, "w/"), taps_of(arrays)
    depth_range = (cfg["lo"], cfg["hi"])
    wanted = dpt_head.shapes(taps[0][0].shape[-1], cfg["channels"])
    shapes = {name: value.shape for name, value in params.items()}
    yield same("names and shapes", shapes == wanted, True)
    size = arrays["gt"].shape[2:]

    @jax.jit  # one program compiles faster than each operation by itself
    def compute(params, taps):
        maps = dpt_head.reassemble(params, taps)
        fused = dpt_head.fuse(params, maps)
        pred = dpt_head.depth(params, taps, depth_range=depth_range)
        return {
            **{f"mid/reassemble_{i}": x for i, x in enumerate(maps)},
            **{f"mid/fusion_{i}": x for i, x in enumerate(fused)},
            "mid/project": dpt_head.project(params, fused[-1]),
            "mid/head_raw": dpt_head.raw_depth(params, fused[-1]),
            "pred": pred,
            "final": depth_head.at_size(pred, size, depth_range=depth_range),
        }

    found = compute(params, taps)
    for key, value in found.items():
        yield close(key, layouts.channels_first(value), arrays[key], **tolerance)
    positive = (found["mid/head_raw"] > 0).mean()
    yield close("frac_positive", positive, arrays["frac_positive"], **tolerance)
    upsampled = dense_resize.bilinear(found["pred"], size)
    truth = jnp.asarray(arrays["gt"][:, 0])
    loss = depth_losses.scale_invariant_loss(upsampled[..., 0], truth)
    yield layouts.relative("loss_depth", loss, arrays["loss_depth"], 1e-4)
    as_run = as_run_gradient_loss(upsampled, truth)
    yield layouts.relative("loss_grad_as_run", as_run, arrays["loss_grad_as_run"], 1e-4)


def losses(arrays: checks.Arrays, cfg: Any) -> Iterator[checks.Check]:
    """Depth losses and their gradients with respect to the prediction."""
    pred, truth = (jnp.asarray(arrays[key][:, 0]) for key in ("pred", "gt"))

    def sig(p, **settings):
        return depth_losses.scale_invariant_loss(p, truth, **settings)

    for name, warm_up in (("sigloss", False), ("sigloss_warmup", True)):
        value, grad = jax.jit(jax.value_and_grad(sig))(pred, warm_up=warm_up)
        yield layouts.relative(name, value, arrays[name], 1e-5)
        yield layouts.relative(
            f"grad_{name}", grad[:, None], arrays[f"grad_{name}"], 1e-5
        )
    limit = float(arrays["sigloss_maxdepth_limit"])
    value = jax.jit(lambda p: sig(p, max_depth=limit))(pred)
    yield layouts.relative("sigloss_maxdepth", value, arrays["sigloss_maxdepth"], 1e-5)

    weight = depth_losses.GRADIENT_WEIGHT
    value, grad = jax.jit(
        jax.value_and_grad(lambda p: as_run_gradient_loss(p[..., None], truth))
    )(pred)
    yield layouts.relative("loss_grad_4d", value, arrays["loss_grad_4d"], 1e-5)
    recorded = arrays["grad_loss_grad_4d"]
    yield layouts.relative("grad_loss_grad_4d", grad[:, None], recorded, 1e-5)
    value = as_run_gradient_loss(pred[:2, ..., None], truth[:2])
    recorded = arrays["loss_grad_4d_first_two"]
    yield layouts.relative("loss_grad_4d_first_two", value, recorded, 1e-5)
    spatial = jax.jit(depth_losses.gradient_loss)
    single = [
        weight * spatial(pred[i : i + 1], truth[i : i + 1]) for i in range(len(pred))
    ]
    yield layouts.relative("loss_grad_2d", single, arrays["loss_grad_2d"], 1e-5)
    total = jax.jit(lambda p: depth_losses.depth_loss(p, truth, gradient="spatial"))
    value = total(pred) - jax.jit(sig)(pred)
    yield layouts.relative(
        "loss_grad_spatial", value, arrays["loss_grad_spatial"], 1e-5
    )


def metrics(arrays: checks.Arrays, cfg: Any) -> Iterator[checks.Check]:
    """Depth metrics on depth maps as they are on disk."""
    order = [depth_metrics.ORDER.index(name) for name in cfg["order"]]
    for data in ("nyu", "kitti", "sun"):
        protocol, rows, counts = depth_metrics.PROTOCOLS[data], [], []
        for i in layouts.numbered(arrays, rf"{data}/png_(\d+)"):
            truth = depth_data.depth_in_metres(arrays[f"{data}/png_{i}"], data)
            if data == "kitti":
                truth = depth_metrics.kitti_crop(truth)
                box = protocol.crop(truth.shape)
                yield same("kitti/garg_box", box, arrays["kitti/garg_box"])
            counts.append(depth_metrics.valid_pixels(truth, protocol).sum())
            yield same(f"{data}/nvalid_{i}", counts[-1], arrays[f"{data}/nvalid_{i}"])
            pred = arrays[f"{data}/pred_{i}"]
            rows.append(depth_metrics.image_metrics(pred, truth, protocol))
        table = np.stack(rows)[:, order]
        recorded = arrays[f"{data}/per_image"]
        yield close(f"{data}/per_image", table, recorded, atol=1e-7, rtol=2e-4)
        means = depth_metrics.mean_metrics(rows)
        mean = [means[name] for name in cfg["order"]]
        recorded = arrays[f"{data}/mean"]
        yield close(f"{data}/mean", mean, recorded, atol=1e-7, rtol=2e-4)


KINDS = {
    "depth_lin1": depth_linear,
    "depth_lin4": depth_linear,
    "depth_dpt": depth_dpt,
    "depth_losses": losses,
    "depth_metrics": metrics,
}

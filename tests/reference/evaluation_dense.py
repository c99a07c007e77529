"""Replays of recordings of segmentation, resizing, schedules and patch features."""

import functools
from collections.abc import Iterator
from typing import Any

import evaluation_checks as checks
import evaluation_layouts as layouts
import jax
import jax.numpy as jnp
import numpy as np
import optax
from evaluation_checks import close, same

from dinov2_jax import model_inputs
from dinov2_jax.eval.dense import dense_resize, dense_schedules, matching
from dinov2_jax.eval.segmentation import mean_iou, segmentation_head, sliding_window
from dinov2_jax.visualize import pca


def fake_features(arrays: checks.Arrays, cfg: Any, images: jax.Array) -> jax.Array:
    """The recording's stand-in for the backbone, [B, H, W, 3] -> [B, h, w, D]."""
    side = cfg["patch"]
    padded = model_inputs.fit_to_patches(images, side, "pad")
    maps = []
    for i in cfg["in_index"]:
        x = jax.lax.conv_general_dilated(
            padded,
            arrays[f"backbone/convs.{i}.weight"],
            (side, side),
            "VALID",
            dimension_numbers=("NHWC", "OIHW", "NHWC"),
            precision="highest",
        )
        maps.append(jnp.tanh(x + arrays[f"backbone/convs.{i}.bias"]))
    return segmentation_head.joined(maps)


def segmentation(arrays: checks.Arrays, cfg: Any) -> Iterator[checks.Check]:
    """A linear segmentation head: inference of every kind, and a training step."""
    tolerance = {"atol": 1e-5, "rtol": 1e-4}
    params = layouts.under(arrays, "w/")
    images = layouts.channels_last(arrays["img"])
    size, original = images.shape[1:3], tuple(cfg["ori"])
    features = fake_features(arrays, cfg, images)
    joined = segmentation_head.joined(
        [layouts.channels_last(arrays[f"feat_{i}"]) for i in cfg["in_index"]]
    )
    yield close("features", features, joined, **tolerance)
    recorded = arrays["eval_concat"]
    yield close("eval_concat", layouts.channels_first(joined), recorded, **tolerance)
    logits = jax.jit(segmentation_head.logits)(params, features)
    recorded = arrays["eval_head_logits"]
    yield close(
        "eval_head_logits", layouts.channels_first(logits), recorded, **tolerance
    )
    whole = dense_resize.bilinear(logits, size)
    recorded = arrays["eval_encode_decode"]
    yield close(
        "eval_encode_decode", layouts.channels_first(whole), recorded, **tolerance
    )

    @functools.partial(jax.jit, static_argnums=1)
    def slide(images, new_size):
        windows = sliding_window.cut(images, cfg["crop"], cfg["stride"])
        flat = windows.reshape(-1, *windows.shape[3:])
        out = segmentation_head.logits(params, fake_features(arrays, cfg, flat))
        out = out.reshape(*windows.shape[:3], *out.shape[1:])
        return sliding_window.merge(
            out,
            size=images.shape[1:3],
            new_size=new_size,
            window=cfg["crop"],
            stride=cfg["stride"],
        )

    slid, rescaled = slide(images, size), slide(images, original)
    recorded = arrays["eval_slide"]
    yield close("eval_slide", layouts.channels_first(slid), recorded, **tolerance)
    recorded = arrays["eval_slide_rescaled"]
    yield close(
        "eval_slide_rescaled", layouts.channels_first(rescaled), recorded, **tolerance
    )
    prob = jax.nn.softmax(rescaled)
    yield close(
        "eval_prob", layouts.channels_first(prob), arrays["eval_prob"], **tolerance
    )
    flipped = jax.nn.softmax(slide(images[:, :, ::-1], original))[:, :, ::-1]
    recorded = arrays["eval_prob_flip"]
    yield close(
        "eval_prob_flip", layouts.channels_first(flipped), recorded, **tolerance
    )
    views = layouts.numbered(arrays, r"tta_img_(\d+)")
    mean = 0.0
    for i in views:  # every second one is flipped
        view = jax.nn.softmax(
            slide(layouts.channels_last(arrays[f"tta_img_{i}"]), original)
        )
        mean += (view[:, :, ::-1] if i % 2 else view) / len(views)
    yield close(
        "tta_prob", layouts.channels_first(mean), arrays["tta_prob"], **tolerance
    )
    top = np.sort(np.moveaxis(arrays["tta_prob"], 1, -1), axis=-1)[0, ..., -2:]
    clear = top[..., 1] - top[..., 0] >= 1e-5
    found = np.asarray(mean.argmax(-1))[0]
    yield same("tta_pred", found[clear], arrays["tta_pred"][clear])
    yield from segmentation_step(arrays, params, features)


def segmentation_step(arrays, params, features) -> Iterator[checks.Check]:
    """Loss, gradients, batch norm and optimizer of one training step."""
    tolerance = {"atol": 1e-5, "rtol": 1e-4}
    labels = jnp.asarray(arrays["train_labels"][:, 0])

    def loss(trainable, denominator):
        logits, statistics = segmentation_head.train_logits(
            params | trainable, features
        )
        value = segmentation_head.cross_entropy(logits, labels, denominator=denominator)
        return value, (logits, statistics)

    trainable = segmentation_head.trainable(params)
    step = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    (value, (logits, statistics)), grads = step(trainable, "all")
    recorded = arrays["train_head_logits"]
    yield close(
        "train_head_logits", layouts.channels_first(logits), recorded, **tolerance
    )
    yield close("train_loss", value, arrays["train_loss"], **tolerance)
    mean, _ = loss(trainable, "valid")
    recorded = arrays["train_loss_mean_over_valid"]
    yield close("train_loss_mean_over_valid", mean, recorded, **tolerance)
    accuracy = 100 * segmentation_head.pixel_accuracy(logits, labels)
    recorded = arrays["train_acc_percent"][0]
    yield close("train_acc_percent", accuracy, recorded, **tolerance)
    for name, recorded in layouts.under(arrays, "grad/").items():
        yield close(f"grad/{name}", grads[name], recorded, **tolerance)
    for name, recorded in layouts.under(arrays, "bn_after/").items():
        yield close(f"bn_after/{name}", statistics[name], recorded, **tolerance)
    tx = optax.adamw(1e-3, weight_decay=1e-4)
    updates, _ = tx.update(grads, tx.init(trainable), trainable)
    after = optax.apply_updates(trainable, updates)
    for name, recorded in layouts.under(arrays, "adamw_after/").items():
        certain = np.abs(arrays[f"grad/{name}"]) >= 1e-7
        mine, recorded = np.asarray(after[name])[certain], np.asarray(recorded)[certain]
        yield close(f"adamw_after/{name}", mine, recorded, atol=1e-5, rtol=0.0)


def miou(arrays: checks.Arrays, cfg: Any) -> Iterator[checks.Check]:
    """Areas and scores of segmentation maps."""
    total = mean_iou.no_areas(cfg["num_classes"])
    for i in layouts.numbered(arrays, r"pred_(\d+)"):
        labels = arrays[f"label_{i}"]
        if cfg["reduce_zero_label"]:
            labels = mean_iou.reduce_zero_label(labels)
        predictions = arrays[f"pred_{i}"]
        total += mean_iou.areas(predictions, labels, num_classes=cfg["num_classes"])
    for key, value in {
        "area_intersect": total.intersect,
        "area_union": total.union,
        "area_pred": total.predicted,
        "area_label": total.labelled,
    }.items():
        yield same(key, value, arrays[key])
    for key, value in mean_iou.scores(total).items():
        yield close(key, value, arrays[key], atol=1e-12, rtol=0.0)


def resize_pad(arrays: checks.Arrays, cfg: Any) -> Iterator[checks.Check]:
    """Padding to whole patches, and bilinear resizes."""
    for i in layouts.numbered(arrays, r"pad_(\d+)"):
        recorded = arrays[f"pad_{i}"]
        height, width = map(int, recorded[:2])
        ones = jnp.ones((1, height, width, 1))
        padded = np.asarray(model_inputs.fit_to_patches(ones, 14, "pad"))[0, ..., 0] > 0
        rows, columns = (np.flatnonzero(padded.any(axis)) for axis in (1, 0))
        top, left = rows[0], columns[0]
        bottom, right = (n - x[-1] - 1 for n, x in zip(padded.shape, (rows, columns)))
        found = [height, width, top, bottom, left, right, *padded.shape]
        yield same(f"pad_{i}", found, recorded)
    for i in layouts.numbered(arrays, r"resize_(\d+)/in"):
        image = layouts.channels_last(arrays[f"resize_{i}/in"])
        for name in ("bilinear", "bilinear_ac", "x4"):
            recorded = arrays[f"resize_{i}/{name}"]
            found = dense_resize.bilinear(
                image, recorded.shape[2:], align_corners=name == "bilinear_ac"
            )
            key = f"resize_{i}/{name}"
            yield close(
                key, layouts.channels_first(found), recorded, atol=1e-5, rtol=0.0
            )


def schedules(arrays: checks.Arrays, cfg: Any) -> Iterator[checks.Check]:
    """Learning rates and the first beta of segmentation and depth heads."""
    warm_up = {
        name: {
            "base_lr": cfg[name]["base_lr"],
            "steps": cfg[name]["max_iters"],
            "warmup_steps": cfg[name]["warmup_iters"],
            "warmup_ratio": cfg[name]["warmup_ratio"],
        }
        for name in ("seg", "depth")
    }
    rates = {
        "seg": dense_schedules.segmentation_lr,
        "depth": dense_schedules.depth_lr,
    }
    for name, rate in rates.items():
        found = [rate(int(i), **warm_up[name]) for i in arrays[f"{name}_iter"]]
        recorded = arrays[f"{name}_lr"]
        yield close(f"{name}_lr", found, recorded, atol=0.0, rtol=1e-9)
    steps = cfg["depth"]["max_iters"]
    found = [
        dense_schedules.depth_beta1(int(i), steps=steps) for i in arrays["depth_iter"]
    ]
    yield close("depth_beta1", found, arrays["depth_beta1"], atol=0.0, rtol=1e-9)


def pca_matching(arrays: checks.Arrays, cfg: Any) -> Iterator[checks.Check]:
    """Two principal component analyses, and one-to-one matches of patches."""
    features, shape = arrays["features"], arrays["mask"].shape
    count = len(arrays["variances1"])
    flat = features.reshape(-1, features.shape[-1])
    components = pca.principal_components(flat, count=count)
    variances = np.square(components).sum(axis=0)
    yield layouts.relative("variances1", variances, arrays["variances1"], 1e-6)
    first = components[:, 0].reshape(shape)
    planted = arrays["planted"]
    if first[planted].mean() < first[~planted].mean():
        first = -first
    recorded = arrays["component1"]
    yield close("component1", first, recorded, atol=1e-6, rtol=1e-6)
    mask = first > 0
    yield same("mask", mask, arrays["mask"])
    kept = features[mask]
    second = pca.principal_components(kept, count=arrays["proj"].shape[1])
    yield close("proj", second, arrays["proj"], atol=1e-6, rtol=1e-6)
    variances = np.square(second).sum(axis=0)
    yield layouts.relative("variances2", variances, arrays["variances2"], 1e-6)
    low, high = second.min(axis=0), second.max(axis=0)
    rgb = (second - low) / (high - low)
    yield close("rgb", rgb, arrays["rgb"], atol=1e-6, rtol=0.0)
    pairs = matching.assignment(features[0][mask[0]], features[1][mask[1]])
    places = [np.flatnonzero(m) for m in mask]  # on the whole grid
    yield same("match_first", places[0][pairs.first], arrays["match_first"])
    yield same("match_second", places[1][pairs.second], arrays["match_second"])
    recorded = arrays["match_distance"]
    yield close("match_distance", pairs.distances, recorded, atol=1e-6, rtol=1e-6)
    cost = pairs.distances.sum()
    yield close("match_cost", cost, arrays["match_cost"], atol=1e-6, rtol=0.0)


KINDS = {
    "seg_linear": segmentation,
    "seg_ms": segmentation,
    "seg_miou": miou,
    "seg_miou_reduce": miou,
    "resize_pad": resize_pad,
    "schedules": schedules,
    "pca_matching": pca_matching,
}

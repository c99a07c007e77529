"""Replays recordings of the reference's segmentation, depth and dense features.

    python -m tests.reference.evaluation_dense FILE.npz ...

`KINDS` names a function for each kind of recording. It takes the arrays and the config
of a file, whose sizes, heads and seeds it follows, and yields
(quantity, error, tolerance, passed). Only names and layouts are translated here.
"""

import functools
import json
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from dinov2_jax import pretrained  # noqa: E402
from dinov2_jax.eval import (  # noqa: E402
    dense_schedules,
    depth_data,
    depth_head,
    depth_losses,
    depth_metrics,
    dpt_head,
    matching,
    mean_iou,
    resize,
    segmentation_head,
    sliding_window,
)
from dinov2_jax.visualize import pca  # noqa: E402

Check = tuple[str, float, float, bool]
Arrays = Mapping[str, np.ndarray]


def close(name: str, value: Any, recorded: Any, *, atol: float, rtol: float) -> Check:
    """The largest error in units of atol + rtol * |recorded|: at most 1 passes."""
    value, recorded = np.asarray(value, np.float64), np.asarray(recorded, np.float64)
    if value.shape != recorded.shape:
        return name, float("inf"), 1.0, False
    both_nan = np.isnan(value) & np.isnan(recorded)
    error = np.abs(value - recorded) / (atol + rtol * np.abs(recorded) + 1e-300)
    worst = float(np.max(np.where(both_nan, 0.0, error), initial=0.0))
    return name, worst, 1.0, worst <= 1.0


def relative(name: str, value: Any, recorded: Any, tolerance: float) -> Check:
    """Relative L2 distance."""
    value, recorded = np.asarray(value, np.float64), np.asarray(recorded, np.float64)
    if value.shape != recorded.shape:
        return name, float("inf"), tolerance, False
    norm = np.linalg.norm(recorded)
    error = float(np.linalg.norm(value - recorded) / (norm if norm else 1.0))
    return name, error, tolerance, error <= tolerance


def exact(name: str, value: Any, recorded: Any) -> Check:
    """The share of entries that differ."""
    value, recorded = np.asarray(value), np.asarray(recorded)
    if value.shape != recorded.shape:
        return name, float("inf"), 0.0, False
    error = float(np.mean(value != recorded)) if value.size else 0.0
    return name, error, 0.0, error == 0.0


def channels_last(x: np.ndarray) -> jax.Array:
    return jnp.asarray(np.moveaxis(x, 1, -1))


def channels_first(x: Any) -> np.ndarray:
    return np.moveaxis(np.asarray(x), -1, 1)


def under(arrays: Arrays, prefix: str) -> dict[str, jax.Array]:
    return {
        key[len(prefix) :]: jnp.asarray(value)
        for key, value in arrays.items()
        if key.startswith(prefix)
    }


def numbered(arrays: Arrays, pattern: str) -> list[int]:
    """The numbers in the keys that match a pattern with one group."""
    found = {m.group(1) for key in arrays if (m := re.fullmatch(pattern, key))}
    return sorted(map(int, found))


def taps_of(arrays: Arrays) -> list[tuple[jax.Array, jax.Array]]:
    return [
        (channels_last(arrays[f"in/patch_{i}"]), jnp.asarray(arrays[f"in/cls_{i}"]))
        for i in numbered(arrays, r"in/patch_(\d+)")
    ]


def depth_linear(arrays: Arrays, cfg: Any) -> Iterator[Check]:
    """Linear depth heads: forward pass, losses and their gradients."""
    forward = {"atol": 1e-5, "rtol": 1e-4}
    params, taps = under(arrays, "w/"), taps_of(arrays)
    depth_range = (cfg["lo"], cfg["hi"])
    features = depth_head.joined(taps)
    fine = arrays["feat_concat"].shape[2:]
    yield close(
        "feat_concat",
        channels_first(resize.bilinear(features, fine)),
        arrays["feat_concat"],
        **forward,
    )
    logits = depth_head.logits(params, features)
    yield close("logits_sum", logits.sum(axis=-1), arrays["logits_sum"], **forward)
    yield close("logits_ch0", logits[..., 0], arrays["logits_ch0"], **forward)
    pred = depth_head.depth(params, taps, depth_range=depth_range)
    yield close("pred", channels_first(pred), arrays["pred"], **forward)
    if "bins" in arrays:
        bins = np.linspace(*depth_range, depth_head.NUM_BINS)
        yield close("bins", bins, arrays["bins"], **forward)
    size = arrays["gt"].shape[2:]
    final = depth_head.at_size(pred, size, depth_range=depth_range)
    yield close("final", channels_first(final), arrays["final"], **forward)
    upsampled = resize.bilinear(pred, size)
    yield close("up_pred", channels_first(upsampled), arrays["up_pred"], **forward)
    truth = jnp.asarray(arrays["gt"][:, 0])
    weights = cfg["loss_weights"]

    def loss(p, warm_up):
        depth = depth_head.depth(p, taps, depth_range=depth_range)
        depth = resize.bilinear(depth, size)[..., 0]
        value = depth_losses.scale_invariant_loss(depth, truth, warm_up=warm_up)
        return weights["sig"] * value

    as_run = as_run_gradient_loss(upsampled, truth)
    yield relative("loss_grad_as_run", as_run, arrays["loss_grad_as_run"], 1e-5)
    for suffix, warm_up in (("", False), ("_warmup", True)):
        value, grads = jax.jit(jax.value_and_grad(loss))(params, warm_up)
        yield relative(
            f"loss_depth{suffix}", value, arrays[f"loss_depth{suffix}"], 1e-5
        )
        total = arrays[f"loss_total{suffix}"]
        yield relative(f"loss_total{suffix}", value + as_run, total, 1e-5)
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


def depth_dpt(arrays: Arrays, cfg: Any) -> Iterator[Check]:
    """The DPT head, map by map."""
    tolerance = {"atol": 1e-4, "rtol": 1e-4}
    params, taps = under(arrays, "w/"), taps_of(arrays)
    depth_range = (cfg["lo"], cfg["hi"])
    wanted = dpt_head.shapes(taps[0][0].shape[-1], cfg["channels"])
    shapes = {name: value.shape for name, value in params.items()}
    yield exact("names and shapes", shapes == wanted, True)
    maps = dpt_head.reassemble(params, taps)
    fused = dpt_head.fuse(params, maps)
    found = {
        **{f"mid/reassemble_{i}": x for i, x in enumerate(maps)},
        **{f"mid/fusion_{i}": x for i, x in enumerate(fused)},
        "mid/project": dpt_head.project(params, fused[-1]),
        "mid/head_raw": dpt_head.raw_depth(params, fused[-1]),
        "pred": dpt_head.depth(params, taps, depth_range=depth_range),
    }
    size = arrays["gt"].shape[2:]
    found["final"] = depth_head.at_size(found["pred"], size, depth_range=depth_range)
    for key, value in found.items():
        yield close(key, channels_first(value), arrays[key], **tolerance)
    positive = (found["mid/head_raw"] > 0).mean()
    yield close("frac_positive", positive, arrays["frac_positive"], **tolerance)
    upsampled = resize.bilinear(found["pred"], size)
    truth = jnp.asarray(arrays["gt"][:, 0])
    loss = depth_losses.scale_invariant_loss(upsampled[..., 0], truth)
    yield relative("loss_depth", loss, arrays["loss_depth"], 1e-4)
    as_run = as_run_gradient_loss(upsampled, truth)
    yield relative("loss_grad_as_run", as_run, arrays["loss_grad_as_run"], 1e-4)


def losses(arrays: Arrays, cfg: Any) -> Iterator[Check]:
    """Depth losses and their gradients with respect to the prediction."""
    pred, truth = (jnp.asarray(arrays[key][:, 0]) for key in ("pred", "gt"))

    def sig(p, **settings):
        return depth_losses.scale_invariant_loss(p, truth, **settings)

    for name, warm_up in (("sigloss", False), ("sigloss_warmup", True)):
        value, grad = jax.jit(jax.value_and_grad(sig))(pred, warm_up=warm_up)
        yield relative(name, value, arrays[name], 1e-5)
        yield relative(f"grad_{name}", grad[:, None], arrays[f"grad_{name}"], 1e-5)
    limit = float(arrays["sigloss_maxdepth_limit"])
    value = jax.jit(lambda p: sig(p, max_depth=limit))(pred)
    yield relative("sigloss_maxdepth", value, arrays["sigloss_maxdepth"], 1e-5)

    weight = depth_losses.GRADIENT_WEIGHT
    value, grad = jax.jit(
        jax.value_and_grad(lambda p: as_run_gradient_loss(p[..., None], truth))
    )(pred)
    yield relative("loss_grad_4d", value, arrays["loss_grad_4d"], 1e-5)
    recorded = arrays["grad_loss_grad_4d"]
    yield relative("grad_loss_grad_4d", grad[:, None], recorded, 1e-5)
    value = as_run_gradient_loss(pred[:2, ..., None], truth[:2])
    recorded = arrays["loss_grad_4d_first_two"]
    yield relative("loss_grad_4d_first_two", value, recorded, 1e-5)
    spatial = jax.jit(depth_losses.gradient_loss)
    single = [
        weight * spatial(pred[i : i + 1], truth[i : i + 1]) for i in range(len(pred))
    ]
    yield relative("loss_grad_2d", single, arrays["loss_grad_2d"], 1e-5)
    total = jax.jit(lambda p: depth_losses.depth_loss(p, truth, gradient="spatial"))
    value = total(pred) - jax.jit(sig)(pred)
    yield relative("loss_grad_spatial", value, arrays["loss_grad_spatial"], 1e-5)


def metrics(arrays: Arrays, cfg: Any) -> Iterator[Check]:
    """Depth metrics on depth maps as they are on disk."""
    order = [depth_metrics.ORDER.index(name) for name in cfg["order"]]
    for data in ("nyu", "kitti", "sun"):
        protocol, rows, counts = depth_metrics.PROTOCOLS[data], [], []
        for i in numbered(arrays, rf"{data}/png_(\d+)"):
            truth = depth_data.depth_in_metres(arrays[f"{data}/png_{i}"], data)
            if data == "kitti":
                truth = depth_metrics.kitti_crop(truth)
                box = protocol.crop(truth.shape)
                yield exact("kitti/garg_box", box, arrays["kitti/garg_box"])
            counts.append(depth_metrics.valid_pixels(truth, protocol).sum())
            yield exact(f"{data}/nvalid_{i}", counts[-1], arrays[f"{data}/nvalid_{i}"])
            pred = arrays[f"{data}/pred_{i}"]
            rows.append(depth_metrics.image_metrics(pred, truth, protocol))
        table = np.stack(rows)[:, order]
        recorded = arrays[f"{data}/per_image"]
        yield close(f"{data}/per_image", table, recorded, atol=1e-7, rtol=2e-4)
        means = depth_metrics.mean_metrics(rows)
        mean = [means[name] for name in cfg["order"]]
        recorded = arrays[f"{data}/mean"]
        yield close(f"{data}/mean", mean, recorded, atol=1e-7, rtol=2e-4)


def fake_features(arrays: Arrays, cfg: Any, images: jax.Array) -> jax.Array:
    """The recording's stand-in for the backbone, [B, H, W, 3] -> [B, h, w, D]."""
    side = cfg["patch"]
    padded = pretrained.fit_to_patches(images, side, "pad")
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


def segmentation(arrays: Arrays, cfg: Any) -> Iterator[Check]:
    """A linear segmentation head: inference of every kind, and a training step."""
    tolerance = {"atol": 1e-5, "rtol": 1e-4}
    params = under(arrays, "w/")
    images = channels_last(arrays["img"])
    size, original = images.shape[1:3], tuple(cfg["ori"])
    features = fake_features(arrays, cfg, images)
    joined = segmentation_head.joined(
        [channels_last(arrays[f"feat_{i}"]) for i in cfg["in_index"]]
    )
    yield close("features", features, joined, **tolerance)
    recorded = arrays["eval_concat"]
    yield close("eval_concat", channels_first(joined), recorded, **tolerance)
    logits = jax.jit(segmentation_head.logits)(params, features)
    recorded = arrays["eval_head_logits"]
    yield close("eval_head_logits", channels_first(logits), recorded, **tolerance)
    whole = resize.bilinear(logits, size)
    recorded = arrays["eval_encode_decode"]
    yield close("eval_encode_decode", channels_first(whole), recorded, **tolerance)

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
    yield close("eval_slide", channels_first(slid), recorded, **tolerance)
    recorded = arrays["eval_slide_rescaled"]
    yield close("eval_slide_rescaled", channels_first(rescaled), recorded, **tolerance)
    prob = jax.nn.softmax(rescaled)
    yield close("eval_prob", channels_first(prob), arrays["eval_prob"], **tolerance)
    flipped = jax.nn.softmax(slide(images[:, :, ::-1], original))[:, :, ::-1]
    recorded = arrays["eval_prob_flip"]
    yield close("eval_prob_flip", channels_first(flipped), recorded, **tolerance)
    views = numbered(arrays, r"tta_img_(\d+)")
    mean = 0.0
    for i in views:  # every second one is flipped
        view = jax.nn.softmax(slide(channels_last(arrays[f"tta_img_{i}"]), original))
        mean += (view[:, :, ::-1] if i % 2 else view) / len(views)
    yield close("tta_prob", channels_first(mean), arrays["tta_prob"], **tolerance)
    top = np.sort(np.moveaxis(arrays["tta_prob"], 1, -1), axis=-1)[0, ..., -2:]
    clear = top[..., 1] - top[..., 0] >= 1e-5
    found = np.asarray(mean.argmax(-1))[0]
    yield exact("tta_pred", found[clear], arrays["tta_pred"][clear])
    yield from segmentation_step(arrays, params, features)


def segmentation_step(arrays, params, features) -> Iterator[Check]:
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
    yield close("train_head_logits", channels_first(logits), recorded, **tolerance)
    yield close("train_loss", value, arrays["train_loss"], **tolerance)
    mean, _ = loss(trainable, "valid")
    recorded = arrays["train_loss_mean_over_valid"]
    yield close("train_loss_mean_over_valid", mean, recorded, **tolerance)
    accuracy = 100 * segmentation_head.pixel_accuracy(logits, labels)
    recorded = arrays["train_acc_percent"][0]
    yield close("train_acc_percent", accuracy, recorded, **tolerance)
    for name, recorded in under(arrays, "grad/").items():
        yield close(f"grad/{name}", grads[name], recorded, **tolerance)
    for name, recorded in under(arrays, "bn_after/").items():
        yield close(f"bn_after/{name}", statistics[name], recorded, **tolerance)
    tx = optax.adamw(1e-3, weight_decay=1e-4)
    updates, _ = tx.update(grads, tx.init(trainable), trainable)
    after = optax.apply_updates(trainable, updates)
    for name, recorded in under(arrays, "adamw_after/").items():
        certain = np.abs(arrays[f"grad/{name}"]) >= 1e-7
        mine, recorded = np.asarray(after[name])[certain], np.asarray(recorded)[certain]
        yield close(f"adamw_after/{name}", mine, recorded, atol=1e-5, rtol=0.0)


def miou(arrays: Arrays, cfg: Any) -> Iterator[Check]:
    """Areas and scores of segmentation maps."""
    total = mean_iou.no_areas(cfg["num_classes"])
    for i in numbered(arrays, r"pred_(\d+)"):
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
        yield exact(key, value, arrays[key])
    for key, value in mean_iou.scores(total).items():
        yield close(key, value, arrays[key], atol=1e-12, rtol=0.0)


def resize_pad(arrays: Arrays, cfg: Any) -> Iterator[Check]:
    """Padding to whole patches, and bilinear resizes."""
    for i in numbered(arrays, r"pad_(\d+)"):
        recorded = arrays[f"pad_{i}"]
        height, width = map(int, recorded[:2])
        ones = jnp.ones((1, height, width, 1))
        padded = np.asarray(pretrained.fit_to_patches(ones, 14, "pad"))[0, ..., 0] > 0
        rows, columns = (np.flatnonzero(padded.any(axis)) for axis in (1, 0))
        top, left = rows[0], columns[0]
        bottom, right = (n - x[-1] - 1 for n, x in zip(padded.shape, (rows, columns)))
        found = [height, width, top, bottom, left, right, *padded.shape]
        yield exact(f"pad_{i}", found, recorded)
    for i in numbered(arrays, r"resize_(\d+)/in"):
        image = channels_last(arrays[f"resize_{i}/in"])
        for name in ("bilinear", "bilinear_ac", "x4"):
            recorded = arrays[f"resize_{i}/{name}"]
            found = resize.bilinear(
                image, recorded.shape[2:], align_corners=name == "bilinear_ac"
            )
            key = f"resize_{i}/{name}"
            yield close(key, channels_first(found), recorded, atol=1e-5, rtol=0.0)


def schedules(arrays: Arrays, cfg: Any) -> Iterator[Check]:
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


def pca_matching(arrays: Arrays, cfg: Any) -> Iterator[Check]:
    """Two principal component analyses, and one-to-one matches of patches."""
    features, shape = arrays["features"], arrays["mask"].shape
    count = len(arrays["variances1"])
    flat = features.reshape(-1, features.shape[-1])
    components = pca.principal_components(flat, count=count)
    variances = np.square(components).sum(axis=0)
    yield relative("variances1", variances, arrays["variances1"], 1e-6)
    first = components[:, 0].reshape(shape)
    planted = arrays["planted"]
    if first[planted].mean() < first[~planted].mean():
        first = -first
    recorded = arrays["component1"]
    yield close("component1", first, recorded, atol=1e-6, rtol=1e-6)
    mask = first > 0
    yield exact("mask", mask, arrays["mask"])
    kept = features[mask]
    second = pca.principal_components(kept, count=arrays["proj"].shape[1])
    yield close("proj", second, arrays["proj"], atol=1e-6, rtol=1e-6)
    variances = np.square(second).sum(axis=0)
    yield relative("variances2", variances, arrays["variances2"], 1e-6)
    low, high = second.min(axis=0), second.max(axis=0)
    rgb = (second - low) / (high - low)
    yield close("rgb", rgb, arrays["rgb"], atol=1e-6, rtol=0.0)
    pairs = matching.assignment(features[0][mask[0]], features[1][mask[1]])
    places = [np.flatnonzero(m) for m in mask]  # on the whole grid
    yield exact("match_first", places[0][pairs.first], arrays["match_first"])
    yield exact("match_second", places[1][pairs.second], arrays["match_second"])
    recorded = arrays["match_distance"]
    yield close("match_distance", pairs.distances, recorded, atol=1e-6, rtol=1e-6)
    cost = pairs.distances.sum()
    yield close("match_cost", cost, arrays["match_cost"], atol=1e-6, rtol=0.0)


KINDS: dict[str, Callable[[Arrays, Any], Iterator[Check]]] = {
    "depth_lin1": depth_linear,
    "depth_lin4": depth_linear,
    "depth_dpt": depth_dpt,
    "depth_losses": losses,
    "depth_metrics": metrics,
    "seg_linear": segmentation,
    "seg_ms": segmentation,
    "seg_miou": miou,
    "seg_miou_reduce": miou,
    "resize_pad": resize_pad,
    "schedules": schedules,
    "pca_matching": pca_matching,
}


def read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], Any]:
    """The arrays of a recording and its config."""
    with np.load(path, allow_pickle=False) as arrays:
        found = {key: arrays[key] for key in arrays.files}
    return found, json.loads(str(found.pop("config")))


def kind_of(path: pathlib.Path) -> str:
    """The kind of a recording by its file's name: the longest that it begins with."""
    kinds = [kind for kind in KINDS if path.stem.startswith(kind)]
    if not kinds:
        raise ValueError(f"{path.name} begins with none of {', '.join(KINDS)}")
    return max(kinds, key=len)


def replay(path: pathlib.Path) -> list[Check]:
    """All checks of a file."""
    with jax.default_matmul_precision("highest"):
        return list(KINDS[kind_of(path)](*read(path)))


def main(paths: list[str]) -> int:
    failed = 0
    for path in map(pathlib.Path, paths):
        for quantity, error, tolerance, passed in replay(path):
            mark = "ok" if passed else "EXCEEDED"
            print(
                f"{path.stem} {quantity:28} {error:.3g} (at most {tolerance:g}) {mark}"
            )
            failed += not passed
    print(f"{failed} quantities exceeded" if failed else "all within tolerance")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

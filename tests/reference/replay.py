"""Replays recorded runs of the reference through this project's own code.

    python tests/reference/replay.py FILE.npz ...

Prints one line per quantity with its error and its tolerance and exits 1 if any is
exceeded. A file is a training run, a backbone's forward pass or an evaluation, which
its name tells: `knn_a.npz` is of the kind `knn`. Sizes, heads, crops and schedules come
from the config inside it. Only the reference's names and layouts are translated here:
model, losses, optimizer, step and metrics are the project's own.
"""

import functools
import json
import math
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import evaluation_dense  # noqa: E402
import evaluation_depth  # noqa: E402
import evaluation_global  # noqa: E402

from configs import default  # noqa: E402
from dinov2_jax import (  # noqa: E402
    optimizer,
    schedules,
    sharding,
    ssl_meta_arch,
    train_state,
    train_step,
)
from dinov2_jax.data import masking  # noqa: E402
from dinov2_jax.models import model_config, vision_transformer  # noqa: E402
from dinov2_jax.weights import state_dict  # noqa: E402

LOSS_NAMES = {  # recorded name -> ours
    "dino_local_crops_loss": "loss/dino_local",
    "dino_global_crops_loss": "loss/dino_global",
    "koleo_loss": "loss/koleo",
    "ibot_loss": "loss/ibot",
}
TOLERANCES = {
    "schedule": 1e-12,
    "loss": 2e-5,
    "gradient": 1e-4,
    "weight": 1e-4,
    "qkv.bias": 5e-3,  # the key bias has no true gradient: Adam steps on rounding
    "exact": 0.0,
    "forward": 1e-5,
}
# quantity, error, key of TOLERANCES
Check = tuple[str, float, str]


def relative_error(value: Any, recorded: Any) -> float:
    """Relative L2 distance; infinite where shapes differ or a value is not finite."""
    value = np.asarray(value, np.float64)
    recorded = np.asarray(recorded, np.float64)
    if value.shape != recorded.shape:
        return float("inf")
    norm = np.linalg.norm(recorded)
    error = np.linalg.norm(value - recorded) / (norm if norm > 0 else 1.0)
    return float(error) if np.isfinite(error) else float("inf")


def under(arrays: Any, prefix: str) -> dict[str, np.ndarray]:
    """The entries of an npz below a prefix, prefix removed."""
    return {
        key[len(prefix) :]: arrays[key]
        for key in arrays.files
        if key.startswith(prefix)
    }


def config_from_reference(recorded: dict[str, Any], crops_shape: Any) -> Any:
    """This project's config for a recorded training run.

    Args:
      recorded: The file's `config_json`.
      crops_shape: [2B, C, S, S] of the recorded global crops.
    """
    ref, epoch = (
        recorded["config"],
        recorded["config"]["train"]["OFFICIAL_EPOCH_LENGTH"],
    )
    c = default.get_config()
    for section in ("dino", "ibot"):
        for name, default_value in c[section].items():
            if name in ref[section]:
                c[section][name] = type(default_value)(ref[section][name])
        c[section].head_nlayers = max(c[section].head_nlayers, 1)
    student, teacher, optim, crops = (
        ref[k] for k in ("student", "teacher", "optim", "crops")
    )
    c.model.arch = "custom"
    arch = dict(recorded["arch"])
    c.model.update({k: arch[k] for k in ("embed_dim", "depth", "num_heads")})
    c.model.update(
        patch_size=student["patch_size"],
        ffn_layer="mlp" if student["ffn_layer"] == "mlp" else "swiglufused",
        qkv_bias=student["qkv_bias"],
        proj_bias=student["proj_bias"],
        ffn_bias=student["ffn_bias"],
        layerscale=float(student["layerscale"] or 0.0),
        in_chans=crops_shape[1],
        num_register_tokens=student["num_register_tokens"],
        interpolate_antialias=bool(student["interpolate_antialias"]),
        interpolate_offset=float(student["interpolate_offset"]),
        drop_path_rate=0.0,  # every recording's, whatever its config says
        dtype="float32",
    )
    c.crops.update(
        global_crops_size=crops_shape[-1],
        local_crops_number=crops["local_crops_number"],
        local_crops_size=crops["local_crops_size"],
    )
    c.train.update(
        batch_size=recorded["batch_size"],
        group_size=recorded["batch_size"],
        steps=int(optim["epochs"] * epoch),
        centering=ref["train"]["centering"],
    )
    c.teacher.update(
        momentum_teacher=float(teacher["momentum_teacher"]),
        final_momentum_teacher=float(teacher["final_momentum_teacher"]),
        warmup_teacher_temp=float(teacher["warmup_teacher_temp"]),
        teacher_temp=float(teacher["teacher_temp"]),
        warmup_teacher_temp_steps=int(teacher["warmup_teacher_temp_epochs"] * epoch),
    )
    # The reference notes the scaled rate in `lr`, and scales by its own batch size.
    batch_scale = math.sqrt(recorded["batch_size"] / 1024.0)
    base_lr = optim["lr"] / batch_scale if optim.get("lr") else optim["base_lr"]
    c.optim.update(
        base_lr=float(base_lr),
        min_lr=float(optim["min_lr"]),
        warmup_steps=int(optim["warmup_epochs"] * epoch),
        weight_decay=float(optim["weight_decay"]),
        weight_decay_end=float(optim["weight_decay_end"]),
        clip_grad=float(optim["clip_grad"] or 0.0),
        freeze_last_layer_steps=int(optim["freeze_last_layer_epochs"] * epoch),
        patch_embed_lr_mult=float(optim["patch_embed_lr_mult"]),
        layerwise_decay=float(optim["layerwise_decay"]),
        adamw_beta1=float(optim["adamw_beta1"]),
        adamw_beta2=float(optim["adamw_beta2"]),
    )
    return c


def ffn_ratio(weights: dict[str, np.ndarray]) -> float:
    """The FFN's `mlp_ratio`, which not every config names, from the weights."""
    for key, value in weights.items():
        if key.endswith("mlp.fc1.weight"):
            return (value.shape[0] + 0.5) / value.shape[1]  # rounded down by the model
        if key.endswith("mlp.w3.weight"):  # hidden width is 2/3 of the ratio's
            return 1.5 * value.shape[1] / value.shape[0]
    raise ValueError("the recorded weights have no FFN")


def logged_share(config: Any, key: str) -> float:
    """Our term, as it enters the total, over what the reference logs of it."""
    weights = {
        "dino_local_crops_loss": config.dino.loss_weight,
        "dino_global_crops_loss": config.dino.loss_weight,
        "koleo_loss": 2.0,  # logged halved, weight included
        "ibot_loss": 2.0 * config.ibot.loss_weight,  # logged halved
    }
    return weights[key]


def load_batch(arrays: Any, step: int, bound: int) -> dict[str, jax.Array]:
    """The recorded batch of a step as one group, padded to `bound` masked patches."""

    def images(name):
        crops = arrays[f"step{step}/{name}"].astype(np.float32)
        return crops.transpose(0, 2, 3, 1)[None]

    masks = arrays[f"step{step}/masks"]
    indices, weights = masking.mask_indices(masks, bound)
    return {
        "global_crops": images("global_crops"),
        "local_crops": images("local_crops"),
        "masks": masks[None],
        "masked_indices": indices[None],
        "masked_weights": weights[None],
    }


def replay_training(arrays: Any) -> Iterator[Check]:
    """Every recorded quantity of a training run, in the order of the steps."""
    recorded = json.loads(str(arrays["config_json"]))
    patch_size = recorded["config"]["student"]["patch_size"]
    config = config_from_reference(recorded, arrays["step0/global_crops"].shape)
    config.model.ffn_ratio = ffn_ratio(under(arrays, "init/student/backbone/"))
    meta_arch = ssl_meta_arch.make_ssl_meta_arch(config, jnp.float32)
    submodules = sorted(
        {key.split("/")[0] for key in under(arrays, "init/student/")},
    )
    params = {
        name: state_dict.params_from_state_dict(under(arrays, f"init/student/{name}/"))
        for name in submodules
    }
    expected = jax.eval_shape(meta_arch.student.init, jax.random.key(0))
    shapes = jax.tree.map(lambda x: x.shape, (params, expected))
    if shapes[0] != shapes[1]:
        raise ValueError("recorded weights do not fit the model of their config")

    schedule = schedules.make_schedules(config)
    values = [schedule(i) for i in range(config.train.steps)]
    for name, key in {"momentum": "momentum_teacher"}.items() | {
        (k, k) for k in ("lr", "last_layer_lr", "weight_decay", "teacher_temp")
    }:
        ours = np.array([v[key] for v in values])
        error = np.max(np.abs(ours - arrays[f"schedule/{name}"]))
        yield f"schedule/{name}", float(error), "schedule"

    groups = optimizer.param_groups(
        params,
        layerwise_decay=config.optim.layerwise_decay,
        patch_embed_lr_mult=config.optim.patch_embed_lr_mult,
    )
    yield from check_param_groups(
        groups, params, json.loads(str(arrays["param_groups_json"])), patch_size
    )

    tx = optimizer.make_optimizer(config, params)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    owned = jax.device_put(params, may_alias=False)  # the step takes them over
    state = jax.jit(lambda p: train_state.state_from_params(p, meta_arch, tx))(owned)
    state = jax.device_put(state, sharding.state_shardings(state, mesh))
    step_fn = train_step.make_train_step(meta_arch, tx, state, mesh, seed=0)
    # Any static bound gives the same losses; recorded masks may have any ratios.
    bound = max(int(arrays[f"step{i}/masks"].sum()) for i in range(recorded["steps"]))
    with jax.set_mesh(mesh):
        for i in range(recorded["steps"]):
            batch = load_batch(arrays, i, bound)
            state, metrics = step_fn(state, batch, values[i])
            metrics = jax.device_get(metrics)
            if i == 0:
                yield from check_gradients(arrays, state, config, patch_size)
            for key, value in under(arrays, f"step{i}/loss/").items():
                ours = metrics.get(LOSS_NAMES[key], 0.0) / logged_share(config, key)
                yield f"step{i}/loss/{key}", relative_error(ours, value), "loss"
            for key, value in under(arrays, f"step{i}/grad_norm/").items():
                error = relative_error(metrics[f"grad_norm/{key}"], value)
                yield f"step{i}/grad_norm/{key}", error, "gradient"

    state = jax.device_get(state)
    trees = {"student": state.params, "teacher": state.teacher_params}
    for role, tree in trees.items():
        for name in submodules:
            recorded_weights = under(arrays, f"final/{role}/{name}/")
            ours = state_dict.state_dict_from_params(tree[name], patch_size=patch_size)
            yield from check_tree(
                f"final/{role}/{name}", ours, recorded_weights, "weight"
            )
    for name, center in under(arrays, "final/center/").items():
        error = relative_error(state.centers[name], center.reshape(-1))
        yield f"final/center/{name}", error, "weight"


def check_gradients(arrays, state, config, patch_size) -> Iterator[Check]:
    """The clipped gradients of the first step, from the moments that it left.

    Adam's first moment begins at 0, so it is then (1 - beta1) times the gradient.
    """
    for name, tree in jax.device_get(state.opt_state.mu).items():
        tree = jax.tree.map(lambda m: m / (1 - config.optim.adamw_beta1), tree)
        ours = state_dict.state_dict_from_params(tree, patch_size=patch_size)
        recorded = under(arrays, f"step0/clipped_grad/{name}/")
        yield from check_tree(f"step0/clipped_grad/{name}", ours, recorded, "gradient")


def check_tree(
    prefix: str, ours: dict, recorded: dict, tolerance: str
) -> Iterator[Check]:
    """Every recorded tensor of a state dict; block chunks are ignored in names."""
    for key, value in recorded.items():
        loose = tolerance == "weight" and key.endswith("qkv.bias")
        mine = ours.get(state_dict.unchunked(key), np.nan)
        yield (
            f"{prefix}/{key}",
            relative_error(mine, value),
            "qkv.bias" if loose else tolerance,
        )


def check_param_groups(groups, params, recorded, patch_size) -> Iterator[Check]:
    """Multipliers of every parameter, exact."""
    is_group = lambda x: isinstance(x, optimizer.ParamGroup)  # noqa: E731

    def spread(field):
        """The field as a state dict: every parameter filled with its multiplier."""

        def fill(group, p):
            value = np.asarray(getattr(group, field), np.float64)
            value = value.reshape(value.shape + (1,) * (p.ndim - value.ndim))
            return np.broadcast_to(value, p.shape)

        tree = jax.tree.map(fill, groups, params, is_leaf=is_group)
        return {
            f"{name}/{key}": array
            for name, subtree in tree.items()
            for key, array in state_dict.state_dict_from_params(
                subtree, patch_size=patch_size
            ).items()
        }

    for field in ("lr_multiplier", "wd_multiplier", "is_last_layer"):
        ours = spread(field)
        wrong = 0
        for key, group in recorded.items():
            submodule, name = key.split("/")
            array = ours.get(f"{submodule}/{state_dict.unchunked(name)}")
            wrong += array is None or not np.all(array == float(group[field]))
        yield f"param_groups/{field} (parameters that differ)", float(wrong), "exact"


def replay_forward(arrays: Any) -> Iterator[Check]:
    """Every recorded output of a backbone, at every size of the file."""
    recorded = json.loads(str(arrays["config_json"]))
    config = model_config.ModelConfig(
        embed_dim=recorded["embed_dim"],
        depth=recorded["depth"],
        num_heads=recorded["num_heads"],
        patch_size=recorded["patch_size"],
        image_size=recorded["img_size"],
        in_chans=recorded.get("in_chans", 3),
        ffn_ratio=ffn_ratio(under(arrays, "params/")),
        qkv_bias=recorded.get("qkv_bias", True),
        proj_bias=recorded.get("proj_bias", True),
        ffn_bias=recorded.get("ffn_bias", True),
        ffn_layer="mlp" if recorded["ffn_layer"] == "mlp" else "swiglufused",
        layerscale=float(recorded["init_values"] or 0.0),
        num_register_tokens=recorded["num_register_tokens"],
        interpolate_antialias=recorded["interpolate_antialias"],
        interpolate_offset=float(recorded["interpolate_offset"]),
    )
    model = vision_transformer.VisionTransformer(config)
    weights = state_dict.params_from_state_dict(under(arrays, "params/"))
    variables = {"params": weights}

    @functools.partial(jax.jit, static_argnums=2)
    def outputs(images, masks, count):
        out = model.apply(variables, images)
        masked = model.apply(variables, images, masks)
        ours = {
            "x_norm_clstoken": out.cls,
            "x_norm_regtokens": out.registers,
            "x_norm_patchtokens": _flat(out.patches),
            "x_prenorm": out.prenorm,
            "masked/x_norm_clstoken": masked.cls,
            "masked/x_norm_patchtokens": _flat(masked.patches),
            "masked/x_prenorm": masked.prenorm,
            "pos_embed": model.apply(
                variables, *images.shape[1:3], method="position_embeddings"
            ),
        }
        layers = model.apply(variables, images, count, method="get_intermediate_layers")
        for i, layer in enumerate(layers):
            ours[f"intermediate/{i}/patch"] = _flat(layer.patches)
            ours[f"intermediate/{i}/cls"] = layer.cls
        return ours

    sizes = sorted({k.split("/")[0] for k in arrays.files if k.endswith("/images")})
    for size in sizes:
        expected = under(arrays, f"{size}/")
        images = expected.pop("images").astype(np.float32).transpose(0, 2, 3, 1)
        masks = expected.pop("masks")
        count = len({k.split("/")[1] for k in expected if "intermediate" in k})
        ours = outputs(images, masks, count)
        for key, value in expected.items():
            yield f"{size}/{key}", relative_error(ours[key], value), "forward"


def _flat(patches: jax.Array) -> jax.Array:
    return patches.reshape(patches.shape[0], -1, patches.shape[-1])


# Their `KINDS` replay evaluation recordings.
EVALUATIONS = (evaluation_global, evaluation_dense, evaluation_depth)


def evaluation_replays(path: pathlib.Path) -> list[Any]:
    """The replays of an evaluation recording, by its name.

    Raises:
      ValueError: The name is of an unknown kind.
    """
    kinds = {kind for family in EVALUATIONS for kind in family.KINDS}
    name = path.stem
    while name and name not in kinds:
        name = name.rpartition("_")[0]
    if not name:
        raise ValueError(f"{path} is of no known kind: {', '.join(sorted(kinds))}")
    return [f.KINDS[name] for f in EVALUATIONS if name in f.KINDS]


def replay(path: str | pathlib.Path) -> Iterator[tuple[str, float, float, bool]]:
    """Every quantity of one file, its error, the allowed one, and whether it passed."""
    with np.load(path, allow_pickle=False) as file:
        names = file.files
        if "config_json" in names:
            training = "param_groups_json" in names
            replay_model = replay_training if training else replay_forward
            for quantity, error, kind in replay_model(file):
                allowed = TOLERANCES[kind]
                yield quantity, error, allowed, error <= allowed
            return
        arrays = {name: file[name] for name in names}
    replays = evaluation_replays(pathlib.Path(path))
    config = json.loads(str(arrays.pop("config")))
    with jax.default_matmul_precision("highest"):
        for replay_evaluation in replays:
            yield from replay_evaluation(arrays, config)


def main(paths: list[str]) -> int:
    """Prints every check; returns the exit status."""
    failures = 0
    for path in paths:
        print(f"{path}\n{'':2}{'quantity':70} {'error':>9} {'allowed':>9}")
        for quantity, error, allowed, passed in replay(path):
            failures += not passed
            verdict = "ok" if passed else "FAILED"
            print(f"  {quantity:70} {error:9.1e} {allowed:9.1e} {verdict}")
    print(f"{failures} failed" if failures else "all within tolerance")
    return 1 if failures else 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1:]))

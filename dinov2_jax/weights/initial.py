"""Initial weights of a run, read from the source that `config.init` names.

The source can be anything that `weights.reading` reads. It is read on the host and must
match the config's model exactly, both in its tensors and in settings that tensors do
not determine. Only the grid of the position embeddings may differ; it is resampled to
the size of the global crops.
"""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dinov2_jax import errors, ssl_meta_arch
from dinov2_jax.augment import policies
from dinov2_jax.models import model_config, pos_embed
from dinov2_jax.weights import architecture, head_sizes, reading


@dataclasses.dataclass(frozen=True)
class InitialWeights:
    """Weights of step 0, on the host.

    Attributes:
      params: {"backbone": tree}, with the heads if the config loads them; float32 NumPy
        arrays in the shapes of the run's model.
      description: Line for the console that names their source.
    """

    params: dict[str, Any]
    description: str


def read(config: Any, meta_arch: ssl_meta_arch.SSLMetaArch) -> InitialWeights | None:
    """Read the weights that `config.init` names; return None to start from scratch.

    Every process reads the whole file; nothing is put on an accelerator.

    Raises:
      UserError: The source is missing, unreadable or does not match the config's
        model; the message says what to set.
    """
    source, heads = config.init.source, config.init.heads == "loaded"
    if not source:
        return None
    run_model = meta_arch.student.backbone.config
    expected = jax.eval_shape(
        lambda key: meta_arch.student.merged(meta_arch.student.init(key)),
        jax.random.key(0),
    )
    with on_host():
        try:
            weights = reading.read(
                source,
                which=config.init.which or None,
                heads=heads,
                num_heads=_unreleased_heads(run_model),
            )
        except errors.UserError as error:
            fix = without_flags(error, config)
            if isinstance(error, reading.MissingHeads):
                fix = f"{error}; for new heads set --config.init.heads=fresh"
            raise errors.UserError(f"--config.init.source: {fix}") from error
        params, file_model = dict(weights.params), weights.module.config
        _check_backbone(file_model, run_model, config.model.arch == "custom", source)
        normalised = check_images(config, weights, f"init.source {source}")
        if heads:
            _check_heads(params, expected, config)
        params["backbone"] = _resampled(params["backbone"], run_model)
        params = {
            name: jax.tree.map(np.asarray, params[name])
            for name in expected
            if name in params
        }
    sides = [m.grid_size for m in (file_model, run_model)]
    described = _describe(config.init, config.optim, *sides)
    return InitialWeights(params, described + normalised)


def read_gram(
    config: Any, meta_arch: ssl_meta_arch.SSLMetaArch
) -> InitialWeights | None:
    """Read the backbone of the first Gram teacher that `config.gram` names.

    Returns:
      The backbone alone; None if there is no Gram teacher or it is an EMA of the run.

    Raises:
      UserError: The source is missing, unreadable or of another model than the run's.
    """
    source = config.gram.source
    if not (source and meta_arch.gram):
        return None
    run_model = meta_arch.student.backbone.config
    with on_host():
        try:
            weights = reading.read(source, num_heads=_unreleased_heads(run_model))
            _check_backbone(
                weights.module.config, run_model, config.model.arch == "custom", source
            )
            normalised = check_images(config, weights, source)
        except errors.UserError as error:
            raise errors.UserError(
                "--config.gram.source must be a model of the run's kind: "
                f"{without_flags(error, config)}"
            ) from error
        backbone = _resampled(weights.params["backbone"], run_model)
        backbone = jax.tree.map(np.asarray, backbone)
    described = f"Gram teacher read from {source}{normalised}"
    return InitialWeights({"backbone": backbone}, described)


def without_flags(error: errors.UserError, config: Any) -> str:
    """Return the text of an error of `reading.read` with what a config can do about it.

    Args:
      error: The error, which may ask for a flag that no config has.
      config: The config of the run.
    """
    if isinstance(error, reading.OtherHeads):
        return (
            f"{error.source} has {error.found} attention heads, but model.num_heads = "
            f"{config.model.num_heads}: set --config.model.num_heads={error.found}"
        )
    if any(flag in str(error) for flag in ("--num-heads", "prefix=", "key=")):
        return (
            f"{error}, in dinov2-jax convert --to=orbax, and name the folder that it "
            "writes"
        )
    return str(error)


def check_images(config: Any, weights: reading.Weights, source: str) -> str:
    """Check that a source takes images as the run normalises them.

    Args:
      config: The config of the run.
      weights: What was read.
      source: Name of the source, for the error.

    Returns:
      What differs because the config sets it so, for the console; "" if nothing.

    Raises:
      UserError: Mean or standard deviation differ, and the config leaves them to the
        default.
    """
    if not weights.preprocessing.fits_channels(config.model.in_chans):
        return ""  # files for other channels often keep the values of RGB
    differing = []
    for name, default in (
        ("mean", policies.IMAGENET_MEAN),
        ("std", policies.IMAGENET_STD),
    ):
        value = tuple(config.data[name]) or default
        expected = tuple(getattr(weights.preprocessing, name))
        if len(value) == len(expected) and np.allclose(value, expected, atol=1e-4):
            continue
        if not config.data[name]:
            raise errors.UserError(
                f"{source} expects images with {name} {expected}, but data.{name} is "
                f'that of ImageNet: set --config.data.{name}="{expected}"'
            )
        differing.append(f"data.{name} {value}, not the source's {expected}")
    return "".join(f"; {line}" for line in differing)


def _unreleased_heads(run_model: model_config.ModelConfig) -> int | None:
    """Return the number of heads, which only the config knows for unreleased sizes."""
    released = [size[:2] for size in model_config.ARCHS.values()]
    if (run_model.embed_dim, run_model.depth) in released:
        return None
    return run_model.num_heads


def _resampled(
    backbone: dict[str, Any], run_model: model_config.ModelConfig
) -> dict[str, Any]:
    """Resample a backbone's position embeddings to the run's global crops."""
    side = run_model.grid_size
    return backbone | {
        "pos_embed": pos_embed.interpolate_pos_embed(
            backbone["pos_embed"],
            side,
            side,
            offset=run_model.interpolate_offset,
            antialias=run_model.interpolate_antialias,
        )
    }


def on_host() -> contextlib.AbstractContextManager:
    """Return a context with new arrays on the CPU, if jax is allowed to use it."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return contextlib.nullcontext()


def _describe(init: Any, optim: Any, side: int, new_side: int) -> str:
    which = f" ({init.which})" if init.which else ""
    resampled = f" -> {new_side}x{new_side}" if new_side != side else ""
    facts = [f"position embeddings {side}x{side}{resampled}", f"heads {init.heads}"]
    if init.heads_only_steps:
        facts.append(f"heads only for {init.heads_only_steps} steps")
    if optim.trainable == "last":
        facts.append(f"only the last {optim.last_blocks} blocks learn")
    if optim.trainable == "lora":
        facts.append(f"only LoRA of rank {optim.lora_rank} learns")
    return f"initialised from {init.source}{which}: {', '.join(facts)}"


def _check_backbone(actual, expected, custom: bool, source: str) -> None:
    """Check that the backbone is the config's, apart from the size of its grid."""
    fixes = _model_settings(actual, expected, custom)
    flags = " ".join(f"--config.model.{k}={v}" for k, v in fixes.items())
    # Compare at the file's grid, which is resampled later.
    side = actual.grid_size * expected.patch_size
    try:
        architecture.check(
            architecture.backbone_shapes(actual),
            architecture.backbone_shapes(expected.replace(image_size=side)),
            source,
            "the config",
        )
    except errors.UserError as error:
        raise errors.UserError(f"{error}\n  set {flags}") from error
    differing_settings = [
        name
        for name in model_config.NOT_IN_TENSORS
        if getattr(actual, name) != getattr(expected, name)
    ]
    if differing_settings:
        differing = ", ".join(
            f"{name} {getattr(actual, name)}, not {getattr(expected, name)}"
            for name in differing_settings
        )
        raise errors.UserError(
            f"{source} has the config's tensors but other settings ({differing}): set "
            f"{flags}"
        )


def _model_settings(actual, expected, custom: bool) -> dict[str, Any]:
    """Return the fields to set in `config.model` so that it describes `actual`."""
    sizes = model_config.SIZES
    actual_sizes, expected_sizes = (
        {n: getattr(m, n) for n in sizes} for m in (actual, expected)
    )
    settings: dict[str, Any] = {}
    if actual_sizes != expected_sizes:
        names = [
            arch
            for arch, size in model_config.ARCHS.items()
            if size == tuple(actual_sizes.values())
        ]
        if custom:
            settings = {
                n: actual_sizes[n]
                for n in sizes
                if actual_sizes[n] != expected_sizes[n]
            }
        else:
            settings = (
                {"arch": names[0]} if names else {"arch": "custom"} | actual_sizes
            )
    for name in model_config.RULES:
        value, other = getattr(actual, name), getattr(expected, name)
        if name == "layerscale":  # only its presence is known
            value, other = bool(value), bool(other)
        if value != other and name not in (*sizes, "image_size"):
            settings[name] = getattr(actual, name)
    return settings


def _check_heads(
    params: Mapping[str, Any], expected: Mapping[str, Any], config
) -> None:
    """Check that the heads are the config's."""
    source = config.init.source
    fresh = "or start with new heads: --config.init.heads=fresh"
    actual_heads = set(params) - {"backbone"}
    expected_heads = set(expected) - {"backbone"}
    if expected_heads - actual_heads:
        fix = ""
        if expected_heads - actual_heads == {"ibot_head"}:
            fix = (
                "it has one head for both losses: set "
                "--config.ibot.separate_head=False, "
            )
        raise errors.UserError(
            f"{source} has no {', no '.join(sorted(expected_heads - actual_heads))}; "
            f"{fix}{fresh}"
        )
    if "ibot_head" in actual_heads - expected_heads and config.ibot.loss_weight:
        raise errors.UserError(
            f"{source} has a separate ibot_head: set --config.ibot.separate_head=True, "
            f"{fresh}"
        )
    objective = config.train.objective
    if "dino_head" in params:
        with_prototypes = "last_layer" in params["dino_head"]
        objective = "prototypes" if with_prototypes else "coding_rate"
    if objective != config.train.objective:
        raise errors.UserError(
            f"the heads of {source} are those of another objective: set "
            f"--config.train.objective={objective}, {fresh}"
        )
    rows, flags = [], []
    for head in sorted(expected_heads):
        actual_shapes, expected_shapes = (
            head_sizes.shapes(params[head]),
            head_sizes.shapes(expected[head]),
        )
        rows += [
            f"  {head}/{name}  expected {expected_shapes.get(name, 'none')}, found "
            f"{actual_shapes.get(name, 'none')}"
            for name in sorted(actual_shapes.keys() | expected_shapes.keys())
            if actual_shapes.get(name) != expected_shapes.get(name)
        ]
        section = head.removesuffix("_head")
        actual_settings, expected_settings = (
            head_sizes.settings(actual_shapes),
            head_sizes.settings(expected_shapes),
        )
        flags += [
            f"--config.{section}.head_{name}={value}"
            for name, value in actual_settings.items()
            if value != expected_settings.get(name)
        ]
    if rows:
        fixes = (
            f"set {' '.join(flags)}, {fresh}" if flags else fresh.removeprefix("or ")
        )
        raise errors.UserError(
            f"the heads of {source} do not match the config: {fixes}\n"
            + "\n".join(rows)
        )

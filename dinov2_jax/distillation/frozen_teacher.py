"""A frozen teacher of any size, read from the source that `config.distill` names.

Its sizes come from its file: the student's heads get as many prototypes, and the
teacher sees the student's crops at a size that gives both the same grid of patches.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dinov2_jax import errors, sharding, train_state
from dinov2_jax.augment import crop_sizes, policies
from dinov2_jax.config import config_file
from dinov2_jax.data import batch_spec
from dinov2_jax.models import (
    dino_head,
    model_config,
    network,
    pos_embed,
    vision_transformer,
)
from dinov2_jax.objectives import teacher_view
from dinov2_jax.weights import head_sizes, initial, reading, tree_digest

_HEADS = ("dino_head", "ibot_head")


@dataclasses.dataclass(frozen=True)
class FrozenTeacher:
    """A teacher whose parameters never change.

    Attributes:
      model: Architecture of its backbone, with the grid at which it is used; with
        `crops.sizes`, that of its file.
      params: {"backbone"[, "dino_head"[, "ibot_head"]]} of float32 NumPy arrays; shapes
        if it is only planned for.
      description: Line for the console that names its source.
      digest: Hash of its weights; "" if it is only planned for.
    """

    model: model_config.ModelConfig
    params: dict[str, Any]
    description: str
    digest: str = ""

    def identity(self, config: Any) -> dict[str, str]:
        """Return its source and digest, which tell it from other teachers."""
        return {"source": config.distill.source, "digest": self.digest}

    def make_network(self, config: Any, dtype: Any) -> network.Network:
        """Return its network, run as `config.model` says, with matmuls in `dtype`."""
        backbone = vision_transformer.VisionTransformer(
            self.model,
            dtype=dtype,
            block=config.model.block,
            attention=config.model.attention,
            scan_unroll=config.model.scan_unroll,
        )
        heads = {
            name: _head(
                head_sizes.settings(head_sizes.shapes(self.params[name])), dtype
            )
            for name in _HEADS
            if name in self.params
        }
        return network.Network(
            backbone=backbone,
            mean=tuple(config.data.mean) or policies.IMAGENET_MEAN,
            std=tuple(config.data.std) or policies.IMAGENET_STD,
            **heads,
        )

    def view(self, config: Any) -> teacher_view.TeacherView | None:
        """Return the sizes at which it sees the student's crops; None: theirs."""
        largest = crop_sizes.make_crop_sizes(config).largest
        grid, _ = batch_spec.patch_grid(config, largest)
        size = seen_size(config, self.model)
        if size == largest.global_size and size // self.model.patch_size == grid:
            return None
        if config.crops.sizes:
            raise errors.UserError(
                "crops.sizes needs a teacher that sees the student's crops as they "
                f"are, but this one sees {size} px in patches of "
                f"{self.model.patch_size} px: set --config.crops.sizes=()"
            )
        return teacher_view.TeacherView(size, grid)

    def warnings(self, num_params: int) -> list[str]:
        """Return doubts about the teacher, given the size of the largest student."""
        count = _count(self.params)
        if num_params <= count:
            return []
        return [
            f"warning: the student has {num_params:,} parameters, the teacher "
            f"{count:,}: there is little to learn from a smaller model"
        ]

    def abstract(self, mesh: Mesh, dtype: Any) -> network.Params:
        """Return shapes, dtypes and shardings of the parameters on the devices."""

        def leaf(path, x, sharding):
            return jax.ShapeDtypeStruct(x.shape, _dtype(path, dtype), sharding=sharding)

        shardings = sharding.state_shardings(self.params, mesh)
        return jax.tree_util.tree_map_with_path(leaf, self.params, shardings)

    def place(self, mesh: Mesh, dtype: Any) -> network.Params:
        """Copy the parameters to the devices, each only its shard, in `dtype`."""
        return jax.tree.map(
            lambda x, spec: train_state.place(x.astype(spec.dtype), spec),
            self.params,
            self.abstract(mesh, dtype),
        )


def _dtype(path: Any, dtype: Any) -> Any:
    """Return the dtype of a parameter: that of the matmuls for kernels alone."""
    return jnp.dtype(dtype if path[-1].key == "kernel" else jnp.float32)


def _head(settings: dict[str, int], dtype: Any) -> dino_head.DINOHead:
    return dino_head.DINOHead(
        num_prototypes=settings["n_prototypes"],
        # A single layer has no hidden one.
        hidden_dim=settings.get("hidden_dim", settings["bottleneck_dim"]),
        bottleneck_dim=settings["bottleneck_dim"],
        num_layers=settings["nlayers"],
        dtype=dtype,
    )


def read(config: Any) -> FrozenTeacher | None:
    """Read the teacher that `config.distill` names; return None without one.

    Every process reads the whole file; nothing is put on an accelerator.

    Raises:
      UserError: The source is missing, unreadable or no teacher for these students.
    """
    distill = config.distill
    if not distill.source:
        return None
    if distill.source == config.init.source:
        raise errors.UserError(
            f"distill.source and init.source are both {distill.source}: the student "
            "would start as its own teacher; choose another teacher or leave "
            "init.source empty"
        )
    if _is_config(distill.source):
        raise errors.UserError(
            f"distill.source = {distill.source!r} is a config without weights, which "
            "serves planning alone: name a run, a file of weights or a released model"
        )
    needs_heads = distill.objective == "prototypes"
    with initial.on_host():
        try:
            weights = reading.read(
                distill.source, which=distill.which or None, heads=needs_heads
            )
        except errors.UserError as error:
            headless = isinstance(error, reading.MissingHeads)
            fix = _other_ways(distill.source) if headless else ""
            text = initial.without_flags(error, config)
            raise errors.UserError(f"distill.source: {text}{fix}") from error
        if needs_heads:
            _check_prototypes(weights.params, distill.source)
        _check_images(config, weights)
        model = weights.module.config
        params = {k: weights.params[k] for k in weights.params}
        size = seen_size(config, model)
        if not config.crops.sizes:  # else the model does it for each size
            grid = size // model.patch_size
            params["backbone"] = params["backbone"] | {
                "pos_embed": pos_embed.interpolate_pos_embed(
                    params["backbone"]["pos_embed"],
                    grid,
                    grid,
                    offset=model.interpolate_offset,
                    antialias=model.interpolate_antialias,
                )
            }
            model = model.replace(image_size=size)
        params = jax.tree.map(np.asarray, params)
    which = f" ({weights.which})" if weights.which else ""
    digest = tree_digest.digest(params)
    described = (
        f"teacher: {distill.source}{which}, width {model.embed_dim}, {model.depth} "
        f"blocks, {_count(params['backbone']) / 1e6:.1f} M parameters, crops of {size} "
        f"px, digest {digest}"
    )
    return FrozenTeacher(model, params, described, digest)


def describe(config: Any) -> FrozenTeacher | None:
    """Return the teacher for planning, which may be a config without weights."""
    source = config.distill.source
    if not source or not _is_config(source):
        return read(config)
    teacher = config_file.read(source, [])
    made = network.make_network(teacher, jnp.float32)
    params = jax.eval_shape(made.init, jax.random.key(0))
    if config.distill.objective == "features":
        params = {"backbone": params["backbone"]}
    else:
        _check_prototypes(params, source)
    model = made.backbone.config
    size = seen_size(config, model)
    grid = size // model.patch_size
    params["backbone"] = params["backbone"] | {
        "pos_embed": jax.ShapeDtypeStruct((1, 1 + grid**2, model.embed_dim), "float32")
    }
    return FrozenTeacher(model.replace(image_size=size), params, f"teacher: {source}")


def _check_prototypes(params: Any, source: str) -> None:
    if "last_layer" not in params.get("dino_head", {}):
        raise errors.UserError(
            f"distill.source: {source} has no heads with prototypes"
            f"{_other_ways(source)}"
        )


def _other_ways(source: str) -> str:
    return (
        ": distil its features (--config.distill.objective=features), or first train "
        f"heads for it, in a run with --config.init.source={source} and "
        "init.heads_only_steps = train.steps, and name that run"
    )


def _is_config(source: str) -> bool:
    return source.endswith(".py")


def seen_size(config: Any, model: model_config.ModelConfig) -> int:
    """Return the side in px of the global crops as the teacher sees them.

    Raises:
      UserError: `distill.teacher_size` is no multiple of the teacher's patch size.
    """
    size = config.distill.teacher_size
    if not size:
        largest = crop_sizes.make_crop_sizes(config).largest
        grid, _ = batch_spec.patch_grid(config, largest)
        return grid * model.patch_size
    if size % model.patch_size:
        lower = size // model.patch_size * model.patch_size
        raise errors.UserError(
            f"distill.teacher_size = {size} is not a multiple of the teacher's patch "
            f"size {model.patch_size}: use {lower or model.patch_size}"
        )
    return size


def resolve(config: Any, teacher: FrozenTeacher | None) -> Any:
    """Return the config whose heads fit the teacher's prototypes.

    Args:
      config: A checked config.
      teacher: Its teacher; None or one without heads leaves the config as it is.
    """
    if teacher is None or "dino_head" not in teacher.params:
        return config
    config = config.copy_and_resolve_references()
    found = {
        name: head_sizes.settings(head_sizes.shapes(teacher.params[name]))
        for name in _HEADS
        if name in teacher.params
    }
    config.dino.head_n_prototypes = found["dino_head"]["n_prototypes"]
    config.ibot.separate_head = "ibot_head" in found
    if "ibot_head" in found:
        config.ibot.head_n_prototypes = found["ibot_head"]["n_prototypes"]
    return config


def _check_images(config: Any, weights: reading.Weights) -> None:
    """Check that teacher and student take the same images."""
    chans = weights.module.config.in_chans
    if chans != config.model.in_chans:
        raise errors.UserError(
            f"distill.source {config.distill.source} takes {chans} channels, but "
            f"model.in_chans = {config.model.in_chans}: they must agree"
        )
    differing = initial.check_images(
        config, weights, f"distill.source {config.distill.source}"
    )
    if differing:
        raise errors.UserError(
            f"the teacher sees the student's images{differing}: set --config.data.mean "
            "and --config.data.std to those of the teacher"
        )


def _count(tree: Any) -> int:
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))

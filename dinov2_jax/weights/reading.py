"""Reader of any file or folder of DINOv2 weights."""

import dataclasses
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax import errors
from dinov2_jax.data import preprocessing
from dinov2_jax.models import model_config, pos_embed, vision_transformer
from dinov2_jax.weights import (
    architecture,
    checkpoint_tree,
    hub_repository,
    huggingface,
    json_fields,
    lazy_tensor,
    naming,
    native,
    official,
    report,
    state_dict,
    tensor_file,
)


class OtherHeads(errors.UserError):
    """A source has another number of attention heads, `found`, than was given."""

    def __init__(self, source: Any, found: int, *, given: int):
        super().__init__(f"num_heads={given}, but {source} has {found}: leave it out")
        self.source, self.found = source, found


class MissingHeads(errors.UserError):
    """An error for weights of a backbone alone, where heads are asked for."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """A backbone with its parameters, and its heads if they were read.

    Attributes:
      module: The backbone, in float32.
      params: {"backbone": tree} and, if requested and present, "dino_head" and
        "ibot_head"; float32 `jax.Array`s.
      preprocessing: Preprocessing that the model expects.
      which: "teacher" or "student"; None if unknown.
    """

    module: vision_transformer.VisionTransformer
    params: dict[str, Any]
    preprocessing: preprocessing.Preprocessing
    which: str | None = None


def read(
    source: str | os.PathLike,
    *,
    which: str | None = None,
    heads: bool = False,
    num_heads: int | None = None,
    image_size: int | None = None,
    ignore: Sequence[str] = (),
    prefix: str = "",
    key: str = "",
) -> Weights:
    """Read weights strictly: every tensor is used, and none is missing.

    Args:
      source: A `.pth` file of the reference (backbone or training checkpoint), a
        `.safetensors` file, a folder of Hugging Face or timm, a workdir, checkpoint or
        orbax export of this project, the name of a released backbone, or a repository
        of the Hugging Face hub, hf:ORG/NAME[@REVISION].
      which: "teacher" or "student" if the source holds both; None reads the teacher.
        "ema" is the moving average in a file of timm.
      heads: Whether to read the projection heads too.
      num_heads: Number of attention heads, if the source does not determine it.
      image_size: Side in px of the square to which position embeddings are resampled,
        and to which images are prepared; None keeps both sizes.
      ignore: Prefixes of tensor names to leave out.
      prefix: Prefix of the backbone's names in a file of another project, such as
        "model.backbone."; other tensors are left out.
      key: Entry of such a file that holds the weights, such as "net".

    Raises:
      UserError: The source is missing, unreadable or not exactly one backbone; the
        message has a table of expected and found tensors, and the likely cause.
      ValueError: `ignore` is a string.
    """
    if isinstance(ignore, str):
        raise ValueError(
            f"ignore={ignore!r} is one string: pass a tuple, ({ignore!r},)"
        )
    if which not in (None, *checkpoint_tree.WHICH, checkpoint_tree.EMA):
        raise errors.UserError(f"which={which!r}: use 'teacher' or 'student', or 'ema'")
    num_heads = _whole("num_heads", num_heads)
    image_size = _whole("image_size", image_size)
    with jax.ensure_compile_time_eval():  # arrays, also inside a caller's jax.jit
        return _read(source, which, heads, num_heads, image_size, ignore, prefix, key)


def _whole(name: str, value: Any) -> int | None:
    """Return a whole number above 0, or None."""
    if value is None:
        return None
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        if value > 0:
            return int(value)
    raise errors.UserError(f"{name}={value!r}: pass a whole number above 0, or None")


def _read(source, which, heads, num_heads, image_size, ignore, prefix, key) -> Weights:
    path = pathlib.Path(os.path.expanduser(source))
    expected = None
    if hub_repository.is_address(source):
        path = hub_repository.find(source, heads=heads)
    elif not path.exists():
        path, expected = _by_name(source)
    if path.is_dir() and native.is_own(path):
        if prefix or key or ignore or which == checkpoint_tree.EMA:
            raise errors.UserError(
                f"{source} is a folder of this project: leave out ignore, prefix, key "
                f"and which={checkpoint_tree.EMA!r}, which are for other projects"
            )
        weights = Weights(*native.read(path, which))
    else:
        place = dict(which=which, prefix=prefix, key=key)
        weights = _read_tensors(path, place, heads, num_heads, ignore, expected)
    module, params = weights.module, weights.params
    if num_heads and num_heads != module.config.num_heads:
        raise OtherHeads(source, module.config.num_heads, given=num_heads)
    if not heads:
        params = {"backbone": params["backbone"]}
    elif len(params) == 1:
        raise MissingHeads(f"{source} has no projection heads, only a backbone")
    prepare = weights.preprocessing
    if image_size is not None:
        if image_size != module.config.image_size:
            module, params = _resampled(module, params, image_size)
        prepare = prepare.with_crop(image_size)
    return dataclasses.replace(
        weights, module=module, params=params, preprocessing=prepare
    )


def _by_name(source) -> tuple[pathlib.Path, model_config.ModelConfig]:
    name = os.fspath(source)
    if name not in official.NAMES and ("/" in name or "." in name):
        hint = ""
        if name.startswith("facebook/dinov2"):
            hint = f": {hub_repository.PREFIX}{name} is the one on the Hugging Face hub"
        raise errors.UserError(f"there is no file or folder {name}{hint}")
    return official.find(name), official.config(name)


def _read_tensors(path, place, heads, num_heads, ignore, expected):
    """Read another project's file: convert names, check shapes, then read values."""
    name = str(path)
    settings: dict[str, Any] = {}
    described: dict[str, Any] = {}
    described_at = report.path_of(path)
    prepare = None
    claimed = expected and (expected, path.name)
    if path.is_dir():
        folder = huggingface.read(path)
        tree, settings, prepare = folder.tensors, folder.settings, folder.preprocessing
    else:
        tree = tensor_file.read(path)
        described = report.read(path, described_at)
        settings = report.settings(described, described_at, model_config.NOT_IN_TENSORS)
    told = num_heads and "num_heads" not in settings
    if told:
        settings["num_heads"] = num_heads
    found, owner = checkpoint_tree.submodules(
        _without(tree, ignore), source=name, **place
    )
    if "backbone" not in found:
        raise errors.UserError(f"{name} has no backbone, only {', '.join(found)}")
    backbone = found["backbone"]
    if naming.detect(backbone) == naming.TIMM:
        logging.warning("%s: no mask token, as in all timm files: using zeros", name)
    try:
        backbone = _without(naming.to_hub(backbone), ignore)  # as errors name them
        shapes = {key: tensor.shape for key, tensor in backbone.items()}
        config = architecture.infer_backbone(shapes, name, settings)
        if path.is_dir() and folder.claims:
            claimed = (config.replace(**folder.claims), "its config.json")
        config, model = claimed or (config, "")
        architecture.check_backbone(shapes, config, name, model)
    except (IndexError, ValueError) as error:  # a scalar where a matrix should be, ...
        raise errors.UserError(
            f"{name} has DINOv2's tensor names, but unexpected dimensions ({error})"
        ) from error
    released = architecture.released_heads(config)
    if told and released not in (None, num_heads):
        logging.warning(
            "%s has the size of a released model, which has %d heads: it is read with "
            "num_heads=%d, which gives other features",
            *(name, released, num_heads),
        )
    _check_floats({k: t for part in found.values() for k, t in part.items()}, name)
    found["backbone"] = backbone
    if not heads:
        found = {"backbone": backbone}
    for head in found.keys() - {"backbone"}:
        shapes = {key: tensor.shape for key, tensor in found[head].items()}
        architecture.check_head(shapes, name, head, config.embed_dim)
    params = {part: _stream(tensors, name) for part, tensors in found.items()}
    if prepare:
        json_fields.check_preprocessing(
            prepare, folder.preprocessing_file, config.patch_size, config.in_chans
        )
    elif "preprocessing" in described:  # older reports have none
        prepare = json_fields.read_preprocessing(
            described, described_at, config.patch_size, config.in_chans
        )
    prepare = prepare or preprocessing.for_patches(config.patch_size)
    module = vision_transformer.VisionTransformer(config)
    return Weights(module, params, prepare, owner)


def _check_floats(tensors: Mapping[str, lazy_tensor.LazyTensor], source: str) -> None:
    for key, tensor in tensors.items():
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise errors.UserError(
                f"{source}: {key} has dtype {tensor.dtype}, which is not floating "
                "point: quantised weights are not supported, take the model before "
                "quantisation"
            )


def _without(tree: Any, ignore: Sequence[str]) -> Any:
    """Return the tree without the names that begin with one of `ignore`."""
    if not isinstance(tree, Mapping):
        return tree
    ignore = tuple(ignore)
    return {
        key: _without(value, ignore)
        for key, value in tree.items()
        if not (ignore and isinstance(key, str) and key.startswith(ignore))
    }


def _stream(
    tensors: Mapping[str, lazy_tensor.LazyTensor], source: str
) -> dict[str, Any]:
    """Return the parameters, read one tensor at a time."""

    def place(array: np.ndarray) -> jax.Array:
        array = array.astype(np.float32, copy=False)
        if not np.isfinite(np.sum(array, dtype=np.float64)):
            raise errors.UserError(
                f"{source} contains non-finite values: use an earlier checkpoint"
            )
        return jax.device_put(array)

    return state_dict.params_from_state_dict(tensors, place=place)


def _resampled(module, params, image_size: int):
    """Return module and parameters with position embeddings for another square."""
    config = module.config
    patch = config.patch_size
    if image_size < patch or image_size % patch:
        patches = max(image_size // patch, 1)
        raise errors.UserError(
            f"image_size={image_size} is not a multiple of the patch size {patch}: use "
            f"{patches}*{patch} = {patches * patch}"
        )
    side = image_size // patch
    logging.info(
        "position embeddings resampled from %d to %d px", config.image_size, image_size
    )
    resample = jax.jit(
        lambda x: pos_embed.interpolate_pos_embed(
            x,
            side,
            side,
            offset=config.interpolate_offset,
            antialias=config.interpolate_antialias,
        )
    )
    backbone = params["backbone"]
    backbone = backbone | {"pos_embed": resample(backbone["pos_embed"])}
    module = module.clone(config=config.replace(image_size=image_size))
    return module, params | {"backbone": backbone}

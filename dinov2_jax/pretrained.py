"""Trained models ready for use: `dinov2_jax.load(source)`."""

import dataclasses
import functools
import logging
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinov2_jax import errors, model_inputs
from dinov2_jax.data import image_inputs, preprocessing
from dinov2_jax.models import model_config, vision_transformer
from dinov2_jax.weights import reading

DTYPES = ("float32", "bfloat16")


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "heads"],
    meta_fields=["module", "preprocessing", "which"],
)
@dataclasses.dataclass(frozen=True, repr=False)
class Model:
    """A backbone with its weights and the preparation of its images.

    It is a pytree whose leaves are the parameters. After fine-tuning,
    `dataclasses.replace(model, params=params)` is the model to save.

    Attributes:
      module: The `VisionTransformer`. Inside other jitted code, use
        `module.apply({"params": params}, images)` in place of a call of the model.
      params: The parameters of `module`, float32.
      heads: Parameters of the projection heads by name, if they were loaded.
      preprocessing: Preparation of images: sizes, mean and standard deviation.
      which: "teacher" or "student", if the source says whose weights they are.
    """

    module: vision_transformer.VisionTransformer
    params: Any
    heads: dict[str, Any]
    preprocessing: preprocessing.Preprocessing
    which: str | None = None

    @property
    def config(self) -> model_config.ModelConfig:
        """The architecture: `embed_dim`, `depth`, `num_heads`, ..."""
        return self.module.config

    @property
    def num_params(self) -> int:
        """The number of parameters of the backbone."""
        return sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(self.params))

    def __repr__(self) -> str:
        m = self.config
        heads = f", with {' and '.join(sorted(self.heads))}" if self.heads else ""
        registers = f", {m.num_register_tokens} registers" * bool(m.num_register_tokens)
        return (
            f"Model({m.embed_dim} wide, {m.depth} blocks, {m.num_heads} heads, "
            f"patches of {m.patch_size} px{registers}, {self.num_params / 1e6:.1f} M "
            f"parameters, {jnp.dtype(self.module.dtype).name}{heads})"
        )

    def preprocess(
        self, images: Any, *, size: int | None = None, fit: str = "crop"
    ) -> np.ndarray:
        """Prepare images of any kind for a call of the model.

        Args:
          images: An image or a sequence of images, each a path, the bytes of a file, an
            open file, a Pillow image, or an array of NumPy, jax or torch, uint8 or
            floats in [0, 1], [H, W, 3].
          size: Side S of the result in px; None takes the model's own: that of a run's
            evaluations, mostly 224.
          fit: "crop" resizes the short side, mostly to 8/7 of S, as the model's own
            preparation says, and cuts out the central square. The others keep the whole
            photograph and resize its longer side to S: "pad" pads it to a square with
            zeros (the mean); "resize" resizes the other side too, to the whole number
            of patches nearest to the aspect ratio.

        Returns:
          Normalised images, float32 [B, S, S, C], or [B, H, W, C] with "resize"; B = 1
          for a single image.

        Raises:
          BadImage: A file is not a readable image.
          ValueError: There are no images, one has another type, results of several
            shapes cannot be one batch, S is no multiple of the patch size, or the model
            does not take three channels.
        """
        chans = self.module.config.in_chans
        if chans != 3:
            raise ValueError(
                f"the model takes {chans} channels: prepare its images yourself, "
                "preprocess knows only RGB"
            )
        if fit not in model_inputs.FITS[1:]:
            raise ValueError(
                f"fit={fit!r}: use one of {', '.join(model_inputs.FITS[1:])}"
            )
        prepare, patch_size = self.preprocessing, self.config.patch_size
        if size is not None:
            prepare = prepare.with_crop(
                model_inputs.side(size, self.module.config.patch_size)
            )

        def prepared(image):
            pixels = image_inputs.to_pixels(image)
            if fit == "crop":
                return prepare(pixels)
            size = prepare.crop_size
            pixels = preprocessing.resize_whole(
                pixels, size, patch_size if fit == "resize" else 1
            )
            pixels = prepare.normalize(pixels)
            return pixels if fit == "resize" else preprocessing.pad_to_square(pixels)

        one = image_inputs.is_single(images)
        batch = [prepared(image) for image in ([images] if one else images)]
        if not batch:
            raise ValueError("there are no images: pass at least one")
        shapes = {x.shape[:2]: None for x in batch}
        if len(shapes) > 1:
            first, second = (f"{h}x{w}" for h, w in list(shapes)[:2])
            raise ValueError(
                f"images become {first} and {second} px, which is no batch: pass them "
                "one at a time, or fit='pad' or fit='crop'"
            )
        return np.stack(batch)

    def save(
        self,
        path: str | os.PathLike,
        *,
        to: str,
        size: tuple[int, int] | None = None,
        heads: bool = True,
        verify: bool = True,
        overwrite: bool = False,
    ) -> dict[str, Any]:
        """Write the weights in any format, and run the result as its readers do.

        Args:
          path: File or folder to write; "~" is the home folder.
          to: Format, one of `convert.formats.FORMATS`: "torch-hub", "huggingface",
            "timm", "safetensors", "onnx", "stablehlo" or "orbax".
          size: (height, width) px of the images that "onnx" and "stablehlo" are made
            for; None is the model's own. Other formats take any size.
          heads: Whether to write the projection heads too, if the model has them.
          verify: Whether to load the result with the format's own packages and compare
            features. Where they are not installed, the report says "skipped".
          overwrite: Whether to replace an earlier export at this path.

        Returns:
          The report that is also written beside the file or into the folder: target,
          sizes, SHA-256 and relative errors of the features.

        Raises:
          UserError: The format cannot hold the model, parameters are not those of its
            architecture or not finite, or the path is taken.
        """
        from dinov2_jax.convert import destination as destination_lib
        from dinov2_jax.convert import export, formats

        path = pathlib.Path(path).expanduser()
        heads = heads and bool(self.heads)
        target = formats.check(to, path, heads=heads, both=False)
        if size is not None:
            size = _pair(size)
        if size and not target.has_fixed_size:
            raise errors.UserError(
                f"size={size!r}: {to} takes images of any size, so leave it out"
            )
        destination = destination_lib.Destination(
            path.absolute(), is_file=bool(target.suffixes), target=to
        )
        destination.check(None, overwrite=overwrite)
        weights = reading.Weights(
            self.module.clone(dtype=jnp.float32),
            export.checked_params(
                {"backbone": self.params} | (self.heads if heads else {}), self.module
            ),
            self.preprocessing,
            self.which,
        )
        report = export.export(
            {self.which: weights},
            destination,
            source="a model in memory",
            size=size,
            heads=heads,
            skip="" if verify else "verify=False",
        )
        if "warning" in report:
            logging.warning("%s", report["warning"])
        return report

    def __call__(
        self,
        images: Any,
        *,
        masks: Any = None,
        layers: Sequence[int] = (),
        attention: Sequence[int] = (),
        attention_queries: Sequence[int] | None = None,
        fit: str = "error",
    ) -> vision_transformer.Features:
        """Compute the features of a batch; compiled once for each shape.

        Args:
          images: Images, float32 [B, H, W, C], normalised as by `preprocess`.
          masks: Patches to replace by the mask token, bool [B, h, w] or [B, h*w], of
            the fitted images; None masks nothing.
          layers: Blocks whose features to return in `.layers[i]`; -1 is the last.
          attention: Blocks whose attention maps to return in `.attention[i]`.
          attention_queries: Tokens whose rows of the maps to compute, [0] for the class
            token; None computes all T, which for large images are gigabytes.
          fit: What to do if H or W is not a multiple of the patch size: "error"; "crop"
            to the multiple below, centred; "pad" to the multiple above with zeros (the
            mean), centred; "resize" to the nearest multiple, bicubic.

        Returns:
          `Features` with leading axis B; the grid h x w is that of the fitted image.

        Raises:
          ValueError: The images are not a non-empty float [B, H, W, C] with the model's
            channels, are not normalised, or their size does not fit; masks are not one
            bool for each patch; or blocks or tokens are no list of whole numbers, or
            there are none of these.
        """
        layers, attention = (
            model_inputs.indices("layers", layers),
            model_inputs.indices("attention", attention),
        )
        if attention_queries is not None:
            attention_queries = model_inputs.indices(
                "attention_queries", attention_queries
            )
        model_inputs.check_normalised(images)
        images = jnp.asarray(images)
        chans = self.module.config.in_chans
        if images.ndim != 4 or images.shape[-1] != chans:
            raise ValueError(
                f"images are {list(images.shape)}: expected [B, H, W, {chans}]"
            )
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(
                f"images are {images.dtype}: expected normalised floats, as "
                "model.preprocess gives"
            )
        if not images.size:
            raise ValueError(
                f"images are {list(images.shape)}: expected at least one, of at least "
                f"one patch of {self.module.config.patch_size} px"
            )
        patch_size = self.module.config.patch_size
        images = model_inputs.fit_to_patches(images, patch_size, fit)
        if masks is not None:
            masks = model_inputs.masks(masks, images.shape, patch_size)
        chosen = (layers, attention, attention_queries)
        return _apply(self.module, self.params, images, masks, chosen)


def _pair(size: Any) -> tuple[int, int]:
    """Return a size in px as a tuple of plain ints."""
    try:
        height, width = model_inputs.indices("size", size)
    except ValueError as error:
        raise errors.UserError(
            f"size={size!r}: pass height and width in px, such as (224, 224)"
        ) from error
    return height, width


@functools.partial(jax.jit, static_argnums=(0, 4))
def _apply(module, params, images, masks, chosen):
    names = ("layers", "attention", "attention_queries")
    chosen = dict(zip(names, chosen, strict=True))
    # Otherwise TPUs and GPUs multiply float32 in lower precision.
    exact = jnp.dtype(module.dtype) == jnp.float32
    with jax.default_matmul_precision("highest" if exact else "default"):
        return module.apply({"params": params}, images, masks, **chosen)


def load(
    source: str | os.PathLike,
    *,
    which: str | None = None,
    heads: bool = False,
    num_heads: int | None = None,
    image_size: int | None = None,
    ignore: Sequence[str] = (),
    prefix: str = "",
    key: str = "",
    dtype: Any = "float32",
) -> Model:
    """Load a trained model in any supported format; see `weights.reading.read`.

    Args:
      source: A `.pth` of the reference (backbone or training checkpoint), a
        `.safetensors`, a folder of Hugging Face or timm, a workdir, a checkpoint or an
        orbax export of this project, a name such as "dinov2_vitb14_reg", or a
        repository of the Hugging Face hub, "hf:ORG/NAME" or "hf:ORG/NAME@REVISION".
        "~" is the home folder.
      which: "teacher" or "student", if the source holds both; None takes the teacher.
        "ema" is the moving average in a file of timm.
      heads: Whether to load the projection heads too.
      num_heads: Number of attention heads, if neither width nor folder determines it.
      image_size: Side in px of the square to which the position embeddings are
        resampled, and to which `preprocess` prepares images. Not needed for other
        image sizes: every call interpolates them, and `preprocess` takes a size.
      ignore: Prefixes of tensor names to leave out; all other tensors must fit.
      prefix: What the names of the backbone begin with in a file of another project,
        such as "model.backbone."; other tensors are left out.
      key: Entry of such a file that holds the weights, such as "net".
      dtype: Dtype of the matmuls and of the features, "float32" or "bfloat16"; the
        parameters are float32 in any case.

    Raises:
      UserError: The source is missing, unreadable or not exactly one DINOv2 backbone,
        or an argument is not what it should be.
    """
    try:
        dtype = jnp.dtype(dtype)
        known = dtype.name in DTYPES
    except TypeError:
        known = False
    if not known:
        raise errors.UserError(f"dtype={dtype!r}: use 'float32' or 'bfloat16'")
    weights = reading.read(
        os.path.expanduser(source),
        which=which,
        heads=heads,
        num_heads=num_heads,
        image_size=image_size,
        ignore=ignore,
        prefix=prefix,
        key=key,
    )
    params = dict(weights.params)
    return Model(
        weights.module.clone(dtype=dtype),
        params.pop("backbone"),
        params,
        weights.preprocessing,
        weights.which,
    )

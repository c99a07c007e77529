"""Trained models ready for use: `dinov2_jax.load(source)`."""

import dataclasses
import functools
import operator
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from dinov2_jax.data import preprocessing
from dinov2_jax.data.decode import image_decoder as image_decoder_lib
from dinov2_jax.models import vision_transformer
from dinov2_jax.weights import reading

FITS = ("error", "crop", "pad", "resize")


@dataclasses.dataclass(frozen=True)
class Model:
    """A backbone with its weights and the preparation of its images.

    Attributes:
      module: The `VisionTransformer`. Inside other jitted code, use
        `module.apply({"params": params}, images)` in place of a call of the model.
      params: The parameters of `module`, float32.
      heads: Parameters of the projection heads by name, if they were loaded.
      preprocessing: Preparation of images: sizes, mean and standard deviation.
    """

    module: vision_transformer.VisionTransformer
    params: Any
    heads: dict[str, Any]
    preprocessing: preprocessing.Preprocessing

    def preprocess(self, images: Any) -> np.ndarray:
        """Prepare images of any kind for a call of the model.

        Args:
          images: An image or a sequence of images, each a path, a Pillow image or
            uint8 [H, W, 3].

        Returns:
          Normalised images, float32 [B, S, S, C]; B = 1 for a single image.

        Raises:
          BadImage: A file is not a readable image.
          ValueError: There are no images, an array has another shape or dtype, or the
            model does not take three channels.
        """
        chans = self.module.config.in_chans
        if chans != 3:
            raise ValueError(
                f"the model takes {chans} channels: prepare its images yourself, "
                "preprocess knows only RGB"
            )
        single = isinstance(images, str | os.PathLike | Image.Image) or (
            isinstance(images, np.ndarray) and images.ndim == 3
        )
        prepared = [self._prepare(x) for x in ([images] if single else images)]
        if not prepared:
            raise ValueError("there are no images: pass at least one")
        return np.stack(prepared)

    def _prepare(self, image: Any) -> np.ndarray:
        if isinstance(image, str | os.PathLike):
            image = image_decoder_lib.Decoder().decode(image, name=os.fspath(image))
        elif isinstance(image, Image.Image):
            image = image_decoder_lib.Decoder().from_pillow(image, name="the image")
        array = isinstance(image, np.ndarray)
        if not array or image.dtype != np.uint8 or image.shape[2:] != (3,):
            what = f"{image.dtype} {list(image.shape)}" if array else type(image)
            raise ValueError(
                f"an image is {what}: expected uint8 [H, W, 3], a Pillow image or a "
                "path"
            )
        if not image.size:
            raise ValueError(f"an image is {list(image.shape)}: it has no pixels")
        return self.preprocessing(image)

    def __call__(
        self,
        images: Any,
        *,
        layers: Sequence[int] = (),
        attention: Sequence[int] = (),
        fit: str = "error",
    ) -> vision_transformer.Features:
        """Compute the features of a batch; compiled once for each shape.

        Args:
          images: Images, float32 [B, H, W, C], normalised as by `preprocess`.
          layers: Blocks whose features to return in `.layers[i]`; -1 is the last.
          attention: Blocks whose attention maps to return in `.attention[i]`.
          fit: What to do if H or W is not a multiple of the patch size: "error"; "crop"
            to the multiple below, centred; "pad" to the multiple above with zeros (the
            mean), centred; "resize" to the nearest multiple, bicubic.

        Returns:
          `Features` with leading axis B; the grid h x w is that of the fitted image.

        Raises:
          ValueError: The images are not a non-empty float [B, H, W, C] with the model's
            channels, their size does not fit, or blocks are no list of whole numbers.
        """
        layers, attention = _blocks("layers", layers), _blocks("attention", attention)
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
        images = fit_to_patches(images, self.module.config.patch_size, fit)
        return _apply(self.module, self.params, images, layers, attention)


def _blocks(name: str, indices: Any) -> tuple[int, ...]:
    """Return indices of blocks as a tuple of plain ints."""
    try:
        blocks = tuple(operator.index(i) for i in indices if not isinstance(i, bool))
        if len(blocks) == len(indices):
            return blocks
    except TypeError:  # not whole numbers, or not a sequence
        pass
    raise ValueError(f"{name}={indices!r}: pass a list of whole numbers, such as [-1]")


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _apply(module, params, images, layers, attention):
    return module.apply({"params": params}, images, layers=layers, attention=attention)


def fit_to_patches(images: jax.Array, patch_size: int, fit: str) -> jax.Array:
    """Crop, pad or resize images so that their sides are multiples of the patch size.

    Args:
      images: Images, [B, H, W, C].
      patch_size: Side of a patch, in pixels.
      fit: The method, as in `Model.__call__`.

    Raises:
      ValueError: `fit` is "error" and a side is not a multiple, the image is too small
        to crop, or `fit` is unknown.
    """
    if fit not in FITS:
        raise ValueError(f"fit={fit!r}: use one of {', '.join(FITS)}")
    height, width = images.shape[1:3]
    if height % patch_size == 0 and width % patch_size == 0:
        return images
    below = [max(n // patch_size, 1) * patch_size for n in (height, width)]
    above = [-(-n // patch_size) * patch_size for n in (height, width)]
    nearest = [max(int(n / patch_size + 0.5), 1) * patch_size for n in (height, width)]
    small = min(height, width) < patch_size
    if fit == "error" or (fit == "crop" and small):
        crop = "" if small else f"'crop' ({below[0]}x{below[1]}), "
        raise ValueError(
            f"image of {height}x{width} px is "
            + ("smaller than" if small else "not a multiple of")
            + f" the patch size {patch_size}: use {nearest[0]}x{nearest[1]}, or "
            f"fit={crop}'pad' ({above[0]}x{above[1]}) or 'resize'"
        )
    batch, chans = images.shape[0], images.shape[-1]
    if fit == "resize":
        return jax.image.resize(images, (batch, *nearest, chans), "cubic")
    if fit == "pad":
        pads = [(n - m) // 2 for n, m in zip(above, (height, width))]
        rests = [n - m - p for n, m, p in zip(above, (height, width), pads)]
        return jnp.pad(images, ((0, 0), *zip(pads, rests), (0, 0)))
    top, left = (height - below[0]) // 2, (width - below[1]) // 2
    return images[:, top : top + below[0], left : left + below[1]]


def load(
    source: str | os.PathLike,
    *,
    which: str | None = None,
    heads: bool = False,
    num_heads: int | None = None,
    image_size: int | None = None,
    ignore: Sequence[str] = (),
) -> Model:
    """Load a trained model in any supported format; see `weights.reading.read`.

    Args:
      source: A `.pth` of the reference (backbone or training checkpoint), a
        `.safetensors`, a folder of Hugging Face or timm, a workdir, a checkpoint or an
        orbax export of this project, or a name such as "dinov2_vitb14_reg".
      which: "teacher" or "student", if the source holds both; None takes the teacher.
      heads: Whether to load the projection heads too.
      num_heads: Number of attention heads, if neither width nor folder determines it.
      image_size: Side in px of the square to which the position embeddings are
        resampled. Not needed for other image sizes: every call interpolates them.
      ignore: Prefixes of tensor names to leave out; all other tensors must fit.

    Raises:
      UserError: The source is missing, unreadable or not exactly one DINOv2 backbone.
    """
    weights = reading.read(
        source,
        which=which,
        heads=heads,
        num_heads=num_heads,
        image_size=image_size,
        ignore=ignore,
    )
    params = dict(weights.params)
    return Model(weights.module, params.pop("backbone"), params, weights.preprocessing)
